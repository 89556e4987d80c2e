"""An evaluation's records as tables, plots and one page.

Records are read once, as a stream, and only their numbers are kept, so that half a million of them fit in memory. The
result does not depend on their order.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_unioncam.evaluation.records import MAP_SIZE, EvaluationSettings, Record, read_records, settings_in
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.explorer import MOST_CLASSES, explorer_data, page_table
from captum_unioncam.report.html import data_uri, jpeg_uri, render, script
from captum_unioncam.report.images import as_picture, heat, laid_over
from captum_unioncam.report.panels import png
from captum_unioncam.report.plots import box_plot, curve_plot, trade_off_plot
from captum_unioncam.report.ranks import RULE, method_ranks, rank_plot
from captum_unioncam.report.statistics import Summary, class_name, paired_differences, ranking, summarize, target_of
from captum_unioncam.report.tables import (
    MOST_FAILURES,
    as_latex,
    as_markdown,
    display_differences,
    display_table,
    remarks,
)
from captum_unioncam.system.errors import Failure
from captum_unioncam.system.files import make_folder, write_whole

Photo = Callable[[str], Tensor | None]

_PICTURE_SIDE = 192
"""Side of the best and the worst maps, in pixels; there are eight for each method."""

_PHOTO_SIDE = 256

_AGAINST = "union_cam"
"""From which the page's differences are taken, unless another is given or it is not there."""


def write_report(folder: Path, photo: Photo, summary: Summary | None = None, against: str | None = None) -> list[Path]:
    """Writes the report of an evaluation: table.csv, table.md, table.tex, the plots, and report.html.

    The plots are box.png, and where there is something to draw curves.png, trade_off.png (insertion against drop) and
    ranks.png (of three methods or more on two images or more).

    Args:
        folder (Path): The evaluation's. The files go into its subfolder "report" and replace older ones.
        photo (Callable): Maps an image's name to the photo (3, H, W) in [0, 1], or to None where it is not available.
        summary (Summary or None): Statistics of the folder's records. Default: None, computed from the records
        against (str or None): The method from which the page's differences are taken. Default: None, union_cam, or the
            first where it has no record

    Returns:
        *list[Path]*: The files.

    Raises:
        WrongArgument: The folder holds no evaluation, or no record of ``against``.
        Failure: It holds no records, or something cannot be read or written.

    Examples::

        >>> write_report(Path("evaluation"), lambda name: None)
    """
    settings = settings_in(folder)
    summary = summary or summarize(read_records(folder))
    if not summary.records and not summary.failed and not summary.shortages:
        raise Failure(f"{folder}: holds no records; run captum-unioncam evaluate with it first.")
    plots, shown = plots_of(summary), display_table(summary)
    contents = {
        "table.csv": summary.table.to_csv(index=False).encode(errors="replace"),
        "table.md": as_markdown(*shown).encode(errors="replace"),
        "table.tex": as_latex(*shown).encode(errors="replace"),
        **{f"{plot.name}.png": plot.content for plot in plots},
        "report.html": report_page(summary, settings, photo, plots, against),
    }
    report = folder / "report"
    make_folder(report)
    for name, content in contents.items():
        write_whole(report / name, content)
    return [report / name for name in contents]


@dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Args:
        name (str): Of its file, without the suffix.
        title (str): Its heading in the page.
        caption (str): How it is read.
        content (bytes): A PNG file.
    """

    name: str
    title: str
    caption: str
    content: bytes


def plots_of(summary: Summary) -> list[Plot]:
    """The plots for which there are values."""
    found = []
    if any(summary.curves.values()):
        caption = "Each method's mean curves; the areas under them are in the table."
        found.append(Plot("curves", "Curves", caption, png(curve_plot(summary))))
    caption = "How the metrics spread over the maps of each method; the means are in the table."
    found.append(Plot("box", "Spread", caption, png(box_plot(summary))))
    if (figure := trade_off_plot(summary)) is not None:
        caption = (
            "Each method's mean insertion against its mean drop, with the 95 % intervals; better is towards the upper "
            "left."
        )
        found.append(Plot("trade_off", "Insertion against drop", caption, png(figure)))
    if ranks := method_ranks(summary):
        found.append(Plot("ranks", "Ranks", RULE, png(rank_plot(ranks))))
    return found


def report_page(
    summary: Summary, settings: EvaluationSettings, photo: Photo, plots: Sequence[Plot], against: str | None = None
) -> bytes:
    """The page: what was run, the tables, the plots, single images, the best and worst maps, and the failures.

    Args:
        summary (Summary): As ``summarize`` returns it.
        settings (dict): The evaluation's.
        photo, against: As ``write_report`` takes them.
        plots (Sequence[Plot]): As ``plots_of`` returns them.

    Returns:
        *bytes*: HTML without references to other files.
    """
    texts, best = display_table(summary)
    shown = [metric for metric in all_metrics().values() if metric.heading in texts.columns]
    against = against or (_AGAINST if _AGAINST in summary.judged else next(iter(summary.judged), None))
    photos = {
        # An image that failed for all methods may be broken.
        name: _small_photo(photo(name)) if any(record.error is None for record in records) else None
        for name, records in summary.sample.items()
    }
    return render(
        "report.html",
        summary=summary,
        remarks=remarks(summary, settings),
        settings=[(name, _setting(value)) for name, value in settings.items()],
        table=page_table(texts, best),
        against=against,
        differences=page_table(*display_differences(paired_differences(summary, against))) if against else None,
        metrics=shown,
        ranking=ranking([metric.name for metric in shown]),
        plots=[(plot, data_uri("image/png", plot.content)) for plot in plots],
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
        most_classes=MOST_CLASSES,
        explorer=explorer_data(summary, photos),
        script=script("report.js"),
    )


def _small_photo(photo: Tensor | None) -> str | None:
    if photo is None:
        return None
    picture = as_picture(photo)
    picture.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
    return jpeg_uri(picture)


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
    name = class_name(record)
    where = "The map of" if shown is None else "The photo, and the map over it, of"
    metrics = [f"{metric.name} {metric.text(record.values[metric.name])}" for metric in ranking(record.values)]
    return {
        "picture": jpeg_uri(_picture(record, shown)),
        "description": f"{where} {record.method} for {name} in {record.image}",
        "target": target_of(record),
        "name": name,
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
    return Image.fromarray(np.hstack([np.asarray(picture), np.asarray(laid_over(picture, values))]))
