"""Methods side by side: a panel of their maps, a table, and a page of both."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from captum_unioncam.evaluation.compare import Comparison
from captum_unioncam.report.html import png_uri, render
from captum_unioncam.report.panels import HeatMap, panel, png


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """The table as formatted texts, without the methods that failed."""
    judgements = comparison.judgements.values()
    texts: dict[str, list[str]] = {"method": list(comparison.judgements)}
    for metric in comparison.metrics:
        texts[f"{metric.name} {metric.arrow}"] = [metric.text(judged.values[metric.name]) for judged in judgements]
    return pd.DataFrame(texts)


def comparison_text(comparison: Comparison) -> str:
    """The table as plain text."""
    return str(comparison_table(comparison).to_string(index=False))


def comparison_panel(comparison: Comparison) -> Figure:
    """The photo, and each method's map laid over it."""
    heat_maps = []
    for method, judged in comparison.judgements.items():
        areas = ", ".join(f"{name} {judged.values[name]:.2f}" for name in judged.curves)
        heat_maps.append(HeatMap(judged.attribution, f"{method}\n{areas}".rstrip()))
    title = f"{comparison.class_name}  {comparison.confidence:.2f}   |   layer {comparison.layer}"
    return panel(comparison.photo, heat_maps, title)


def comparison_page(comparison: Comparison) -> bytes:
    """A self-contained HTML page."""
    table = comparison_table(comparison)
    return render(
        "comparison.html",
        comparison=comparison,
        panel=png_uri(png(comparison_panel(comparison))),
        headings=list(table.columns),
        rows=table.to_numpy().tolist(),
    )
