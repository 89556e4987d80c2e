"""How faithful an attribution is to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.engine._captum import BaselineType, TargetType, log_usage
from captum_unioncam.engine.confidence import ConfidenceFunction
from captum_unioncam.engine.maps import divide_or_zero
from captum_unioncam.metrics.attributions import Attributions, Curve, JudgedAttributions
from captum_unioncam.metrics.table import metric


@metric(
    "drop",
    "average drop (%)",
    larger_is_better=False,
    scale=100,
    form=".1f",
    description="The share of its confidence that the model loses when it sees the picture through the map.",
)
@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def confidence_drop(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    r"""
    The share of its confidence that the model loses when it sees the input through the attribution.

    .. math::
        \frac{\max(0, y - o)}{y}, \qquad y = \text{conf}_c(I), \quad o = \text{conf}_c(m I + (1 - m) I_b)

    Smaller is better; times 100 and averaged over examples it is the average drop (Chattopadhay et al., Grad-CAM++,
    WACV 2018, https://arxiv.org/abs/1710.11063).

    Args:
        forward_func (Callable): The model, or a function of it, run in evaluation mode.
        inputs (Tensor or tuple[Tensor, ...]): The examples, along dimension 0 of each tensor. Those with as many
            dimensions as the attributions are masked.
        attributions (Tensor or tuple[Tensor, ...]): (N, K, \*spatial), at the inputs' resolution or any other. One for
            all masked inputs, or a tuple of one for each input, of which only the masked inputs' are used.
        target (int, tuple, Tensor, list or None): The output that was explained, as in Captum. Default: None
        baselines (number, Tensor, tuple or None): What masked-out places show, as Captum's ``baselines``.
            Default: None, which is 0, black
        additional_forward_args (Any): Further arguments of ``forward_func``. Default: None
        confidence_fn (Callable or None): The output of ``forward_func`` to confidences, not negative, of the same
            shape. Default: softmax over dimension 1 where there are several classes, the output itself otherwise
        internal_batch_size (int or None): Rows in a forward pass; halved when memory runs out. Default: None, the
            fastest, learnt from the passes and remembered for ``forward_func`` and inputs of this shape

    Returns:
        *Tensor* (N,), in [0, 1]; 0 where there is no confidence to lose.

    Raises:
        ValueError: No input has the attributions' dimensions, an empty batch, attributions of other examples or not
            finite, confidences that are negative or not finite, or a batch size below 1.
        AssertionError: A target or baseline that does not fit, as in Captum.

    Examples::

        >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
        >>> average_drop = 100 * confidence_drop(model, images, attr, labels).mean()
    """
    judged = JudgedAttributions(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    whole, seen = judged.whole_and_seen(baselines)
    return divide_or_zero((whole - seen).clamp(min=0), whole)


@metric(
    "increase",
    "average increase (%)",
    larger_is_better=True,
    scale=100,
    form=".1f",
    is_yes_or_no=True,
    description="1 where the model is more confident when it sees the picture through the map.",
)
@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def confidence_increase(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    r"""
    Whether the model is more confident when it sees the input through the attribution: :math:`[o > y]`.

    Larger is better; times 100 and averaged over examples it is the average increase. :math:`y` and :math:`o`, the
    arguments and the errors are those of :func:`confidence_drop`.

    Returns:
        *Tensor* (N,), 1 or 0.

    Examples::

        >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
        >>> average_increase = 100 * confidence_increase(model, images, attr, labels).mean()
    """
    judged = JudgedAttributions(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    whole, seen = judged.whole_and_seen(baselines)
    return (seen > whole).to(seen.dtype)


# Onto the blurred input, as in RISE, whatever baseline the method has.
@metric(
    "insertion",
    "insertion",
    larger_is_better=True,
    has_curve=True,
    defaults=("baselines",),
    description="The area under the curve of the confidence as pixels are inserted, the most important first.",
)
@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def insertion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    steps: int = 100,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
    return_curve: bool = False,
) -> Tensor | Curve:
    r"""
    The area under the curve of the class confidence as the input's pixels are inserted, most important first.

    Larger is better (Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421). After step :math:`s` of
    :math:`S`, the :math:`s / S` of the pixels with the largest attributions show the input, and the others the
    baseline; of equal attributions the first in row-major order comes first. Arguments not listed, and the errors,
    are those of :func:`confidence_drop`.

    Args:
        baselines (number, Tensor, tuple or None): What shows where nothing is inserted yet. Default: None, the blurred
            input, as in RISE (Gaussian of 5 pixels, 11 wide; the border is repeated, where RISE pads with 0)
        steps (int): S, at least 1; there are S + 1 forward passes an example. Default: 100, where RISE inserts a row's
            worth of pixels at a time
        return_curve (bool): Return the curve too. Default: False

    Returns:
        *Tensor* (N,), or the *Curve*, a named tuple of the area (N,), the fractions (S + 1,), and the confidences
        (N, S + 1).

    Examples::

        >>> area, fractions, confidences = insertion(model, images, attr, labels, return_curve=True)
    """
    judged = JudgedAttributions(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    curve = judged.curve(judged.blurred() if baselines is None else baselines, steps, torch.lt)
    return curve if return_curve else curve.area


@metric(
    "deletion",
    "deletion",
    larger_is_better=False,
    has_curve=True,
    description="The area under the curve of the confidence as pixels are deleted, the most important first.",
)
@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def deletion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    steps: int = 100,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
    return_curve: bool = False,
) -> Tensor | Curve:
    r"""
    The area under the curve of the class confidence as the input's pixels are deleted, most important first.

    Smaller is better. As :func:`insertion`, but pixels go from the input to the baseline, by default 0, black.

    Args:
        baselines (number, Tensor, tuple or None): What shows where pixels are deleted. Default: None, which is 0, black
        steps (int): S, at least 1; there are S + 1 forward passes an example. Default: 100
        return_curve (bool): Return the curve too. Default: False

    Returns:
        *Tensor* (N,), or the *Curve*, as :func:`insertion`.

    Examples::

        >>> area = deletion(model, images, attr, labels)  # (N,)
    """
    judged = JudgedAttributions(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    curve = judged.curve(baselines, steps, torch.ge)
    return curve if return_curve else curve.area
