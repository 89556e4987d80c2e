"""The trained MobileNetV2 and the photos in the folder that the environment variable IMAGENET_SAMPLE names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.samples import sample_in

LAYER = "1.features.18"


def sample() -> Any:
    """The module that loads them, or None where the variable is not set."""
    return sample_in("IMAGENET_SAMPLE")


def folder() -> Path:
    """Of photos in ``val``, in ImageNet's layout, and ``classes.txt``."""
    return Path(os.environ["IMAGENET_SAMPLE"])


def load_model() -> nn.Module:
    """The classifier, as ``--model benchmarks.imagenet_sample:load_model`` wants it."""
    model: nn.Module = sample().load_model()
    return model
