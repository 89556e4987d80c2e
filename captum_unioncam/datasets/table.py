"""A CSV file of images, classes and boxes."""

import csv
import math
import posixpath
from collections import defaultdict
from pathlib import Path

from captum_unioncam.datasets.annotated import BoxedPictures
from captum_unioncam.datasets.boxes import Box
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.system.errors import WrongArgument, one_line
from captum_unioncam.system.files import check_regular

COLUMNS = ("path", "label", "x0", "y0", "x1", "y1")


class Table(BoxedPictures):
    """Images of a CSV file with a row for each object. Names are relative to its folder."""

    def __init__(self, file: Path, outputs: Outputs) -> None:
        super().__init__(file.parent, _read(file), outputs)


def _read(file: Path) -> dict[str, dict[str, list[Box]]]:
    """The boxes of each image's classes."""
    rows: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    try:
        check_regular(file)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise ValueError(f"line 1 does not name the column {missing[0]}; begin with {','.join(COLUMNS)}")
            for row in reader:
                try:
                    name, label, box = _parsed(row)
                except ValueError as error:
                    raise ValueError(f"line {reader.line_num}: {error}") from error
                rows[name][label].append(box)
    except (OSError, ValueError, csv.Error) as error:
        raise WrongArgument(f"{file}: {getattr(error, 'strerror', None) or one_line(error)}.") from error
    if not rows:
        raise WrongArgument(f"{file}: has no row below its header; give one for each object.")
    return {name: dict(boxes) for name, boxes in rows.items()}


def _parsed(row: dict[str, str]) -> tuple[str, str, Box]:
    if None in row or None in row.values():
        raise ValueError(f"has not as many values as line 1 has columns; give {','.join(COLUMNS)}")
    for column in ("path", "label"):
        if not row[column].strip():
            raise ValueError(f"{column} is empty")
    edges = []
    for column in COLUMNS[2:]:
        try:
            edges.append(float(row[column]))
        except ValueError:
            raise ValueError(f"{column}={row[column]!r} is no number") from None
        if not math.isfinite(edges[-1]):
            raise ValueError(f"{column}={row[column]!r} is not finite")
    x0, y0, x1, y1 = edges
    if x0 >= x1 or y0 >= y1:
        raise ValueError("the box is empty; give x0 below x1 and y0 below y1, in pixels")
    return posixpath.normpath(row["path"].strip()), row["label"].strip(), (x0, y0, x1, y1)
