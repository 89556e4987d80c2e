"""How faithful an attribution is to the model."""

import torch
from torch import Tensor

from captum_unioncam.engine.checks import check_flag
from captum_unioncam.engine.maps import divide_or_zero
from captum_unioncam.metrics.attributions import DEFAULT_STEPS, Curve, JudgedAttributions, judged
from captum_unioncam.metrics.table import PERCENT, metric


@metric(
    "drop",
    "average drop (%)",
    larger_is_better=False,
    **PERCENT,
    description="The share of the confidence that is lost when the image is masked by the map.",
)
@judged
def confidence_drop(attr: JudgedAttributions) -> Tensor:
    r"""
    The share of the confidence that is lost when the input is masked by the attribution.

    .. math::
        \frac{\max(0, y - o)}{y}, \qquad y = \text{conf}_c(I), \quad o = \text{conf}_c(m I + (1 - m) I_b)

    Smaller is better. Averaged over examples and multiplied by 100, it is the average drop (Chattopadhay et al.,
    Grad-CAM++, WACV 2018, https://arxiv.org/abs/1710.11063).

    Returns:
        *Tensor* (N,), in [0, 1]; 0 if the confidence is 0.

    Examples::

        >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
        >>> average_drop = 100 * confidence_drop(model, images, attr, labels).mean()
    """
    return share_lost(attr)


def share_lost(attr: JudgedAttributions) -> Tensor:
    """The share of the confidence that is lost, (N,)."""
    whole, seen = attr.whole_and_seen()
    return divide_or_zero((whole - seen).clamp(min=0), whole)


@metric(
    "increase",
    "average increase (%)",
    larger_is_better=True,
    **PERCENT,
    is_yes_or_no=True,
    description="1 if the confidence increases when the image is masked by the map, else 0.",
)
@judged
def confidence_increase(attr: JudgedAttributions) -> Tensor:
    r"""
    Whether the confidence increases when the input is masked by the attribution: :math:`[o > y]`.

    Larger is better. Averaged over examples and multiplied by 100, it is the average increase. :math:`y` and :math:`o`
    are those of :func:`confidence_drop`.

    Returns:
        *Tensor* (N,), 1 or 0.

    Examples::

        >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
        >>> average_increase = 100 * confidence_increase(model, images, attr, labels).mean()
    """
    whole, seen = attr.whole_and_seen()
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
@judged
def insertion(attr: JudgedAttributions, *, steps: int = DEFAULT_STEPS, return_curve: bool = False) -> Tensor | Curve:
    r"""
    The area under the curve of the class confidence as the input's pixels are inserted, most important first.

    Larger is better (Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421). After step :math:`s` of
    :math:`S`, the fraction :math:`s / S` of the pixels with the largest attributions show the input, and the others the
    baseline. Equal attributions are sorted in row-major order.

    Args:
        baselines (number, Tensor, tuple or None): Values of pixels that are not inserted yet. Default: None, the
            blurred input, as in RISE (Gaussian of 5 pixels, 11 wide; the border is repeated, RISE pads with 0)
        steps (int): S, at least 1 and, above 100, at most the number of pixels; there are S + 1 forward passes per
            example. Default: 100; RISE inserts as many pixels per step as a row has
        return_curve (bool): Also return the curve. Default: False

    Returns:
        *Tensor* (N,), or the *Curve*, a named tuple of the area (N,), the fractions (S + 1,), and the confidences
        (N, S + 1).

    Examples::

        >>> curve = insertion(model, images, attr, labels, return_curve=True)
        >>> area, fractions, confidences = curve
    """
    check_flag("return_curve", return_curve)
    curve = attr.curve(attr.blurred() if attr.baselines is None else attr.baselines, steps, torch.lt)
    return curve if return_curve else curve.area


@metric(
    "deletion",
    "deletion",
    larger_is_better=False,
    has_curve=True,
    description="The area under the curve of the confidence as pixels are deleted, the most important first.",
)
@judged
def deletion(attr: JudgedAttributions, *, steps: int = DEFAULT_STEPS, return_curve: bool = False) -> Tensor | Curve:
    r"""
    The area under the curve of the class confidence as the input's pixels are deleted, most important first.

    Smaller is better. Like :func:`insertion`, but pixels change from the input to the baseline, by default 0 (black).

    Args:
        baselines (number, Tensor, tuple or None): Values of deleted pixels. Default: None, which is 0 (black)
        steps (int): As for :func:`insertion`. Default: 100
        return_curve (bool): Also return the curve. Default: False

    Returns:
        *Tensor* (N,), or the *Curve*, as :func:`insertion`.

    Examples::

        >>> area = deletion(model, images, attr, labels)  # (N,)
    """
    check_flag("return_curve", return_curve)
    curve = attr.curve(attr.baselines, steps, torch.ge)
    return curve if return_curve else curve.area
