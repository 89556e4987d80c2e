"""Eigen-CAM: the first principal component of a layer's activations, whatever the class."""

import torch
from torch import Tensor

from captum_unioncam.attr.base import CamAttribution, LayerT
from captum_unioncam.engine.maps import spatial_dims, weighted


class LayerEigenCam(CamAttribution[LayerT]):
    r"""
    Eigen-CAM: the layer's activations projected on their first principal component.

    With :math:`\bar A_k` the mean of channel :math:`k` over space and :math:`v` the first right singular vector of the
    matrix of :math:`A_k - \bar A_k`, with a row for each position and a column for each channel,

    .. math::
        L = \text{ReLU}\Big(\sum_k v_k \, (A_k - \bar A_k)\Big), \qquad \sum_k v_k \ge 0

    (Muhammad and Yeasin, *Eigen-CAM: Class Activation Map using Principal Components*, IJCNN 2020,
    https://arxiv.org/abs/2008.00299), centred and clipped at 0 as in grad-cam. The sign of a singular vector is
    arbitrary. Here, it is the sign for which the map correlates positively with the sum of all activations. grad-cam
    keeps the sign that its solver returns.

    Passes per image: 1 forward, 0 backward. The target must be valid, but has no effect. Use it to see what a layer
    responds to most, without gradients; it does not explain the prediction of a class.
    """

    name = "eigen_cam"
    relu = True

    def terms(self, activations: Tensor) -> Tensor:
        """
        Examples::

            >>> eigen_cam = LayerEigenCam(model, model.features[29])
            >>> attr = eigen_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        centred = activations - activations.mean(spatial_dims(activations), keepdim=True)
        first: Tensor = torch.linalg.svd(centred.flatten(2).mT, full_matrices=False).Vh[:, 0]
        return weighted(first.where(first.sum(1, keepdim=True) >= 0, -first), centred)
