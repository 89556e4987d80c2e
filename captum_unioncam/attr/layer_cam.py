"""LayerCAM: positive gradients times activations, place by place."""

from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT


class LayerLayerCam(GradientCam[LayerT]):
    r"""
    LayerCAM: each activation weighted by its own gradient, if that is positive.

    With :math:`A` the layer's output and :math:`g_k = \partial y_c / \partial A_k`,

    .. math::
        L = \text{ReLU}\Big(\sum_k \text{ReLU}(g_k) \, A_k\Big)

    (Jiang et al., *LayerCAM: Exploring Hierarchical Class Activation Maps for Localization*, IEEE TIP 2021,
    https://doi.org/10.1109/TIP.2021.3089943). The ReLU of the sum is not in the published code; it has no effect if
    activations are not negative.

    Passes per image: 1 forward, 1 backward. Use it for layers before the last, which have finer maps; ``fuse`` combines
    the maps of several layers, each scaled as in the paper. Before a strided layer or a pooling, gradients and map have
    a grid pattern: explain the output of that layer instead.
    """

    name = "layer_cam"
    relu = True

    def terms(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """
        Examples::

            >>> layer_cam = LayerLayerCam(model, model.features[23])
            >>> attr = layer_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        return gradients.relu() * activations
