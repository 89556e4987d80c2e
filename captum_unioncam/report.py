"""An evaluation's records as tables, plots and one page.

Records are read once, as a stream, and in memory a record is its numbers: reports are for half a million of them. The
result is the same in whatever order they come.
"""

from __future__ import annotations

import base64
import json
import math
import sys
import textwrap
from array import array
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_unioncam.errors import Failure
from captum_unioncam.files import make_folder, write_whole
from captum_unioncam.pages import jpeg_uri, png_uri, render
from captum_unioncam.records import MAP_SIZE, Record, read_records, read_settings
from captum_unioncam.visualization import COLORS, OPACITY, png

Array = npt.NDArray[np.float64]
Photo = Callable[[str], Tensor | None]

_INTERVAL = (2.5, 97.5)
_SEED = 0
_RESAMPLES_AT_ONCE = 32
_EXAMPLES = 4
_NAMED_IMAGES = 3
_MOST_FAILURES = 50
_PICTURE_SIDE = 256
# Of the curves, which records hold to four decimals.
_FIXED_POINT = 1e6


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Args:
        field (str): The record's field.
        title (str): Shown above the column.
        larger_is_better (bool): Which direction is better.
        scale (float): The record's value times this is shown. Default: 1
        form (str): How a number is written. Default: with three decimals
    """

    field: str
    title: str
    larger_is_better: bool
    scale: float = 1.0
    form: str = ".3f"

    @property
    def heading(self) -> str:
        """The title, with an arrow towards what is better."""
        return f"{self.title} {'↑' if self.larger_is_better else '↓'}"


METRICS = (
    Metric("drop", "average drop (%)", False, 100, ".1f"),
    Metric("increase", "average increase (%)", True, 100, ".1f"),
    Metric("insertion", "insertion", True),
    Metric("deletion", "deletion", False),
    Metric("pointing", "pointing game (%)", True, 100, ".1f"),
    Metric("energy", "energy pointing game (%)", True, 100, ".1f"),
    Metric("seconds", "seconds", False, 1, ".3g"),
)
_CURVES = ("insertion", "deletion")
# The others are 0 or 1, of which a box says nothing.
_BOXES = tuple(metric for metric in METRICS if metric.field in ("drop", "insertion", "deletion", "energy", "seconds"))


@dataclass
class FailureGroup:
    """Failures that differ in the image alone.

    Args:
        message (str): The error, with "…" for the image's name.
        count (int): How many records.
        methods (list[str]): In which it occurred, sorted.
        images (list[str]): The first few, sorted.
        has_more (bool): Whether there are other images.
    """

    message: str
    count: int = 0
    methods: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    has_more: bool = False

    def add(self, record: Record) -> None:
        """Counts a record with this error."""
        self.count += 1
        if record.method not in self.methods:
            insort(self.methods, record.method)
        if record.image not in self.images:
            insort(self.images, record.image)
            self.has_more = self.has_more or len(self.images) > _NAMED_IMAGES
            del self.images[_NAMED_IMAGES:]


@dataclass(frozen=True)
class Summary:
    """What the records say.

    Args:
        table (pandas.DataFrame): A row for each method and metric that has values: method, metric, mean, low, high
            (the interval; NaN where fewer than two images have a value), n (records with a value), failures.
        values (dict[str, numpy.ndarray]): For each method its records' values (records, ``METRICS``), in the records'
            own scale, sorted by image and target, NaN where there is none.
        curves (dict[str, dict[str, numpy.ndarray]]): For "insertion" and "deletion" each method's mean curve.
        best, worst (dict[str, list[Record]]): For each method the records of the largest and smallest insertion minus
            deletion, that one first; none is in both.
        failures (list[FailureGroup]): The most frequent first.
        images, records, failed (int): How many there are, failed ones among them.
        same_maps (bool): Whether the values of all methods are of the same images and targets.
    """

    table: pd.DataFrame
    values: dict[str, Array]
    curves: dict[str, dict[str, Array]]
    best: dict[str, list[Record]]
    worst: dict[str, list[Record]]
    failures: list[FailureGroup]
    images: int
    records: int
    failed: int
    same_maps: bool


def write_report(folder: Path, photo: Photo, summary: Summary | None = None) -> list[Path]:
    """Writes what an evaluation found: table.csv, table.md, table.tex, curves.png, box.png and report.html.

    Args:
        folder (Path): The evaluation's; the files go into its subfolder "report", in place of older ones.
        photo (Callable): An image's name to the photo (3, H, W) in [0, 1], or to None where it is not at hand.
        summary (Summary or None): Of the folder's records, where it is at hand. Default: None, they are read

    Returns:
        *list[Path]*: The files.

    Raises:
        Failure: The folder holds no evaluation or no records, or something cannot be read or written.

    Examples::

        >>> write_report(Path("evaluation"), lambda name: None)
    """
    settings = read_settings(folder)
    if settings is None:
        raise Failure(f"{folder}: holds no evaluation; give the folder that captum-unioncam evaluate has written.")
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


def summarize(records: Iterable[Record], resamples: int = 1000) -> Summary:
    """Means, bootstrap intervals, mean curves, examples and failures of each method.

    Intervals are percentiles of means over resampled images, with all records of an image going together: an image's
    targets are not independent.

    Args:
        records (Iterable[Record]): In any order, one for each image, target and method.
        resamples (int): Of the bootstrap. Default: 1000

    Returns:
        *Summary*: The same for the same records.

    Raises:
        Failure: Curves of a method differ in length.
    """
    methods: dict[str, _MethodRecords] = {}
    images: dict[str, int] = {}
    failures: dict[str, FailureGroup] = {}
    for record in records:
        method = methods.setdefault(record.method, _MethodRecords())
        image = images.setdefault(record.image, len(images))
        if record.error is None:
            method.add(image, record)
        else:
            method.failed += 1
            message = record.error.replace(record.image, "…")
            failures.setdefault(message, FailureGroup(message)).add(record)
    methods = dict(sorted(methods.items()))
    ranks = np.argsort(sorted(range(len(images)), key=list(images).__getitem__))
    values = {name: method.sorted_values(ranks) for name, method in methods.items()}
    return Summary(
        table=_table(values, {name: method.failed for name, method in methods.items()}, len(images), resamples),
        values={name: of_metrics for name, (*_, of_metrics) in values.items()},
        curves={
            curve: {name: method.curves[curve].mean() for name, method in methods.items() if method.curves[curve].count}
            for curve in _CURVES
        },
        best={name: method.best for name, method in methods.items()},
        worst={name: method.only_worst() for name, method in methods.items()},
        failures=sorted(failures.values(), key=lambda group: (-group.count, group.message)),
        images=len(images),
        records=sum(len(method.images) for method in methods.values()),
        failed=sum(method.failed for method in methods.values()),
        same_maps=_all_equal([maps for maps, *_ in values.values()]),
    )


def _all_equal(arrays: list[npt.NDArray[np.int64]]) -> bool:
    return all(np.array_equal(array, arrays[0]) for array in arrays)


class _CurveSum:
    """The sum of curves in fixed point: unlike that of floats it does not depend on the order."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: npt.NDArray[np.int64] | None = None

    def add(self, record: Record, curve: list[float]) -> None:
        values = np.rint(np.array(curve) * _FIXED_POINT).astype(np.int64)
        if self._sum is None:
            self._sum = values
        elif len(values) != len(self._sum):
            raise Failure(
                f"the curves of {record.method} have {len(self._sum) - 1} steps, and {len(values) - 1} for "
                f"{record.image}; evaluate into a folder of its own."
            )
        else:
            self._sum += values
        self.count += 1

    def mean(self) -> Array:
        assert self._sum is not None
        return self._sum / _FIXED_POINT / self.count


class _MethodRecords:
    """A method's records as they come in."""

    def __init__(self) -> None:
        self.images = array("q")
        self._targets = array("q")
        self._values = array("d")
        self.curves = {curve: _CurveSum() for curve in _CURVES}
        self.best: list[Record] = []
        self.worst: list[Record] = []
        self.failed = 0

    def add(self, image: int, record: Record) -> None:
        self.images.append(image)
        self._targets.append(_target_order(record))
        values = (getattr(record, metric.field) for metric in METRICS)
        self._values.extend(math.nan if value is None else value for value in values)
        if record.insertion_curve is not None:
            self.curves["insertion"].add(record, record.insertion_curve)
        if record.deletion_curve is not None:
            self.curves["deletion"].add(record, record.deletion_curve)
        if record.map is not None and record.insertion is not None and record.deletion is not None:
            insort(self.best, record, key=lambda kept: (-_quality(kept), kept.image, _target_order(kept)))
            insort(self.worst, record, key=lambda kept: (_quality(kept), kept.image, _target_order(kept)))
            del self.best[_EXAMPLES:], self.worst[_EXAMPLES:]

    def only_worst(self) -> list[Record]:
        return [record for record in self.worst if record not in self.best]

    def sorted_values(self, ranks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Array]:
        """Images, as ranks among all names, and targets, (2, records), and the values, sorted by both."""
        maps = np.stack([ranks[np.array(self.images, dtype=np.int64)], np.array(self._targets, dtype=np.int64)])
        order = np.lexsort(maps[::-1])
        return maps[:, order], np.array(self._values).reshape(-1, len(METRICS))[order]


def _target_order(record: Record) -> int:
    return -1 if record.target is None else record.target


def _quality(record: Record) -> float:
    assert record.insertion is not None
    assert record.deletion is not None
    return record.insertion - record.deletion


def _table(
    values: dict[str, tuple[npt.NDArray[np.int64], Array]], failed: dict[str, int], images: int, resamples: int
) -> pd.DataFrame:
    """The summary's table: means and intervals of each method and metric."""
    sums, counts = np.zeros((2, images, len(values), len(METRICS)))
    for i, ((of_images, _), of_metrics) in enumerate(values.values()):
        for j, column in enumerate(of_metrics.T):
            known = ~np.isnan(column)
            sums[:, i, j] = np.bincount(of_images[known], column[known], minlength=images)
            counts[:, i, j] = np.bincount(of_images[known], minlength=images)
    seen = counts.sum((0, 1)) > 0
    # Failures without a single value still want their rows.
    shown = [j for j in range(len(METRICS)) if seen[j] or not seen.any()]
    pairs = [(name, METRICS[j]) for name in values for j in shown]
    sums, counts = (of_images[:, :, shown].reshape(images, len(pairs)) for of_images in (sums, counts))
    scales = np.array([metric.scale for _, metric in pairs])
    low, high = bootstrap_intervals(sums, counts, resamples) * scales
    with np.errstate(invalid="ignore"):
        mean: Array = sums.sum(0) / counts.sum(0) * scales
    table: pd.DataFrame = pd.DataFrame(
        {
            "method": [name for name, _ in pairs],
            "metric": [metric.title for _, metric in pairs],
            "mean": mean,
            "low": low,
            "high": high,
            "n": counts.sum(0).astype(int),
            "failures": [failed[name] for name, _ in pairs],
        }
    )
    return table


def bootstrap_intervals(sums: Array, counts: Array, resamples: int = 1000) -> Array:
    """95 % percentile intervals of means over records, resampling the images that the records are of.

    Args:
        sums (numpy.ndarray): For each image and mean, the sum of its records' values: (images, means).
        counts (numpy.ndarray): How many those are, likewise.
        resamples (int): How often images are drawn, as many as there are, with replacement. Default: 1000

    Returns:
        *numpy.ndarray*: (2, means), lower and upper ends; NaN where fewer than two images have values. All means are
        resampled together, and always alike.
    """
    intervals = np.full((2, sums.shape[1]), np.nan)
    wanted = (counts > 0).sum(0) >= 2
    if not wanted.any():
        return intervals
    with_values = np.ix_(counts.any(1), wanted)
    sums, counts = sums[with_values], counts[with_values]
    images = len(sums)
    generator = np.random.default_rng(_SEED)
    means = []
    for begin in range(0, resamples, _RESAMPLES_AT_ONCE):
        # How often each image was drawn.
        draws = generator.integers(images, size=(min(_RESAMPLES_AT_ONCE, resamples - begin), images))
        weights = np.stack([np.bincount(row, minlength=images) for row in draws]).astype(float)
        with np.errstate(invalid="ignore"):
            means.append((weights @ sums) / (weights @ counts))
    # NaN where no image that has a value was drawn.
    intervals[:, wanted] = np.nanpercentile(np.concatenate(means), _INTERVAL, axis=0)
    return intervals


def display_table(summary: Summary) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table as people read it.

    Args:
        summary (Summary): What ``summarize`` gave.

    Returns:
        *tuple of two pandas.DataFrame*: A row for each method, a column for each metric and for "n" and "failures": the
        texts, such as "12.3 [11.0, 13.6]", and whether each is the column's best (as written, so there may be several).
    """
    by_method = summary.table.groupby("method", sort=False)
    texts = pd.DataFrame(index=list(by_method.groups))
    best = texts.copy()
    for metric in METRICS:
        rows = summary.table[summary.table.metric == metric.title].set_index("method")
        if rows.empty:
            continue
        written = rows["mean"].map(lambda mean, form=metric.form: float(format(mean, form)))
        best[metric.heading] = written == (written.max() if metric.larger_is_better else written.min())
        texts[metric.heading] = [
            _mean_and_interval(*row, metric.form) for row in zip(rows["mean"], rows["low"], rows["high"], strict=True)
        ]
    records = {name: len(values) for name, values in summary.values.items()}
    texts["n"] = [str(records[name]) for name in texts.index]
    texts["failures"] = by_method.failures.first().astype(str)
    best["n"] = best["failures"] = False
    return texts, best


def _mean_and_interval(mean: float, low: float, high: float, form: str) -> str:
    if math.isnan(mean):
        return "–"  # noqa: RUF001
    return f"{mean:{form}}" if math.isnan(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def remarks(summary: Summary, settings: Mapping[str, Any]) -> list[str]:
    """What keeps the means from being those of the whole evaluation, or of the same images for each method."""
    found = []
    judged = {name: len(values) for name, values in summary.values.items()}
    failed = summary.table.groupby("method").failures.first()
    wanted = settings.get("records_of_a_method", 0)
    done = {name: count + failed[name] for name, count in judged.items() if count + failed[name] < wanted}
    if done:
        counts = ", ".join(f"{name} {count}" for name, count in done.items())
        found.append(f"Not finished: there will be {wanted} records of each method, and are so far of {counts}.")
    if not summary.same_maps:
        counts = ", ".join(f"{name} {count}" for name, count in judged.items())
        found.append(f"The methods' means are over different maps ({counts}), so they do not quite compare.")
    return found


def text(summary: Summary, width: int | None = None, settings: Mapping[str, Any] | None = None) -> str:
    """The table as plain text, the best values with an asterisk, and the failures.

    Args:
        summary (Summary): What ``summarize`` gave.
        width (int or None): Columns of the terminal: a table that is wider goes on below. Default: None, any
        settings (Mapping or None): The evaluation's, for what is to be said of the means. Default: None
    """
    texts, best = display_table(summary)
    marked = texts + best.map(lambda is_best: " *" if is_best else "  ")
    # pandas ends headings that go on below with a backslash.
    table = [line.rstrip(" \\") for line in marked.to_string(line_width=width).splitlines()]
    lines = [
        f"images: {summary.images}; maps: {summary.records}; failures: {summary.failed}",
        *(line for remark in remarks(summary, settings or {}) for line in textwrap.wrap(remark, width or sys.maxsize)),
        "means over maps, with their 95 % bootstrap intervals over images; * the best",
        "",
        *table,
    ]
    if summary.failures:
        lines += ["", "failures:", *map(_failure_line, summary.failures[:_MOST_FAILURES])]
    return "\n".join(lines)


def _failure_line(group: FailureGroup) -> str:
    images = ", ".join([*group.images, "…"] if group.has_more else group.images)
    return f"{group.count:5}  {', '.join(group.methods)}: {group.message} ({images})"


def markdown_table(summary: Summary) -> str:
    """The table in Markdown, methods as code, the best values bold."""
    texts, best = display_table(summary)
    lines = [["method", *texts.columns], ["---"] + ["---:"] * len(texts.columns)]
    for name in texts.index:
        cells = zip(texts.loc[name], best.loc[name], strict=True)
        # Within code only these two mean something, and line breaks.
        code = " ".join(name.replace("`", "'").replace("|", r"\|").split())
        lines.append([f"`{code}`", *(f"**{text}**" if is_best else text for text, is_best in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex_table(summary: Summary) -> str:
    """The table as a LaTeX ``tabular``, which needs the package booktabs; the best values bold."""
    texts, best = display_table(summary)
    texts, best = texts.reset_index(names="method"), best.reset_index(drop=True)
    best.insert(0, "method", False)
    styles = best.map(lambda is_best: "font-weight: bold" if is_best else "")

    def arrows_as_formulas(heading: object) -> str:
        return str(heading).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")

    styler = texts.style.hide(axis="index").apply(lambda _: styles, axis=None)
    # Escaped first, then given to the formatter.
    styler = styler.format(lambda text: str(text).replace("–", "--"), escape="latex")  # noqa: RUF001
    styler = styler.format_index(arrows_as_formulas, escape="latex", axis="columns")
    table: str = styler.to_latex(hrules=True, convert_css=True, column_format="l" + "r" * (texts.shape[1] - 1))
    return f"% Needs \\usepackage{{booktabs}}\n{table}"


def curve_plot(summary: Summary) -> Figure:
    """Each method's mean insertion and deletion curve, with the area under it.

    Args:
        summary (Summary): What ``summarize`` gave.

    Returns:
        *matplotlib.figure.Figure*: Of two axes, without pyplot, so it need not be closed.
    """
    means = summary.table.set_index(["metric", "method"])["mean"]
    # Names of methods may hold a dollar sign, which is no formula here.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(10, 4 + 0.2 * len(summary.values)), layout="constrained")
        for axis, name, arrow in zip(figure.subplots(1, 2), _CURVES, "↑↓", strict=True):
            for i, (method, curve) in enumerate(summary.curves[name].items()):
                label = f"{means[name, method]:.3f}  {method}"
                style = ("-", "--", ":", "-.")[i // 10 % 4]
                axis.plot(np.linspace(0, 100, len(curve)), curve, style, color=f"C{i % 10}", label=label)
            axis.set(title=f"{name} {arrow}", xlabel=f"pixels {'inserted' if name == 'insertion' else 'deleted'} (%)")
            axis.set(ylabel="mean confidence", xlim=(0, 100))
            axis.grid(alpha=0.3)
            if summary.curves[name]:
                axis.legend(title="area  method", loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    return figure


def box_plot(summary: Summary) -> Figure:
    """Of each metric that is not 0 or 1, how each method's records spread.

    Args:
        summary (Summary): What ``summarize`` gave.

    Returns:
        *matplotlib.figure.Figure*: An axis for each metric, without pyplot, so it need not be closed.
    """
    methods = list(summary.values)
    values = {metric: [_known(summary.values[name], metric) for name in methods] for metric in _BOXES}
    shown = [metric for metric in _BOXES if any(map(len, values[metric]))] or list(_BOXES)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(2 + 2.4 * len(shown), 1.5 + 0.35 * len(methods)), layout="constrained")
        for axis, metric in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
            axis.boxplot(values[metric], orientation="horizontal", whis=(5, 95), showfliers=False, showmeans=True)
            axis.set_title(metric.heading, fontsize=10)
            axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(1, len(methods) + 1), methods)
        axis.invert_yaxis()
        figure.supxlabel("box: quartiles; line: median; triangle: mean; whiskers: 5 % to 95 % of the maps", fontsize=9)
    return figure


def _known(values: Array, metric: Metric) -> Array:
    column = values[:, METRICS.index(metric)] * metric.scale
    return column[~np.isnan(column)]


def report_page(summary: Summary, settings: dict[str, Any], photo: Photo, curves: bytes, box: bytes) -> bytes:
    """The page: what was run, the table, the plots, the best and worst maps, and the failures.

    Args:
        summary (Summary): What ``summarize`` gave.
        settings (dict): The evaluation's.
        photo (Callable): As ``write_report`` takes it.
        curves, box (bytes): What ``curve_plot`` and ``box_plot`` gave, as PNG files.

    Returns:
        *bytes*: HTML that needs nothing but itself.
    """
    texts, best = display_table(summary)
    rows = []
    for name in texts.index:
        cells = zip(texts.loc[name], best.loc[name], strict=True)
        rows.append({"method": name, "cells": [(*text.partition(" ")[::2], is_best) for text, is_best in cells]})
    plots = (
        ("Curves", curves, "Each method's mean insertion and deletion curve; the areas under them are in the table."),
        ("Box plots", box, "How the metrics spread over the maps of each method; the means are in the table."),
    )
    return render(
        "report.html",
        summary=summary,
        remarks=remarks(summary, settings),
        settings=[(name, _setting(value)) for name, value in settings.items()],
        headings=["method", *texts.columns],
        rows=rows,
        plots=[{"name": name, "source": png_uri(content), "description": text} for name, content, text in plots],
        galleries=[
            {
                "name": name,
                "best": [_example(record, photo) for record in records],
                "worst": [_example(record, photo) for record in summary.worst[name]],
            }
            for name, records in summary.best.items()
            if records
        ],
        most_failures=_MOST_FAILURES,
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
    """What the page says of one map."""
    shown = photo(record.image)
    target = record.target_name or (f"class {record.target}" if record.target is not None else "the only output")
    where = "The map of" if shown is None else "The photo, and the map over it, of"
    return {
        "picture": jpeg_uri(_picture(record, shown)),
        "description": f"{where} {record.method} for {target} in {record.image}",
        "target": target,
        "image": record.image,
        "has_photo": shown is not None,
        **{name: f"{getattr(record, name):.3f}" for name in ("confidence", "insertion", "deletion")},
    }


def _picture(record: Record, photo: Tensor | None) -> Image.Image:
    """The photo beside the map over it, or the map alone."""
    assert record.map is not None
    values = np.frombuffer(base64.b64decode(record.map), np.uint8).reshape(MAP_SIZE, MAP_SIZE)
    if photo is None:
        return _colored(values, (_PICTURE_SIDE, _PICTURE_SIDE))
    pixels = (photo.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    overlay = Image.blend(picture.convert("L").convert("RGB"), _colored(values, picture.size), OPACITY)
    both = Image.new("RGB", (2 * picture.width, picture.height))
    both.paste(picture)
    both.paste(overlay, (picture.width, 0))
    return both


def _colored(values: npt.NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    heat = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return Image.fromarray(matplotlib.colormaps[COLORS](heat, bytes=True)[:, :, :3].copy())
