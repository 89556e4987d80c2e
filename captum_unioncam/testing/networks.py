"""Tiny float64 networks and inputs to explain: a few channels, milliseconds a pass."""

from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE_POOLS: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_POOLS: dict[int, type[nn.Module]] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
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
        linear = nn.Linear(CHANNELS * positions, CLASSES)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), linear)
        with torch.no_grad():
            linear.weight *= 8
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.features(x))
        return output


class PooledNet(TinyNet):
    """The same with global average pooling, behind which gradients are constant over space, and one linear layer."""

    def __init__(self, ndim: int = 2, *args: Any, **kwargs: Any) -> None:
        super().__init__(ndim, *args, **kwargs)
        pooling, linear = GLOBAL_POOLS[ndim](1), nn.Linear(CHANNELS, CLASSES)
        self.head = nn.Sequential(pooling, nn.Flatten(), linear).double().eval()


class FlippableNet(nn.Module):
    """A network that sees no difference between its input and the mirror image, and whose ``features`` are mirrored."""

    def __init__(self, ndim: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        convolution = CONVOLUTIONS[ndim]
        convolutions = [convolution(2, 4, 3, padding=1), convolution(4, CHANNELS, 3, padding=1)]
        with torch.no_grad():
            for module in convolutions:
                for weight in (p for p in module.parameters() if p.dim() > 1):
                    for dim in range(2, 2 + ndim):
                        weight.copy_(weight + weight.flip(dim))
        self.features = nn.Sequential(convolutions[0], nn.Tanh(), convolutions[1], nn.SiLU(), AVERAGE_POOLS[ndim](2))
        self.head = nn.Linear(CHANNELS, CLASSES)
        with torch.no_grad():
            self.head.weight *= 8
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        # Squared, so that gradients vary over space.
        output: Tensor = self.head(self.features(x).flatten(2).square().mean(2))
        return output


class WithChannels(nn.Module):
    """``net`` with other channels in ``features``: those of its own numbered ``order``, and constant ones."""

    def __init__(self, net: TinyNet, order: list[int], constants: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.net, self.order = net, order
        self.features = nn.Sequential(net.features, _Channels(order, constants))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        own = self.features(x)[:, : len(self.order)]
        output: Tensor = self.net.head(own[:, torch.tensor(self.order).argsort()])
        return output


class _Channels(nn.Module):
    def __init__(self, order: list[int], constants: tuple[float, ...]) -> None:
        super().__init__()
        self.order, self.constants = order, constants

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, self.order], *(torch.full_like(x[:, :1], value) for value in self.constants)], dim=1)


class Dead(nn.Module):
    """Channels that are ``value`` everywhere, whatever goes in."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x + self.value


class TwoOutputs(nn.Module):
    """A layer with two output tensors, of different channels, and the one tensor that ``head`` makes of them."""

    def __init__(self, ndim: int = 2, network: type[TinyNet] = TinyNet) -> None:
        super().__init__()
        self.net = network(ndim)
        self.first, self.second = self.net.features, TinyNet(ndim, seed=1).features
        self.both = _Both(self.first, self.second)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both(x)
        output: Tensor = self.net.head(first + 2 * second)
        return output


class _Both(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def tiny_inputs(ndim: int = 2, examples: int = 3, seed: int = 1) -> Tensor:
    """Inputs of ``TinyNet``, (examples, 2, *spatial)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 2, *SIZES[ndim], dtype=torch.float64, generator=generator)


class Alarm(nn.Module):
    """Passes its input on, and raises ``KeyError`` when it is armed, or in the call of a given number, from 1."""

    def __init__(self, armed: bool = False, at_call: int | None = None) -> None:
        super().__init__()
        self.armed, self.at_call = armed, at_call
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.armed or self.calls == self.at_call:
            raise KeyError("the alarm of a test")
        return x
