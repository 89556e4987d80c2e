"""Curves and box plots."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from captum_unioncam.metrics.table import Metric, all_metrics
from captum_unioncam.report.statistics import CURVES, Array, Summary

METRICS = tuple(all_metrics().values())

# The others are 0 or 1, of which a box says nothing.
_BOXES = tuple(metric for metric in METRICS if metric.name in ("drop", "insertion", "deletion", "energy", "seconds"))


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
        for axis, name, arrow in zip(figure.subplots(1, 2), CURVES, "↑↓", strict=True):
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
