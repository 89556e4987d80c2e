"""Checks on devices that are pretended: tensors that meet on several, and waits for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor

from captum_unioncam.testing.contract import Subject, given, layer_check, raised_by, require, require_same
from captum_unioncam.testing.devices import PretendedDevices
from captum_unioncam.testing.map_checks import TARGETS
from captum_unioncam.testing.networks import TinyNet, tiny_inputs

PLACES = ("cpu", "cuda:0", "cuda:1")


@layer_check
def synchronisations(subject: Subject) -> None:
    """How often the device is waited for does not depend on the number of chunks of masked passes."""
    if not subject.takes("internal_batch_size"):
        return
    counts = {}
    for size in (1, 64):
        pretended = PretendedDevices()
        net, inputs = subject.net(subject.ndim), pretended.put(tiny_inputs(subject.ndim), "cuda:0")
        pretended.place(net, "cuda:0")
        for target in (2, pretended.put(torch.tensor(TARGETS), "cuda:0"), TARGETS):
            with given(f"inputs on a GPU and internal_batch_size={size}"), pretended.active():
                subject.explain(net, net.features, inputs, target, internal_batch_size=size)
        counts[size] = pretended.synchronisations
    require(
        counts[1] == counts[64],
        f"the device is waited for {counts[1]} times with internal_batch_size=1, and {counts[64]} times with 64",
    )


@dataclass(frozen=True)
class Mix:
    """Where everything in a call is: the model's two halves, the inputs, and by name whatever else is given."""

    features: str = "cuda:0"
    head: str = "cuda:0"
    inputs: str = "cuda:0"
    others: Mapping[str, str] = field(default_factory=dict)

    def model(self, net: TinyNet) -> Callable[..., Tensor]:
        """``net`` as a function that brings what it is given to where it is needed."""

        def forward(x: Tensor, scale: Any = 1.0) -> Tensor:
            scale = scale.to(self.head) if isinstance(scale, Tensor) else scale
            output: Tensor = net.head(net.features(x.to(self.features)).to(self.head)) * scale
            return output

        return forward


def _mixes(takes_baselines: bool) -> Iterator[Mix]:
    """Target, argument and baselines each on any device, one for all examples too; and models and inputs apart."""
    together = ["target", "scale"] + (["baselines"] if takes_baselines else [])
    for places in product(PLACES, repeat=len(together)):
        yield Mix(others=dict(zip(together, places, strict=True)))
    for name in ["one target"] + (["one baseline"] if takes_baselines else []):
        yield from (Mix(others={name: place}) for place in PLACES)
    yield Mix(head="cuda:1")
    yield from (Mix("cuda:1", "cuda:1", inputs) for inputs in ("cpu", "cuda:0"))


@layer_check
def devices(subject: Subject) -> None:
    """What ``LayerGradCam`` takes from several devices is taken, and the map lies where its map would."""
    for mix in _mixes(subject.takes("baselines")):
        with given(str(mix)):
            pretended = PretendedDevices()
            net = subject.net(subject.ndim)
            pretended.place(net.features, mix.features)
            pretended.place(net.head, mix.head)
            arguments, own = _arguments(subject.ndim, mix, pretended.put)
            with pretended.active():
                captums = partial(LayerGradCam(mix.model(net), net.features).attribute, *arguments)
                if raised_by(captums) is not None:
                    continue
                made, expected = subject.explain(mix.model(net), net.features, *arguments, **own), captums()
                require(made.device == expected.device, f"the map is on {made.device}, not on {expected.device}")
            net = subject.net(subject.ndim)
            arguments, own = _arguments(subject.ndim, mix, lambda tensor, _place: tensor)
            on_cpu = subject.explain(
                replace(mix, features="cpu", head="cpu").model(net), net.features, *arguments, **own
            )
            require_same(made, on_cpu, "with all on the CPU")


def _arguments(ndim: int, mix: Mix, put: Callable[[Tensor, str], Tensor]) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """Inputs, target and additional argument where they are in the mix, and the baselines if it has any."""
    inputs = tiny_inputs(ndim)
    values = {
        "target": torch.tensor(TARGETS),
        "one target": torch.tensor([2]),
        "scale": torch.linspace(0.5, 1.5, 3, dtype=torch.float64).reshape(3, 1),
        "baselines": 0.3 * inputs,
        "one baseline": 0.3 * inputs[:1],
    }
    placed = {name: put(values[name], place) for name, place in mix.others.items()}
    target = placed.get("target", placed.get("one target", TARGETS))
    baselines = placed.get("baselines", placed.get("one baseline"))
    return (put(inputs, mix.inputs), target, placed.get("scale")), {} if baselines is None else {"baselines": baselines}
