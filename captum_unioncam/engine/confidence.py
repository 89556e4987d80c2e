"""Model outputs to class confidences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ConfidenceFunction = Callable[[Tensor], Tensor]


def class_confidence(output: Tensor) -> Tensor:
    """Softmax over dimension 1 where ``output`` has several classes there, and ``output`` itself otherwise.

    Args:
        output (Tensor): What ``forward_func`` returned: (N, C, ...), (N, 1) or (N,).

    Returns:
        *Tensor* of the shape of ``output``.
    """
    return output.softmax(1) if output.dim() >= 2 and output.shape[1] > 1 else output


def _as_they_are(output: Tensor) -> Tensor:
    return output


CONFIDENCES: dict[str, ConfidenceFunction] = {
    "softmax": class_confidence,
    "sigmoid": torch.sigmoid,
    "none": _as_they_are,
}
"""Outputs to confidences, by name."""
