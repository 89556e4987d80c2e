"""Heat maps over a photo, side by side, on ``captum.attr.visualization``."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from captum.attr import LayerAttribution
from captum.attr import visualization as captum_visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_unioncam.evaluation.explain import Explanation
from captum_unioncam.report.images import COLORS, OPACITY

_SELECTED = "#c2185b"


_INCHES = 2.6


_MOST_COLUMNS = 6


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
        title (str): Above them all.

    Returns:
        *matplotlib.figure.Figure*: Without pyplot, so it need not be closed.
    """
    pixels = photo.permute(1, 2, 0).cpu().numpy()
    rows = math.ceil((1 + len(heat_maps)) / _MOST_COLUMNS)
    columns = math.ceil((1 + len(heat_maps)) / rows)
    height = _INCHES * pixels.shape[0] / pixels.shape[1] + 0.5
    figure = Figure(figsize=(_INCHES * columns, height * rows + 0.45), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[1 + len(heat_maps) :]:
        unused.set_axis_off()
    # Class names may hold a dollar sign, which is no formula here.
    figure.suptitle(title, fontsize=13, parse_math=False)
    _draw(axes[0], pixels, "original_image")
    axes[0].set_title("photo", fontsize=10)
    for axis, heat_map in zip(axes[1:], heat_maps, strict=False):
        _draw_heat_map(axis, pixels, heat_map)
    return figure


def explanation_panel(explanation: Explanation) -> Figure:
    """The photo, GradCAM's map for comparison, and UnionCAM's three maps, the selected one framed.

    Args:
        explanation (Explanation): What ``Explainer.explain`` gave.

    Returns:
        *matplotlib.figure.Figure*: Of five axes.
    """
    details, betas = explanation.details, explanation.betas
    named = (
        ("denoised", "denoised (AMD)", details.denoised_map),
        ("region", "region (Score-CAM)", details.region_map),
        ("union", "union (AMU)", details.union_map),
    )
    heat_maps = [HeatMap(explanation.grad_cam, "GradCAM\nfor comparison")]
    for name, title, values in named:
        selected = name == explanation.choice
        mark = " - selected" if selected else ""
        heat_maps.append(HeatMap(values, f"{title}{mark}\nbeta = {betas[name]:.2f}", selected))
    title = f"{explanation.class_name}  {explanation.confidence:.2f}   |   layer {explanation.settings.layer}"
    return panel(explanation.photo, heat_maps, title)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.1)
    return file.getvalue()


def _draw_heat_map(axis: Axes, pixels: npt.NDArray[np.float32], heat_map: HeatMap) -> None:
    values = heat_map.values.detach().float()
    values = LayerAttribution.interpolate(values, pixels.shape[:2], "bilinear")[0, 0].cpu().numpy()
    if values.max() > 0:
        # To 1 at most before Captum does it, since it warns of maps as small as saturated networks have.
        _draw(axis, pixels, "blended_heat_map", values / values.max())
    else:
        _draw(axis, np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2), "original_image")
        axis.set_xlabel("zero everywhere", fontsize=10)
    axis.set_title(heat_map.title, fontsize=10, fontweight="bold" if heat_map.selected else "normal", parse_math=False)
    if heat_map.selected:
        axis.spines[:].set(visible=True, edgecolor=_SELECTED, linewidth=3)


def _draw(
    axis: Axes, pixels: npt.NDArray[np.float32], method: str, values: npt.NDArray[np.float32] | None = None
) -> None:
    captum_visualization.visualize_image_attr(
        # Captum scales the attributions even where it draws the photo alone, and cannot scale zeros.
        np.ones(pixels.shape[:2]) if values is None else values,
        pixels,
        method,
        sign="positive",
        plt_fig_axis=(axis.figure, axis),
        outlier_perc=0,
        cmap=COLORS,
        alpha_overlay=OPACITY,
        use_pyplot=False,
    )
    axis.spines[:].set_visible(False)
