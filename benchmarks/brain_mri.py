"""The trained VGG16 and the slices with boxes in the folder that the environment variable BRAIN_MRI names."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.samples import sample_in
from captum_unioncam.system.files import make_folder, write_whole

LAYERS = ("features.29", "features.30")
"""The last ReLU, as in the paper, and the pooling behind it, which the fully connected head reads."""


def sample() -> Any:
    """The module that loads them, or None where the variable is not set."""
    return sample_in("BRAIN_MRI")


def folder() -> Path:
    """Of ``slices``, a folder for each class, and ``boxes.json``."""
    return Path(os.environ["BRAIN_MRI"])


def load_model() -> nn.Module:
    """The classifier, as ``--model benchmarks.brain_mri:load_model`` wants it."""
    model: nn.Module = sample().load_model()
    return model


def write_data(to: Path) -> tuple[Path, Path]:
    """Writes a table of the slices' boxes and a list of the model's classes, as ``evaluate`` takes them.

    Args:
        to (Path): A folder, made if need be. It gets a link to the slices.
    """
    make_folder(to)
    link = to / "slices"
    if link.is_symlink():
        link.unlink()
    link.symlink_to((folder() / "slices").resolve(), target_is_directory=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "label", "x0", "y0", "x1", "y1"])
    for name, known in json.loads((folder() / "boxes.json").read_text()).items():
        writer.writerows([f"slices/{name}", name.partition("/")[0], *box] for box in known["boxes"])
    write_whole(to / "boxes.csv", text.getvalue().encode())
    write_whole(to / "classes.txt", "".join(f"{name}\n" for name in sample().CLASSES).encode())
    return to / "boxes.csv", to / "classes.txt"
