"""The settings, arguments and results of methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.confidence import ConfidenceFunction, OutputFunction


@dataclass(frozen=True)
class MethodSettings:
    """Settings for any method, which ignores those it has no argument for.

    Args:
        theta, channel_weights, max_channels, channel_selection, score_dtype: As ``LayerUnionCam.attribute`` takes
            them; for this package's methods only. Default: None, the method's own default
        internal_batch_size (int or None): Batch size of methods that run many forward passes. Default: None, the
            method's own default
        confidence_fn (Callable or None): As ``LayerUnionCam`` takes it; for this package's methods only. Default:
            None, the method's own default
        output_fn (Callable or None): Converts what the model returns to the tensor (N, classes) that is explained, such
            as ``lambda output: output[0]``. Default: None, the tensor itself; of a tuple, dict or dataclass the tensor
            named "logits" or "out", or else the only one with one row per example
        show_progress (bool): Show the progress of methods that run many forward passes. Default: False
    """

    theta: float | None = None
    max_channels: int | None = None
    internal_batch_size: int | None = None
    score_dtype: torch.dtype | None = None
    confidence_fn: ConfidenceFunction | None = None
    channel_weights: str | None = None
    channel_selection: str | None = None
    output_fn: OutputFunction | None = None
    show_progress: bool = False


@dataclass(frozen=True)
class Explained:
    """A method's result for one target of each example.

    Args:
        attributions (Tensor): (N, C, h, w), at the method's own resolution.
        details (Any): Intermediate results, such as ``UnionCamDetails``. Default: None, the method has none
    """

    attributions: Tensor
    details: Any = None


Attribute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of inputs (N, 3, H, W), targets (N,) and baselines (1 or N, 3, H, W) to attributions (N, C, h, w)."""

Factory = Callable[[Module, Module, MethodSettings], Attribute]
"""A function of a model, the layer to explain and the settings; returns the method for them."""
