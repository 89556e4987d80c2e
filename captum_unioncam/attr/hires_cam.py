"""HiResCAM: gradients times activations, place by place."""

from __future__ import annotations

from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT


class LayerHiResCam(GradientCam[LayerT]):
    r"""
    HiResCAM: each activation times its own gradient, which Grad-CAM takes the mean of first.

    With :math:`A` the layer's output and :math:`g_k = \partial y_c / \partial A_k`,

    .. math::
        L = \text{ReLU}\Big(\sum_k g_k \, A_k\Big)

    (Draelos and Carin, *Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks*,
    2020, https://arxiv.org/abs/2011.08891), with the ReLU that grad-cam has as well.

    Passes an image: 1 forward, 1 backward. Take it for a layer that is followed by one fully connected layer alone:
    there, without the ReLU, the map sums to the class score less its bias, so that it shows what the model computed.
    Behind global average pooling it is Grad-CAM's map, up to a factor.
    """

    name = "hires_cam"
    relu = True

    def terms(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """
        Examples::

            >>> hires_cam = LayerHiResCam(model, model.features[29])
            >>> attr = hires_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        return gradients * activations
