"""Tables as text, Markdown and LaTeX."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd

from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.statistics import FailureGroup, Summary

MOST_FAILURES = 50

NOTHING = "–"  # noqa: RUF001
"""In place of a mean over no values."""


def display_table(summary: Summary) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table as formatted texts.

    Args:
        summary (Summary): As ``summarize`` returns it.

    Returns:
        *tuple of two pandas.DataFrame*: A row for each method, a column for each metric and for "n" and "failures": the
        texts, such as "12.3 [11.0, 13.6]", and whether each alone is the column's best: none
        is where methods share the best text.
    """
    judged = summary.judged
    texts, best = _means_and_best(summary.table)
    texts["n"] = [str(count) for count in judged.values()]
    texts["failures"] = _failed(summary).astype(str)
    best["n"] = best["failures"] = False
    return texts, best


def _means_and_best(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of each method and metric: the text of the mean with its interval, and whether it alone is the best shown."""
    texts = pd.DataFrame(index=pd.Index(table["method"].unique(), name="method"))
    best = texts.copy()
    for metric in all_metrics().values():
        of_metric = table[table.metric == metric.title]
        if of_metric.empty:
            continue
        rows = of_metric.set_index("method").reindex(texts.index)
        written = rows["mean"].map(lambda mean, form=metric.form: float(format(mean, form)))
        is_best = written == (written.max() if metric.larger_is_better else written.min())
        best[metric.heading] = is_best & (is_best.sum() == 1) & (len(written) > 1)
        texts[metric.heading] = [
            _mean_and_interval(*row, metric.form) for row in zip(rows["mean"], rows["low"], rows["high"], strict=True)
        ]
    return texts, best


def display_classes(classes: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of all classes as formatted texts, one below the other.

    Args:
        classes (pandas.DataFrame): As ``class_table`` returns it.

    Returns:
        *tuple of two pandas.DataFrame*: A row for each class and method, a column for "class", each metric and "n": the
        texts, and whether each alone is its column's best in the class.
    """
    parts = [_class_texts(table) for _, table in classes.groupby("target", sort=False)]
    parts = parts or [_class_texts(classes)]
    texts, best = (pd.concat(frames) for frames in zip(*parts, strict=True))
    # A metric may have values in some classes only.
    return texts.fillna(NOTHING), best.fillna(False).astype(bool)


def _class_texts(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """As ``display_classes``, of one class."""
    texts, best = _means_and_best(table)
    texts.insert(0, "class", "".join(table["class"].unique()))
    texts["n"] = table.groupby("method", observed=True)["n"].max().reindex(texts.index).astype(str)
    best.insert(0, "class", False)
    best["n"] = False
    return texts, best


def classes_text(classes: pd.DataFrame, width: int | None = None) -> str:
    """The tables of the classes as plain text, the best values of each class with an asterisk.

    Args:
        classes (pandas.DataFrame): As ``class_table`` returns it.
        width (int or None): As :func:`text` takes it. Default: None, not wrapped
    """
    head = "by class: means over maps, with their 95 % bootstrap intervals over images; * the best of the class"
    parts = ["\n".join(textwrap.wrap(head, width or sys.maxsize))]
    for _, table in classes.groupby("target", sort=False):
        texts, best = _class_texts(table)
        parts.append("\n".join([str(texts.pop("class").iloc[0]), *_lines(texts, best.drop(columns="class"), width)]))
    return "\n\n".join(parts)


def display_differences(differences: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The differences as formatted texts.

    Args:
        differences (pandas.DataFrame): As ``paired_differences`` returns it.

    Returns:
        *tuple of two pandas.DataFrame*: A row for each method and a column for each metric: the texts, such as
        "+2.3 [+1.0, +3.6] 71 %", the last the share of images won, and whether the whole interval is on the better side
        of 0.
    """
    texts = pd.DataFrame(index=pd.Index(differences["method"].unique(), name="method"))
    better = texts.copy()
    for metric in all_metrics().values():
        rows = differences[differences.metric == metric.title].set_index("method")
        if rows.empty:
            continue
        better[metric.heading] = rows["low"] > 0 if metric.larger_is_better else rows["high"] < 0
        columns = (rows[name] for name in ("difference", "low", "high", "won"))
        texts[metric.heading] = [
            _mean_and_interval(mean, low, high, f"+{metric.form}") + ("" if math.isnan(won) else f" {won:.0%}")
            for mean, low, high, won in zip(*columns, strict=True)
        ]
    return texts, better


def differences_text(differences: pd.DataFrame, against: str, width: int | None = None) -> str:
    """The differences as plain text, with an asterisk where the whole interval is on the better side of 0.

    Args:
        differences (pandas.DataFrame): As ``paired_differences`` returns it.
        against (str): The method from whose values they are taken.
        width (int or None): As :func:`text` takes it. Default: None, not wrapped
    """
    head = (
        f"differences from {against}, map by map, with their 95 % bootstrap intervals over images, and the share of "
        "images where the method is better; * the interval is on the better side of 0"
    )
    lines = textwrap.wrap(head, width or sys.maxsize)
    return "\n".join([*lines, "", *_lines(*display_differences(differences), width)])


def _failed(summary: Summary) -> pd.Series[int]:
    """For each method."""
    return summary.table.groupby("method")["failures"].first()


def _mean_and_interval(mean: float, low: float, high: float, form: str) -> str:
    if math.isnan(mean):
        return NOTHING
    return f"{mean:{form}}" if math.isnan(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def remarks(summary: Summary, settings: Mapping[str, Any]) -> list[str]:
    """Warnings: the evaluation is not finished, or the methods' means are over different images."""
    found = []
    judged, failed = summary.judged, _failed(summary)
    wanted = settings.get("records_of_a_method", 0)
    done = {name: count + failed[name] for name, count in judged.items() if count + failed[name] < wanted}
    if done:
        counts = ", ".join(f"{name} {count}" for name, count in done.items())
        found.append(f"Not finished: {wanted} records of each method are expected. Records so far: {counts}.")
    if summary.shortages:
        found.append(
            f"Out of memory: {summary.shortages} records, which are not counted; evaluate does them again when it is "
            "started again."
        )
    if not summary.same_maps:
        counts = ", ".join(f"{name} {count}" for name, count in judged.items())
        found.append(f"The methods' means are over different maps ({counts}), so they are not directly comparable.")
    return found


def text(summary: Summary, width: int | None = None, settings: Mapping[str, Any] | None = None) -> str:
    """The table as plain text, the best values with an asterisk, and the failures.

    Args:
        summary (Summary): As ``summarize`` returns it.
        width (int or None): Columns of the terminal, at which a wider table is wrapped. Default: None, not wrapped
        settings (Mapping or None): The evaluation's, for :func:`remarks`. Default: None
    """
    lines = [
        f"images: {summary.images}; maps: {summary.records}; failures: {summary.failed}",
        *(line for remark in remarks(summary, settings or {}) for line in textwrap.wrap(remark, width or sys.maxsize)),
        "means over maps, with their 95 % bootstrap intervals over images; * the best",
        "",
        *_lines(*display_table(summary), width),
    ]
    if summary.failures:
        lines += ["", "failures:", *map(_failure_line, summary.failures[:MOST_FAILURES])]
    return "\n".join(lines)


def _lines(texts: pd.DataFrame, best: pd.DataFrame, width: int | None) -> list[str]:
    marked = texts + best.map(lambda is_best: " *" if is_best else "  ")
    # pandas ends wrapped headings with a backslash.
    return [line.rstrip(" \\") for line in marked.to_string(line_width=width, index_names=False).splitlines()]


def _failure_line(group: FailureGroup) -> str:
    images = ", ".join([*group.images, "…"] if group.has_more else group.images)
    return f"{group.count:5}  {', '.join(group.methods)}: {group.message} ({images})"


def as_markdown(texts: pd.DataFrame, best: pd.DataFrame) -> str:
    """A table of texts, as ``display_table`` returns it, in Markdown: methods as code, the best values bold."""
    texts = texts.mask(best, "**" + texts + "**")
    # These two characters and line breaks have a meaning within code.
    codes = [" ".join(str(name).replace("`", "'").replace("|", r"\|").split()) for name in texts.index]
    texts.index = pd.Index([f"`{code}`" for code in codes], name=texts.index.name)
    align = ["left", *["right"] * texts.shape[1]]
    return f"{texts.to_markdown(disable_numparse=True, colalign=align)}\n"


def as_latex(texts: pd.DataFrame, best: pd.DataFrame) -> str:
    """A table of texts as a LaTeX ``tabular`` for the package booktabs, the best values bold."""
    texts, best = texts.reset_index(), best.reset_index(drop=True)
    styles = best.map(lambda is_best: "font-weight: bold" if is_best else "")

    def arrows_as_formulas(heading: object) -> str:
        return str(heading).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")

    styler = texts.style.hide(axis="index").apply(lambda _: styles, axis=None, subset=list(best.columns))
    # pandas escapes a text before it calls the formatter.
    styler = styler.format(lambda text: str(text).replace("–", "--"), escape="latex")  # noqa: RUF001
    styler = styler.format_index(arrows_as_formulas, escape="latex", axis="columns")
    table: str = styler.to_latex(hrules=True, convert_css=True, column_format="l" + "r" * (texts.shape[1] - 1))
    return f"% Needs \\usepackage{{booktabs}}\n{table}"
