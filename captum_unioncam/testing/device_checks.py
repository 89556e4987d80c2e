"""Checks on simulated devices: mixed devices, and waits for a device."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_unioncam.testing.contract import Subject, given, layer_check, require, require_same
from captum_unioncam.testing.devices import PretendedDevices, in_parallel
from captum_unioncam.testing.map_checks import TARGETS
from captum_unioncam.testing.networks import tiny_inputs

PLACES = ("cpu", "cuda:0", "cuda:1")
PARTS = ("features", "head", "output", "inputs", "second input", "scale", "baselines", "confidences", "score_func")
"""Of a call, what may be on a device of its own."""

MIXES = (
    *("111111111", "220122000", "210210102", "012122021", "001221002", "222201120", "021010110"),
    *("201022111", "010001200", "120202011", "100010020", "102220201", "122012212", "201100222"),
)
"""The number of each part's place: of any two parts, all nine pairs of places."""

Put = Callable[[Any, str], Any]
"""What puts a tensor's copy, or a module itself, where the part of this name is."""


@layer_check
def synchronisations(subject: Subject) -> None:
    """How often the device is waited for does not depend on the number of chunks of masked passes."""
    if not subject.takes("internal_batch_size"):
        return
    elsewhere = {"baselines": "cpu"}, {"model": "cpu", "inputs": "cpu"}
    cases = [({}, 2), ({}, torch.tensor(TARGETS)), ({}, TARGETS), *((places, TARGETS) for places in elsewhere)]
    for places, target in cases:
        counts = []
        for size in (1, 64):
            pretended = PretendedDevices()
            call = _of_module(subject, target, partial(_put, pretended, places))
            with given(f"the target {target}, {places} and internal_batch_size={size}"), pretended.active():
                call.explained_by(subject, internal_batch_size=size)
            counts.append(pretended.synchronisations)
        few, many = counts
        complaint = f"the device is waited for {few} times with internal_batch_size=1, and {many} times with 64"
        require(few == many, f"the target {target}, {places}: {complaint}")


@layer_check
def devices(subject: Subject) -> None:
    """What ``LayerGradCam`` takes from several devices is taken, and the map lies where its map would.

    What it refuses is refused as well, or has the right map: that of everything on the CPU.
    """
    for situation, make, mixes in _calls(subject):
        with given(situation):
            on_cpu = make(lambda value, _part: value).explained_by(subject)
            for places in mixes:
                with given(str(places)):
                    made = _explained_as_captum_does(subject, make, places)
                    if made is not None:
                        require_same(made, on_cpu, "with all on the CPU")


def _explained_as_captum_does(
    subject: Subject, make: Callable[[Put], Call], places: Mapping[str, str]
) -> Tensor | None:
    """The map, where ``LayerGradCam`` has its map; None if both refuse."""
    pretended = PretendedDevices()
    call = make(partial(_put, pretended, places))
    with pretended.active():
        try:
            captums: Tensor | None = call.explained(LayerGradCam)
        except Exception:
            captums = None
        try:
            made: Tensor = call.explained_by(subject)
        except (RuntimeError, ValueError, AssertionError) as error:
            if captums is None or (isinstance(error, ValueError) and not call.is_for_all):
                return None
            raise
        if captums is not None:
            require(made.device == captums.device, f"the map is on {made.device}, not on {captums.device}")
    return made


def _put(pretended: PretendedDevices, places: Mapping[str, str], value: Any, part: str) -> Any:
    place = places.get(part, "cuda:0")
    if isinstance(value, Tensor):
        return pretended.put(value, place)
    pretended.place(value, place)
    return value


@dataclass(frozen=True)
class Call:
    """A layer to explain, and what is given: to ``attribute``, and by name what not every method takes.

    What is not for all, a method may refuse by a ``ValueError`` though Captum takes it.
    """

    forward_func: Callable[..., Any]
    layer: nn.Module
    inputs: tuple[Tensor, ...]
    target: Any
    scale: Tensor | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    functions: Mapping[str, Any] = field(default_factory=dict)
    is_for_all: bool = True

    def explained_by(self, subject: Subject, **settings: Any) -> Any:
        """The map of the method under test."""
        functions = {k: f for k, f in self.functions.items() if k in inspect.signature(subject.cls).parameters}
        arguments = {name: value for name, value in self.arguments.items() if subject.takes(name)}
        return self.explained(partial(subject.cls, **functions), **subject.traits.arguments, **arguments, **settings)

    def explained(self, cls: Any, **arguments: Any) -> Any:
        """The map of any method; for targets (N, T) the maps that ``attribute_targets`` gives, if there is one."""
        method = cls(self.forward_func, self.layer)
        if not isinstance(self.target, Tensor) or self.target.dim() < 2:
            return method.attribute(self.inputs, self.target, self.scale, **arguments)
        if hasattr(method, "attribute_targets"):
            return method.attribute_targets(self.inputs, self.target, self.scale, **arguments)
        return torch.stack(
            [method.attribute(self.inputs, t, self.scale, **arguments) for t in self.target.unbind(1)], 1
        )


def _calls(subject: Subject) -> Iterator[tuple[str, Callable[[Put], Call], Sequence[Mapping[str, str]]]]:
    """What is given, in words, how it is made, and the places of its parts, where that is not cuda:0."""
    spread = [{part: PLACES[int(number)] for part, number in zip(PARTS, mix, strict=True)} for mix in MIXES]
    inputs, targets = ([{part: place, "replica": "cuda:1"} for place in PLACES] for part in ("inputs", "target"))
    yield "a function that moves what it is given", partial(_of_function, subject), spread
    yield "a module that moves nothing", partial(_of_module, subject, TARGETS), inputs
    for target in (TARGETS, [2], 2, [[0, 3], [2, 1], [3, 0]]):
        yield f"the target torch.tensor({target})", partial(_of_module, subject, torch.tensor(target)), targets
    yield "replicas on two GPUs", partial(_of_replicas, subject), inputs


def _of_function(subject: Subject, put: Put) -> Call:
    """A model in two halves, and a function that moves to each what it needs, and the output somewhere else."""
    x, y = tiny_inputs(subject.ndim), tiny_inputs(subject.ndim, seed=2)
    scale = torch.linspace(0.5, 1.5, 3, dtype=torch.float64).reshape(3, 1)
    output, confidences = (put(torch.zeros(1), part) for part in ("output", "confidences"))

    def model(features: str, head: str) -> tuple[Callable[..., Tensor], nn.Module]:
        net = subject.net(subject.ndim)
        first, last = put(net.features, features)[0].weight, put(net.head, head)[-1].weight

        def forward(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
            maps = net.features(x.to(first.device) + y.to(first.device))
            logits: Tensor = net.head(maps.to(last.device)) * scale.to(last.device)
            return logits.to(output.device)

        return forward, net.features

    forward_func, layer = model("features", "head")
    functions = {
        "confidence_fn": lambda output: output.softmax(1).to(confidences.device),
        "score_func": model("score_func", "score_func")[0],
    }
    baselines = put(0.3 * x, "baselines"), put(0.3 * y[:1], "baselines")
    inputs = put(x, "inputs"), put(y, "second input")
    return Call(forward_func, layer, inputs, TARGETS, put(scale, "scale"), {"baselines": baselines}, functions)


def _of_module(subject: Subject, target: Any, put: Put) -> Call:
    net, inputs = put(subject.net(subject.ndim), "model"), tiny_inputs(subject.ndim)
    target = put(target, "target") if isinstance(target, Tensor) else target
    baselines = put(0.3 * inputs, "baselines")
    return Call(net, net.features, (put(inputs, "inputs"),), target, arguments={"baselines": baselines})


def _of_replicas(subject: Subject, put: Put) -> Call:
    net, inputs = subject.net(subject.ndim), put(tiny_inputs(subject.ndim), "inputs")
    return Call(Replicas(net, put), net.features, (inputs,), TARGETS, None, {"baselines": 0.5}, is_for_all=False)


class Replicas(nn.DataParallel[nn.Module]):
    """A model on two GPUs; each runs half of the examples in its own thread."""

    def __init__(self, module: nn.Module, put: Put) -> None:
        # Not that of ``DataParallel``, which asks for the GPUs of this machine.
        nn.Module.__init__(self)
        self.module = put(module, "model")
        self.device_ids = [0, 1]
        # Not a module of this one.
        self.replicas = (self.module, _replica(module, put))

    def forward(self, x: Tensor) -> Tensor:
        # One alone where all is on the CPU.
        on = {next(replica.parameters()).device: replica for replica in self.replicas}
        parts = [part.to(device) for device, part in zip(on, x.chunk(len(on)), strict=False)]
        outputs = in_parallel([partial(replica, part) for replica, part in zip(on.values(), parts, strict=False)])
        return torch.cat([output.to(next(iter(on))) for output in outputs])


def _replica(module: nn.Module, put: Put) -> nn.Module:
    """A copy on the second GPU whose hooks are those of ``module``, those to come as well."""
    replica = copy.copy(module)
    replica._parameters = {name: put(p, "replica").requires_grad_() for name, p in module._parameters.items()}
    replica._modules = {name: _replica(child, put) for name, child in module.named_children()}
    return replica
