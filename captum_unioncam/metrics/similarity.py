r"""The similarity of two maps of the same example, position by position.

These are not in the table of metrics: they compare two maps of a method, for its sanity checks. Maps are
(N, 1, \*spatial).
"""

from typing import Any

import torch
from torch import Tensor

from captum_unioncam.engine.accelerators import widened
from captum_unioncam.engine.blur import blurred
from captum_unioncam.engine.maps import divide_or_zero

# Of the paper: the window, and the constants for values from 0 to 1.
_PIXELS, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def structural_similarity(one: Tensor, other: Tensor) -> Tensor:
    r"""
    The structural similarity index (Wang et al., *Image Quality Assessment: From Error Visibility to Structural
    Similarity*, TIP 2004, https://doi.org/10.1109/TIP.2003.819861), its equation 13.

    .. math::
        \text{mean} \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
        {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}

    Means, variances and the covariance are computed in a Gaussian window, 11 pixels wide with a standard deviation of
    1.5, and averaged over the positions at which the whole window is on the map. On smaller maps, the window is as wide
    as possible.

    Args:
        one, other (Tensor): (N, 1, \*spatial), in [0, 1].

    Returns:
        *Tensor* (N,), in [-1, 1]; 1 for equal maps.
    """
    pixels = min(_PIXELS, *(side - 1 + side % 2 for side in one.shape[2:]))
    reach = pixels // 2
    inside: tuple[Any, ...] = (..., *(slice(reach, side - reach) for side in one.shape[2:]))

    def mean(values: Tensor) -> Tensor:
        return blurred(values, pixels, _SIGMA, "replicate")[inside]

    x, y = widened(one), widened(other)
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return (alike / ((mean_x**2 + mean_y**2 + _C1) * (variances + _C2))).flatten(1).mean(1)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    r"""
    Spearman's correlation of the maps' values; equal values have their mean rank.

    Args:
        one, other (Tensor): (N, 1, \*spatial).

    Returns:
        *Tensor* (N,), in [-1, 1]; 0 if a map is constant.
    """
    x, y = (_ranks(values) - (values[0].numel() + 1) / 2 for values in (one, other))
    return divide_or_zero((x * y).sum(1), ((x * x).sum(1) * (y * y).sum(1)).sqrt()).clamp(-1, 1)


def _ranks(values: Tensor) -> Tensor:
    """The ranks, from 1, of each example's values: (N, places)."""
    rows = []
    for row in values.flatten(1):
        _, place, counts = row.unique(return_inverse=True, return_counts=True)
        rows.append(widened(counts.cumsum(0) - (counts - 1) / 2)[place])
    return torch.stack(rows)
