"""This process's number and device, under torchrun or alone."""

from __future__ import annotations

import os

import torch

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


def is_first_process() -> bool:
    """Whether this process prints what is common to all."""
    return rank() == 0


def local_device(device: str | None) -> str | None:
    """The device, or under torchrun, where none or "cuda" is given, this process's own GPU.

    Raises:
        WrongArgument: LOCAL_RANK is not a number from 0.
    """
    if device in (None, "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        index = _number("LOCAL_RANK", 0, 10**6) % torch.cuda.device_count()
        # Also for user code that names no more than "cuda".
        torch.cuda.set_device(index)
        return f"cuda:{index}"
    return device


def shared_gpus(device: str | None) -> str | None:
    """A message if processes of this machine share a GPU; None if each has its own."""
    if device is None or not device.startswith("cuda") or "LOCAL_WORLD_SIZE" not in os.environ:
        return None
    processes, gpus = _number("LOCAL_WORLD_SIZE", 1, 10**6), torch.cuda.device_count()
    if processes <= gpus or _number("LOCAL_RANK", 0, 10**6):
        return None
    return f"{processes} processes share {gpus} GPU{'s' if gpus > 1 else ''} here; --nproc-per-node {gpus} is faster."


def _number(name: str, least: int, most: int, default: int = 0) -> int:
    """A number that torchrun has put into the environment."""
    text = os.environ.get(name, str(default))
    if text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most:
        return int(text)
    raise WrongArgument(f"{name}={text!r}: is no number from {least} to {most}; torchrun sets it, or leave it out.")
