"""HiResCAM: gradients times activations, place by place."""

from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT


class LayerHiResCam(GradientCam[LayerT]):
    r"""
    HiResCAM: each activation times its own gradient, where Grad-CAM uses the mean gradient of the channel.

    With :math:`A` the layer's output and :math:`g_k = \partial y_c / \partial A_k`,

    .. math::
        L = \text{ReLU}\Big(\sum_k g_k \, A_k\Big)

    (Draelos and Carin, *Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks*,
    2020, https://arxiv.org/abs/2011.08891), with a ReLU as in grad-cam.

    Passes per image: 1 forward, 1 backward. Use it for a layer that is followed by a single fully connected layer:
    without the ReLU, the map then sums to the class score minus its bias, so it shows what the model computed. Before
    global average pooling, it equals Grad-CAM's map up to a factor.
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
