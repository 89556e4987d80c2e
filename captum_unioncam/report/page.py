"""An evaluation's records as tables, plots and one page.

Records are read once, as a stream, and only their numbers are kept, so that half a million of them fit in memory. The
result does not depend on their order.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_unioncam.evaluation.records import MAP_SIZE, EvaluationSettings, Record, read_records, read_settings
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.html import jpeg_uri, png_uri, render
from captum_unioncam.report.images import as_picture, heat, laid_over
from captum_unioncam.report.panels import png
from captum_unioncam.report.plots import box_plot, curve_plot
from captum_unioncam.report.statistics import Summary, ranking, summarize
from captum_unioncam.report.tables import MOST_FAILURES, display_table, latex_table, markdown_table, remarks
from captum_unioncam.system.errors import Failure, WrongArgument
from captum_unioncam.system.files import make_folder, write_whole

Photo = Callable[[str], Tensor | None]

_PICTURE_SIDE = 256


def settings_in(folder: Path) -> EvaluationSettings:
    """The settings of the evaluation in the folder.

    Raises:
        WrongArgument: There is none.
        Failure: They cannot be read.
    """
    settings = read_settings(folder)
    if settings is None:
        raise WrongArgument(
            f"{folder}: holds no evaluation; give the folder that captum-unioncam evaluate has written."
        )
    return settings


def write_report(folder: Path, photo: Photo, summary: Summary | None = None) -> list[Path]:
    """Writes the report of an evaluation: table.csv, table.md, table.tex, curves.png, box.png and report.html.

    Args:
        folder (Path): The evaluation's. The files go into its subfolder "report" and replace older ones.
        photo (Callable): Maps an image's name to the photo (3, H, W) in [0, 1], or to None where it is not available.
        summary (Summary or None): Statistics of the folder's records. Default: None, computed from the records

    Returns:
        *list[Path]*: The files.

    Raises:
        WrongArgument: The folder holds no evaluation.
        Failure: It holds no records, or something cannot be read or written.

    Examples::

        >>> write_report(Path("evaluation"), lambda name: None)
    """
    settings = settings_in(folder)
    summary = summary or summarize(read_records(folder))
    if not summary.records and not summary.failed:
        raise Failure(f"{folder}: holds no records; run captum-unioncam evaluate with it first.")
    curves, box = png(curve_plot(summary)), png(box_plot(summary))
    contents = {
        "table.csv": summary.table.to_csv(index=False).encode(errors="replace"),
        "table.md": markdown_table(summary).encode(errors="replace"),
        "table.tex": latex_table(summary).encode(errors="replace"),
        "curves.png": curves,
        "box.png": box,
        "report.html": report_page(summary, settings, photo, curves, box),
    }
    report = folder / "report"
    make_folder(report)
    for name, content in contents.items():
        write_whole(report / name, content)
    return [report / name for name in contents]


def report_page(summary: Summary, settings: EvaluationSettings, photo: Photo, curves: bytes, box: bytes) -> bytes:
    """The page: what was run, the table, the plots, the best and worst maps, and the failures.

    Args:
        summary (Summary): As ``summarize`` returns it.
        settings (dict): The evaluation's.
        photo (Callable): As ``write_report`` takes it.
        curves, box (bytes): The figures of ``curve_plot`` and ``box_plot``, as PNG files.

    Returns:
        *bytes*: HTML without references to other files.
    """
    texts, best = display_table(summary)
    rows = []
    for name in texts.index:
        cells = zip(texts.loc[name], best.loc[name], strict=True)
        rows.append({"method": name, "cells": [(*text.partition(" ")[::2], is_best) for text, is_best in cells]})
    plots = [("Box plots", box, "How the metrics spread over the maps of each method; the means are in the table.")]
    if any(summary.curves.values()):
        plots.insert(0, ("Curves", curves, "Each method's mean curves; the areas under them are in the table."))
    shown = [metric for metric in all_metrics().values() if metric.heading in texts.columns]
    return render(
        "report.html",
        summary=summary,
        remarks=remarks(summary, settings),
        settings=[(name, _setting(value)) for name, value in settings.items()],
        headings=["method", *texts.columns],
        rows=rows,
        metrics=shown,
        ranking=ranking([metric.name for metric in shown]),
        plots=[(name, png_uri(content), text) for name, content, text in plots],
        galleries=[
            {
                "name": name,
                "best": [_example(record, photo) for record in records],
                "worst": [_example(record, photo) for record in summary.worst[name]],
            }
            for name, records in summary.best.items()
            if records
        ],
        most_failures=MOST_FAILURES,
    )


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    if value is None:
        return "not given"
    return value if isinstance(value, str) else json.dumps(value)


def _example(record: Record, photo: Photo) -> dict[str, Any]:
    """The template's values for one map."""
    shown = photo(record.image)
    target = record.target_name or (f"class {record.target}" if record.target is not None else "the only output")
    where = "The map of" if shown is None else "The photo, and the map over it, of"
    metrics = [f"{metric.name} {metric.text(record.values[metric.name])}" for metric in ranking(record.values)]
    return {
        "picture": jpeg_uri(_picture(record, shown)),
        "description": f"{where} {record.method} for {target} in {record.image}",
        "target": target,
        "image": record.image,
        "has_photo": shown is not None,
        "numbers": ", ".join([f"confidence {record.confidence:.3f}", *metrics]),
    }


def _picture(record: Record, photo: Tensor | None) -> Image.Image:
    """The photo beside the map over it, or the map alone."""
    assert record.map is not None
    values = torch.tensor(list(base64.b64decode(record.map))).reshape(1, 1, MAP_SIZE, MAP_SIZE)
    if photo is None:
        return heat(values, (_PICTURE_SIDE, _PICTURE_SIDE))
    picture = as_picture(photo)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    both = Image.new("RGB", (2 * picture.width, picture.height))
    both.paste(picture)
    both.paste(laid_over(picture, values), (picture.width, 0))
    return both
