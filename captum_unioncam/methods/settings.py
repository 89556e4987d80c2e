"""What every method is told, is given, and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.confidence import ConfidenceFunction


@dataclass(frozen=True)
class MethodSettings:
    """What methods can be told; each takes what it knows, and ignores the rest.

    Args:
        theta, channel_weights, max_channels, score_dtype: As ``LayerUnionCam.attribute`` takes them; for CAMs alone.
            Default: None, the method's own
        internal_batch_size (int or None): Batch size of the methods that run many forward passes. Default: None, the
            method's own
        confidence_fn (Callable or None): As ``LayerUnionCam`` takes it; for CAMs alone. Default: None, the method's own
        show_progress (bool): Show the progress of methods that run many forward passes. Default: False
    """

    theta: float | None = None
    max_channels: int | None = None
    internal_batch_size: int | None = None
    score_dtype: torch.dtype | None = None
    confidence_fn: ConfidenceFunction | None = None
    channel_weights: str | None = None
    show_progress: bool = False


@dataclass(frozen=True)
class Explained:
    """What a method says of one target of each example.

    Args:
        attributions (Tensor): (N, C, h, w), of the method's own resolution.
        details (Any): How they came about, such as ``UnionCamDetails``. Default: None, the method does not say
    """

    attributions: Tensor
    details: Any = None


Attribute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Inputs (N, 3, H, W), targets (N,) and baselines (1 or N, 3, H, W) to attributions (N, C, h, w)."""

Factory = Callable[[Module, Module, MethodSettings], Attribute]
"""A model, the layer to explain and the settings to a method for them."""
