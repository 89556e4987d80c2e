"""The confidence that a model gains when the input is masked by an attribution."""

from torch import Tensor

from captum_unioncam.engine.maps import divide_or_zero
from captum_unioncam.metrics.attributions import JudgedAttributions, judged
from captum_unioncam.metrics.table import PERCENT, metric

# Half precision and sums of probabilities round.
_MOST_CONFIDENCE = 1.01


@metric(
    "average_gain",
    "average gain (%)",
    larger_is_better=True,
    **PERCENT,
    on_request=True,
    description="The share of the missing confidence that is gained when the image is masked by the map.",
)
@judged
def confidence_gain(attr: JudgedAttributions) -> Tensor:
    r"""
    The share of the missing confidence that is gained when the input is masked by the attribution.

    .. math::
        \frac{\max(0, o - y)}{1 - y}

    Larger is better. Averaged over examples and multiplied by 100, it is the average gain, the counterpart of the
    average drop
    (Zhang et al., *Opti-CAM: Optimizing saliency maps for interpretability*, CVIU 2024,
    https://arxiv.org/abs/2301.07002). :math:`y` and :math:`o` are those of :func:`confidence_drop`.

    Returns:
        *Tensor* (N,), in [0, 1]; 0 if no confidence is missing.

    Raises:
        ValueError: Confidences above 1.

    Examples::

        >>> average_gain = 100 * confidence_gain(model, images, attr, labels).mean()
    """
    whole, seen = attr.whole_and_seen()
    above = ((whole > _MOST_CONFIDENCE) | (seen > _MOST_CONFIDENCE)).nonzero().flatten().tolist()
    if above:
        raise ValueError(
            f"confidence_fn: gave confidences above 1 for the examples {above}, so that no share of "
            "them is missing; give one of values from 0 to 1, such as torch.sigmoid."
        )
    whole, seen = whole.clamp(max=1), seen.clamp(max=1)
    return divide_or_zero((seen - whole).clamp(min=0), 1 - whole)
