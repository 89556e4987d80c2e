"""Models of ONNX Runtime and of OpenVINO as ``score_func``: masked passes need no gradients."""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["onnx", "openvino"]

Scorer = Callable[[Tensor], Tensor | dict[str, Tensor]]


def onnx(path: str | Path, threads: int = 0) -> Scorer:
    """A model of a ``.onnx`` file, run by ONNX Runtime on the CPU (extra [onnx]).

    Args:
        path (str or Path): The file: a model of one input, (N, C, H, W), exported with a dynamic first dimension, or
            with ``internal_batch_size`` rows. Quantised ones too, with ranges that were calibrated beforehand: those of
            dynamic quantisation depend on all rows of a pass.
        threads (int): How many to compute with. Default: 0, all cores

    Returns:
        *Callable*: Inputs to the output, on the inputs' device; to a dict by their names where there are several.

    Raises:
        ImportError: onnxruntime is not installed.

    Examples::

        >>> any_count = ({0: torch.export.Dim("n")},)
        >>> torch.onnx.export(model, (images,), "model.onnx", dynamic_shapes=any_count)
        >>> score_cam = LayerScoreCam(model, layer, score_func=scorers.onnx("model.onnx"))
        >>> attr = score_cam.attribute(images, target=3)
    """
    onnxruntime = _package("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _on_cpu(lambda array: session.run(None, {name: array}), [one.name for one in session.get_outputs()])


def openvino(path: str | Path, device: str = "CPU", precision: str = "f32", threads: int = 0) -> Scorer:
    """A model of an ``.xml`` or ``.onnx`` file, run by OpenVINO (extra [openvino]).

    Args:
        path (str or Path): The file, as ``onnx`` takes it.
        device (str): As OpenVINO calls it. Default: "CPU"
        precision (str): In which to compute what is not quantised: "f32", "bf16" or "f16". Default: "f32"
        threads (int): How many to compute with. Default: 0, all cores

    Returns:
        *Callable*: Inputs to the output, on the inputs' device; to a dict by their names where there are several.

    Raises:
        ImportError: openvino is not installed.

    Examples::

        >>> any_count = ({0: torch.export.Dim("n")},)
        >>> torch.onnx.export(model, (images,), "model.onnx", dynamic_shapes=any_count)
        >>> score_func = scorers.openvino("model.onnx")
        >>> score_cam = LayerScoreCam(model, layer, score_func=score_func)
        >>> attr = score_cam.attribute(images, target=3)
    """
    runtime = _package("openvino", "openvino")
    # Its default is 16 bits where the processor has such arithmetic.
    settings = {"INFERENCE_PRECISION_HINT": precision, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    compiled = runtime.Core().compile_model(str(path), device, settings)
    return _on_cpu(lambda array: compiled(array).values(), [one.any_name for one in compiled.outputs])


def _package(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is missing; install it with: pip install 'captum-unioncam[{extra}]'"
        ) from error


def _on_cpu(run: Callable[[Any], Iterable[Any]], names: list[str]) -> Scorer:
    def score(inputs: Tensor) -> Tensor | dict[str, Tensor]:
        made = run(inputs.detach().float().contiguous().cpu().numpy())
        # Scores of integers are fractions.
        dtype = inputs.dtype if inputs.is_floating_point() else torch.float32
        # Copies: the next pass may write into the runtime's own memory.
        outputs = [torch.from_numpy(array.copy()).to(inputs.device, dtype) for array in made]
        return outputs[0] if len(outputs) == 1 else dict(zip(names, outputs, strict=True))

    return score
