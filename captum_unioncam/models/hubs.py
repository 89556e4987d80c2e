"""Models of timm and of Hugging Face by name, with their own preprocessing and class names."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.randomization import seeded
from captum_unioncam.models.preprocessing import PAPER, Preprocessing
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.imports import suggestion

PREFIXES = ("timm:", "hf:")
"""How the names of these models begin."""

RANDOM = "random"
"""In place of a file of weights: none, the model as it is made."""

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_WITHOUT_NETWORK = {
    "timm": "without a network, give a file by weights=FILE, or weights='random' for an untrained model.",
    "hf": "without a network, give name='hf:FOLDER', a folder with config.json and model.safetensors, or with "
    "config.json alone and weights='random' for an untrained model.",
}


def from_timm(
    name: str, pretrained: bool, state: Mapping[str, Tensor] | None = None
) -> tuple[Module, tuple[str, ...] | None]:
    """A model of timm and its class names, None where they are not known.

    Args:
        name (str): Without "timm:".
        pretrained (bool): With its weights, from the hub.
        state (Mapping or None): Weights that it will get, whose number of classes it has. Default: None

    Raises:
        WrongArgument: timm is not installed, or has no such model.
        Failure: The weights cannot be downloaded, or the model has no classes.
    """
    timm, config = _package("timm", "timm"), _timm_config(name)
    heads = config.classifier
    if not heads or (config.num_classes == 0 and state is None):
        raise Failure(f"name='timm:{name}': has no classes; give a classifier, such as timm:resnet50.")
    weight = (state or {}).get(f"{heads if isinstance(heads, str) else heads[0]}.weight")
    options = {} if weight is None else {"num_classes": weight.shape[0]}
    with seeded(0):
        model: Any = _from_hub(f"timm:{name}", lambda: timm.create_model(name, pretrained=pretrained, **options))
    return model, _timm_names(model)


def timm_preprocessing(name: str) -> Preprocessing:
    """That of a model of timm, by its name without "timm:"."""
    timm = _package("timm", "timm")
    config = timm.data.resolve_data_config(pretrained_cfg=_timm_config(name).to_dict())
    return Preprocessing(partial(_fit_by_timm, config), tuple(config["mean"]), tuple(config["std"]))


def from_hugging_face(name: str, pretrained: bool) -> tuple[Module, tuple[str, ...] | None]:
    """An image classifier of Hugging Face's hub, or of a folder that ``save_pretrained`` wrote, and its class names.

    Args:
        name (str): Without "hf:". Without weights, the folder or the hub has to give the configuration alone.
        pretrained (bool): With its weights.

    Raises:
        WrongArgument: transformers is not installed.
        Failure: The configuration or the weights cannot be downloaded.
    """
    transformers = _package("transformers", "hf")

    def make() -> Any:
        if pretrained:
            return transformers.AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
        config = transformers.AutoConfig.from_pretrained(name)
        return transformers.AutoModelForImageClassification.from_config(config)

    with seeded(0):
        model = _from_hub(f"hf:{name}", make)
    names: Mapping[int, str] = model.config.id2label
    return model, tuple(names[i] for i in sorted(names))


def with_names_of_transformers(model: Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of the installed transformers, which are not always those in files of other versions.

    Args:
        model (torch.nn.Module): As ``from_hugging_face`` made it.
        state (dict[str, Tensor]): Weights as they were read; returned as they are if they do not fit.
    """
    made: Any = model
    try:
        loaded, told = type(made).from_pretrained(
            None, config=made.config, state_dict=dict(state), output_loading_info=True
        )
    except RuntimeError:
        return state
    unfit = any(told[keys] for keys in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    return state if unfit else loaded.state_dict()


def hugging_face_preprocessing(name: str) -> Preprocessing:
    """That of a model of Hugging Face, by its name without "hf:"; the paper's where the model comes with none."""
    transformers = _package("transformers", "hf")
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").exists():
        return PAPER
    processor = _from_hub(f"hf:{name}", lambda: transformers.AutoImageProcessor.from_pretrained(name))
    # MobileViT's takes blue first.
    is_bgr = bool(getattr(processor, "do_flip_channel_order", False))
    fit = partial(_fit_by_processor, processor, is_bgr)
    if not processor.do_normalize:
        return Preprocessing(fit, is_bgr=is_bgr)
    return Preprocessing(fit, tuple(processor.image_mean), tuple(processor.image_std), is_bgr)


def download_of(name: str) -> str | None:
    """What ``load_classifier`` will download for such a name, None if that lies in a folder or in the hub's cache."""
    library, _, own = name.partition(":")
    if library == "hf" and Path(own).is_dir():
        return None
    repository = _timm_config(own).hf_hub_id if library == "timm" else own
    _package("transformers" if library == "hf" else "timm", library)
    from huggingface_hub import constants, try_to_load_from_cache

    if not repository or any(isinstance(try_to_load_from_cache(repository, file), str) for file in _WEIGHTS):
        return None
    return f"{name}'s weights from Hugging Face's hub ({repository}) to {constants.HF_HUB_CACHE}"


def _timm_config(name: str) -> Any:
    timm = _package("timm", "timm")
    if not timm.is_model(name):
        near = suggestion(name.partition(".")[0], timm.list_models())
        raise WrongArgument(f"name: timm has no model {name!r}{near}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(known.partition(".")[2] for known in timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise WrongArgument(f"name: timm has no weights of the tag in {name!r}; give one of {tags}.") from error


def _package(package: str, extra: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise WrongArgument(f"name: needs {package}; pip install 'captum-unioncam[{extra}]'.") from error


def _from_hub(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        # Hubs raise errors of many types.
        advice = _WITHOUT_NETWORK[name.partition(":")[0]]
        raise Failure(f"name={name!r}: cannot be loaded ({one_line(error)}); {advice}") from error


def _timm_names(model: Any) -> tuple[str, ...] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    own = model.pretrained_cfg.get("label_names")
    if own and len(own) == model.num_classes:
        return tuple(own)
    subset = infer_imagenet_subset(model)
    return tuple(map(ImageNetInfo(subset).index_to_description, range(model.num_classes))) if subset else None


def _fit_by_timm(config: dict[str, Any], picture: Image.Image) -> Tensor:
    from timm.data import create_transform

    unscaled = {**config, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    fitted: Tensor = create_transform(**unscaled, is_training=False)(picture)
    return fitted.clamp(0, 1)


def _fit_by_processor(processor: Any, is_bgr: bool, picture: Image.Image) -> Tensor:
    made = processor(np.array(picture), return_tensors="pt", do_normalize=False)["pixel_values"]
    fitted: Tensor = torch.as_tensor(made)[0].float()
    fitted = fitted.flip(0) if is_bgr else fitted
    return fitted.clamp(0, 1)
