"""Score-CAM's masked passes by other runtimes, and in int8: the time, and what it costs in correlation.

``python -m benchmarks.scorers`` needs the folder that IMAGENET_SAMPLE names, and the extras [onnx], [openvino] and
[test]. It prints a table and writes it to ``benchmarks/results/scorers.md``.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.imagenet_sample import LAYER, sample
from benchmarks.machine import describe, markdown, write_result
from captum_unioncam import LayerScoreCam, scorers

CALIBRATION = 32
NOTE = """
Masked passes of `LayerScoreCam` on MobileNetV2, last layer, {channels} channels (`max_channels`), for the predicted
class of {photos} photos. Each scorer has one thread; seconds are those of the processor, which do not depend on what
else runs, the median over the photos. The correlation is that with the map of PyTorch in float32, mean (smallest). int8
weights and activations (QDQ, per channel) were calibrated on {calibration} other photos.
"""


def export(model: nn.Module, photos: Tensor, path: Path) -> None:
    """Writes ``.onnx`` of a dynamic number of rows."""
    rows = torch.export.Dim("rows", min=1, max=4096)
    torch.onnx.export(model, (photos[:2],), str(path), dynamic_shapes=({0: rows},), external_data=False, verbose=False)


def quantise(path: Path, photos: Tensor, quantised: Path) -> None:
    """Writes the same in int8, its ranges those of the photos."""
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].name
    batches = [{name: batch.numpy()} for batch in photos.split(8)]

    class Photos(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return batches.pop() if batches else None

    # Folds batch normalisations, whose ranges would be calibrated by themselves.
    prepared = quantised.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(quantised), Photos(), per_channel=True)


def variants(model: nn.Module, calibration: Tensor, folder: Path) -> dict[str, dict[str, Any]]:
    """Each scorer's ``score_func``, or ``score_dtype``."""
    exported, quantised = folder / "float32.onnx", folder / "int8.onnx"
    export(model, calibration, exported)
    quantise(exported, calibration, quantised)
    return {
        "PyTorch, float32": {},
        "PyTorch, bfloat16": {"score_dtype": torch.bfloat16},
        "ONNX Runtime, float32": {"score_func": scorers.onnx(exported, threads=1)},
        "ONNX Runtime, int8": {"score_func": scorers.onnx(quantised, threads=1)},
        "OpenVINO, float32": {"score_func": scorers.openvino(exported, threads=1)},
        "OpenVINO, bfloat16": {"score_func": scorers.openvino(exported, precision="bf16", threads=1)},
        "OpenVINO, int8": {"score_func": scorers.openvino(quantised, threads=1)},
    }


def measured(
    model: nn.Module, photos: Tensor, channels: int, options: dict[str, dict[str, Any]]
) -> dict[str, list[tuple[Tensor, float]]]:
    """Each scorer's map of each photo's predicted class, and the seconds that it took."""
    methods = {name: LayerScoreCam(model, LAYER, score_func=one.get("score_func")) for name, one in options.items()}
    targets = model(photos).argmax(1).tolist()
    found: dict[str, list[tuple[Tensor, float]]] = {name: [] for name in methods}
    # The first call of each compiles, and is not counted.
    for number in (0, *range(len(photos))):
        for name, method in methods.items():
            start = time.process_time()
            attr = method.attribute(
                photos[number : number + 1],
                targets[number],
                max_channels=channels,
                score_dtype=options[name].get("score_dtype"),
            )
            found[name].append((attr, time.process_time() - start))
    return {name: of_photos[1:] for name, of_photos in found.items()}


def correlation(one: Tensor, other: Tensor) -> float:
    """Of two maps."""
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


def row(name: str, of_photos: list[tuple[Tensor, float]], float32: list[tuple[Tensor, float]]) -> dict[str, str]:
    """A scorer's line of the table."""
    seconds = statistics.median(taken for _, taken in of_photos)
    likeness = [correlation(attr, other) for (attr, _), (other, _) in zip(of_photos, float32, strict=True)]
    times = statistics.median(taken for _, taken in float32) / seconds
    return {
        "scorer": name,
        "s a photo": f"{seconds:.3g}",
        "times faster": f"{times:.1f}",
        "correlation": f"{statistics.mean(likeness):.4f} ({min(likeness):.4f})",
    }


@torch.no_grad()
def run(
    photos: Annotated[int, typer.Option(min=1, help="How many photos.")] = 4,
    channels: Annotated[int, typer.Option(min=1, help="How many passes a photo has.")] = 128,
) -> None:
    """Measures each scorer."""
    if sample() is None:
        sys.exit("IMAGENET_SAMPLE: is not set; name the folder of photos and the network.")
    torch.set_num_threads(1)
    model, images = sample().load_model(), sample().load_samples(60)[0]
    with TemporaryDirectory() as folder:
        options = variants(model, images[photos : photos + CALIBRATION], Path(folder))
        found = measured(model, images[:photos], channels, options)
    float32 = next(iter(found.values()))
    table = markdown([row(name, of_photos, float32) for name, of_photos in found.items()])
    note = NOTE.format(channels=channels, photos=photos, calibration=CALIBRATION)
    command = " ".join(["python -m benchmarks.scorers", *sys.argv[1:]])
    text = f"# Scorers\n\n`{command}`\n\n{describe(torch.device('cpu'))}.\n\n{table}\n{note}"
    print(text)
    print(write_result("scorers.md", text))


if __name__ == "__main__":
    typer.run(run)
