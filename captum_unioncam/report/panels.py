"""Heat maps over a photo, side by side."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_unioncam.evaluation.explain import Explanation
from captum_unioncam.report.images import Box, Look, as_picture, laid_over

_SELECTED = "#c2185b"
_INCHES = 2.6
_MOST_COLUMNS = 6
# Characters that fit above a map, and below all of them for each column.
_TITLE_WIDTH = 32
_NOTE_WIDTH = 38

DPI = 150
"""Resolution of panels, in pixels per inch."""

# Without the time of drawing, so that the same panel gives the same file.
_METADATA = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


@dataclass(frozen=True)
class HeatMap:
    """A map to lay over a photo.

    Args:
        values (Tensor): (1, 1, h, w), of any scale and resolution; negative values show as 0.
        title (str): Shown above it.
        selected (bool): Mark it with a frame. Default: False

    Examples::

        >>> from captum_unioncam.report import HeatMap
        >>> heat_map = HeatMap(attr[:1], "UnionCAM", selected=True)
    """

    values: Tensor
    title: str
    selected: bool = False


def panel(
    photo: Tensor | Image.Image,
    heat_maps: Sequence[HeatMap],
    title: str,
    look: Look | None = None,
    box: Box | None = None,
    notes: Sequence[str] = (),
) -> Figure:
    """The photo and each map over it, side by side, in rows of at most six, with a colour bar.

    Args:
        photo (Tensor or PIL.Image.Image): (3, H, W), in [0, 1], or in mode RGB.
        heat_maps (Sequence[HeatMap]): From left to right.
        title (str): Shown above all of them.
        look (Look or None): The maps' colours and opacity. Default: None, ``Look()``
        box (tuple or None): The part of the photo that the maps cover. Default: None, all of it
        notes (Sequence[str]): Shown below all of them. Default: none

    Returns:
        *matplotlib.figure.Figure*: Made without pyplot, so it need not be closed.

    Examples::

        >>> from captum_unioncam.report import HeatMap, Look, panel
        >>> attr = LayerUnionCam(model, layer).attribute(images[:1], target=3)
        >>> look = Look("viridis", opacity=0.7)
        >>> figure = panel(images[0], [HeatMap(attr, "UnionCAM")], "a cat  0.93", look)
        >>> figure.savefig("cat.pdf")
    """
    look = look or Look()
    picture = as_picture(photo) if isinstance(photo, Tensor) else photo
    rows = math.ceil((1 + len(heat_maps)) / _MOST_COLUMNS)
    columns = math.ceil((1 + len(heat_maps)) / rows)
    lines = [line for note in notes for line in textwrap.wrap(note, _NOTE_WIDTH * columns)]
    height = _INCHES * picture.height / picture.width + 0.5
    size = _INCHES * columns + 0.5, height * rows + 0.45 + 0.17 * len(lines)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[1 + len(heat_maps) :]:
        unused.set_axis_off()
    # A dollar sign in a class name starts no formula.
    figure.suptitle(title, fontsize=13, parse_math=False)
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=9, ha="left", x=0.01, parse_math=False)
    _draw(axes[0], picture, "photo")
    for axis, heat_map in zip(axes[1:], heat_maps, strict=False):
        _draw(axis, laid_over(picture, heat_map.values, look, box), heat_map.title, heat_map.selected)
        if heat_map.values.max() <= 0:
            axis.set_xlabel("zero everywhere", fontsize=10)
    if heat_maps:
        bar = figure.colorbar(ScalarMappable(cmap=look.bar()), ax=list(axes), shrink=0.8, aspect=30, pad=0.01)
        bar.set_ticks([0, 1], labels=["lowest", "highest"], fontsize=9)
    return figure


def explanation_panel(explanation: Explanation, look: Look | None = None, original: bool = False) -> Figure:
    """The photo, Grad-CAM's map for comparison, and the method's map, or UnionCAM's three with the selected one framed.

    Args:
        explanation (Explanation): As ``Explainer.explain`` gives it.
        look (Look or None): As ``panel`` takes it. Default: None
        original (bool): Over the photo as it is, not as the model saw it. Default: False

    Returns:
        *matplotlib.figure.Figure*: One axis for each of them, and one for the colour bar.
    """
    title = f"{explanation.class_name}  {explanation.confidence:.2f}   |   layer {explanation.settings.layer}"
    photo, box = explanation.original() if original else (explanation.photo, None)
    return panel(photo, explanation_maps(explanation), title, look, box, explanation.warnings)


def explanation_maps(explanation: Explanation) -> list[HeatMap]:
    """Grad-CAM's map, where there is one, and the method's, or UnionCAM's three."""
    heat_maps = []
    if explanation.grad_cam is not None and explanation.settings.method != "grad_cam":
        heat_maps.append(HeatMap(explanation.grad_cam, "Grad-CAM\nfor comparison"))
    if explanation.betas is None:
        heat_maps.append(HeatMap(explanation.map, explanation.settings.method))
    else:
        titles = {"denoised": "denoised (AMD)", "region": "region (Score-CAM)", "union": "union (AMU)"}
        for name, beta in explanation.betas.items():
            selected = name == explanation.choice
            title = f"{titles[name]}{' - selected' if selected else ''}\nbeta = {beta:.2f}"
            heat_maps.append(HeatMap(getattr(explanation.details, f"{name}_map"), title, selected))
    return heat_maps


def explanation_overlay(explanation: Explanation, look: Look | None = None, original: bool = False) -> Image.Image:
    """The method's map over the photo, alone.

    Args:
        explanation, look, original: As ``explanation_panel`` takes them.
    """
    photo, box = explanation.original() if original else (as_picture(explanation.photo), None)
    return laid_over(photo, explanation.map, look, box)


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG file."""
    return drawn(figure, "png", dpi)


def drawn(figure: Figure, form: str, dpi: int = DPI) -> bytes:
    """The figure as a file.

    Args:
        figure (matplotlib.figure.Figure): As ``panel`` gives it.
        form (str): "png", "pdf" or "svg".
        dpi (int): Resolution, in pixels per inch. Default: 150
    """
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=dpi, bbox_inches="tight", pad_inches=0.1, metadata=_METADATA[form])
    return file.getvalue()


def picture_file(picture: Image.Image, form: str, dpi: int = DPI) -> bytes:
    """The image as a file, pixel for pixel, without a margin.

    Args:
        picture (PIL.Image.Image): In mode RGB.
        form, dpi: As ``drawn`` takes them.
    """
    file = io.BytesIO()
    if form == "png":
        picture.save(file, "PNG", dpi=(dpi, dpi))
    else:
        figure = Figure(figsize=(picture.width / dpi, picture.height / dpi))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.imshow(picture, aspect="auto", interpolation="none")
        figure.savefig(file, format=form, dpi=dpi, metadata=_METADATA[form])
    return file.getvalue()


def _draw(axis: Axes, picture: Image.Image, title: str, selected: bool = False) -> None:
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=selected, edgecolor=_SELECTED, linewidth=3)
    lines = [textwrap.fill(line, _TITLE_WIDTH) for line in title.splitlines()]
    axis.set_title("\n".join(lines), fontsize=10, fontweight="bold" if selected else "normal", parse_math=False)
