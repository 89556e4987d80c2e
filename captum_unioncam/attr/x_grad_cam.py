"""XGrad-CAM: Grad-CAM whose mean of the gradients is weighted by the activations."""

from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT
from captum_unioncam.engine.maps import divide_unless_zero, spatial_dims


class LayerXGradCam(GradientCam[LayerT]):
    r"""
    XGrad-CAM: a channel's weight is the mean of its gradients, weighted by its activations.

    With :math:`A` the layer's output and :math:`g_k = \partial y_c / \partial A_k`,

    .. math::
        w_k = \frac{\sum_{ij} g_{kij} \, A_{kij}}{\sum_{ij} A_{kij}}, \qquad
        L = \text{ReLU}\Big(\sum_k w_k \, A_k\Big)

    (Fu et al., *Axiom-based Grad-CAM*, BMVC 2020, https://arxiv.org/abs/2008.02312). The published code adds 1e-6 to
    the denominator; here it is exact, and a channel whose activations sum to 0 has weight 0.

    Passes per image: 1 forward, 1 backward. Use it instead of Grad-CAM if gradients vary over space, as before a fully
    connected head; before global average pooling, both are equal. It assumes activations that are not negative:
    otherwise their sum can be near 0, and the weight can have any size.
    """

    name = "x_grad_cam"
    relu = True

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """
        Examples::

            >>> x_grad_cam = LayerXGradCam(model, model.features[29])
            >>> attr = x_grad_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        dims = spatial_dims(activations)
        return divide_unless_zero((gradients * activations).sum(dims), activations.sum(dims))
