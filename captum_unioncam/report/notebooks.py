"""``explain`` and ``show``, for notebooks. What they need of the extra [cli] is imported when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.figure import Figure
    from PIL import Image
    from torch import Tensor

    from captum_unioncam.evaluation.explain import Explanation


def explain(
    picture: str | Path | Image.Image,
    target: int | str | None = None,
    *,
    model: str = "resnet18",
    show_progress: bool = False,
    **settings: Any,
) -> Explanation:
    """Explains a class of an image, as ``captum-unioncam explain`` does.

    The model is loaded in each call: for many images, use ``captum_unioncam.evaluation.explain.Explainer``.

    Args:
        picture (str, Path or PIL.Image.Image): A file, or an open image.
        target (int, str or None): The class to explain, by index or name. Default: None, the predicted one
        model (str): "demo", the demo model; a torchvision classification model; "timm:NAME" and "hf:NAME", of the
            extras [timm] and [hf]; "efficientnet_lite0", of the extra [imagenet]; or "package.module:function", a
            function that returns your own, a module or a ``Classifier``. Weights are downloaded. Default: "resnet18"
        show_progress (bool): Show the progress of downloads and of masked passes. Default: False
        **settings: Other fields of ``captum_unioncam.evaluation.explain.Settings``, such as ``method``, ``layer``,
            ``max_channels`` or ``device``.

    Returns:
        *Explanation*: With the map (1, 1, h, w), the class and its confidence, Grad-CAM's map, UnionCAM's betas, and
        ``warnings``. :func:`show` draws it.

    Raises:
        WrongArgument: There is no such model, layer, class or method.
        Failure: The image or the model cannot be loaded.

    Examples::

        >>> explanation = explain(demo.load_picture(), model="demo", max_channels=8)
        >>> figure = show(explanation)
    """
    from captum_unioncam.datasets.pictures import open_picture
    from captum_unioncam.evaluation.explain import Explainer, Settings

    image = open_picture(Path(picture)) if isinstance(picture, str | Path) else picture.convert("RGB")
    explainer = Explainer(Settings(model=model, **settings), show_progress)
    index = None if target is None else explainer.subject.class_index(str(target))
    return next(explainer.explain(image, index))


def show(
    image: Tensor | npt.NDArray[Any] | Image.Image | Explanation,
    maps: Tensor | Mapping[str, Tensor] | None = None,
    title: str = "",
    *,
    colormap: str = "glow",
    opacity: float = 0.6,
) -> Figure:
    """Lays maps over an image, side by side. A notebook shows the figure where it is a cell's last value.

    Args:
        image (Tensor, numpy.ndarray, PIL.Image.Image or Explanation): (3, H, W) or (1, 3, H, W), or as an array
            (H, W, 3). Floats are in [0, 1]; what was normalised for the model is not. Or what :func:`explain` returns.
        maps (Tensor, Mapping[str, Tensor] or None): A map (h, w), (1, h, w) or (1, 1, h, w), of any scale and
            resolution, or several by title. Negative values show as 0. Default: None, those of the explanation
        title (str): Shown above all. Default: ""
        colormap (str): "glow", black to red to yellow, or one of matplotlib's names. Default: "glow"
        opacity (float): Of the highest value, in [0, 1]; the lowest has half of it. Default: 0.6

    Returns:
        *matplotlib.figure.Figure*: ``figure.savefig("maps.pdf")`` writes it.

    Raises:
        ValueError: The image or a map has another shape, the image's values are outside [0, 1], or the look is unknown.

    Examples::

        >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
        >>> figure = show(images[0], {"UnionCAM": attr[:1]}, title="a cat")
    """
    from captum_unioncam.evaluation.explain import Explanation
    from captum_unioncam.report.images import Look
    from captum_unioncam.report.panels import HeatMap, explanation_panel, panel

    look = Look(colormap, opacity)
    if isinstance(image, Explanation):
        return explanation_panel(image, look)
    if maps is None:
        raise ValueError("maps: is not given; give the map, or several by title.")
    by_title = maps if isinstance(maps, Mapping) else {"map": maps}
    heat_maps = [HeatMap(_one_map(values), name) for name, values in by_title.items()]
    return panel(_one_picture(image), heat_maps, title, look)


def _one_map(values: Tensor) -> Tensor:
    if values.numel() == 0 or values.dim() < 2 or any(size != 1 for size in values.shape[:-2]):
        raise ValueError(f"maps: has the shape {tuple(values.shape)}; give one map, (h, w), as attr[:1] of a batch.")
    return values.detach().reshape(1, 1, *values.shape[-2:])


def _one_picture(image: Tensor | npt.NDArray[Any] | Image.Image) -> Image.Image:
    import torch
    from PIL import Image

    from captum_unioncam.report.images import as_picture

    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = image.detach() if isinstance(image, torch.Tensor) else torch.tensor(image)
    if pixels.dim() == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if not isinstance(image, torch.Tensor) and pixels.dim() == 3 and pixels.shape[-1] == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.dim() != 3 or pixels.shape[0] != 3:
        raise ValueError(f"image: has the shape {tuple(pixels.shape)}; give one image, (3, H, W), as images[0].")
    if not pixels.is_floating_point():
        pixels = pixels / 255
    if pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(
            f"image: has values from {pixels.min():.2f} to {pixels.max():.2f}; give [0, 1], not normalised."
        )
    return as_picture(pixels.float())
