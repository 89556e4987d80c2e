"""Feature CAM: Grad-CAM's map on the edges of the input, at the input's size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.attr.base import CamResult, GradientCam, LayerT
from captum_unioncam.engine.checks import check_finite, check_function, described, inputs_with_mask
from captum_unioncam.engine.maps import full_precision, minmax, spatial_dims, up, weighted


class LayerFeatureCam(GradientCam[LayerT]):
    r"""
    After Feature CAM: Grad-CAM's map on the edges of the input, at the input's size.

    With :math:`A` the layer's output, :math:`\bar g_k` the mean over space of :math:`\partial y_c / \partial A_k`,
    :math:`X` the input and :math:`E` an edge descriptor with values in [0, 1],

    .. math::
        L = \text{minmax}\Big(\text{up}\Big(\text{ReLU}\big(\sum_k \bar g_k \, A_k\big)\Big)\Big) \circ E(X)

    after Clement et al., *Feature CAM: Interpretable AI in Image Classification*, 2024,
    https://arxiv.org/abs/2403.05658. No code is known. The abstract and summaries say that it multiplies
    Grad-CAM's map by a description of the input's features, in one form by an edge network (HED). The formula and the
    default descriptor are this package's choice. Give such a network as ``descriptor``.

    The map is (N, 1, \*spatial) at the input's size, in [0, 1]. It is not a sum over channels, so
    ``attr_dim_summation=False`` is refused.

    Passes per image: 1 forward, 1 backward. Use it for illustration only: the edges come from the input, not from the
    model.
    """

    name = "feature_cam"
    has_terms = False

    def check(self, descriptor: Callable[[Tensor], Tensor] | None) -> None:
        check_function("descriptor", descriptor)

    def cam(
        self,
        activations: Tensor,
        gradients: Tensor,
        inputs: tuple[Tensor, ...],
        *,
        summed: bool,
        descriptor: Callable[[Tensor], Tensor] | None = None,
    ) -> CamResult:
        r"""
        Args:
            descriptor (Callable or None): Converts the input (N, C, \*spatial) to its edges (N, 1, \*spatial), in [0,
                1], independently for each example. With several inputs, it gets the first one with as many spatial
                dimensions as the layer's output. Default: None, the magnitude of Sobel's gradient of the mean over the
                channels, scaled to [0, 1]

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: The maps (N, 1, \*spatial) at the input's size, float32 for
            half-precision models; a tuple where the layer has several output tensors; a list of those, one a layer, for
            a list of layers.

        Raises:
            ValueError: ``attr_dim_summation=False``, a descriptor that returns another shape.
            TypeError: A ``descriptor`` that is not a function.

        Examples::

            >>> feature_cam = LayerFeatureCam(model, model.features[29])
            >>> attr = feature_cam.attribute(images, target=3)  # (N, 1, 224, 224)
        """
        grad_cam = weighted(gradients.mean(spatial_dims(gradients)), activations).sum(1, keepdim=True).relu()
        has_edges = inputs_with_mask(inputs, activations.dim())
        described_input = inputs[has_edges.index(True)]
        edges = sobel_edges(described_input) if descriptor is None else _described(descriptor, described_input)
        return minmax(up(grad_cam, described_input.shape[2:])) * edges.to(grad_cam), None


def sobel_edges(inputs: Tensor) -> Tensor:
    r"""The size of Sobel's gradient of the mean over the channels, scaled to [0, 1] in each example.

    Args:
        inputs (Tensor): (N, C, \*spatial), of one to three spatial dimensions.

    Returns:
        *Tensor* (N, 1, \*spatial). Outside, the border's values go on.
    """
    mean = (full_precision(inputs) if inputs.is_floating_point() else inputs.float()).mean(1, keepdim=True)
    squares = torch.zeros_like(mean)
    for across in spatial_dims(mean):
        slope = mean
        for dim in spatial_dims(mean):
            slope = _filtered(slope, dim, (-1, 0, 1) if dim == across else (1, 2, 1))
        squares = squares + slope.square()
    return minmax(squares.sqrt())


def _filtered(maps: Tensor, dim: int, taps: tuple[int, int, int]) -> Tensor:
    size = maps.shape[dim]
    padded = torch.cat([maps.narrow(dim, 0, 1), maps, maps.narrow(dim, size - 1, 1)], dim)
    return sum((tap * padded.narrow(dim, i, size) for i, tap in enumerate(taps)), torch.zeros_like(maps))


def _described(descriptor: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    # It may write into what it gets.
    edges: Any = descriptor(inputs.detach().clone())
    expected = (inputs.shape[0], 1, *inputs.shape[2:])
    if not isinstance(edges, Tensor) or tuple(edges.shape) != expected:
        raise ValueError(f"descriptor: returned {described(edges)}; return a tensor of shape {expected}.")
    check_finite(edges, "descriptor")
    return edges
