"""Checks that the model, the inputs and PyTorch itself are left as they were found, and of what runs meanwhile."""

import copy
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from captum_unioncam.testing.call_checks import FORWARDS
from captum_unioncam.testing.contract import Subject, given, layer_check, raised_by, require, require_same
from captum_unioncam.testing.map_checks import TARGETS
from captum_unioncam.testing.networks import CHANNELS, Alarm, Dead, TinyNet, WithChannels, tiny_inputs


def training_net(ndim: int = 2, network: type[TinyNet] = TinyNet) -> TinyNet:
    """A network in training, with a batch norm that is not, and with a gradient and a frozen parameter."""
    net = network(ndim, batch_norm=True, dropout=0.5).train()
    net.features[3].eval()
    net.features[0].requires_grad_(False)
    (weight, _) = net.features[2].parameters()
    weight.grad = torch.ones_like(weight)
    return net


def state_of(net: nn.Module) -> dict[str, Any]:
    """All of a model, and of PyTorch's global state, that a method must leave as it was, by what it is called."""
    return {
        "training flags": [module.training for module in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in net.parameters()],
        "parameters and buffers": {name: value.tolist() for name, value in net.state_dict().items()},
        "hooks": [list(hooks) for m in (*net.modules(), global_hooks) for hooks in _hooks_of(m)],
        "submodules": [id(module) for module in net.modules()],
        "the random generators": (torch.get_rng_state().tolist(), random.getstate()),
        "whether gradients are computed": torch.is_grad_enabled(),
        "whether autocast is on": torch.is_autocast_enabled("cpu"),
        "whether algorithms are deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _hooks_of(owner: Any) -> list[dict[Any, Any]]:
    return [hooks for name, hooks in vars(owner).items() if name.endswith("_hooks") and isinstance(hooks, dict)]


@contextmanager
def require_as_found(net: nn.Module) -> Iterator[None]:
    """Raises ``AssertionError`` naming what of the state is not at the end as it was at the beginning."""
    before = state_of(net)
    yield
    changed = [name for name, value in state_of(net).items() if value != before[name]]
    require(not changed, f"the model was not left as it was found: {', '.join(changed)} changed")


@layer_check
def training_mode(subject: Subject) -> None:
    """A model in training is explained in evaluation mode, and trains on."""
    inputs = tiny_inputs(subject.ndim)
    net = training_net(subject.ndim, subject.traits.network).eval()
    expected = subject.explain(net, net.features, inputs, TARGETS)
    for kind, make in FORWARDS.items():
        net = training_net(subject.ndim, subject.traits.network)
        with given(f"a model in training mode, {kind} as forward_func"), require_as_found(net):
            require_same(subject.explain(make(net), net.features, inputs, TARGETS), expected, "in evaluation mode")


@layer_check
def state_after_errors(subject: Subject) -> None:
    """Nothing is left behind by a target that does not exist, or by a module that raises in some pass."""
    inputs = tiny_inputs(subject.ndim)
    for kind in ("the model", "a function"):
        for place in ("in front of", "in", "behind"):
            net, layer, alarm = _net_with_alarm(subject, place)
            forward = FORWARDS[kind](net)
            # The first call of a model also tries whether its rows are independent, whatever it raises then.
            for _ in range(2):
                alarm.calls = 0
                subject.explain(forward, layer, inputs, TARGETS)
            for number in sorted({1, min(2, alarm.calls), alarm.calls}):
                with given(f"{kind} as forward_func and an error {place} the layer in pass {number}"):
                    alarm.calls, alarm.at_call = 0, number
                    error = _error_as_found(subject, net, forward, layer, inputs, TARGETS)
                    require(isinstance(error, KeyError), f"{error!r} was raised in place of that error")
        for several in (False, True):
            with given(f"{kind} as forward_func, the target 99 and {'a list of layers' if several else 'a layer'}"):
                net = training_net(subject.ndim, subject.traits.network)
                layers = [net.features[0], net.features] if several else net.features
                _error_as_found(subject, net, FORWARDS[kind](net), layers, inputs, 99)


def _net_with_alarm(subject: Subject, place: str) -> tuple[nn.Module, nn.Module, Alarm]:
    """A network that may raise in a pass, the layer to explain in it, and what raises."""
    net, alarm = training_net(subject.ndim, subject.traits.network), Alarm()
    layer = net.features[-1] if place == "in front of" else net.features
    modules, position = (net.head, 0) if place == "behind" else (net.features, 3)
    modules.insert(position, alarm)
    return net, layer, alarm


def _error_as_found(
    subject: Subject, net: nn.Module, forward: Callable[..., Any], layer: Any, inputs: Tensor, target: Any
) -> Exception | None:
    with require_as_found(net):
        return raised_by(lambda: subject.explain(forward, layer, inputs, target))


@layer_check
def untouched_inputs(subject: Subject) -> None:
    """Inputs and baselines keep values and flags, even if the model writes into its input."""
    net = subject.net(subject.ndim)
    net.features.insert(0, nn.ReLU(inplace=True))
    values = tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features, values.clone(), TARGETS)
    for requires_grad in (False, True):
        for of_input in (False, True):
            inputs, black = values.clone().requires_grad_(requires_grad), values.clone()
            own = {"baselines": black} if subject.takes("baselines") else {}
            with given(f"inputs with requires_grad={requires_grad}, attribute_to_layer_input={of_input}"):
                if not of_input:
                    require_same(subject.explain(net, net.features, inputs, TARGETS), expected, "of a copy")
                subject.explain(net, net.features, inputs, TARGETS, attribute_to_layer_input=of_input, **own)
                require(torch.equal(inputs, values), "the inputs have other values afterwards")
                require(torch.equal(black, values), "the baselines have other values afterwards")
                require(inputs.requires_grad is requires_grad, "the inputs' requires_grad changed")
                require(inputs.grad is None, "the inputs have a gradient afterwards")


@layer_check
def random_numbers(subject: Subject) -> None:
    """The map does not depend on the state of the global random generators, and leaves it."""
    net, inputs, maps = subject.net(subject.ndim), tiny_inputs(subject.ndim), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with require_as_found(net):
            maps.append(subject.explain(net, net.features, inputs, TARGETS))
    with given("another state of PyTorch's random generator"):
        require_same(maps[0], maps[1], "of the state before")


class Keeping(nn.Module):
    """Passes its input on, moved by a buffer and a tensor of its own that each pass changes, and draws at random."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.kept = torch.zeros((), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        moved = x + self.calls + self.kept
        self.calls += 1
        self.kept = self.kept + torch.rand((), dtype=torch.float64) + random.random()
        return moved


@layer_check
def kept_tensors(subject: Subject) -> None:
    """Buffers and tensors that passes change, and the random state, are in each pass and afterwards as they were."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features, inputs, TARGETS)
    for kind, make in FORWARDS.items():
        net, keeping = subject.net(subject.ndim), Keeping()
        net.features.insert(0, keeping)
        kept = keeping.kept
        with given(f"a model whose passes change what it keeps, {kind} as forward_func"), require_as_found(net):
            made = subject.explain(make(net), net.features, inputs, TARGETS)
            require(keeping.kept is kept and kept.item() == 0, "a tensor that a module keeps is another afterwards")
            require_same(made, expected, "of a model that keeps nothing")


@layer_check
def surroundings(subject: Subject) -> None:
    """Neither autocast nor inference mode around a call changes the map."""
    net, inputs = subject.net(subject.ndim).float(), tiny_inputs(subject.ndim).float()
    expected = subject.explain(net, net.features, inputs, TARGETS)
    around: dict[str, Callable[[], Any]] = {
        "torch.autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "torch.inference_mode()": torch.inference_mode,
    }
    for name, surrounding in around.items():
        for kind in ("the model", "a function"):
            with given(f"{name} around the call, {kind} as forward_func"), surrounding(), require_as_found(net):
                made = subject.explain(FORWARDS[kind](net), net.features, inputs.clone(), TARGETS)
                require_same(made, expected, "outside of it", 1e-5)


@layer_check
def threads(subject: Subject) -> None:
    """One model in training is explained in several threads at once as in one."""
    inputs = tiny_inputs(subject.ndim)
    net = training_net(subject.ndim, subject.traits.network).eval()
    expected = subject.explain(net, net.features, inputs, TARGETS)
    net = training_net(subject.ndim, subject.traits.network)
    # Lets the other thread in, in the middle of a pass.
    net.features[1].register_forward_hook(lambda *_: time.sleep(1e-4))
    situation = "a model in training mode, in two threads at once"
    with given(situation), require_as_found(net), ThreadPoolExecutor(2) as pool:
        for made in pool.map(lambda _: subject.explain(net, net.features, inputs, TARGETS), range(4)):
            require_same(made, expected, "in evaluation mode, in one thread")


@layer_check
def in_place_and_frozen(subject: Subject) -> None:
    """Modules that write into their input, in the layer or behind it, and frozen parameters change nothing."""
    inputs = tiny_inputs(subject.ndim)
    net = subject.net(subject.ndim)
    expected = subject.explain(net, net.features, inputs, TARGETS)
    with given("a layer that ends in an in-place ReLU"):
        in_place = subject.net(subject.ndim, nn.ReLU(inplace=True))
        require_same(subject.explain(in_place, in_place.features, inputs, TARGETS), expected, "of the usual ReLU")
    followed = [subject.net(subject.ndim, nn.SiLU()) for _ in range(2)]
    for behind, relu in zip(followed, (nn.ReLU(), nn.ReLU(inplace=True)), strict=True):
        behind.head.insert(0, relu)
    usual, in_place_maps = (subject.explain(behind, behind.features, inputs, TARGETS) for behind in followed)
    with given("a layer followed by an in-place ReLU"):
        require_same(in_place_maps, usual, "of the usual ReLU")
    frozen = copy.deepcopy(net).requires_grad_(False)
    with given("a model without requires_grad"):
        require_same(subject.explain(frozen, frozen.features, inputs, TARGETS), expected, "of the model with it")
    with given("a model without requires_grad, under torch.no_grad()"), torch.no_grad():
        require_same(subject.explain(frozen, frozen.features, inputs, TARGETS), expected, "of the model with it")
        require(not torch.is_grad_enabled(), "gradients are enabled afterwards")


@layer_check
def pass_counts(subject: Subject) -> None:
    """One plain pass of a batch, and as many masked ones as the traits say; constant channels cost none."""
    expected_of = subject.traits.masked_passes
    if expected_of is None:
        return
    inputs, wide = tiny_inputs(subject.ndim), list(range(CHANNELS))
    for what, net in {
        "a network": subject.net(subject.ndim, nn.SiLU()),
        "a network with two more channels, which are constant": WithChannels(
            subject.net(subject.ndim), wide, (0.0, 3.7)
        ),
        "a network whose channels are dead": subject.net(subject.ndim, Dead()),
    }.items():
        with given(what):
            _require_passes(subject, net, inputs, expected_of)


def _require_passes(subject: Subject, net: Any, inputs: Tensor, expected_of: Callable[[int], int]) -> None:
    with torch.no_grad():
        activations = net.features(inputs).flatten(2)
    live = (activations.amax(2) > activations.amin(2)).sum(1).tolist()
    expected = [expected_of(channels) for channels in live]
    rows: list[int] = []

    def counting(x: Tensor) -> Any:
        rows.append(x.shape[0])
        return net(x)

    with_details = {"return_details": True} if subject.takes("return_details") else {}
    # The first call of a model also tries whether its rows are independent.
    subject.explain(counting, net.features, inputs, TARGETS)
    rows.clear()
    made = subject.explain(counting, net.features, inputs, TARGETS, **with_details)
    masked = sum(rows) - len(inputs)
    require(masked == sum(expected), f"{masked} inputs went through the model beside the batch, not {expected}")
    counted = getattr(made[1], "forward_passes", None) if with_details else None
    if counted is not None:
        require(counted.tolist() == expected, f"details.forward_passes is {counted.tolist()}, not {expected}")
