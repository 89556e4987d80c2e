"""This process's number and device, under torchrun or alone."""

import os

from captum_unioncam.engine.accelerators import count_of, default_device, take
from captum_unioncam.system.errors import WrongArgument


def rank() -> int:
    """This process's number, from 0.

    Raises:
        WrongArgument: RANK is not a number from 0 to WORLD_SIZE - 1.
    """
    return _number("RANK", 0, world_size() - 1)


def world_size() -> int:
    """How many processes there are.

    Raises:
        WrongArgument: WORLD_SIZE is not a number from 1.
    """
    return _number("WORLD_SIZE", 1, 10**6, default=1)


def local_device(device: str | None) -> str | None:
    """The device, or under torchrun, where none or no more than a kind, as "cuda", is given, this process's own GPU.

    Raises:
        WrongArgument: LOCAL_RANK is not a number from 0.
    """
    if "LOCAL_RANK" not in os.environ:
        return device
    kind = default_device().type if device is None else device
    gpus = count_of(kind)
    return str(take(kind, _number("LOCAL_RANK", 0, 10**6) % gpus)) if gpus else device


def shared_gpus(device: str | None) -> str | None:
    """A message if processes of this machine share a GPU; None if each has its own."""
    gpus = 0 if device is None else count_of(device.partition(":")[0])
    if not gpus or "LOCAL_WORLD_SIZE" not in os.environ:
        return None
    processes = _number("LOCAL_WORLD_SIZE", 1, 10**6)
    if processes <= gpus or _number("LOCAL_RANK", 0, 10**6):
        return None
    return f"{processes} processes share {gpus} GPU{'s' if gpus > 1 else ''} here; --nproc-per-node {gpus} is faster."


def _number(name: str, least: int, most: int, default: int = 0) -> int:
    """A number that torchrun has put into the environment."""
    text = os.environ.get(name, str(default))
    if text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most:
        return int(text)
    raise WrongArgument(f"{name}={text!r}: is no number from {least} to {most}; torchrun sets it, or leave it out.")
