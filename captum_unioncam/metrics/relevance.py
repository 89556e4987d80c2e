"""How much of the relevance, and how many of the most relevant pixels, lie on the object."""

from torch import Tensor

from captum_unioncam.engine.maps import divide_or_zero
from captum_unioncam.metrics.localization import located
from captum_unioncam.metrics.table import PERCENT, metric


@metric(
    "relevance_mass",
    "relevance mass accuracy (%)",
    larger_is_better=True,
    **PERCENT,
    needs_objects=True,
    on_request=True,
    description="The share of the map's absolute values that lies on the object.",
)
@located
def relevance_mass(attributions: Tensor, objects: Tensor) -> Tensor:
    r"""
    The share of the relevance that lies on the object, :math:`\sum_{p \in \text{object}} R_p / \sum_p R_p`.

    Larger is better (Arras et al., *CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network
    explanations*, Information Fusion 2022, https://arxiv.org/abs/2003.07258). :math:`R_p` is the absolute value of the
    attributions' sum over the channels. :func:`energy_pointing_game` sets negative values to 0: for maps without
    negative values, both are equal.

    Returns:
        *Tensor* (N,), in [0, 1]; 0 if all attributions are 0.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> share = relevance_mass(attr, masks)  # (N,)
    """
    relevance = attributions.abs().flatten(1)
    return divide_or_zero((relevance * objects.flatten(1)).sum(1), relevance.sum(1))


@metric(
    "relevance_rank",
    "relevance rank accuracy (%)",
    larger_is_better=True,
    **PERCENT,
    needs_objects=True,
    on_request=True,
    description="The share of the K most relevant pixels that lie on the object, which has K pixels.",
)
@located
def relevance_rank(attributions: Tensor, objects: Tensor) -> Tensor:
    r"""
    The share of the K most relevant pixels that lie on the object, which has K pixels.

    Larger is better (Arras et al., CLEVR-XAI, Information Fusion 2022, https://arxiv.org/abs/2003.07258). The relevance
    is that of :func:`relevance_mass`; equal values are sorted in row-major order.

    Returns:
        *Tensor* (N,), in [0, 1]; 0 if there is no object.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> share = relevance_rank(attr, masks)  # (N,)
    """
    order = attributions.abs().flatten(1).argsort(dim=1, descending=True, stable=True)
    # Of each place, the most relevant first, whether it is on the object.
    on_object = objects.flatten(1).gather(1, order)
    size = on_object.sum(1, keepdim=True)
    hits = on_object.cumsum(1).gather(1, (size - 1).clamp(min=0))
    return divide_or_zero(hits.to(attributions.dtype), size.to(attributions.dtype)).squeeze(1)
