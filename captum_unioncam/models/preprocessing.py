"""Preprocessing of images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captum_unioncam.system.errors import WrongArgument


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing in two steps: resizing and cropping to the visible image, then normalisation.

    Args:
        fit (Callable): Converts a PIL image in mode RGB to a tensor (3, H, W) in [0, 1], resized and cropped.
        mean (tuple[float, ...]): Subtracted from each channel. Default: 0
        std (tuple[float, ...]): Divides each channel afterwards. Default: 1
        is_bgr (bool): The model takes blue, green and red, in this order, as ``mean`` and ``std`` are. Default: False
    """

    fit: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    is_bgr: bool = False

    def normalized(self, shown: Tensor) -> Tensor:
        """Normalises a result of ``fit``, or a batch (N, 3, H, W) of them. Zeros become the model's black."""
        mean, std = (shown.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return ((shown.flip(-3) if self.is_bgr else shown) - mean) / std

    def objects_seen(self, objects: Image.Image, boxes: Sequence[tuple[float, float, float, float]] = ()) -> Tensor:
        """The mask of an image's objects as the model sees it, bool, (H, W).

        Boxes follow the image by torchvision's transforms v2, where ``fit`` is one or is known as such; then each
        marks the pixels whose centres it holds, or the nearest if it is thinner. Other masks go through ``fit`` as
        images. As torchvision's ``Mask`` they would be resized by "nearest", which is up to half a pixel off, unless
        the transform's own interpolation is "nearest-exact", which images are not resized by.

        Args:
            objects (PIL.Image.Image): Mode "L", of the image's size: 255 on the objects, and 0 elsewhere.
            boxes (Sequence): Left, top, right and bottom edges of the boxes that ``objects`` shows, in the image's
                pixels. Default: none, it shows other masks
        """
        follow = _transform_of_boxes(self.fit) if boxes else None
        if follow is None:
            # Resizing makes their borders grey.
            return self.fit(objects.convert("RGB"))[0] > 0.5
        from torchvision.tv_tensors import BoundingBoxes

        edges = torch.tensor(boxes, dtype=torch.float64)
        seen = follow(BoundingBoxes(edges, format="XYXY", canvas_size=(objects.height, objects.width)))
        left, top, right, bottom = seen.as_subclass(Tensor).T
        height, width = seen.canvas_size
        return (_held(top, bottom, height)[:, :, None] & _held(left, right, width)[:, None]).any(0)

    def box_seen(self, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """The part of an image that the model sees: left, top, right, bottom, in the image's pixels.

        Found by looking at an image whose colours rise with the place, so that it holds for any ``fit`` that resizes,
        crops and pads. A box reaches over the image's edge where ``fit`` pads.

        Args:
            size (tuple[int, int]): The image's width and height.

        Returns:
            *tuple[int, int, int, int] or None*: None if ``fit`` does something else, such as turning the image.
        """
        width, height = size
        x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
        ramps = np.stack([*np.broadcast_arrays(x, y[:, None]), np.full((height, width), 255.0)], axis=-1)
        seen = self.fit(Image.fromarray(ramps.round().astype(np.uint8))).double().cpu().numpy()
        known = seen[2] > 0.99
        across, down = _ends(seen[0], known, 1, width), _ends(seen[1], known, 0, height)
        return None if across is None or down is None else (across[0], down[0], across[1], down[1])


def _ends(
    values: npt.NDArray[np.float64], known: npt.NDArray[np.bool_], axis: int, size: int
) -> tuple[int, int] | None:
    """Where a ramp's image, of that many pixels, begins and ends in the model's input along an axis."""
    # Near its ends, resizing has flattened the ramp.
    inside = known & (values > 0.05) & (values < 0.95)
    if inside.sum() < 4 or size < 2:
        return (0, size) if size < 2 else None
    places = np.nonzero(inside)[axis] + 0.5
    found = values[inside] * (size - 1) + 0.5
    slope, start = np.polyfit(places, found, 1)
    error = np.abs(slope * places + start - found).max()
    if slope <= 0 or error > max(2 * slope, 0.02 * size, 1):
        return None
    begin, end = float(start), float(start + slope * values.shape[axis])
    # The ramp's 256 steps are not finer.
    return (0 if abs(begin) < size / 256 else round(begin)), (size if abs(end - size) < size / 256 else round(end))


def _transform_of_boxes(fit: Callable[[Image.Image], Tensor]) -> Any:
    """The transform v2 that resizes and crops as ``fit`` does; None where it is not known."""
    from torchvision.transforms import _presets, v2

    if isinstance(fit, v2.Transform):
        return fit
    if isinstance(fit, partial) and fit.func is _squeezed:
        return v2.Resize(fit.args * 2)
    if isinstance(fit, _presets.ImageClassification):
        return v2.Compose([v2.Resize(fit.resize_size), v2.CenterCrop(fit.crop_size)])
    return None


def _held(start: Tensor, end: Tensor, size: int) -> Tensor:
    """The pixels whose centres lie in each extent, or the nearest of a thinner one: bool, (extents, size)."""
    pixels = torch.arange(size)
    held = (start[:, None] <= pixels + 0.5) & (pixels + 0.5 < end[:, None])
    thin = (start < end) & ~held.any(1)
    nearest = ((start + end) / 2).floor().clamp(0, size - 1)
    return held | (thin[:, None] & (pixels == nearest[:, None]))


def _squeezed(size: int, picture: Image.Image) -> Tensor:
    """The image resized to a square, without keeping the aspect."""
    pixels = np.array(picture.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _resized_and_cropped(size: int, crop: int, picture: Image.Image) -> Tensor:
    """The middle square of ``crop`` pixels of the image, whose shorter side is resized to ``size``."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - crop) // 2, (height - crop) // 2
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.array(resized.crop((left, top, left + crop, top + crop)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def own_preprocessing(text: str) -> Preprocessing:
    """The preprocessing that a text such as "size=256 crop=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5" describes.

    Args:
        text (str): Any of these. "size" resizes the shorter side, if there is a "crop", or else the image to a
            square; a "crop" alone resizes to it. Default: 224, and nothing subtracted or divided

    Raises:
        WrongArgument: It cannot be read so, or a number does not fit.
    """
    wanted = {"size": 1, "crop": 1, "mean": 3, "std": 3}
    given: dict[str, list[float]] = {}
    for part in text.split():
        name, _, value = part.partition("=")
        try:
            given[name] = [float(number) for number in value.split(",")]
        except ValueError:
            name = ""
        if name not in wanted:
            raise WrongArgument(
                f"preprocess={text!r}: cannot be read; give auto, paper, or such as 'size=256 crop=224 mean=0,0,0'."
            )
        if len(given[name]) not in (1, wanted[name]):
            raise WrongArgument(f"{name}: has {len(given[name])} numbers; give {wanted[name]}.")
        if not all(map(math.isfinite, given[name])):
            raise WrongArgument(f"{name}: got {value}; give finite numbers.")
        if name != "mean" and min(given[name]) <= 0:
            raise WrongArgument(f"{name}: got {value}; give numbers above 0.")
        if name in ("size", "crop") and not given[name][0].is_integer():
            raise WrongArgument(f"{name}: got {value}; give a whole number of pixels.")
    size, crop = (None if name not in given else int(given[name][0]) for name in ("size", "crop"))
    if crop is not None and size is not None and crop > size:
        raise WrongArgument(f"crop: {crop} pixels are more than the size of {size}; give at most as many.")
    # Local functions could not be pickled for another process.
    fit = partial(_squeezed, size or 224) if crop is None else partial(_resized_and_cropped, size or crop, crop)
    mean, std = (tuple((given.get(name, [usual]) * 3)[:3]) for name, usual in (("mean", 0.0), ("std", 1.0)))
    return Preprocessing(fit, mean, std)


PAPER = own_preprocessing("size=224")
"""The UnionCAM paper's preprocessing: resized to 224x224, in [0, 1], nothing else."""
