"""Tiny float64 networks and inputs for the tests: a few channels, milliseconds a pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: (12,), 2: (8, 6), 3: (6, 4, 4)}
CHANNELS, CLASSES = 5, 4


class TinyNet(nn.Module):
    """Two convolutions and a fully connected head on flattened space; ``features`` has half the input's resolution."""

    def __init__(
        self,
        ndim: int = 2,
        activation: nn.Module | None = None,
        *,
        seed: int = 0,
        batch_norm: bool = False,
        head_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        convolution = CONVOLUTIONS[ndim]
        self.features = nn.Sequential(
            convolution(2, 4, 3, padding=1),
            nn.Tanh(),
            convolution(4, CHANNELS, 2, stride=2),
            BATCH_NORMS[ndim](CHANNELS) if batch_norm else nn.Identity(),
            activation or nn.ReLU(),
        )
        positions = torch.Size(size // 2 for size in SIZES[ndim]).numel()
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(CHANNELS * positions, CLASSES))
        with torch.no_grad():
            self.head[-1].weight *= 8 * head_scale
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def tiny_inputs(ndim: int = 2, examples: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 2, *SIZES[ndim], dtype=torch.float64, generator=generator)


class PooledNet(TinyNet):
    """The same with global average pooling, behind which gradients are constant over space."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)).double()


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to float rounding, which the number of rows in a pass changes."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-12)
