"""Gradients of several examples' outputs, unaffected by half precision and by what cuDNN cannot differentiate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, RNNBase

from captum_unioncam.engine.maps import broadcast_over

_SCALES = (2.0**15, 2.0**10, 2.0**5, 1.0)
"""Of float16 outputs: what is below its smallest number would be 0. Each example gets the first that does not overflow.
"""


def gradients(selected: Tensor, tensors: Sequence[Tensor], grad_kwargs: dict[str, Any]) -> list[Tensor | None]:
    """The gradients of each example's output at the tensors that came of it; None where it depends on none.

    Args:
        selected (Tensor): (N,) or (N, 1).
        tensors (Sequence[Tensor]): Of which ``selected`` was computed. float16 ones have float32 gradients.
        grad_kwargs (dict): Further arguments of ``torch.autograd.grad``.
    """
    ones = torch.ones_like(selected)
    kwargs = {"grad_outputs": ones, **grad_kwargs, "allow_unused": True}
    if torch.float16 not in {selected.dtype, *(x.dtype for x in tensors)}:
        return list(torch.autograd.grad(selected, tensors, **kwargs))
    kwargs["retain_graph"] = True
    by_row = all(len(x) == len(selected) for x in tensors)
    scales = torch.full((len(selected),), _SCALES[0], device=selected.device)
    for next_scale in (*_SCALES[1:], None):
        kwargs["grad_outputs"] = ones * scales.reshape(ones.shape).to(ones)
        found = torch.autograd.grad(selected, tensors, **kwargs)
        overflowing = _overflowing(found, by_row, scales)
        if next_scale is None or not overflowing.any():
            break
        scales = scales.masked_fill(overflowing, next_scale)
    # Not by row, all examples have the same scale.
    return [None if g is None else _divided(g, scales if by_row else scales[:1]) for g in found]


def _overflowing(found: Sequence[Tensor | None], by_row: bool, scales: Tensor) -> Tensor:
    result = torch.zeros_like(scales, dtype=torch.bool)
    for gradient in found:
        if gradient is not None:
            infinite = ~gradient.isfinite().flatten(1).all(1).to(scales.device)
            result = result | (infinite if by_row else infinite.any())
    return result


def _divided(gradient: Tensor, scales: Tensor) -> Tensor:
    return gradient.float() / broadcast_over(scales.to(gradient.device), gradient)


@contextmanager
def recurrent_training(modules: Sequence[Module]) -> Iterator[None]:
    """Recurrent modules in training mode, without their dropout: in evaluation mode, cuDNN has no gradient for them."""
    recurrent = [module for root in modules for module in root.modules() if isinstance(module, RNNBase)]
    found = [(module, module.training, module.dropout) for module in recurrent]

    def give_back() -> None:
        for module, training, dropout in found:
            module.training, module.dropout = training, dropout

    try:
        try:
            for module in recurrent:
                module.training, module.dropout = True, 0.0
            # Code of the user's own may call cuDNN without such a module.
            with torch.backends.cudnn.flags(enabled=False):
                yield
        finally:
            give_back()
    finally:
        # Ctrl-C may have come between any two lines of the first time.
        give_back()
