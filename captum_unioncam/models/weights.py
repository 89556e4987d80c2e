"""Weights from files, read without running code, and their fingerprint."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from captum_unioncam.system.errors import Failure

StateDict = dict[str, Tensor]

# The heads that GoogLeNet and Inception have for training only; files come with and without them.
_TRAINING_HEADS = ("aux", "AuxLogits")

_MENTIONED_KEYS = 3


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
        raise Failure(f"weights={str(path)!r}: does not exist; check the path.") from error
    except Exception as error:
        # What a broken file raises has no common type, and torch.load's own message recommends weights_only=False,
        # which runs whatever the file says.
        raise Failure(
            f"weights={str(path)!r}: is not a file of tensors alone, or is broken; save model.state_dict() as "
            ".safetensors or with torch.save."
        ) from error
    for entry in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise Failure(f"weights={str(path)!r}: holds no state dict; save model.state_dict().")
    state = dict(content)
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def with_current_names(state: StateDict) -> StateDict:
    """torchvision's files of DenseNet still have the names that its first version gave."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): state[key] for key in state}


def load_weights(model: Module, state: StateDict) -> str:
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


def fingerprint(model: Module) -> str:
    """The SHA-256 of the model's weights: two models with the same give the same records."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            # A module's extra state may be anything.
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
