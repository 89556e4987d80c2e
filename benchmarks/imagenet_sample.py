"""The trained MobileNetV2 and the photos in the folder that the environment variable IMAGENET_SAMPLE names."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from torch import nn

LAYER = "1.features.18"


def sample() -> Any:
    """The module that loads them, or None where the variable is not set."""
    if not os.environ.get("IMAGENET_SAMPLE"):
        return None
    spec = importlib.util.spec_from_file_location("imagenet_sample", folder() / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder() -> Path:
    """Of photos in ``val``, in ImageNet's layout, and ``classes.txt``."""
    return Path(os.environ["IMAGENET_SAMPLE"])


def load_model() -> nn.Module:
    """The classifier, as ``--model benchmarks.imagenet_sample:load_model`` wants it."""
    model: nn.Module = sample().load_model()
    return model
