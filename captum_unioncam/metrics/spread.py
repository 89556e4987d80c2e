"""How unevenly an attribution is spread over the input."""

import torch
from torch import Tensor

from captum_unioncam.engine.maps import divide_or_zero
from captum_unioncam.metrics.attributions import JudgedAttributions, in_rows, judged
from captum_unioncam.metrics.table import metric


@metric(
    "sparseness",
    "sparseness",
    larger_is_better=True,
    on_request=True,
    description="The Gini index of the map's absolute values: 0 if all are equal, near 1 if one position has all.",
)
@judged
def sparseness(attr: JudgedAttributions) -> Tensor:
    r"""
    The Gini index of the absolute attributions. With :math:`a_1 \le \dots \le a_n` those of the n positions, sorted,

    .. math::
        \frac{\sum_{i=1}^n (2 i - n - 1) \, a_i}{n \sum_{i=1}^n a_i}

    Larger is sparser (Chalasani et al., *Concise explanations of neural networks using adversarial training*, ICML
    2020, https://arxiv.org/abs/1810.06583). It is computed at the inputs' resolution, with channels summed.

    Returns:
        *Tensor* (N,), in [0, 1); 0 where all absolute values are equal.

    Examples::

        >>> gini = sparseness(model, images, attr, labels)  # (N,)
    """
    values = in_rows(attr.attributions).abs().sort(1).values
    n = values.shape[1]
    weights = 2 * torch.arange(1, n + 1, device=values.device, dtype=values.dtype) - n - 1
    # Of what is above the smallest, since equal values would not quite cancel.
    return divide_or_zero(((values - values[:, :1]) * weights).sum(1), n * values.sum(1))
