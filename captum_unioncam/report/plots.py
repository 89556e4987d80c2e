"""Curves, box plots, and one metric against another."""

from collections.abc import Mapping

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.statistics import Summary


def curve_plot(summary: Summary) -> Figure:
    """Each method's mean curves, with the mean area under them.

    Args:
        summary (Summary): As ``summarize`` returns it.

    Returns:
        *matplotlib.figure.Figure*: One axis for each metric with curves. Made without pyplot, so it need not be closed.
    """
    means = summary.table.set_index(["metric", "method"])["mean"]
    shown = [name for name, curves in summary.curves.items() if curves] or list(summary.curves)
    curves = {
        name: {
            f"{means[metric.title, method]:{metric.form}}  {method}": curve
            for method, curve in summary.curves[name].items()
        }
        for name, metric in all_metrics().items()
        if name in shown
    }
    return drawn_curves(curves, "mean confidence", len(summary.judged))


def drawn_curves(curves: Mapping[str, Mapping[str, npt.ArrayLike]], confidence: str, methods: int) -> Figure:
    """Curves of methods, side by side for each metric.

    Args:
        curves (Mapping): By metric, and by the area and the method in words, confidences at equal steps.
        confidence (str): Label of the confidences.
        methods (int): The legends have room for so many.
    """
    # A dollar sign in a method's name starts no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(5 * len(curves), 4 + 0.2 * methods), layout="constrained")
        axes = figure.subplots(1, len(curves), squeeze=False)[0]
        for axis, (name, by_label) in zip(axes, curves.items(), strict=True):
            for i, (label, confidences) in enumerate(by_label.items()):
                curve = np.asarray(confidences)
                style = ("-", "--", ":", "-.")[i // 10 % 4]
                axis.plot(np.linspace(0, 100, len(curve)), curve, style, color=f"C{i % 10}", label=label)
            axis.set(title=all_metrics()[name].heading, xlabel="pixels changed (%)", ylabel=confidence, xlim=(0, 100))
            axis.grid(alpha=0.3)
            if by_label:
                axis.legend(title="area  method", loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    return figure


def box_plot(summary: Summary) -> Figure:
    """The spread of each method's values, for each metric that is not 0 or 1.

    Args:
        summary (Summary): As ``summarize`` returns it.

    Returns:
        *matplotlib.figure.Figure*: One axis for each metric. Made without pyplot, so it need not be closed.
    """
    metrics = [metric for metric in all_metrics().values() if not metric.is_yes_or_no]
    shown = [metric for metric in metrics if summary.values[metric.name].notna().any()]
    shown = shown or [metric for metric in metrics if not metric.on_request]
    by_method = dict(list(summary.values.groupby("method", observed=False)))
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(2 + 2.4 * len(shown), 1.5 + 0.35 * len(by_method)), layout="constrained")
        for axis, metric in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
            values = [metric.scale * of_method[metric.name].dropna() for of_method in by_method.values()]
            axis.boxplot(values, orientation="horizontal", whis=(5, 95), showfliers=False, showmeans=True)
            axis.set_title(metric.heading, fontsize=10)
            axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(1, len(by_method) + 1), by_method)
        axis.invert_yaxis()
        figure.supxlabel("box: quartiles; line: median; triangle: mean; whiskers: 5 % to 95 % of the maps", fontsize=9)
    return figure


def trade_off_plot(summary: Summary) -> Figure | None:
    """Each method's mean insertion against its mean drop, with their intervals.

    Args:
        summary (Summary): As ``summarize`` returns it.

    Returns:
        *matplotlib.figure.Figure or None*: None where no method has both. Made without pyplot, so it need not be
        closed.
    """
    across, up = (all_metrics()[name] for name in ("drop", "insertion"))
    means = summary.table.dropna(subset="mean")
    tables = [means[means.metric == metric.title].set_index("method") for metric in (across, up)]
    methods = [name for name in summary.judged if all(name in table.index for table in tables)]
    if not methods:
        return None
    x, y = (table.loc[methods, ["mean", "low", "high"]].to_numpy(float) for table in tables)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(9, max(4.5, 1 + 0.24 * len(methods))), layout="constrained")
        axis = figure.subplots()
        for i, method in enumerate(methods):
            left_right, below_above = (np.abs(ends - mean)[:, None] for mean, *ends in (x[i], y[i]))
            style, color = "osD^v"[i // 10 % 5], f"C{i % 10}"
            axis.errorbar(x[i, 0], y[i, 0], below_above, left_right, style, color=color, elinewidth=0.8, label=method)
        axis.set(xlabel=across.heading, ylabel=up.heading)
        axis.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
