"""Sanity checks as metrics: whether an attribution changes with the model, and with the class."""

from torch import Tensor

from captum_unioncam.engine.checks import check_function
from captum_unioncam.metrics.attributions import ExplanationFunction, JudgedAttributions, in_rows, judged
from captum_unioncam.metrics.similarity import rank_correlation
from captum_unioncam.metrics.table import metric


@metric(
    "model_randomization",
    "likeness after model randomisation",
    larger_is_better=False,
    on_request=True,
    description="The rank correlation of the map with that of a copy of the model whose layers are all "
    "reinitialised; 1 for a constant map.",
)
@judged
def model_randomization(attr: JudgedAttributions, *, randomized_func: ExplanationFunction | None = None) -> Tensor:
    """
    The similarity of the attribution to that of the same method on a model with random weights.

    Spearman's rank correlation of the absolute attributions at the inputs' size, channels summed (Adebayo et al.,
    *Sanity Checks for Saliency Maps*, NeurIPS 2018, https://arxiv.org/abs/1810.03292). Smaller is better.

    Args:
        randomized_func (Callable): Inputs, as they are given, to the attributions that the judged method has for them,
            for the same target, on a copy of the model whose layers are reinitialised.

    Returns:
        *Tensor* (N,), in [-1, 1]; 0 where the copy's attribution alone is constant, and 1 where the judged one is.

    Raises:
        TypeError: No ``randomized_func``.
        ValueError: It returns attributions that do not fit the inputs.

    Examples::

        >>> cam = LayerUnionCam(copy, copy.features[28])
        >>> explain = lambda x: cam.attribute(x, target=labels)
        >>> likeness = model_randomization(
        ...     model, images, attr, labels, randomized_func=explain
        ... )  # (N,)
    """
    return _likeness(attr, "randomized_func", randomized_func)


@metric(
    "random_logit",
    "likeness for another class",
    larger_is_better=False,
    on_request=True,
    description="The rank correlation of the map with that of another class, drawn at random; 1 for a constant map.",
)
@judged
def random_logit(attr: JudgedAttributions, *, other_class_func: ExplanationFunction | None = None) -> Tensor:
    """
    The similarity of the attribution to that of the same method for another class.

    As :func:`model_randomization` (Sixt et al., *When Explanations Lie*, ICML 2020, https://arxiv.org/abs/1912.09818).
    Smaller is better.

    Args:
        other_class_func (Callable): Inputs, as they are given, to the attributions that the judged method has for them
            and another target.

    Returns:
        *Tensor* (N,), in [-1, 1]; 0 where the other class's attribution alone is constant, and 1 where the judged one
        is.

    Raises:
        TypeError: No ``other_class_func``.
        ValueError: It returns attributions that do not fit the inputs.

    Examples::

        >>> explain = lambda x: cam.attribute(x, target=(labels + 1) % 1000)
        >>> likeness = random_logit(
        ...     model, images, attr, labels, other_class_func=explain
        ... )  # (N,)
    """
    return _likeness(attr, "other_class_func", other_class_func)


def _likeness(attr: JudgedAttributions, argument: str, explanation_func: ExplanationFunction | None) -> Tensor:
    """The rank correlation of the absolute attributions with those of a function of the same inputs."""
    check_function(argument, explanation_func, optional=False)
    others = attr.explained(explanation_func, attr.inputs)
    one, other = (in_rows(maps).abs() for maps in (attr.attributions, others))
    is_constant = (one == one[:, :1]).all(1)
    return rank_correlation(one.unsqueeze(1), other.unsqueeze(1)).masked_fill(is_constant, 1)
