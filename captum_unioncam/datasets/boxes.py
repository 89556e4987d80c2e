"""Boxes of objects, drawn as masks."""

import math
from collections.abc import Iterable

from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edges in pixels, from the image's left and top edges."""


def mask_of_boxes(size: tuple[int, int], boxes: Iterable[Box]) -> Image.Image:
    """Draws boxes: the pixels whose centres they hold, or the nearest of a thinner one.

    Args:
        size (tuple[int, int]): Width and height of the image.
        boxes (Iterable[Box]): Their parts outside the image are cut off.

    Returns:
        *PIL.Image.Image*: In mode "L", 255 within the boxes and 0 elsewhere.

    Raises:
        ValueError: A box covers none of the image.

    Example::

        >>> mask_of_boxes((4, 3), [(1, 0, 3, 2)]).getbbox()
        (1, 0, 3, 2)
    """
    mask = Image.new("L", size)
    for box in boxes:
        left, right = _pixels(box[0], box[2], size[0])
        top, bottom = _pixels(box[1], box[3], size[1])
        if left >= right or top >= bottom:
            raise ValueError(f"the annotated box {box} covers none of its {size[0]}x{size[1]} pixels")
        mask.paste(255, (left, top, right, bottom))
    return mask


def _pixels(start: float, end: float, size: int) -> tuple[int, int]:
    """The first pixel of an extent, and the one behind its last."""
    first, behind = math.ceil(start - 0.5), math.ceil(end - 0.5)
    if first == behind and start < end:
        first, behind = math.floor(start), math.floor(start) + 1
    return max(first, 0), min(behind, size)
