"""Coherency, complexity, and their harmonic mean with the average drop (ADCC)."""

import torch
from torch import Tensor

from captum_unioncam.engine.maps import divide_or_zero, minmax
from captum_unioncam.metrics.attributions import ExplanationFunction, JudgedAttributions, in_rows, judged
from captum_unioncam.metrics.faithfulness import share_lost
from captum_unioncam.metrics.table import PERCENT, metric


@metric(
    "coherency",
    "coherency (%)",
    larger_is_better=True,
    **PERCENT,
    on_request=True,
    description="The correlation of the map with the method's map of the image masked by it, from 0 for opposite to 1 "
    "for equal.",
)
@judged
def coherency(attr: JudgedAttributions, *, explanation_func: ExplanationFunction | None = None) -> Tensor:
    r"""
    The correlation of the attribution with the same method's attribution of the input masked by it.

    .. math::
        \frac{1 + \rho(m, m')}{2}, \qquad m' = \text{minmax}(\text{up}(\text{attribution of } m I + (1 - m) I_b))

    with Pearson's :math:`\rho` over the positions. Larger is better (Poppi et al., *Revisiting the evaluation of class
    activation mapping for explainability*, CVPR Workshops 2021, https://arxiv.org/abs/2104.10252). Runs the method
    again; within :func:`captum_unioncam.shared_passes`, once for this metric and :func:`adcc`.

    Args:
        explanation_func (Callable): Converts inputs like ``inputs`` to the method's attributions for the same target.
            It runs with gradients, and with the modules of ``forward_func`` in evaluation mode.

    Returns:
        *Tensor* (N,), in [0, 1]; 0 where either map is constant.

    Raises:
        ValueError: No ``explanation_func``, or it returns attributions that do not fit the inputs.

    Examples::

        >>> cam = LayerUnionCam(model, layer)
        >>> attr = cam.attribute(images, target=labels)
        >>> explain = lambda x: cam.attribute(x, target=labels)
        >>> alike = coherency(model, images, attr, labels, explanation_func=explain)
    """
    return _coherency(attr, explanation_func)


def _coherency(attr: JudgedAttributions, explanation_func: ExplanationFunction | None) -> Tensor:
    again = {i: minmax(attribution) for i, attribution in attr.explained_as_seen(explanation_func).items()}
    one, other = (_of_unit_length(in_rows(maps)) for maps in (attr.masks(), again))
    is_constant = (one == 0).all(1) | (other == 0).all(1)
    return torch.where(is_constant, 0.0, (1 + (one * other).sum(1).clamp(-1, 1)) / 2)


@metric(
    "complexity",
    "complexity (%)",
    larger_is_better=False,
    **PERCENT,
    on_request=True,
    description="The mean of the map, scaled to between 0 and 1.",
)
@judged
def complexity(attr: JudgedAttributions) -> Tensor:
    r"""
    The mean of the scaled attribution: its L1 norm divided by the number of positions, :math:`\|m\|_1 / |m|`.

    Smaller is better (Poppi et al., CVPR Workshops 2021,
    https://arxiv.org/abs/2104.10252).

    Returns:
        *Tensor* (N,), in [0, 1]; 0 where the attribution is constant.

    Examples::

        >>> share = complexity(model, images, attr, labels)  # (N,)
    """
    return _complexity(attr)


def _complexity(attr: JudgedAttributions) -> Tensor:
    return in_rows(attr.masks()).mean(1)


@metric(
    "adcc",
    "ADCC (%)",
    larger_is_better=True,
    **PERCENT,
    on_request=True,
    description="The harmonic mean of coherency, 1 - complexity and 1 - drop.",
)
@judged
def adcc(attr: JudgedAttributions, *, explanation_func: ExplanationFunction | None = None) -> Tensor:
    r"""
    Average drop, coherency and complexity in one number, their harmonic mean.

    .. math::
        3 \Big/ \Big(\frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{1 - \text{drop}}\Big)

    Larger is better. All three must be good for a large value (Poppi et al., CVPR Workshops 2021,
    https://arxiv.org/abs/2104.10252). The parts are :func:`coherency`, :func:`complexity` and :func:`confidence_drop`.

    Args:
        explanation_func (Callable): As for :func:`coherency`.

    Returns:
        *Tensor* (N,), in [0, 1]; 0 where a part is 0.

    Raises:
        ValueError: As :func:`coherency`.

    Examples::

        >>> cam = LayerUnionCam(model, layer)
        >>> attr = cam.attribute(images, target=labels)
        >>> explain = lambda x: cam.attribute(x, target=labels)
        >>> score = adcc(model, images, attr, labels, explanation_func=explain)
    """
    coherent, simple, kept = _coherency(attr, explanation_func), 1 - _complexity(attr), 1 - share_lost(attr)
    pairs = coherent * simple + simple * kept + kept * coherent
    return divide_or_zero(3 * coherent * simple * kept, pairs)


def _of_unit_length(values: Tensor) -> Tensor:
    """Deviations from the mean (N, places), divided by their norm; zeros for constant values."""
    deviations = values - values.mean(1, keepdim=True)
    return divide_or_zero(deviations, deviations.square().sum(1, keepdim=True).sqrt())
