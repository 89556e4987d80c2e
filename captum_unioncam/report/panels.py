"""Heat maps over a photo, side by side."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_unioncam.evaluation.explain import Explanation
from captum_unioncam.report.images import as_picture, laid_over

_SELECTED = "#c2185b"
_INCHES = 2.6
_MOST_COLUMNS = 6
# Characters that fit above a map.
_TITLE_WIDTH = 32
_DPI = 150


@dataclass(frozen=True)
class HeatMap:
    """A map to lay over a photo.

    Args:
        values (Tensor): (1, 1, h, w), of any scale and resolution; negative values show as 0.
        title (str): Shown above it.
        selected (bool): Mark it with a frame. Default: False
    """

    values: Tensor
    title: str
    selected: bool = False


def panel(photo: Tensor, heat_maps: Sequence[HeatMap], title: str) -> Figure:
    """The photo and each map over it, side by side, in rows of at most six.

    Args:
        photo (Tensor): (3, H, W), in [0, 1].
        heat_maps (Sequence[HeatMap]): From left to right.
        title (str): Shown above all of them.

    Returns:
        *matplotlib.figure.Figure*: Made without pyplot, so it need not be closed.
    """
    picture = as_picture(photo)
    rows = math.ceil((1 + len(heat_maps)) / _MOST_COLUMNS)
    columns = math.ceil((1 + len(heat_maps)) / rows)
    height = _INCHES * picture.height / picture.width + 0.5
    figure = Figure(figsize=(_INCHES * columns, height * rows + 0.45), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[1 + len(heat_maps) :]:
        unused.set_axis_off()
    # A dollar sign in a class name starts no formula.
    figure.suptitle(title, fontsize=13, parse_math=False)
    _draw(axes[0], picture, "photo")
    for axis, heat_map in zip(axes[1:], heat_maps, strict=False):
        _draw(axis, laid_over(picture, heat_map.values), heat_map.title, heat_map.selected)
        if heat_map.values.max() <= 0:
            axis.set_xlabel("zero everywhere", fontsize=10)
    return figure


def explanation_panel(explanation: Explanation) -> Figure:
    """The photo, GradCAM's map for comparison, and the method's map, or UnionCAM's three with the selected one framed.

    Args:
        explanation (Explanation): As ``Explainer.explain`` gives it.

    Returns:
        *matplotlib.figure.Figure*: One axis for each of them.
    """
    heat_maps = []
    if explanation.grad_cam is not None and explanation.settings.method != "grad_cam":
        heat_maps.append(HeatMap(explanation.grad_cam, "GradCAM\nfor comparison"))
    if explanation.betas is None:
        heat_maps.append(HeatMap(explanation.map, explanation.settings.method))
    else:
        titles = {"denoised": "denoised (AMD)", "region": "region (Score-CAM)", "union": "union (AMU)"}
        for name, beta in explanation.betas.items():
            selected = name == explanation.choice
            title = f"{titles[name]}{' - selected' if selected else ''}\nbeta = {beta:.2f}"
            heat_maps.append(HeatMap(getattr(explanation.details, f"{name}_map"), title, selected))
    title = f"{explanation.class_name}  {explanation.confidence:.2f}   |   layer {explanation.settings.layer}"
    return panel(explanation.photo, heat_maps, title)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.1)
    return file.getvalue()


def _draw(axis: Axes, picture: Image.Image, title: str, selected: bool = False) -> None:
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=selected, edgecolor=_SELECTED, linewidth=3)
    lines = [textwrap.fill(line, _TITLE_WIDTH) for line in title.splitlines()]
    axis.set_title("\n".join(lines), fontsize=10, fontweight="bold" if selected else "normal", parse_math=False)
