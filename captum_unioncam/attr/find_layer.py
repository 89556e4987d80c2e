"""Finding the layer to explain."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.layouts.torchvision import KnownTransforms, last_token_layers
from captum_unioncam.engine.layouts.with_maps import WithMaps
from captum_unioncam.engine.model_state import evaluation_mode, modules_behind
from captum_unioncam.system.imports import suggestion

Layer = Module | str
"""A layer, or its dotted name in the model."""

# DataParallel and torch.compile put the model into a module of theirs.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def find_spatial_layer(model: Module, inputs: Tensor | tuple[Tensor, ...]) -> tuple[str, Module]:
    """Finds the last layer whose output has space, which is the usual one to explain, by running the model once.

    A layer's output has space if it has as many spatial dimensions as an input, and more than one position in them.
    Channels are taken to come first, except in torchvision's networks: name the layer where they come last elsewhere.
    Of nested modules that end with the same output, the outermost is taken. So are the tokens that enter the last
    attention of torchvision's vision transformers, the usual ones to explain: behind it, the class token alone counts.

    Args:
        model (torch.nn.Module): Left as it was found; runs in evaluation mode.
        inputs (Tensor or tuple[Tensor, ...]): An example or more, (N, C, *spatial).

    Returns:
        *tuple[str, Module]*: The layer's dotted name in the model, and the layer.

    Raises:
        ValueError: No layer has an output with space.

    Examples::

        >>> name, layer = find_spatial_layer(model, images)
        >>> attr = LayerUnionCam(model, layer).attribute(images, target=3)
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    dims = {x.dim() for x in inputs if x.dim() > 2}
    tokens = last_token_layers(model)
    transforms = KnownTransforms([model])

    def is_usual(layer: Module, output: Any) -> bool:
        maps = isinstance(output, Tensor) and output.dim() in dims
        return layer in tokens or (maps and transforms.has_space(layer, output, dims))

    found = _layers_run(model, inputs, is_usual)
    if not found:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"model: for inputs of shape {shapes} no layer has an output of shape (N, K, *spatial) with more than one "
            "position; name the layer to explain, or give larger inputs."
        )
    return next(reversed(found.items()))


def spatial_layers(model: Module, inputs: Tensor) -> dict[str, Module]:
    """All layers that can be explained, by running the model once: those whose output has space, tokens included.

    Args:
        model (torch.nn.Module): Left as it was found; runs in evaluation mode.
        inputs (Tensor): An example or more, (N, C, *spatial).

    Returns:
        *dict[str, Module]*: By dotted name, in the order in which they run.
    """
    transforms = KnownTransforms([model])
    return _layers_run(model, (inputs,), lambda layer, output: transforms.has_space(layer, output, {inputs.dim()}))


def _layers_run(
    model: Module, inputs: tuple[Tensor, ...], is_wanted: Callable[[Module, Any], bool]
) -> dict[str, Module]:
    """The layers whose output is wanted, in the order in which they run."""
    found: dict[str, Module] = {}

    def look(name: str, module: Module) -> Any:
        def hook(_module: Module, _args: Any, output: Any) -> None:
            # Of a layer that runs several times, the last run is what is explained.
            found.pop(name, None)
            if is_wanted(module, output):
                found[name] = module

        return module.register_forward_hook(hook)

    modules = {name: module for name, module in model.named_modules() if name}
    # What was put around a layer is not in the model as its user knows it.
    within = tuple(f"{name}." for name, module in modules.items() if isinstance(module, WithMaps))
    handles = [look(name, module) for name, module in modules.items() if not name.startswith(within)]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(*(x.detach().clone() for x in inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found


def named_layers(layer: Layer | Sequence[Layer], forward_func: Callable[..., Any]) -> Module | list[Module]:
    """The layers, those given by name looked up in the model.

    Args:
        layer (torch.nn.Module, str or list): One or several.
        forward_func (Callable): The model, or a function that is known to belong to one, such as its method.

    Raises:
        ValueError: No layer, or none of that name.
    """
    if isinstance(layer, (Module, str)):
        return _named_layer(layer, forward_func)
    if not layer:
        raise ValueError("layer: got a list of none; give at least one layer.")
    return [_named_layer(one, forward_func) for one in layer]


def _named_layer(layer: Layer, forward_func: Callable[..., Any]) -> Module:
    if isinstance(layer, Module):
        return layer
    roots = modules_behind(forward_func)
    named: dict[str, Module] = {
        _WRAPPERS.sub("", name): module for root in roots for name, module in root.named_modules() if name
    }
    if not roots:
        raise ValueError(f"layer: cannot look up {layer!r}, since forward_func is a function; give the module itself.")
    if layer not in named:
        raise ValueError(f"layer: the model has no layer {layer!r}{suggestion(layer, named)}")
    return named[layer]
