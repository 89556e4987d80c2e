"""Model outputs to class confidences."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

ConfidenceFunction = Callable[[Tensor], Tensor]
OutputFunction = Callable[[Any], Any]
"""Maps what a model returns to the tensor from which targets select."""

# Nodes of the graph of gradients, by how their names begin: those that leave values as they are, that scale or add, and
# that make logits.
_MOVES = (
    *("ToCopy", "View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Select", "Permute", "Transpose"),
    *("TBackward", "Clone", "Expand", "Alias", "Cat", "Stack", "Index", "Gather", "BackwardHook"),
)
_ARITHMETIC = ("AddBackward", "SubBackward", "RsubBackward", "MulBackward", "DivBackward", "NegBackward")
_LINEAR = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "MkldnnConvolution", "Linear", "MkldnnLinear")
_OUTPUT_NAMES = ("logits", "out")


def class_confidence(output: Tensor) -> Tensor:
    """Softmax over dimension 1 where ``output`` has several classes there, and ``output`` itself otherwise.

    Args:
        output (Tensor): What ``forward_func`` returned: (N, C, ...), (N, 1) or (N,).

    Returns:
        *Tensor* of the shape of ``output``.

    Raises:
        ValueError: The only output is negative, and so no confidence.
    """
    if output.dim() >= 2 and output.shape[1] > 1:
        return output.softmax(1)
    if (output < 0).any():
        raise ValueError(
            f"confidence_fn: got none, and the model's one output goes down to {output.min().item():.4g}, which is no "
            "confidence; give a function that makes it one, such as torch.sigmoid for a model of one logit."
        )
    return output


def confidences_by(confidence_fn: ConfidenceFunction, output: Tensor) -> Tensor:
    """What ``confidence_fn`` makes of an output, if it has the output's shape."""
    made: Any = confidence_fn(output)
    if not isinstance(made, Tensor) or made.shape != output.shape or made.is_complex():
        what = f"the shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"confidence_fn: returned {what} for outputs of shape {tuple(output.shape)}; return a real tensor of the "
            "same shape."
        )
    return made


def default_confidence(output: Tensor, inputs: tuple[Tensor, ...], run: Callable[..., Tensor]) -> ConfidenceFunction:
    """What makes confidences where no ``confidence_fn`` is given; decided on some of a model's outputs.

    Probabilities, which are not negative and sum to 1 over dimension 1, are taken as they are. Other outputs of several
    classes that lie in [0, 1] whatever the input, such as a sigmoid's, are refused: a softmax of them would go
    unnoticed. Logits may lie there by chance: they come from a linear layer, as the graph of gradients has it, or
    inputs a thousand times as large and of either sign drive them out. Of any others, :func:`class_confidence`.

    Args:
        output (Tensor): (N, C, ...), (N, 1) or (N,).
        inputs (tuple[Tensor, ...]): Of which it is the output.
        run (Callable): Such inputs to their output.

    Raises:
        ValueError: The outputs are confidences already, and no probabilities of classes that exclude each other.
    """
    if output.dim() < 2 or output.shape[1] < 2 or not _within_one(output):
        return class_confidence
    if _sums_to_one(output, 1e-3):
        return _as_they_are
    if not _stays_within_one(inputs, run):
        return class_confidence
    # Half precision rounds a softmax.
    if _sums_to_one(output, 2e-2):
        return _as_they_are
    raise ValueError(
        "confidence_fn: got none, and the model's outputs lie in [0, 1], as those of a sigmoid do: they are "
        "confidences already, and the default would take their softmax; give confidence_fn=lambda output: output to "
        "take them as they are."
    )


class DefaultConfidence:
    """Confidences where no ``confidence_fn`` is given: :func:`default_confidence` of the first outputs."""

    def __init__(self) -> None:
        self.function: ConfidenceFunction | None = None

    def decide(self, output: Tensor, inputs: tuple[Tensor, ...], run: Callable[..., Tensor]) -> None:
        """Chooses by the first output; arguments and errors are those of :func:`default_confidence`."""
        if self.function is None:
            self.function = default_confidence(output, inputs, run)

    def __call__(self, output: Tensor) -> Tensor:
        return (self.function or class_confidence)(output)


def _sums_to_one(output: Tensor, tolerance: float) -> bool:
    return bool(((output.sum(1) - 1).abs() < tolerance).all())


def _within_one(output: Tensor) -> bool:
    return bool(((output >= 0) & (output <= 1)).all())


def _stays_within_one(inputs: tuple[Tensor, ...], run: Callable[..., Tensor]) -> bool:
    """Whether outputs that lie in [0, 1] do so whatever the input."""
    try:
        with torch.enable_grad():
            # Copies, since a model may write into its input.
            copies = (x.detach().requires_grad_(x.is_floating_point()).clone() for x in inputs)
            node: Any = run(*copies).grad_fn
        if node is not None and _is_linear(node):
            return False
        if node is not None and _moved(node).name().startswith(("Sigmoid", "Hardsigmoid")):
            return True
        return all(_within_one(run(*(_extreme(x, sign) for x in inputs))) for sign in (1, -1))
    except Exception:
        # A user's function may refuse such inputs in any way; then nothing is known.
        return False


def _is_linear(node: Any) -> bool:
    """Whether the values come from a linear layer, perhaps scaled or added to something."""
    waiting, seen = [node], set()
    while waiting:
        node = _moved(waiting.pop())
        if node.name().startswith(_LINEAR):
            return True
        if node not in seen and node.name().startswith(_ARITHMETIC):
            waiting += [source for source, _ in node.next_functions if source is not None]
        seen.add(node)
    return False


def _moved(node: Any) -> Any:
    """The node whose values are moved."""
    while node.name().startswith(_MOVES):
        node = node.next_functions[0][0]
    return node


def _extreme(x: Tensor, sign: int) -> Tensor:
    if x.is_floating_point():
        # One more than they are, since nothing becomes of a black image.
        return sign * 1e3 * (x + 1)
    return torch.full_like(x, torch.iinfo(x.dtype).max if sign > 0 else 0) if x.dtype != torch.bool else x


def output_tensor(output: Any, rows: int, function: str = "forward_func") -> Tensor:
    """The tensor from which targets select: the output, or one that it holds.

    That is the one named "logits" or "out", or else the only one with so many rows.

    Args:
        output (Any): What a model returned: a tensor, a tuple, a dict, a named tuple, a dataclass.
        rows (int): How many examples it was given.
        function (str): Which argument the model is. Default: "forward_func"

    Raises:
        ValueError: There is no such tensor, or more than one; or it is complex.
    """
    parts = {"": output} if isinstance(output, Tensor) else _parts(output)
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    named = [tensors[name] for name in _OUTPUT_NAMES if name in tensors][:1]
    found = named or [part for name, part in tensors.items() if not name or part.shape[:1] == (rows,)]
    if len(found) != 1:
        held = ", ".join(f"{name}: {tuple(part.shape)}" for name, part in tensors.items()) or "no tensor"
        raise ValueError(
            f"{function}: returned {type(output).__name__} ({held}) for {rows} rows; give output_fn, a function of it "
            "to the tensor to explain, such as lambda output: output[0], or a model that returns the tensor alone."
        )
    tensor = found[0].dequantize() if found[0].is_quantized else found[0].to_dense()
    # Of one example, a sum over all that was computed has no dimension.
    tensor = tensor if tensor.dim() else tensor.reshape(1)
    if tensor.is_complex():
        raise ValueError(f"{function}: returned complex numbers; give a function of real ones, such as their abs().")
    return tensor if tensor.is_floating_point() else tensor.float()


def one_tensor(
    output_fn: OutputFunction | None, _model: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Tensor:
    """A forward hook: a model's output becomes the tensor that is explained."""
    rows = len(next(iter((*args, *kwargs.values()))))
    return output_tensor(output if output_fn is None else output_fn(output), rows, "model")


def _parts(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(name): part for name, part in output.items()}
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, (tuple, list)):
        return {f"[{i}]": part for i, part in enumerate(output)}
    return dict(getattr(output, "__dict__", {}))


def _as_they_are(output: Tensor) -> Tensor:
    return output


CONFIDENCES: dict[str, ConfidenceFunction] = {
    "softmax": class_confidence,
    "sigmoid": torch.sigmoid,
    "none": _as_they_are,
}
"""Outputs to confidences, by name."""
