"""What every method can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.confidence import ConfidenceFunction


@dataclass(frozen=True)
class MethodSettings:
    """What methods can be told; each takes what it knows, and ignores the rest.

    Args:
        theta, max_channels, score_dtype: As ``LayerUnionCam.attribute`` takes them; for this package's methods alone.
        internal_batch_size (int or None): Rows in a forward pass of the methods that run many. Default: None, the
            method's own
        confidence_fn (Callable or None): As ``LayerUnionCam`` takes it; for this package's methods alone.
    """

    theta: float = 10.0
    max_channels: int | None = None
    internal_batch_size: int | None = None
    score_dtype: torch.dtype | None = None
    confidence_fn: ConfidenceFunction | None = None


Attribute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Inputs (N, 3, H, W), targets (N,) and baselines (1 or N, 3, H, W) to attributions (N, C, h, w)."""


Factory = Callable[[Module, Module, MethodSettings], Attribute]
"""A model, the layer to explain and the settings to a method for them."""
