"""Grad-CAM++: channel weights from positive gradients, each with a coefficient of its own."""

import torch
from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT
from captum_unioncam.engine.maps import divide_unless_zero, spatial_dims


def grad_cam_plus_plus_weights(activations: Tensor, gradients: Tensor, normalize_alpha: bool) -> Tensor:
    """``w_k`` (N, K), of activations and gradients (N, K, *spatial)."""
    dims = spatial_dims(activations)
    denominator = 2 + gradients * activations.sum(dims, keepdim=True)
    alpha = torch.where(gradients > 0, divide_unless_zero(torch.ones_like(gradients), denominator), 0.0)
    if normalize_alpha:
        total = alpha.sum(dims, keepdim=True)
        alpha = alpha / total.where(total != 0, 1.0)
    return (alpha * gradients.relu()).sum(dims)


class LayerGradCamPlusPlus(GradientCam[LayerT]):
    r"""
    Grad-CAM++: a channel's weight is the sum of its positive gradients, each with a coefficient.

    With :math:`A` the layer's output and :math:`g_k = \partial y_c / \partial A_k`,

    .. math::
        \alpha_{kij} = \frac{g_{kij}^2}{2 g_{kij}^2 + g_{kij}^3 \sum_{ab} A_{kab}}
                     = \frac{1}{2 + g_{kij} \sum_{ab} A_{kab}}, \qquad
        w_k = \sum_{ij} \alpha_{kij} \, \text{ReLU}(g_{kij}), \qquad
        L = \text{ReLU}\Big(\sum_k w_k \, A_k\Big)

    (Chattopadhay et al., *Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional Networks*,
    WACV 2018, https://arxiv.org/abs/1710.11063, and the authors' code). The second form of the coefficients, used
    for positive gradients, does not round to 0 and needs no epsilon. The factor :math:`e^{y_c}`, which is the same for
    all channels, is omitted. As in the paper, the derivatives assume a network that is piecewise linear behind the
    layer.

    Passes per image: 1 forward, 1 backward. Use it instead of Grad-CAM if a class has several objects or a small one.
    It assumes activations that are not negative: if their sum is negative, the coefficients can have any size and sign.

    The maps of other packages differ: grad-cam 1.5.7 adds 1e-6 to the first denominator, which dominates for gradients
    below 1e-3, and torchcam 0.5.0 omits the denominator.
    """

    name = "grad_cam_plus_plus"
    relu = True

    def weights(self, activations: Tensor, gradients: Tensor, *, normalize_alpha: bool = False) -> Tensor:
        r"""
        Args:
            normalize_alpha (bool): Divide each channel's coefficients by their sum over the positions with positive
                gradients, as in the authors' code but not in the paper. Default: False

        Examples::

            >>> grad_cam_plus_plus = LayerGradCamPlusPlus(model, model.features[29])
            >>> attr = grad_cam_plus_plus.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        return grad_cam_plus_plus_weights(activations, gradients, normalize_alpha)
