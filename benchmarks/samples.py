"""Samples of real images with a trained model, in folders that environment variables name."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any


def sample_in(variable: str) -> Any:
    """The module ``model.py`` of the folder that the environment variable names, or None where it is not set."""
    if not os.environ.get(variable):
        return None
    spec = importlib.util.spec_from_file_location(variable.lower(), Path(os.environ[variable]) / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
