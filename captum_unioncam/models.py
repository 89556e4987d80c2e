"""Models to explain, each with its preprocessing and the names of its classes."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from captum_unioncam.errors import Failure, WrongArgument, one_line

DEMO = "demo"
"""Name of the embedded network."""

StateDict = dict[str, Tensor]

# The heads that GoogLeNet and Inception have for training only; files come with and without them.
_TRAINING_HEADS = ("aux", "AuxLogits")
_MENTIONED_KEYS = 3


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a model's input, in two steps: what the model sees of it, and the numbers that it wants.

    Args:
        fit (Callable): A PIL picture in mode RGB to a tensor (3, H, W) in [0, 1], resized and cropped.
        mean (tuple[float, ...]): Subtracted from each channel. Default: nothing
        std (tuple[float, ...]): What each channel is divided by then. Default: nothing
    """

    fit: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def normalized(self, shown: Tensor) -> Tensor:
        """What ``fit`` gave, or a batch of it (N, 3, H, W), as the model wants it; zeros become the model's black."""
        mean, std = (shown.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (shown - mean) / std

    def objects_seen(self, objects: Image.Image) -> Tensor:
        """Where the model sees a picture's objects, bool, (H, W).

        Args:
            objects (PIL.Image.Image): Mode "L", of the picture's size: 255 on the objects, and 0 elsewhere.
        """
        # Resized as the picture is, their borders are grey.
        return self.fit(objects.convert("RGB"))[0] > 0.5


def squeezed_to(size: int) -> Callable[[Image.Image], Tensor]:
    """A ``fit`` that resizes to a square, whatever the picture's shape."""
    # Not a function within this one, which could not be sent to another process.
    return partial(_squeezed, size)


def _squeezed(size: int, picture: Image.Image) -> Tensor:
    pixels = np.array(picture.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


PAPER = Preprocessing(squeezed_to(224))
"""The UnionCAM paper's preprocessing: resized to 224x224, in [0, 1], nothing else."""


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode, and what it takes to show it a picture and to read its answer.

    Args:
        name (str): As given to ``load_classifier``.
        model (torch.nn.Module): (1, 3, H, W) to (1, classes), on the CPU.
        preprocessing (Preprocessing): Of pictures for this model.
        class_names (tuple[str, ...] or None): In the order of the model's outputs. Default: None, not known
        explained_layer (str or None): Dotted name of the layer to explain. Default: None, to be found
    """

    name: str
    model: Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    explained_layer: str | None = None

    def class_name(self, index: int) -> str:
        """The class's name, or "class 7" where names are not known."""
        return self.class_names[index] if self.class_names else f"class {index}"


def load_classifier(
    name: str = DEMO, weights: Path | None = None, preprocess: str = "auto", show_progress: bool = False
) -> Classifier:
    """Loads a model by name.

    Args:
        name (str): "demo", the embedded network; a torchvision classification model; or "package.module:function",
            a function without arguments that returns the model. Default: "demo"
        weights (Path or None): Its weights: a ``.safetensors`` file, or else a state dict saved by ``torch.save``,
            which is loaded without running what it may hold besides tensors. Default: None, the model's own, which
            torchvision downloads
        preprocess (str): "paper" for the paper's, "auto" for the model's own: that of torchvision's weights, of the
            demo, and the paper's for a function's model. Default: "auto"
        show_progress (bool): Show the progress of a download. Default: False

    Returns:
        *Classifier*

    Raises:
        WrongArgument: There is no such model.
        Failure: The weights cannot be downloaded or read, or do not fit; the user's function failed.
    """
    state = None if weights is None else read_state_dict(weights)
    if name == DEMO:
        classifier = _demo()
    elif ":" in name:
        classifier = Classifier(name, _made_by_function(name), PAPER)
    else:
        state = state and _with_current_names(state)
        classifier = _torchvision(name, state, show_progress)
    if state is not None:
        problems = _load_weights(classifier.model, state)
        if problems:
            raise Failure(f"--weights {weights}: does not fit {name}: {problems}. Give the model it was saved from.")
    if preprocess == "paper":
        classifier = replace(classifier, preprocessing=PAPER)
    classifier.model.eval()
    return classifier


def read_state_dict(path: Path) -> StateDict:
    """Reads tensors by name from a file, and runs nothing that it may hold besides.

    Args:
        path (Path): ``*.safetensors``; anything else is read by ``torch.load(weights_only=True)``. A checkpoint's
            entry "state_dict" or "model" is taken, and the prefix "module." of ``DataParallel`` removed.

    Raises:
        Failure: The file cannot be read, or holds something else.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Failure(f"--weights {path}: does not exist; check the path.") from error
    except Exception as error:
        # What a broken file raises has no common type, and torch.load's own message recommends weights_only=False,
        # which runs whatever the file says.
        raise Failure(
            f"--weights {path}: is not a file of tensors alone, or is broken; save model.state_dict() as .safetensors "
            "or with torch.save."
        ) from error
    for entry in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise Failure(f"--weights {path}: holds no state dict; save model.state_dict().")
    state = dict(content)
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def suggestion(wrong: str, names: Iterable[str]) -> str:
    """The end of a sentence that says what does not exist: asks for the names that are near, if there are any."""
    near = get_close_matches(wrong, list(names), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "."


def preprocessing_of(name: str, preprocess: str = "auto") -> Preprocessing:
    """The preprocessing that ``load_classifier`` would take, without the model's weights.

    Args:
        name, preprocess (str): As ``load_classifier`` takes them.

    Raises:
        WrongArgument: There is no such model.
    """
    if preprocess == "paper" or ":" in name:
        return PAPER
    if name == DEMO:
        from captum_unioncam.demo.pictures import PICTURE_SIZE

        return Preprocessing(squeezed_to(PICTURE_SIZE))
    weights = _torchvision_weights(name)
    transforms = weights.transforms()
    fit = weights.transforms(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Preprocessing(fit, tuple(transforms.mean), tuple(transforms.std))


def imported_function(name: str, asked: str) -> Any:
    """The function "package.module:function", imported.

    Args:
        name (str): Its name; modules in the working folder are found as well.
        asked (str): What the messages begin with: who asked for it.

    Raises:
        WrongArgument: There is no such module or function.
        Failure: Importing the module failed.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise WrongArgument(f"{asked}: give package.module:function.")
    # As python -m has it, and an installed command has not.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise WrongArgument(f"{asked}: there is no module {error.name!r}, here or installed.") from error
    except Exception as error:
        raise Failure(f"{asked}: importing it raised {type(error).__name__}: {one_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise WrongArgument(
            f"{asked}: {module_name} has no function {function_name!r}{suggestion(function_name, functions)}"
        )
    return function


def _demo() -> Classifier:
    from captum_unioncam import demo

    return Classifier(DEMO, demo.load_model(), preprocessing_of(DEMO), demo.CLASS_NAMES, demo.EXPLAINED_LAYER)


def _torchvision(name: str, state: StateDict | None, show_progress: bool) -> Classifier:
    weights = _torchvision_weights(name)
    class_names = tuple(weights.meta["categories"])
    if state is None:
        model, classes = _downloaded(name, weights, show_progress), len(class_names)
    else:
        model, classes = _built_for(name, state)
    return Classifier(name, model, preprocessing_of(name), class_names if classes == len(class_names) else None)


def _torchvision_weights(name: str) -> Any:
    """torchvision's best weights of a model, which are not downloaded yet."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise WrongArgument(
            f"--model: there is no model {name!r}{suggestion(name, [DEMO, *names])} Give {DEMO!r}, a torchvision "
            "classification model, or package.module:function."
        )
    return models.get_model_weights(name).DEFAULT


def _downloaded(name: str, weights: Any, show_progress: bool) -> Module:
    from torchvision import models

    try:
        model: Module = models.get_model(name, weights=weights, progress=show_progress)
    except (OSError, HTTPException, RuntimeError) as error:
        raise Failure(
            f"--model {name}: cannot download {weights.url} ({getattr(error, 'reason', None) or one_line(error)}); "
            "without a network, give a file by --weights FILE."
        ) from error
    return model


def _built_for(name: str, state: StateDict) -> tuple[Module, int]:
    """The model without weights, of as many classes as the state dict has, and that number."""
    from torchvision import models

    with warnings.catch_warnings():
        # Of how the weights are initialised, which the file's replace.
        warnings.simplefilter("ignore")
        model: Any = models.get_model(name, weights=None)
        last, values = list(model.state_dict().items())[-1]
        classes = state[last].shape[0] if last in state and state[last].dim() else values.shape[0]
        if classes != values.shape[0]:
            model = models.get_model(name, weights=None, num_classes=classes)
        elif hasattr(model, "transform_input"):
            # torchvision's own weights of GoogLeNet and Inception were trained on pictures normalised otherwise.
            model.transform_input = True
    return model, classes


def _made_by_function(name: str) -> Module:
    function = imported_function(name, f"--model {name}")
    try:
        model = function()
    except Exception as error:
        raise Failure(
            f"--model {name}: the function, called without arguments, raised {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(model, Module):
        raise WrongArgument(f"--model {name}: the function returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def _with_current_names(state: StateDict) -> StateDict:
    """torchvision's files of DenseNet still have the names that its first version gave."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): state[key] for key in state}


def _load_weights(model: Module, state: StateDict) -> str:
    """Loads what fits, and says what does not."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # Below the heading, each line tells of one tensor of another shape.
        heading, *problems = str(error).splitlines()
        return (problems or [heading])[0].strip().rstrip(".")
    missing = [key for key in missing if not key.startswith(_TRAINING_HEADS)]
    return "; ".join(
        f"{what} {_listed(keys)}" for what, keys in (("it lacks", missing), ("it has", unexpected)) if keys
    )


def _listed(keys: list[str]) -> str:
    more = len(keys) - _MENTIONED_KEYS
    return ", ".join(keys[:_MENTIONED_KEYS]) + (f" and {more} more" if more > 0 else "")
