"""How well an attribution finds the object."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.engine.accelerators import widened
from captum_unioncam.engine.checks import check_number, check_size, described
from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS, divide_or_zero
from captum_unioncam.metrics.attributions import check_map, one_channel, published
from captum_unioncam.metrics.table import PERCENT, metric

# Pixels; no image is as large, and no number larger fits everywhere.
_FAR = 1e9


def fitted(attributions: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    r"""
    Attributions of one channel at the objects' size, and the objects, both (N, 1, \*spatial).

    Args:
        attributions (Tensor): (N, K, \*spatial), upsampled to the objects' size; channels are summed.
        objects (Tensor): Where the object is, bool, (N, 1, \*spatial) or (N, \*spatial), of the inputs' size.
            :func:`box_masks` makes it of boxes.

    Raises:
        ValueError: The shapes do not fit, or attributions are not finite.
    """
    check_map("attributions", attributions)
    check_map("objects", objects)
    if not 3 <= attributions.dim() <= 2 + MAX_SPATIAL_DIMS:
        raise ValueError(f"attributions: got the shape {tuple(attributions.shape)}; give (N, K, *spatial).")
    if objects.dtype != torch.bool and not ((objects == 0) | (objects == 1)).all():
        raise ValueError(
            f"objects: got {described(objects)} with other values than 0 and 1; give bool, as masks > 0 is."
        )
    if objects.dim() == attributions.dim() - 1:
        objects = objects.unsqueeze(1)
    if objects.dim() != attributions.dim() or objects.shape[:2] != (attributions.shape[0], 1):
        raise ValueError(
            f"objects: got the shape {tuple(objects.shape)} for attributions of shape {tuple(attributions.shape)}; "
            "give bool (N, 1, *spatial) or (N, *spatial), of the inputs' size."
        )
    return one_channel(attributions, objects.shape[2:]), objects.to(attributions.device, torch.bool)


def located(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Makes a function of ``fitted`` attributions and objects one of any; a decorator.

    Its docstring is completed by that of the two.
    """

    def call(given: dict[str, Any]) -> Tensor:
        return function(*fitted(given.pop("attributions"), given.pop("objects")), **given)

    return published(fitted, call, function)


@metric(
    "pointing",
    "pointing game (%)",
    larger_is_better=True,
    **PERCENT,
    needs_objects=True,
    is_yes_or_no=True,
    description="1 if the map's maximum is on the object, else 0.",
)
@located
def pointing_game(attributions: Tensor, objects: Tensor, tolerance: float = 0) -> Tensor:
    r"""
    Whether the attribution's maximum is on the object.

    Averaged over examples, it is the accuracy of the pointing game (Zhang et al., Excitation Backprop, IJCV 2018,
    https://arxiv.org/abs/1608.00507). Of several maxima, the first in row-major order counts. A constant
    attribution counts as a miss.

    Args:
        tolerance (float): Largest distance in pixels from the object that counts as a hit, at least 0. The paper uses
            15 at the photos' full size. Default: 0

    Returns:
        *Tensor* (N,), 1 or 0.

    Raises:
        ValueError: The tolerance is negative.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> hit = pointing_game(attr, masks)  # (4,)
    """
    check_number("tolerance", tolerance, 0, math.inf, "a distance of at least 0 pixels")
    axes = [torch.arange(length, device=attributions.device) for length in attributions.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    flat = attributions.flatten(1)
    maximum = grid[:, flat.argmax(1)].T.unsqueeze(-1)
    near = widened(grid - maximum).square().sum(1).sqrt() <= min(tolerance, _FAR)
    hit = (near & objects.flatten(1)).any(1) & (flat.amax(1) > flat.amin(1))
    return hit.to(attributions.dtype)


@metric(
    "energy",
    "energy pointing game (%)",
    larger_is_better=True,
    **PERCENT,
    needs_objects=True,
    description="The share of the map on the object.",
)
@located
def energy_pointing_game(attributions: Tensor, objects: Tensor) -> Tensor:
    r"""
    The share of the attribution on the object: its sum there divided by its total sum, with negative values set to 0.

    Larger is better (Wang et al., Score-CAM, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279).

    Returns:
        *Tensor* (N,), in [0, 1]; 0 if no value is positive.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> share = energy_pointing_game(attr, masks)  # (4,)
    """
    energy = attributions.clamp(min=0).flatten(1)
    return divide_or_zero((energy * objects.flatten(1)).sum(1), energy.sum(1))


def box_masks(boxes: Sequence[Tensor | Sequence[Sequence[float]]], size: Sequence[int]) -> Tensor:
    """Masks of boxes, as the pointing games take them.

    Args:
        boxes (Sequence): For each of N examples the boxes of its object, (B, 4): left, top, right, bottom, in pixels
            from the input's upper left corner. A pixel belongs to a box if its centre is inside.
        size (Sequence[int]): Height and width of the inputs.

    Returns:
        *Tensor* (N, 1, height, width), bool.

    Raises:
        ValueError: A box does not have four numbers, right or bottom is less than left or top, or the size is invalid.

    Examples::

        >>> boxes = [[(10, 20, 50, 80)], [(0, 0, 30, 30), (60, 60, 90, 90)]]
        >>> masks = box_masks(boxes, images.shape[2:])
    """
    height, width = check_size("size", size, dims=2)
    if not _is_sequence(boxes) or not all(map(_is_sequence, boxes)):
        raise ValueError(f"boxes: got {described(boxes)}; give for each example a list of its boxes.")
    centres = (torch.arange(length, dtype=torch.float64) + 0.5 for length in (height, width))
    y, x = torch.meshgrid(*centres, indexing="ij")
    masks = torch.zeros((len(boxes), 1, height, width), dtype=torch.bool)
    for mask, of_example in zip(masks, boxes, strict=True):
        for box in of_example:
            left, top, right, bottom = _corners(box)
            mask |= (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    return masks


def _is_sequence(value: Any) -> bool:
    of_array = hasattr(value, "shape") and len(value.shape) > 0
    return of_array or (isinstance(value, Sequence) and not isinstance(value, str))


def _corners(box: Any) -> list[float]:
    try:
        corners = [float(value) for value in box]
    except (TypeError, ValueError):
        corners = []
    # A comparison with NaN is false.
    if len(corners) != 4 or not (corners[0] <= corners[2] and corners[1] <= corners[3]):
        raise ValueError(f"boxes: got {described(box)}; give left, top, right and bottom, in this order.")
    return corners
