"""Reads weights from files, without running code, and computes their fingerprint."""

import argparse
import hashlib
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.system.errors import Failure, one_line
from captum_unioncam.system.files import check_regular

StateDict = dict[str, Tensor]

# The heads that GoogLeNet and Inception have for training only; files come with and without them.
_TRAINING_HEADS = ("aux", "AuxLogits")

_MENTIONED_KEYS = 3

# Where training scripts keep the model, the first that is there; averaged weights are only taken where they are alone.
_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "params", "module", "ema", "model_ema")

# What scripts, parallel models, averaged ones and Lightning put before the names.
_WRAPPERS = ("module", "model", "net", "network", "_model", "ema", "ema_model")

# Parts of names that torch.compile and sharding insert.
_WITHIN = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# torchvision's DenseNet files have the names of its first version.
_FIRST_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def read_state_dict(path: Path) -> StateDict:
    """Reads tensors by name from a file, without running code.

    Args:
        path (Path): ``*.safetensors``; other files are read by ``torch.load(weights_only=True)``. In a training
            checkpoint the model's entry is taken: "state_dict", "model" and the like, or the only one of tensors.

    Raises:
        Failure: The file cannot be read, or holds something else.
    """
    from safetensors.torch import load_file

    try:
        check_regular(path)
        content = load_file(path) if path.suffix.lower() == ".safetensors" else _loaded_by_torch(path)
    except FileNotFoundError as error:
        raise Failure(f"weights={str(path)!r}: does not exist; check the path.") from error
    except OSError as error:
        raise Failure(f"weights={str(path)!r}: {error.strerror or one_line(error)}; give a file of weights.") from error
    except Exception as error:
        # Broken files raise errors of many types, and torch.load's message recommends weights_only=False, which runs
        # code of the file.
        raise Failure(
            f"weights={str(path)!r}: is not a file of tensors alone, or is broken; save model.state_dict() as "
            ".safetensors or with torch.save."
        ) from error
    state = _state_dict_in(content)
    if state is None:
        raise Failure(f"weights={str(path)!r}: holds no state dict; save model.state_dict().")
    for name, value in state.items():
        if value.is_quantized or value.is_complex() or value.layout != torch.strided or value.is_meta:
            raise Failure(
                f"weights={str(path)!r}: {name} is quantised, complex, sparse or empty; save the state dict of a plain "
                "model."
            )
    return state


def _loaded_by_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        _check_not_compressed(path)
    # torchvision's training script saves its arguments with the model.
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_not_compressed(path: Path) -> None:
    """Refuses compressed files, which may be decompression bombs; torch.save does not compress."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.file_size != part.compress_size for part in parts):
        raise ValueError("is compressed")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError("holds more than its size")


def _state_dict_in(content: Any) -> StateDict | None:
    """The model's tensors by name; in a checkpoint, those of the model's entry."""
    while isinstance(content, Mapping) and not _is_state_dict(content):
        entries = [entry for entry in _ENTRIES if isinstance(content.get(entry), Mapping)]
        alone = [entry for entry, value in content.items() if _is_state_dict(value) and value]
        if not entries and len(alone) != 1:
            return None
        content = content[(entries or alone)[0]]
    return dict(content) if _is_state_dict(content) else None


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def without_wrappers(state: StateDict, names: Collection[str]) -> StateDict:
    """The weights by the model's names, without prefixes of parallel, compiled, averaged or Lightning models.

    Args:
        state (dict[str, Tensor]): The weights as read.
        names (Collection[str]): The model's names.

    Returns:
        *dict[str, Tensor]*: Unchanged if some of the names match, or none match behind a common prefix.
    """
    if any(name in state for name in names):
        return state
    state = {_WITHIN.sub("", name): value for name, value in state.items()}
    if any(name in state for name in names):
        return state
    names = set(names)
    prefixes = Counter(
        name[: dot.end()] for name in state for dot in re.finditer(r"\.", name) if name[dot.end() :] in names
    )
    # Beside a wrapped model may be a loss with weights, or averages; what else all names begin with is a wrapper too.
    usual = {prefix: count for prefix, count in prefixes.items() if prefix.partition(".")[0] in _WRAPPERS}
    common = {prefix: count for prefix, count in prefixes.items() if all(name.startswith(prefix) for name in state)}
    found = usual or common
    if not found:
        return state
    order = {f"{word}.": place for place, word in enumerate(_WRAPPERS)}
    prefix = min(found, key=lambda each: (-found[each], order.get(each, len(order))))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_weights(model: Module, state: StateDict) -> str:
    """Loads the weights, and says what does not fit: nothing if they do."""
    own = model.state_dict()
    state = {name if name in own else _FIRST_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    for name, value in state.items():
        if isinstance(own.get(name), Tensor) and own[name].is_floating_point() and not value.is_floating_point():
            return f"{name} is {value.dtype}, not {own[name].dtype}"
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # Each line below the heading names a tensor of another shape.
        heading, *problems = str(error).splitlines()
        return (problems or [heading])[0].strip().rstrip(".")
    except Exception as error:
        # A user's model may have its own load_state_dict.
        return f"loading raised {type(error).__name__}: {one_line(error)}".rstrip(".")
    missing = [key for key in missing if not key.startswith(_TRAINING_HEADS)]
    unfit = {"it lacks": missing, "it has": unexpected}
    return "; ".join(f"{what} {_listed(keys)}" for what, keys in unfit.items() if keys)


def _listed(keys: list[str]) -> str:
    more = len(keys) - _MENTIONED_KEYS
    return ", ".join(keys[:_MENTIONED_KEYS]) + (f" and {more} more" if more > 0 else "")


def fingerprint(model: Module) -> str:
    """The SHA-256 of the model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            # A module's extra state may have any type.
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
