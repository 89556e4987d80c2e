"""Which share of the work this process has, under torchrun or alone."""

from __future__ import annotations

import os

import torch

# What each process takes.


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Whether this is the one that speaks for all."""
    return rank() == 0


def local_device(device: str | None) -> str | None:
    """This process's own device: under torchrun each takes another GPU, unless one is named, or the CPU."""
    if device in (None, "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device
