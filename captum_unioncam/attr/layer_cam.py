"""LayerCAM: positive gradients times activations, place by place."""

from __future__ import annotations

from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT


class LayerLayerCam(GradientCam[LayerT]):
    r"""
    LayerCAM: each activation weighted by its own gradient, where that is positive.

    With :math:`A` the layer's output and :math:`g_k = \partial y_c / \partial A_k`,

    .. math::
        L = \text{ReLU}\Big(\sum_k \text{ReLU}(g_k) \, A_k\Big)

    (Jiang et al., *LayerCAM: Exploring Hierarchical Class Activation Maps for Localization*, IEEE TIP 2021,
    https://doi.org/10.1109/TIP.2021.3089943). The ReLU of the sum is not in the published code; it changes nothing
    where activations are not negative.

    Passes an image: 1 forward, 1 backward. Take it for layers before the last, whose finer maps it keeps in place;
    ``fuse`` makes one map of several layers', each scaled as in the paper. In front of a strided layer or a pooling the
    gradients have a grid, and so has the map: explain the output of that layer.
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
