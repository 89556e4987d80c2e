"""Checks of arguments that several methods share; each error names the argument and what would do."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor


def check_inputs(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, if there is an example among them."""
    if not inputs or inputs[0].dim() == 0 or inputs[0].shape[0] == 0:
        shapes = [tuple(x.shape) for x in inputs]
        raise ValueError(f"inputs: no example in the shapes {shapes}; give at least one.")
    return inputs


def inputs_with_mask(inputs: tuple[Tensor, ...], map_dims: int) -> list[bool]:
    """Which inputs take the mask that a map of so many dimensions makes; ``ValueError`` if none does."""
    masked = [x.dim() == map_dims for x in inputs]
    if not any(masked):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"inputs: none of the shapes {shapes} has the {map_dims - 2} spatial dimensions of the layer's output, "
            "so no mask fits; give an input of shape (N, C, *spatial), another layer, or, for tokens, a "
            "reshape_transform."
        )
    return masked


def check_finite(values: Tensor, what: str) -> None:
    """Raises ``ValueError`` naming the examples (dimension 0) that hold a NaN or an infinity."""
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        examples = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{what}: not finite for the examples {examples}; check their inputs for NaN and the model for overflow "
            "(float16 overflows above 65504: bfloat16 or float32 do not)."
        )


def check_positive(name: str, value: int | None) -> None:
    """Raises ``ValueError`` unless ``value`` is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name}: got {value!r}; give a whole number of at least 1, or None.")
