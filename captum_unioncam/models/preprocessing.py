"""Preprocessing of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing in two steps: resizing and cropping to the visible picture, then normalisation.

    Args:
        fit (Callable): Converts a PIL picture in mode RGB to a tensor (3, H, W) in [0, 1], resized and cropped.
        mean (tuple[float, ...]): Subtracted from each channel. Default: 0
        std (tuple[float, ...]): Divides each channel afterwards. Default: 1
    """

    fit: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def normalized(self, shown: Tensor) -> Tensor:
        """Normalises a result of ``fit``, or a batch (N, 3, H, W) of them. Zeros become the model's black."""
        mean, std = (shown.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (shown - mean) / std

    def objects_seen(self, objects: Image.Image) -> Tensor:
        """The mask of a picture's objects as the model sees it, bool, (H, W).

        Args:
            objects (PIL.Image.Image): Mode "L", of the picture's size: 255 on the objects, and 0 elsewhere.
        """
        # Resizing makes their borders grey.
        return self.fit(objects.convert("RGB"))[0] > 0.5


def squeezed_to(size: int) -> Callable[[Image.Image], Tensor]:
    """A ``fit`` that resizes to a square, without keeping the aspect."""
    # A local function could not be pickled for another process.
    return partial(_squeezed, size)


def _squeezed(size: int, picture: Image.Image) -> Tensor:
    pixels = np.array(picture.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


PAPER = Preprocessing(squeezed_to(224))
"""The UnionCAM paper's preprocessing: resized to 224x224, in [0, 1], nothing else."""
