"""Finds layouts by how outputs respond to inputs: maps, channels last, or tokens behind a few special ones."""

import math
from collections.abc import Callable, Hashable, Mapping
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.layouts.base import ReshapeTransform, channels_last_to_maps, tokens_to_maps, unchanged
from captum_unioncam.engine.layouts.probe import MapProbe, Outputs, grids

# Tokens in front of the patches': of the class, of distillation, registers.
_MOST_CLASS_TOKENS = 16

_REMEMBERED: WeakKeyDictionary[Module, dict[Hashable, ReshapeTransform]] = WeakKeyDictionary()

_MAPS, _CHANNELS_LAST, _TOKENS = "maps", "channels last", "tokens"


def found_transforms(
    run: Callable[[tuple[Tensor, ...]], Outputs], inputs: tuple[Tensor, ...], outputs: Outputs
) -> dict[str, ReshapeTransform]:
    """The transform to maps of each output that has a layout of maps, found by running the model on other inputs.

    Outputs with as many dimensions as an input are maps as they are, or have their channels last; outputs (N, T, K) are
    the tokens of patches, row by row, at a stride of the input that leaves the fewest other tokens in front of them.
    Whatever the layout, a map has to follow the input as ``MapProbe`` asks of it.

    Args:
        run (Callable): Inputs to the layers' outputs: of those that were reached, where the model raises.
        inputs (tuple[Tensor, ...]): Examples, each (N, ...).
        outputs (Mapping[str, Tensor]): What ``run`` gave for them, by name.
    """
    laid_out = _in_layouts(outputs, inputs)
    tokens = {_named(name, _TOKENS) for name in outputs}
    maps = MapProbe(lambda others: _in_layouts(run(others), others), inputs, laid_out, by_place=tokens).maps()
    found: dict[str, ReshapeTransform] = {}
    for name, output in outputs.items():
        for layout, transform in _transforms(output, inputs).items():
            if _named(name, layout) in maps:
                found.setdefault(name, transform)
    return found


def remembered_transform(
    layer: Module,
    output: Tensor,
    inputs: tuple[Tensor, ...],
    of_input: bool,
    run: Callable[[tuple[Tensor, ...]], Outputs],
) -> ReshapeTransform | None:
    """The transform of a layer's output, as ``found_transforms`` finds it the first time; None if there is none.

    Args:
        layer (Module): The layer.
        output (Tensor): Its output, or its input.
        inputs (tuple[Tensor, ...]): Of the model.
        of_input (bool): The tensor is the layer's input.
        run (Callable): As ``found_transforms`` takes it, of the one name "0".
    """
    key = of_input, output.shape[1:], tuple(x.shape[1:] for x in inputs)
    # Of other weights, the layout is the same.
    remembered = _REMEMBERED.setdefault(layer, {})
    if key not in remembered:
        for found in found_transforms(run, inputs, {"0": output}).values():
            remembered[key] = found
    return remembered.get(key)


def needs_transform(output: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    """Whether an output may be tokens, or has sizes that fit an input with the channels last."""
    if not any(x.dim() == output.dim() for x in inputs):
        return is_tokens(output, inputs)
    return _fits_last(output, inputs)


def is_tokens(output: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    """Whether an output may be tokens (N, T, K) of an input's patches."""
    return output.shape[0] == inputs[0].shape[0] and _tokens(output, inputs) is not None


def _transforms(output: Tensor, inputs: tuple[Tensor, ...]) -> dict[str, ReshapeTransform]:
    """The transforms that the output's shape allows, by layout."""
    if any(x.dim() == output.dim() for x in inputs):
        made: dict[str, ReshapeTransform] = {_MAPS: unchanged}
        return made | ({_CHANNELS_LAST: channels_last_to_maps} if _fits_last(output, inputs) else {})
    tokens = _tokens(output, inputs)
    return {} if tokens is None else {_TOKENS: tokens}


def _fits_last(output: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the sizes fit an input with the channels last; one head of attention is no dimension of space.

    Of signals, too many sizes fit.
    """
    size = tuple(output.shape[1:-1])
    sizes = {grid for x in inputs if x.dim() == output.dim() > 3 for grid in grids(tuple(x.shape[2:]))}
    # An output without space has no size.
    return size in sizes and min(size) > 1


def _in_layouts(outputs: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {
        _named(name, layout): transform(output)
        for name, output in outputs.items()
        for layout, transform in _transforms(output, inputs).items()
    }


def _named(name: str, layout: str) -> str:
    return f"{name} {layout}"


def _tokens(output: Tensor, inputs: tuple[Tensor, ...]) -> ReshapeTransform | None:
    found = token_grid(output, inputs)
    return None if found is None else tokens_to_maps(*found[0], class_tokens=found[1])


def token_grid(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[tuple[int, ...], int] | None:
    """The grid of tokens of an input's patches, and the number of others in front of them, the fewest that fit."""
    if output.dim() != 3:
        return None
    sizes = {grid for x in inputs if x.dim() > 3 for grid in grids(tuple(x.shape[2:]))}
    others = {output.shape[1] - math.prod(grid): grid for grid in sizes}
    fewest = min((number for number in others if 0 <= number <= _MOST_CLASS_TOKENS), default=None)
    return None if fewest is None else (others[fewest], fewest)
