"""Ranks of methods over the images, and how far apart mean ranks have to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import friedmanchisquare, studentized_range  # type: ignore[import-untyped]

from captum_unioncam.metrics.table import Metric, all_metrics
from captum_unioncam.report.statistics import Summary

LEVEL = 0.05
"""Of the tests."""

RULE = (
    "Each image ranks the methods: 1 is the best, and equal values share their mean rank. A bar is as long as the "
    "critical difference: where two bars do not overlap, the mean ranks differ at the 5 % level (Nemenyi's test, to be "
    "read where Friedman's test finds a difference at all; Demšar, Statistical Comparisons of Classifiers over "
    "Multiple Data Sets, JMLR 7, 2006)."
)
"""How the plot is read."""

_AXES_IN_A_ROW = 3


@dataclass(frozen=True)
class Ranks:
    """Ranks of the methods by one metric.

    Args:
        metric (Metric): The metric.
        means (pandas.Series): The mean rank of each method, the best first.
        images (int): How many images ranked them: those for which all these methods have values of the same targets.
        p_value (float): Of Friedman's test, that all methods are equal.
        critical_difference (float): By which two mean ranks have to differ, by Nemenyi's test at the 5 % level.
    """

    metric: Metric
    means: pd.Series[float]
    images: int
    p_value: float
    critical_difference: float


def method_ranks(summary: Summary) -> list[Ranks]:
    """The ranks by each metric that at least three methods have values of, for at least two images.

    An image's value is the mean over its targets.

    Args:
        summary (Summary): As ``summarize`` returns it.

    Examples::

        >>> for ranks in method_ranks(summarize(read_records(folder))):
        ...     print(ranks.metric.title, ranks.means, ranks.critical_difference)
    """
    found = []
    for name, metric in all_metrics().items():
        if metric.function is None:
            continue
        values = summary.values.pivot(index=["image", "target"], columns="method", values=name)
        values = values.dropna(axis="columns", how="all").dropna().groupby("image", observed=True).mean()
        images, methods = values.shape
        if images < 2 or methods < 3:
            continue
        means = values.rank(axis="columns", ascending=not metric.larger_is_better).mean().sort_values(kind="stable")
        with np.errstate(invalid="ignore"):
            p_value = friedmanchisquare(*values.to_numpy().T).pvalue
        # Where all values are equal, there is no statistic.
        p_value = 1.0 if math.isnan(p_value) else float(p_value)
        found.append(Ranks(metric, means, images, p_value, critical_difference(methods, images)))
    return found


def critical_difference(methods: int, images: int) -> float:
    r"""By which two mean ranks have to differ at the 5 % level (Nemenyi; Demšar 2006, section 3.2.2).

    .. math::
        q_{0.05} \sqrt{k (k + 1) / (6 N)}

    of k methods and N images, with :math:`q` the quantile of the studentized range over :math:`\sqrt{2}`.
    """
    quantile = float(studentized_range.ppf(1 - LEVEL, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * images))


def rank_plot(ranks: list[Ranks]) -> Figure:
    """The mean ranks with bars of the critical difference, one axis for each metric.

    Args:
        ranks (list[Ranks]): As ``method_ranks`` returns them, at least one.

    Returns:
        *matplotlib.figure.Figure*: The bars that overlap the best method's are blue. Made without pyplot, so it need
        not be closed.
    """
    columns = min(_AXES_IN_A_ROW, len(ranks))
    rows = math.ceil(len(ranks) / columns)
    height = 1.4 + 0.24 * max(len(each.means) for each in ranks)
    # A dollar sign in a method's name starts no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(4.6 * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for each, axis in zip(ranks, axes, strict=False):
            half = each.critical_difference / 2
            is_best = each.means - half <= each.means.iloc[0] + half
            for place, (mean, like_best) in enumerate(zip(each.means, is_best, strict=True)):
                color = "C0" if like_best else "0.45"
                axis.errorbar(mean, place, xerr=half, fmt="o", color=color, capsize=3, markersize=4)
            axis.set_yticks(range(len(each.means)), [str(name) for name in each.means.index], fontsize=8)
            axis.set_ylim(len(each.means) - 0.5, -0.5)
            axis.set_title(each.metric.heading, fontsize=10)
            axis.set_xlabel(f"mean rank over {each.images} images; {p_text(each.p_value)}", fontsize=8)
            axis.grid(axis="x", alpha=0.3)
        for axis in list(axes):
            axis.remove()
    return figure


def p_text(p_value: float) -> str:
    """The result of Friedman's test in words."""
    shown = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    return f"Friedman {shown}{'' if p_value < LEVEL else ', no difference'}"
