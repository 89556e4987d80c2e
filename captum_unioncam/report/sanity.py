"""Sanity checks as a table and a plot."""

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from captum_unioncam.engine.randomization import ORDERS
from captum_unioncam.evaluation.sanity import Similarity, similarity_table

VALUES = {"rank_correlation": "rank correlation", "ssim": "SSIM"}
"""What is shown, with its title."""


def sanity_text(rows: Sequence[Similarity]) -> str:
    """The tables as plain text: a line for each change, a column for each method."""
    parts = []
    for value, title in VALUES.items():
        table = similarity_table(rows, value).reset_index()
        parts.append(f"{title}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
    return "\n\n".join(parts)


def randomization_plot(rows: Sequence[Similarity]) -> Figure:
    """Each method's similarities against the layers that are reinitialised, a mean over the examples.

    Args:
        rows (Sequence[Similarity]): As ``model_randomization`` returns them; other checks are left out.

    Returns:
        *matplotlib.figure.Figure*: One row of axes for each order, one axis for each similarity. Made without pyplot,
        so it need not be closed.
    """
    every = pd.DataFrame(rows)
    orders = [order for order in ORDERS if (every.check == order).any()]
    # A dollar sign in a method's name starts no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        layers = every[every.check.isin(orders)].changed.nunique()
        figure = Figure(figsize=(2 * max(4, 0.35 * layers + 2), 4.2 * len(orders) + 0.5), layout="constrained")
        for axes, order in zip(figure.subplots(len(orders), len(VALUES), squeeze=False), orders, strict=True):
            for axis, (value, title) in zip(axes, VALUES.items(), strict=True):
                table = similarity_table([row for row in rows if row.check == order], value).loc[order]
                # The lines begin with the unchanged model, whose maps are equal.
                names = ["none", *table.index]
                for i, method in enumerate(table):
                    axis.plot(range(len(names)), [1.0, *table[method]], "o-", ms=3, color=f"C{i % 10}", label=method)
                axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
                axis.set(title=f"{title}, {order}", ylim=(min(0.0, float(table.to_numpy().min())) - 0.05, 1.05))
                axis.grid(alpha=0.3)
                axis.axhline(0, color="gray", linewidth=0.8)
        figure.supxlabel("layer reinitialised, from the output down", fontsize=9)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure
