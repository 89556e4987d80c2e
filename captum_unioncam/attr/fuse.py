"""Combining the maps of several layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_unioncam.engine.checks import check_finite, check_size, described
from captum_unioncam.engine.maps import minmax, up


def fuse(maps: Sequence[Tensor], size: torch.Size | tuple[int, ...]) -> Tensor:
    r"""Combines the maps of several layers: the maximum at each position, as in LayerCAM.

    Each map is first scaled to [0, 1] at the common size, so that all layers have equal weight
    (Jiang et al., *LayerCAM: exploring hierarchical class activation maps for localization*, IEEE Transactions on Image
    Processing 30, 2021, https://doi.org/10.1109/TIP.2021.3089943).

    Args:
        maps (Sequence[Tensor]): One per layer, (N, 1, \*spatial) at any resolution. Maps (N, K, \*spatial) are combined
            channel by channel.
        size (tuple[int, ...]): The spatial size of the result, such as the inputs'.

    Returns:
        *Tensor* (N, 1, \*size), in [0, 1]; all zeros where every map is constant.

    Raises:
        ValueError: No maps, or maps that differ in more than their resolution, do not have ``size``'s dimensions or are
            not finite; a ``size`` that is not one to three whole numbers of at least 1.

    Examples::

        >>> union_cam = LayerUnionCam(model, [model.layer3, model.layer4])
        >>> maps = union_cam.attribute(images, target=3)
        >>> heat = fuse(maps, images.shape[2:])  # (N, 1, 224, 224)
    """
    size = check_size("size", size)
    if not isinstance(maps, (list, tuple, Tensor)) or not all(isinstance(m, Tensor) and m.numel() for m in maps):
        raise ValueError(f"maps: got {described(maps)}; give a tensor with values for each layer.")
    shapes = {(*m.shape[:2], m.dim() - 2) for m in maps}
    if len(shapes) != 1 or shapes.pop()[-1] != len(size):
        given = ", ".join(str(tuple(m.shape)) for m in maps) or "none"
        raise ValueError(f"maps: got {given} for the size {tuple(size)}; give maps that differ in resolution alone.")
    for m in maps:
        check_finite(m, "maps")
    maps = [m if m.is_floating_point() else m.float() for m in maps]
    return minmax(torch.stack([minmax(up(m, size)) for m in maps]).amax(0))
