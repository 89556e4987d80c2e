"""A heat map over a photo."""

from __future__ import annotations

import matplotlib
import torch
from PIL import Image
from torch import Tensor

from captum_unioncam.engine.maps import minmax, up
from captum_unioncam.report.html import jpeg_uri

# Brightness rises with the map's values, so it also reads in grey print and for the colour-blind.
_COLORS = "inferno"

_OPACITY = 0.55


def as_picture(photo: Tensor) -> Image.Image:
    """The photo (3, H, W), in [0, 1], for Pillow."""
    return Image.fromarray((photo.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def heat(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """A map (1, 1, h, w) in colors, from its minimum to its maximum, at the size (width, height).

    Negative values show as 0 does. What is positive everywhere, as RISE's maps are, is shown above its minimum.
    """
    at_size = minmax(up(values.detach().float().clamp(min=0), size[::-1]))[0, 0].cpu().numpy()
    return Image.fromarray(matplotlib.colormaps[_COLORS](at_size, bytes=True)).convert("RGB")


def laid_over(picture: Image.Image, values: Tensor) -> Image.Image:
    """A heat map over the picture in gray.

    Args:
        picture (PIL.Image.Image): In mode RGB.
        values (Tensor): (1, 1, h, w), of any scale; negative values show as 0, the darkest color.
    """
    return Image.blend(picture.convert("L").convert("RGB"), heat(values, picture.size), _OPACITY)


def overlay(photo: Tensor, values: Tensor) -> str:
    """``laid_over`` for a photo (3, H, W) in [0, 1], as a ``data:`` URI."""
    return jpeg_uri(laid_over(as_picture(photo), values))
