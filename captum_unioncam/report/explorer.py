"""What the report's script shows: the means of one class, and one image with the maps of all methods."""

from typing import Any

import numpy as np
import pandas as pd

from captum_unioncam.evaluation.records import MAP_SIZE, Record
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.images import Look
from captum_unioncam.report.statistics import Summary, class_name, class_table, target_of
from captum_unioncam.report.tables import display_classes

MOST_CLASSES = 50
"""In the page; the class table of the command has all."""


def shown_classes(summary: Summary) -> list[int]:
    """The targets of the classes in the page: those of the most maps, in their order."""
    most = summary.values["target"].value_counts().sort_index().nlargest(MOST_CLASSES)
    return sorted(int(target) for target in most.index)


def explorer_data(summary: Summary, photos: dict[str, str | None]) -> dict[str, Any]:
    """The data of the script, as JSON values.

    Args:
        summary (Summary): As ``summarize`` returns it.
        photos (dict[str, str or None]): For each image of ``summary.sample`` the photo as a ``data:`` URI, or None
            where it is not available.

    Returns:
        *dict*: "side" of the maps; "colors", red, green, blue and opacity of each of the 256 values, from 0 to 255, in
        one list; "classes", each with its target, its name and its table; and "images", each with its name, its photo,
        and its maps.
    """
    targets = shown_classes(summary)
    table = class_table(summary, targets)
    return {
        "side": MAP_SIZE,
        "colors": _colors(Look()),
        "classes": [
            {"target": target, "name": summary.classes[target], **_class_table(table[table["target"] == target])}
            for target in targets
        ],
        "images": [
            {"name": name, "photo": photos[name], "maps": [_map(record) for record in records]}
            for name, records in summary.sample.items()
        ],
    }


def page_table(texts: pd.DataFrame, best: pd.DataFrame) -> dict[str, Any]:
    """A table for a page: the headings, and rows of the method and of cells: mean, what follows it, whether it is best.

    Args:
        texts, best (pandas.DataFrame): As ``display_table`` returns them.
    """
    cells = (
        [[*text.partition(" ")[::2], bool(is_best)] for text, is_best in zip(*row, strict=True)]
        for row in zip(texts.to_numpy(), best.to_numpy(), strict=True)
    )
    rows = [[str(method), *of_method] for method, of_method in zip(texts.index, cells, strict=True)]
    return {"headings": ["method", *texts.columns], "rows": rows}


def _class_table(of_class: pd.DataFrame) -> dict[str, Any]:
    texts, best = display_classes(of_class)
    return page_table(texts.drop(columns="class"), best.drop(columns="class"))


def _map(record: Record) -> dict[str, Any]:
    """One method's map of one class."""
    found = {"method": record.method, "target": target_of(record), "name": class_name(record)}
    if record.error is not None:
        return found | {"error": record.error}
    known = all_metrics()
    numbers = [f"{name} {known[name].text(value)}" for name, value in record.values.items() if name in known]
    confidence = None if record.confidence is None else f"{record.confidence:.3f}"
    return found | {"map": record.map, "confidence": confidence, "numbers": numbers}


def _colors(look: Look) -> list[int]:
    """The look over a photo, flat."""
    values = np.linspace(0, 1, 256)
    colors = np.concatenate([look.colors(values)[:, :3], look.opacities(values)[:, None]], axis=1)
    return [int(value) for value in (255 * colors).round().ravel()]
