"""YOLO's layout: a text of boxes for each image."""

import os
from pathlib import Path, PurePosixPath

from captum_unioncam.datasets.annotated import BoxedPictures
from captum_unioncam.datasets.base import no_data_set
from captum_unioncam.datasets.boxes import Box
from captum_unioncam.datasets.classes import Outputs, listed_classes
from captum_unioncam.datasets.listing import pictures_below
from captum_unioncam.system.errors import Failure, one_line
from captum_unioncam.system.files import check_regular

_PICTURES, _LABELS = "images", "labels"

_ROUNDING = 1e-3
"""Centres and sizes may be that far beyond the image's."""


class Yolo(BoxedPictures):
    """Images below ``images``, each with its boxes in a text of its name below ``labels``.

    A line is the class's number, and the box's centre, width and height in parts of the image's. ``data.yaml`` or
    ``classes.txt``, here or in the folder above, names the classes; without one, numbers are the model's outputs.
    Images without a text, or with an empty one, are left out.

    Args:
        folder (Path): That holds ``images`` and ``labels``. Names are relative to it.
        outputs (Outputs): Of the model.
    """

    def __init__(self, folder: Path, outputs: Outputs) -> None:
        classes = listed_classes(folder, folder / _LABELS, folder.parent)
        objects: dict[str, dict[str, list[Box]] | Failure] = {}
        for path in pictures_below(folder / _PICTURES):
            name = path.relative_to(folder).as_posix()
            place = PurePosixPath(_LABELS, *PurePosixPath(name).parts[1:]).with_suffix(".txt")
            if os.path.lexists(folder / place) and (boxes := _read(folder / place, classes)):
                objects[name] = boxes
        if not objects:
            raise no_data_set(folder, f"has no image in {_PICTURES} with boxes in {_LABELS}/NAME.txt")
        numbers = {label for of in objects.values() if not isinstance(of, Failure) for label in of}
        super().__init__(folder, objects, outputs, classes or sorted(numbers, key=int))

    def _boxes(self, size: tuple[int, int], objects: list[Box]) -> list[Box]:
        width, height = size
        return [(x0 * width, y0 * height, x1 * width, y1 * height) for x0, y0, x1, y1 in objects]


def is_yolo(folder: Path) -> bool:
    """Whether the folder holds ``images`` and ``labels`` with a text in it."""
    return os.path.isdir(folder / _PICTURES) and any((folder / _LABELS).rglob("*.txt"))


def _read(file: Path, classes: list[str] | None) -> dict[str, list[Box]] | Failure:
    """The boxes of each class, or why they cannot be read."""
    boxes: dict[str, list[Box]] = {}
    try:
        check_regular(file)
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            if line.strip():
                try:
                    label, box = _parsed(line.split(), classes)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                boxes.setdefault(label, []).append(box)
    except (OSError, ValueError) as error:
        return Failure(f"{file}: {getattr(error, 'strerror', None) or one_line(error)}.")
    return boxes


def _parsed(words: list[str], classes: list[str] | None) -> tuple[str, Box]:
    if len(words) != 5:
        raise ValueError(f"has {len(words)} values; give class, centre x and y, width and height")
    number, (x, y, width, height) = words[0], map(float, words[1:])
    most = 1 + _ROUNDING
    if not (-_ROUNDING <= x <= most and -_ROUNDING <= y <= most and 0 < width <= most and 0 < height <= most):
        raise ValueError("the box is not in parts of the image's width and height, from 0 to 1")
    if not number.isdecimal() or len(number) > 9 or (classes is not None and int(number) >= len(classes)):
        known = "a number from 0" if classes is None else f"one of the {len(classes)} classes' numbers, from 0"
        raise ValueError(f"{number!r} is not {known}")
    label = str(int(number)) if classes is None else classes[int(number)]
    return label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
