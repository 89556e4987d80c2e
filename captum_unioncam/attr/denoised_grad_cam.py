"""Activation map denoising (AMD), the gradient half of UnionCAM: Eq. 1-3 as functions, and as a Captum method."""

import math

import torch
from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT
from captum_unioncam.engine.checks import check_number
from captum_unioncam.engine.maps import broadcast_over, divide_or_zero, spatial_dims


def gradient_percentile(gradients: Tensor, theta: float) -> Tensor:
    """Eq. 1: ``p_k``, the theta-th percentile of each channel's gradients over space, interpolated linearly.

    Args:
        gradients (Tensor): (N, K, *spatial).
        theta (float): In [0, 100].

    Returns:
        *Tensor* (N, K, 1, ...), as ``numpy.percentile`` gives.
    """
    # Not torch.quantile, which refuses more than 16 million values.
    ordered = gradients.flatten(2).sort(dim=-1).values
    rank = theta * (ordered.shape[-1] - 1) / 100
    below, above = ordered[..., math.floor(rank)], ordered[..., math.ceil(rank)]
    return broadcast_over(torch.lerp(below, above, rank - math.floor(rank)), gradients)


def denoised_gradients(gradients: Tensor, theta: float) -> Tensor:
    """Eq. 2: ``W'_k = W_k`` where ``W_k >= p_k``, and 0 elsewhere."""
    return gradients.where(gradients >= gradient_percentile(gradients, theta), 0.0)


def gradient_weights(denoised: Tensor) -> Tensor:
    """Eq. 3: ``alpha_k ReLU(W'_k)``, each channel's positive gradients scaled to a sum of 1 over space."""
    positive = denoised.relu()
    return divide_or_zero(positive, positive.sum(spatial_dims(positive), keepdim=True))


def denoised_terms(gradients: Tensor, activations: Tensor, theta: float) -> Tensor:
    """The terms ``alpha_k ReLU(W'_k) A_k`` (N, K, *spatial), whose sum over the channels is ``L_D``."""
    return gradient_weights(denoised_gradients(gradients, theta)) * activations


def check_theta(theta: float) -> None:
    """Raises ``ValueError`` unless ``theta`` is a percentage."""
    check_number("theta", theta, 0, 100, "a percentile from 0 to 100 (the paper's is 10)")


class LayerDenoisedGradCam(GradientCam[LayerT]):
    r"""
    The denoised gradient map of UnionCAM: a CAM whose channel weights vary over space.

    With :math:`A` the layer's output and :math:`W_k = \partial y_c / \partial A_k`,

    .. math::
        p_k = \text{percentile}_\theta(W_k), \qquad
        W'_k = W_k \, [W_k \ge p_k], \qquad
        L_D = \sum_k \frac{\text{ReLU}(W'_k)}{\sum \text{ReLU}(W'_k)} \, A_k

    (Eq. 1-3 of Hu et al., *UnionCAM*, Frontiers in Neurorobotics 2024, https://doi.org/10.3389/fnbot.2024.1490198).
    Each channel's positive gradients become weights that sum to 1, so the map does not depend on the gradients' scale.

    Theta changes a channel only if :math:`p_k > 0`, because negative gradients are ignored in any case. Before global
    average pooling, every :math:`W_k` is constant over space: theta has no effect, and each channel with a positive
    gradient has the same weight. Before a 2x2 max pooling, theta up to 75 has no effect, because three of four
    gradients are 0.

    It needs a forward and a backward pass. Choose it to see UnionCAM's gradient half alone, at the cost of Grad-CAM.
    """

    name = "denoised_grad_cam"

    def check(self, theta: float) -> None:
        check_theta(theta)

    def terms(self, activations: Tensor, gradients: Tensor, *, theta: float = 10.0) -> Tensor:
        """
        Args:
            theta (float): Percentile in [0, 100] of each channel's gradients below which they are set to 0 (Eq. 1). Has
                no effect before global average pooling, and mostly none before max pooling. Default: 10, the paper's

        Raises:
            ValueError: theta outside [0, 100].

        Examples::

            >>> amd = LayerDenoisedGradCam(model, model.features[28])
            >>> attr = amd.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        return denoised_terms(gradients, activations, theta)
