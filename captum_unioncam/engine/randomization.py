"""Copies of a model whose layers are reinitialised, and random numbers by a seed."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.accelerators import kept_random_states
from captum_unioncam.engine.checks import check_choice, check_positive
from captum_unioncam.engine.model_state import evaluation_mode

CASCADING, INDEPENDENT = ORDERS = ("cascading", "independent")


def randomized_copies(
    model: Module,
    layer: Module,
    inputs: Tensor,
    order: str = CASCADING,
    max_layers: int | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, Module, Module]]:
    """Copies of a model with layers reinitialised, from the output's side down.

    Layers are the modules with parameters of their own that run in a pass. Each is initialised by its
    ``reset_parameters``. Parameters of a module without that, or that it leaves as they are, are drawn from the normal
    distribution of their own mean and standard deviation.

    Args:
        model (torch.nn.Module): Left as it was found.
        layer (torch.nn.Module): A module of it, which is given for each copy.
        inputs (Tensor): An example or more, run once to see in which order the modules run.
        order (str): "cascading": all layers down to the named one are initialised. "independent": that one alone.
            Default: "cascading"
        max_layers (int or None): At most so many copies, evenly spread over the layers, the lowest included. Default:
            None, one for each layer
        seed (int): Of the initial values. A layer has the same in both orders. Default: 0

    Yields:
        *tuple[str, Module, Module]*: The dotted name of the layer that was initialised last, the copy, and its layer.

    Raises:
        ValueError: An unknown order, ``max_layers`` below 1, a model without parameters or that cannot be copied.
    """
    check_choice("order", order, ORDERS)
    check_positive("max_layers", max_layers)
    names = layers_from_the_top(model, inputs)
    shown = _spread(len(names), max_layers)
    last, waiting = (model, layer), list[int]()
    for number, name in enumerate(names):
        waiting = [*waiting, number] if order == CASCADING else [number]
        if number not in shown:
            continue
        # A new one each time, since passes are remembered by the model that ran them.
        copied, layer_of_copy = _copied(*last)
        for each in waiting:
            with seeded(seed + each):
                initialize(copied.get_submodule(names[each]))
        yield name, copied, layer_of_copy
        if order == CASCADING:
            last, waiting = (copied, layer_of_copy), []


def layers_from_the_top(model: Module, inputs: Tensor) -> list[str]:
    """Names of the modules with parameters of their own that run in a pass, the last to run first.

    A module that is not called, as the projection within PyTorch's attention, counts with the one that holds it.

    Raises:
        ValueError: There is none.
    """
    ran: dict[str, None] = {}

    def note(name: str) -> None:
        ran.pop(name, None)
        ran[name] = None

    with evaluation_mode(model) as (forward,), ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            hook = module.register_forward_pre_hook(lambda _module, _args, name=name: note(name))
            hooks.enter_context(hook)
        forward(inputs.detach().clone())
    turns = {name: turn for turn, name in enumerate(ran)}
    owners = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    found = [(turn, i, name) for i, name in enumerate(owners) if (turn := _turn(name, turns)) is not None]
    if not found:
        raise ValueError("model: has no parameters to reinitialise; give one that has.")
    return [name for _, _, name in sorted(found, reverse=True)]


def _turn(name: str, turns: dict[str, int]) -> int | None:
    """When the module ran, or the nearest that holds it, the model itself apart; None if neither did."""
    holder = name
    while holder and holder not in turns:
        holder = holder.rpartition(".")[0]
    return turns[holder] if holder or not name else None


@torch.no_grad()
def initialize(module: Module) -> None:
    """Reinitialises the module's own parameters in place, by torch's global generator."""
    parameters = [x for x in module.parameters(recurse=False) if x.is_floating_point()]
    before = [x.clone() for x in parameters]
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    for parameter, old in zip(parameters, before, strict=True):
        if torch.equal(parameter, old):
            parameter.normal_(old.mean().item(), old.std(correction=0).item())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generators, of the CPU and of GPUs in use, and gives back their state afterwards."""
    with kept_random_states():
        torch.manual_seed(seed)
        yield


def _spread(count: int, most: int | None) -> set[int]:
    """At most so many of the numbers below ``count``, evenly spread, the last among them."""
    most = count if most is None else min(most, count)
    return {(i + 1) * count // most - 1 for i in range(most)}


def _copied(model: Module, layer: Module) -> tuple[Module, Module]:
    """Copies of both; the copied layer is within the copied model."""
    try:
        return copy.deepcopy((model, layer))
    except Exception as error:
        # Modules may hold anything, such as locks and tensors with a graph.
        raise ValueError(
            f"model: cannot be copied ({type(error).__name__}: {' '.join(str(error).split())}); give one that "
            "copy.deepcopy takes."
        ) from error
