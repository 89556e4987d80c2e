"""Weakly supervised localization: how well an attribution's box and pixels match the object's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam.engine.checks import check_number, check_numbers
from captum_unioncam.engine.maps import divide_or_zero, minmax
from captum_unioncam.metrics.localization import located
from captum_unioncam.metrics.table import PERCENT, metric

THRESHOLDS = tuple(step / 20 for step in range(20))


@located
def box_ious(attributions: Tensor, objects: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    r"""
    How well the box around the attribution's largest region fits the object's, at each of several thresholds.

    The region is the largest set of connected positions (neighbours at a side or a corner) with :math:`m > \tau`, where
    :math:`m = \text{minmax}(\text{up}(\text{attribution}))`; of equally large regions, the first in row-major order.
    The object has a box around each of its connected regions, and the best one counts. MaxBoxAcc uses one
    threshold for all examples of a data set (Choe et al., *Evaluating weakly supervised object localization methods
    right*, CVPR 2020, https://arxiv.org/abs/2001.07437), as in the example.

    Args:
        thresholds (Sequence[float]): :math:`\tau`, T numbers from 0 to below 1. Default: 0, 0.05, ..., 0.95

    Returns:
        *Tensor* (N, T), intersection over union, in [0, 1]; 0 if there is no object or no region.

    Raises:
        ValueError: Attributions without two spatial dimensions, or a threshold outside [0, 1).

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> ious = box_ious(attr, masks)  # (N, 20)
        >>> max_box_acc = (ious >= 0.5).double().mean(0).max()
    """
    check_numbers("thresholds", thresholds, 0, 1 - 1e-9, "numbers from 0 to below 1")
    if attributions.dim() != 4:
        raise ValueError(f"attributions: got the shape {tuple(attributions.shape)}; give (N, K, H, W).")
    levels = torch.as_tensor(thresholds, dtype=attributions.dtype, device=attributions.device)
    marked = minmax(attributions) > levels.reshape(-1, 1, 1)
    ious = attributions.new_zeros(attributions.shape[0], len(thresholds))
    for example, regions in enumerate(_regions(objects[:, 0])):
        boxes, _ = _boxes(regions)
        for number, of_threshold in enumerate(_regions(marked[example])):
            found, sizes = _boxes(of_threshold)
            if len(found) and len(boxes):
                ious[example, number] = _ious(found[sizes.argmax()].to(ious), boxes.to(ious)).max()
    return ious


@metric(
    "localization_iou",
    "localization IoU",
    larger_is_better=True,
    needs_objects=True,
    on_request=True,
    description="The overlap (intersection over union) of the object's box and the box around the map's largest region "
    "at the best threshold.",
)
@located
def localization_iou(attributions: Tensor, objects: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    r"""
    The largest of :func:`box_ious` over the thresholds: how well the attribution's box can fit the object's.

    Larger is better. Each example has its own best threshold; give a single threshold to fix it.

    Args:
        thresholds (Sequence[float]): As for :func:`box_ious`.

    Returns:
        *Tensor* (N,), in [0, 1].

    Raises:
        ValueError: As :func:`box_ious`.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> overlap = localization_iou(attr, masks)  # (N,)
        >>> at_a_fifth = localization_iou(attr, masks, thresholds=[0.2])
    """
    ious: Tensor = box_ious(attributions, objects, thresholds)
    return ious.amax(1)


@metric(
    "localization_accuracy",
    "localization accuracy (%)",
    larger_is_better=True,
    **PERCENT,
    needs_objects=True,
    is_yes_or_no=True,
    on_request=True,
    description="1 if the localization IoU is at least 0.5, else 0.",
)
@located
def localization_accuracy(
    attributions: Tensor, objects: Tensor, thresholds: Sequence[float] = THRESHOLDS, least_iou: float = 0.5
) -> Tensor:
    r"""
    Whether the box around the attribution's largest region fits the object's, at the best threshold.

    Larger is better. Averaged over examples with one threshold it is WSOL's BoxAcc (Choe et al., CVPR 2020,
    https://arxiv.org/abs/2001.07437). With several, each example has its own best one, so the mean is at least
    MaxBoxAcc; see :func:`box_ious`.

    Args:
        thresholds (Sequence[float]): As for :func:`box_ious`.
        least_iou (float): Intersection over union that counts as a hit, in [0, 1]. Default: 0.5

    Returns:
        *Tensor* (N,), 1 or 0.

    Raises:
        ValueError: As :func:`box_ious`, or ``least_iou`` is not in [0, 1].

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> hits = localization_accuracy(attr, masks, thresholds=[0.2])  # (N,)
    """
    check_number("least_iou", least_iou, 0, 1, "a number from 0 to 1")
    best: Tensor = localization_iou(attributions, objects, thresholds)
    return (best >= least_iou).to(best.dtype)


@metric(
    "pixel_average_precision",
    "pixel average precision (%)",
    larger_is_better=True,
    **PERCENT,
    needs_objects=True,
    on_request=True,
    description="How well the map separates the object's pixels from the others: the mean precision over recalls.",
)
@located
def pixel_average_precision(attributions: Tensor, objects: Tensor) -> Tensor:
    r"""
    The average precision of the pixels that the attribution marks, over all thresholds of the attribution.

    .. math::
        \sum_k (r_k - r_{k-1}) \, p_k

    with precision :math:`p_k` and recall :math:`r_k` of the pixels at or above the k-th largest distinct value.
    Larger is better. Choe et al. (CVPR 2020, https://arxiv.org/abs/2001.07437) pool the pixels of all examples
    for their PxAP: give the scaled maps and the masks as one example, ``maps.reshape(1, 1, -1)``.

    Returns:
        *Tensor* (N,), in [0, 1]; 0 if there is no object.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> precision = pixel_average_precision(attr, masks)  # (N,)
    """
    values, order = attributions.flatten(1).sort(1, descending=True)
    on_object = objects.flatten(1).gather(1, order).to(values.dtype)
    count = values.shape[1]
    places = torch.arange(count, device=values.device).expand_as(order)
    # The last of equal values: the threshold takes all of them.
    is_last = F.pad(values[:, 1:] != values[:, :-1], (0, 1), value=True)
    last = places.where(is_last, count - 1).flip(1).cummin(1).values.flip(1)
    precision = on_object.cumsum(1) / (places + 1)
    return divide_or_zero((precision.gather(1, last) * on_object).sum(1), on_object.sum(1))


def _regions(masks: Tensor) -> Tensor:
    """For each place of bool masks (B, H, W), the first place of its connected region, H * W outside of all."""
    count = masks[0].numel()
    # From the last place on, so that the first place of a region has its largest number, and 0 is outside.
    numbers = (torch.arange(count, 0, -1, device=masks.device) * masks.flatten(1)).reshape(masks.shape)
    while True:
        around = _largest_of_three(_largest_of_three(numbers).mT).mT * masks
        if torch.equal(around, numbers):
            return count - numbers
        # What a place finds, the place that it has the number of learns, and from that one all that have its number.
        of_number = (count - numbers.flatten(1)).clamp(max=count - 1)
        told = around.flatten(1).scatter_reduce(1, of_number, around.flatten(1), "amax")
        numbers = told.gather(1, (count - told).clamp(max=count - 1)).reshape(masks.shape) * masks


def _largest_of_three(numbers: Tensor) -> Tensor:
    """The largest of each place's number and its left and right neighbours'."""
    padded = F.pad(numbers, (1, 1))
    return torch.maximum(torch.maximum(padded[..., :-2], padded[..., 2:]), numbers)


def _boxes(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Top, left, bottom and right of each region (R, 4), in the order of their first places, and their sizes (R,)."""
    first, of_place, sizes = torch.unique(regions, return_inverse=True, return_counts=True)
    rows, columns = torch.meshgrid(*(torch.arange(n, device=regions.device) for n in regions.shape), indexing="ij")
    ends = [(rows, "amin"), (columns, "amin"), (rows + 1, "amax"), (columns + 1, "amax")]
    boxes = [
        torch.zeros_like(first).scatter_reduce(0, of_place.flatten(), places.flatten(), end, include_self=False)
        for places, end in ends
    ]
    inside = first < regions.numel()
    return torch.stack(boxes, 1)[inside], sizes[inside]


def _ious(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box with each of others (R, 4)."""
    shared = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0).prod(1)
    areas = (box[2:] - box[:2]).prod(0) + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (areas - shared)
