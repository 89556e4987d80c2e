"""A heat map over a photo."""

from dataclasses import dataclass
from functools import cached_property

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from PIL import Image
from torch import Tensor

from captum_unioncam.engine.maps import minmax, up
from captum_unioncam.report.html import picture_uri
from captum_unioncam.system.errors import WrongArgument
from captum_unioncam.system.imports import suggestion

COLORMAP = "glow"
"""Black to red to light yellow: as matplotlib's "hot", without its white end, which would wash out the maximum."""

_GLOW = [(0, "black"), (0.415, "red"), (0.85, "yellow"), (1, (1, 1, 0.5))]

OPACITY = 0.6

# The opacity of the lowest value, as a share of the highest one's.
_LEAST = 0.5

# The brightness of the photo in gray under the map, so that high values are the brightest over light photos too.
_DIMMED = 0.65

# The brightness of the photo that the colour bar stands for.
_MIDDLE = 0.5

Box = tuple[int, int, int, int]
"""A part of an image in pixels: left, top, right, bottom."""

Pixels = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """How a map is laid over a photo. The defaults were chosen by ``benchmarks/overlays.py``.

    Args:
        colormap (str): "glow", black to red to yellow, or one of matplotlib's. Default: "glow"
        opacity (float): Of the highest value, in [0, 1]; that of the lowest is half of it. Default: 0.6

    Raises:
        WrongArgument: There is no such colour map, or the opacity is outside [0, 1].

    Examples::

        >>> from captum_unioncam.report import Look
        >>> look = Look("viridis", opacity=0.8)
    """

    colormap: str = COLORMAP
    opacity: float = OPACITY

    def __post_init__(self) -> None:
        if self.colormap not in (COLORMAP, *matplotlib.colormaps):
            names = [COLORMAP, *matplotlib.colormaps]
            raise WrongArgument(
                f"colormap={self.colormap!r}: there is none of this name{suggestion(self.colormap, names)} Give "
                f"{COLORMAP!r} or one of matplotlib's."
            )
        if not 0 <= self.opacity <= 1:
            raise WrongArgument(f"opacity={self.opacity}: is outside [0, 1].")

    @cached_property
    def colors(self) -> Colormap:
        """Values in [0, 1] to colours."""
        if self.colormap == COLORMAP:
            return LinearSegmentedColormap.from_list(COLORMAP, _GLOW)
        return matplotlib.colormaps[self.colormap]

    def blend(self, gray: Pixels, values: Pixels) -> Pixels:
        """The colours (H, W, 3) of values over gray pixels, each (H, W), in [0, 1]."""
        opacity = self.opacities(values)[..., None]
        colors: Pixels = self.colors(values)[..., :3]
        return _DIMMED * (1 - opacity) * gray[..., None] + opacity * colors

    def opacities(self, values: Pixels) -> Pixels:
        """The opacity of values in [0, 1], of the same shape."""
        return self.opacity * _share(values)

    def bar(self) -> Colormap:
        """The colours that the values have over a photo of middle gray, for a colour bar."""
        values = np.linspace(0, 1, 256)
        return ListedColormap(self.blend(np.full_like(values, _MIDDLE), values))


def as_picture(photo: Tensor) -> Image.Image:
    """The photo (3, H, W), in [0, 1], for Pillow."""
    return Image.fromarray((photo.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def scaled(values: Tensor, size: tuple[int, int]) -> Pixels:
    """A map (1, 1, h, w) from its minimum, shown as 0, to its maximum, shown as 1, at the size (width, height).

    Negative values show as 0 does. What is positive everywhere, as RISE's maps are, is shown above its minimum.
    """
    at_size = minmax(up(values.detach().float().clamp(min=0), size[::-1]))[0, 0]
    pixels: Pixels = at_size.cpu().double().numpy()
    return pixels


def heat(values: Tensor, size: tuple[int, int], look: Look | None = None) -> Image.Image:
    """A map (1, 1, h, w) in colours alone, from its minimum to its maximum, at the size (width, height)."""
    return _image((look or Look()).colors(scaled(values, size))[..., :3])


def laid_over(picture: Image.Image, values: Tensor, look: Look | None = None, box: Box | None = None) -> Image.Image:
    """A heat map over the image in gray.

    Args:
        picture (PIL.Image.Image): In mode RGB.
        values (Tensor): (1, 1, h, w), of any scale; negative values show as 0, the darkest colour.
        look (Look or None): Colours and opacity. Default: None, ``Look()``
        box (tuple or None): The part of the image that the map covers. Default: None, all of it
    """
    look, gray = look or Look(), picture.convert("L")
    left, top, right, bottom = box or (0, 0, picture.width, picture.height)
    shown = _image(np.repeat(_DIMMED * (np.asarray(gray)[..., None] / 255), 3, axis=2))
    # Where the preprocessing pads, the box reaches over the image's edge; what is outside is cut off again.
    part = np.asarray(gray.crop((left, top, right, bottom))) / 255
    shown.paste(_image(look.blend(part, scaled(values, (right - left, bottom - top)))), (left, top))
    return shown


def dimmed(picture: Image.Image) -> Image.Image:
    """The image in gray as it is under a map."""
    return picture.convert("L").point(lambda value: round(_DIMMED * value))


def sheet(values: Tensor, size: tuple[int, int], look: Look | None = None) -> str:
    """A map to lay over ``dimmed`` with the look's opacity, which makes ``laid_over``; a page may choose the opacity.

    Args:
        values (Tensor): (1, 1, h, w), as ``laid_over`` takes it.
        size (tuple[int, int]): Width and height.
        look (Look or None): The colours; its opacity is not applied. Default: None, ``Look()``

    Returns:
        *str*: A ``data:`` URI of a PNG file, which is less opaque where values are low.
    """
    # As matplotlib divides values among the colours of a map.
    levels = (np.arange(256) + 0.5) / 256
    picture = Image.fromarray(np.minimum(scaled(values, size) * 256, 255).astype(np.uint8))
    picture.putpalette(((look or Look()).colors(levels)[:, :3] * 255).round().astype(np.uint8).tobytes())
    return picture_uri(picture, "png", transparency=(_share(levels) * 255).round().astype(np.uint8).tobytes())


def _share(values: Pixels) -> Pixels:
    """The opacity of values in [0, 1], as a share of the highest one's."""
    return _LEAST + (1 - _LEAST) * values


def _image(colors: Pixels) -> Image.Image:
    return Image.fromarray((colors * 255).round().astype(np.uint8))
