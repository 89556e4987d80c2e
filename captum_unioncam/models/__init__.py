"""Classifiers by name, with weights, preprocessing, class names and the layer to explain.

Imports attr, engine, demo and system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_unioncam.system.imports import lazy_names

if TYPE_CHECKING:
    from captum_unioncam.models.subject import ExplainedModel
else:
    __getattr__ = lazy_names(__name__, {"ExplainedModel": "subject"})

__all__ = ["ExplainedModel", "load"]

MODELS = (
    "demo, the demo model; a torchvision classification model; timm:NAME and hf:NAME, of the extras [timm] and [hf]; "
    "efficientnet_lite0, of the extra [imagenet]; or package.module:function, a function that returns your own, "
    "a module or a Classifier"
)
"""The names of models, for help and errors."""


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def load(name: str = "demo", weights: str | None = None, **options: Any) -> ExplainedModel:
    """Loads a classifier by name, with its preprocessing, its class names and the layer to explain.

    Args:
        name (str): "demo", the demo model; a torchvision classification model; "timm:NAME" and "hf:NAME", of the
            extras [timm] and [hf]; "efficientnet_lite0", of the extra [imagenet]; or "package.module:function", a
            function that returns your own, a module or a ``Classifier``. Default: "demo"
        weights (str or None): A file of weights, or "random" for an untrained model of timm or Hugging Face.
            Default: None, the model's own, which is downloaded
        **options: Further arguments of ``ExplainedModel``: ``layer``, ``preprocess``, ``device``, ``confidence``,
            ``output_fn``, ``reshape_transform``.

    Returns:
        *ExplainedModel*, as the command uses it.

    Raises:
        WrongArgument: There is no such model, layer or device.
        Failure: The model cannot be loaded, or does not run on images.

    Examples::

        >>> from captum_unioncam import models
        >>> # Without weights="random", they are downloaded.
        >>> subject = models.load("timm:vit_tiny_patch16_224", weights="random")
        >>> inputs, black = subject.input_and_baseline(subject.shown(demo.load_picture()))
        >>> union_cam = LayerUnionCam(subject.model, subject.layer)
        >>> attr = union_cam.attribute(
        ...     inputs, target=281, baselines=black, max_channels=32
        ... )  # (1, 1, 14, 14)
    """
    from captum_unioncam.models.subject import ExplainedModel

    return ExplainedModel(name, weights, **options)
