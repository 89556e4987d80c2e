"""Model outputs to class confidences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

ConfidenceFunction = Callable[[Tensor], Tensor]

# Nodes of the graph that leave values as they are.
_MOVES = (
    *("ToCopy", "View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Select", "Permute", "Transpose"),
    *("TBackward", "Clone", "Expand", "Alias", "Cat", "Stack", "Index"),
)
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


def refuse_confidences(output: Tensor, inputs: tuple[Tensor, ...], run: Callable[..., Tensor]) -> None:
    """Raises ``ValueError`` for outputs of several classes that are confidences already: a softmax would go unnoticed.

    Logits may lie in [0, 1] by chance: those of a sigmoid come from one, as the graph of gradients has it. Where there
    is no graph, inputs a thousand times as large and of either sign have to drive them to 0 and 1.

    Args:
        output (Tensor): (N, C, ...).
        inputs (tuple[Tensor, ...]): Of which it is the output.
        run (Callable): Such inputs to their output.
    """
    if output.dim() < 2 or output.shape[1] < 2 or not _within_one(output):
        return
    sums = _are_probabilities(output)
    if sums or _ends_in_sigmoid(inputs, run):
        seen = "are not negative and sum to 1" if sums else "come from a sigmoid"
        raise ValueError(
            f"confidence_fn: got none, and the model's outputs {seen}: they are confidences already, of which the "
            "default would take the softmax; give confidence_fn=lambda output: output to take them as they are."
        )


class DefaultConfidence:
    """Confidences where no ``confidence_fn`` is given: what makes them is decided on the first outputs.

    Probabilities, which are not negative and sum to 1, are taken as they are; the outputs of a sigmoid are refused; of
    any others, :func:`class_confidence`.
    """

    def __init__(self) -> None:
        self.function: ConfidenceFunction | None = None

    def decide(self, output: Tensor, inputs: tuple[Tensor, ...], run: Callable[..., Tensor]) -> None:
        """Chooses by the first output; arguments and errors are those of :func:`refuse_confidences`."""
        if self.function is None:
            if not _are_probabilities(output):
                refuse_confidences(output, inputs, run)
            self.function = _as_they_are if _are_probabilities(output) else class_confidence

    def __call__(self, output: Tensor) -> Tensor:
        return (self.function or class_confidence)(output)


def _are_probabilities(output: Tensor) -> bool:
    several = output.dim() >= 2 and output.shape[1] > 1
    return several and _within_one(output) and bool(((output.sum(1) - 1).abs() < 1e-3).all())


def _within_one(output: Tensor) -> bool:
    return bool(((output >= 0) & (output <= 1)).all())


def _ends_in_sigmoid(inputs: tuple[Tensor, ...], run: Callable[..., Tensor]) -> bool:
    try:
        with torch.enable_grad():
            # Copies, since a model may write into its input.
            copies = (x.detach().requires_grad_(x.is_floating_point()).clone() for x in inputs)
            node: Any = run(*copies).grad_fn
        if node is not None and "Compiled" not in node.name():
            while node.name().startswith(_MOVES):
                node = node.next_functions[0][0]
            return "Sigmoid" in node.name()
        return all(_is_driven_to_the_ends(inputs, run, scale) for scale in (1e3, -1e3))
    except Exception:
        # A user's function may refuse such inputs in any way; then nothing is known.
        return False


def _is_driven_to_the_ends(inputs: tuple[Tensor, ...], run: Callable[..., Tensor], scale: float) -> bool:
    # One more than they are, since nothing becomes of a black picture.
    output = run(*(scale * (x + 1) if x.is_floating_point() else x for x in inputs))
    return _within_one(output) and bool(((output - 0.5).abs() > 0.49).all())


def output_tensor(output: Any, rows: int, function: str = "forward_func") -> Tensor:
    """The tensor of which targets are chosen: the output, or one that it holds.

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
            f"{function}: returned {type(output).__name__} ({held}) for {rows} rows; give a function that returns the "
            "tensor to explain, such as lambda x: model(x)[0], or lambda x: model(x).logits."
        )
    tensor = found[0].dequantize() if found[0].is_quantized else found[0]
    if tensor.is_complex():
        raise ValueError(f"{function}: returned complex numbers; give a function of real ones, such as their abs().")
    return tensor if tensor.is_floating_point() else tensor.float()


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
