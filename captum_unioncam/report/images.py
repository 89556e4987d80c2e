"""A heat map over a picture."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captum_unioncam.engine.maps import up
from captum_unioncam.report.html import jpeg_uri

# Its brightness rises with the map, so that the unimportant is dark, in grey print and to the colour-blind too.
COLORS = "inferno"


OPACITY = 0.55


def colored(values: npt.NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    heat = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return Image.fromarray(matplotlib.colormaps[COLORS](heat, bytes=True)[:, :, :3].copy())


def overlay(photo: Tensor, values: Tensor) -> str:
    """A map over the gray photo, as ``visualization`` draws it, as a ``data:`` URI.

    Args:
        photo (Tensor): (3, H, W), in [0, 1].
        values (Tensor): (1, 1, h, w), of any scale; zeros, and what is negative, show the photo's dark parts.
    """
    heat = up(values.float().clamp(min=0), photo.shape[1:])[0, 0].cpu().numpy()
    colored = matplotlib.colormaps[COLORS](heat / (heat.max() or 1), bytes=True)[:, :, :3]
    gray = as_picture(photo).convert("L").convert("RGB")
    return jpeg_uri(Image.blend(gray, Image.fromarray(colored.copy()), OPACITY))


def as_picture(photo: Tensor) -> Image.Image:
    return Image.fromarray((photo.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
