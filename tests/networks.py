"""Tiny float64 networks and inputs for the tests, those of the contract of layer methods."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_unioncam.testing.networks import (
    CHANNELS,
    CLASSES,
    CONVOLUTIONS,
    SIZES,
    PooledNet,
    TinyNet,
    TwoOutputs,
    tiny_inputs,
)

__all__ = [
    "CHANNELS",
    "CLASSES",
    "CONVOLUTIONS",
    "SIZES",
    "PooledNet",
    "TinyNet",
    "TwoOutputs",
    "counting",
    "same",
    "tiny_inputs",
]


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to float rounding, which the number of rows in a pass changes."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-12)


def counting(net: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """The network as a function, and the list to which each pass appends its number of rows."""
    rows: list[int] = []

    def forward(x: Tensor) -> Tensor:
        rows.append(len(x))
        return net(x)

    return forward, rows
