"""Methods side by side: a panel of their maps, a table, and a page of both."""

import pandas as pd
from matplotlib.figure import Figure

from captum_unioncam.evaluation.compare import Comparison
from captum_unioncam.metrics.table import Metric
from captum_unioncam.report.html import data_uri, render
from captum_unioncam.report.images import Look
from captum_unioncam.report.panels import HeatMap, panel, png
from captum_unioncam.report.plots import drawn_curves


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """The table as formatted texts, without the methods that failed."""
    judgements = comparison.judgements.values()
    texts: dict[str, list[str]] = {"method": list(comparison.judgements)}
    for metric in comparison.metrics:
        texts[f"{metric.name} {metric.arrow}"] = [metric.text(judged.values[metric.name]) for judged in judgements]
    return pd.DataFrame(texts)


def comparison_text(comparison: Comparison) -> str:
    """The table as plain text, with a star before each metric's best value."""
    table = comparison_table(comparison)
    for column, best in zip(table.columns, best_methods(comparison), strict=True):
        row = table["method"] == best
        table.loc[row, column] = "*" + table.loc[row, column]
    return str(table.to_string(index=False))


def best_method(comparison: Comparison, metric: Metric) -> str | None:
    """The method with the best value of a metric; None where there is one method, or several share the best value."""
    values = {method: judged.values[metric.name] for method, judged in comparison.judgements.items()}
    if len(values) < 2:
        return None
    best = (max if metric.larger_is_better else min)(values.values())
    # What is shown as the same value is the same.
    methods = [method for method, value in values.items() if metric.text(value) == metric.text(best)]
    return methods[0] if len(methods) == 1 else None


def comparison_panel(comparison: Comparison, look: Look | None = None) -> Figure:
    """The photo, and each method's map laid over it.

    Args:
        comparison (Comparison): As ``compare`` gives it.
        look (Look or None): The maps' colours and opacity. Default: None, ``Look()``
    """
    heat_maps = []
    for method, judged in comparison.judgements.items():
        areas = ", ".join(f"{name} {judged.values[name]:.2f}" for name in judged.curves)
        heat_maps.append(HeatMap(judged.attribution, f"{method}\n{areas}".rstrip()))
    title = f"{comparison.class_name}  {comparison.confidence:.2f}   |   layer {comparison.layer}"
    return panel(comparison.photo, heat_maps, title, look)


def comparison_curves(comparison: Comparison) -> Figure:
    """Each method's curves, of insertion, deletion and the like, with the areas under them.

    Raises:
        ValueError: No metric of the comparison has a curve.
    """
    with_curve = [metric for metric in comparison.metrics if metric.has_curve]
    if not with_curve:
        raise ValueError("metrics: none has a curve; add deletion or insertion.")
    curves = {
        metric.name: {
            f"{metric.text(each.values[metric.name])}  {method}": each.curves[metric.name]
            for method, each in comparison.judgements.items()
        }
        for metric in with_curve
    }
    return drawn_curves(curves, "confidence", len(comparison.judgements))


def comparison_page(comparison: Comparison, look: Look | None = None, curves: bool = False) -> bytes:
    """A self-contained HTML page.

    Args:
        comparison, look: As ``comparison_panel`` takes them.
        curves (bool): Show ``comparison_curves``. Default: False
    """
    return render(
        "comparison.html",
        comparison=comparison,
        panel=data_uri("image/png", png(comparison_panel(comparison, look))),
        curves=data_uri("image/png", png(comparison_curves(comparison))) if curves else None,
        table=comparison_table(comparison),
        best=best_methods(comparison),
    )


def best_methods(comparison: Comparison) -> list[str | None]:
    """For each column of ``comparison_table``, the method with the best value."""
    return [None, *(best_method(comparison, metric) for metric in comparison.metrics)]
