"""Checks that the output of a named layer is maps, by a few extra passes where its shape leaves doubt."""

from math import ceil, floor, prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from captum_unioncam.engine.capture import LayerCall, LayerMaps
from captum_unioncam.engine.layouts.base import channels_last_to_maps
from captum_unioncam.engine.layouts.probe import MapProbe, grids
from captum_unioncam.engine.layouts.with_maps import Maps
from captum_unioncam.engine.seen import OTHER_LAYER, LayerError

# What attention and channels-last networks are made of, and convolutional ones are not, where there is space.
_OF_TOKENS = (nn.Linear, nn.LayerNorm, nn.Identity, nn.Dropout, nn.Softmax)
_OF_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
# Of a module of another library, what it is made of tells: these work on maps.
_OF_MAPS = (_ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd)
# Positions that convolutions without padding leave out of a map, and that padding adds.
_LEFT_OUT, _ADDED = 3, 1


def check_maps(call: LayerCall) -> None:
    """Raises ``LayerError`` for activations that have as many dimensions as maps, but are not maps.

    ``MapProbe`` tells attention heads and channels-last outputs from maps, with copies of the first example. The result
    of a ``reshape_transform``, and activations whose sides have the ratio of the input's, need no pass.

    Args:
        call (LayerCall): Has seen the activations.
    """
    if call.reshape_transform is not None or any(x.layout != torch.strided for x in call.inputs):
        return
    doubtful = {f"{number}": one for number, one in enumerate(call.of_maps) if _is_doubtful(one, call.inputs)}
    if not doubtful:
        return

    def run(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        reached = call.reached(inputs)
        values = {name: reached.get((one.layer, one.part)) for name, one in doubtful.items()}
        return _in_both_layouts({name: value for name, value in values.items() if value is not None})

    outputs = _in_both_layouts({name: one.value for name, one in doubtful.items()})
    likely = {name for name, one in doubtful.items() if _is_likely(one, call.inputs)}
    maps = MapProbe(run, call.inputs, outputs, likely).maps()
    for name, one in doubtful.items():
        if name not in maps:
            raise LayerError(_described(one, call, _channels_last(name) in maps))


def _in_both_layouts(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return values | {_channels_last(name): channels_last_to_maps(value) for name, value in values.items()}


def _channels_last(name: str) -> str:
    return f"{name} channels last"


def _described(one: LayerMaps, call: LayerCall, channels_last: bool) -> str:
    what = f"{call.name(one.layer)} has {'an input' if call.attribute_to_layer_input else 'an output'}"
    shape = tuple(one.value.shape)
    # One head of attention is no dimension of space.
    if channels_last and 1 not in shape[1:-1]:
        return (
            f"layer: {what} of shape {shape} with its channels last; give reshape_transform=channels_last_to_maps, or "
            f"{OTHER_LAYER}."
        )
    return (
        f"layer: {what} of shape {shape} that is not maps (N, K, *spatial), but attention heads or similar: it does "
        f"not follow the inputs place by place; {OTHER_LAYER}, or give a reshape_transform that makes maps of it, such "
        "as channels_last_to_maps."
    )


def _is_doubtful(one: LayerMaps, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the layer's type or the shape suggests that activations may not be maps."""
    if isinstance(one.layer, Maps) or one.transform(one.value) is not one.value:
        return False
    fits = any(_may_have_one_stride(sizes) for sizes in _sizes(one, inputs))
    return not fits or _is_cube(one) or isinstance(one.layer, _OF_TOKENS) or _is_unknown(one.layer)


def _is_unknown(layer: nn.Module) -> bool:
    """Whether neither the layer's type nor what it is made of tells that it works on maps."""
    is_own = type(layer).__module__.split(".")[0] != "torch"
    return is_own and not any(isinstance(module, _OF_MAPS) for module in layer.modules())


def _is_likely(one: LayerMaps, inputs: tuple[Tensor, ...]) -> bool:
    """Whether doubtful activations count as maps if the model takes inputs of one size only."""
    fits = any(_has_one_stride(sizes) for sizes in _sizes(one, inputs))
    refused = _is_cube(one) or isinstance(one.layer, _OF_CHANNELS_LAST) or _may_be_attention(one, inputs)
    return fits and not refused


def _may_be_attention(one: LayerMaps, inputs: tuple[Tensor, ...]) -> bool:
    """Whether they may be weights of queries by keys.

    These are a softmax over the last dimension; or both sides are as long as an input has patches, perhaps with a class
    token, and there are fewer heads.
    """
    sides = {*one.maps.shape[2:]}
    if one.maps.dim() != 4 or len(sides) > 1:
        return False
    if isinstance(one.layer, nn.Softmax) and one.layer.dim in (-1, 3):
        return True
    if one.maps.shape[1] >= max(sides):
        return False
    patches = {prod(grid) for x in inputs if x.dim() == 4 for grid in grids(tuple(x.shape[2:]))}
    return not patches.isdisjoint({*sides, *(side - 1 for side in sides)})


def _is_cube(one: LayerMaps) -> bool:
    """Whether there are as many channels as positions along each side: they may be the last of channels-last maps."""
    channels, *size = one.maps.shape[1:]
    return channels > 1 and {*size} == {channels}


def _sizes(one: LayerMaps, inputs: tuple[Tensor, ...]) -> list[list[tuple[int, int]]]:
    """For each masked input, its size and the maps' size along each dimension that is not pooled to one position."""
    masked = [x for x in inputs if x.dim() == one.maps.dim()]
    return [[(n, m) for n, m in zip(x.shape[2:], one.maps.shape[2:], strict=True) if m > 1] for x in masked]


def _may_have_one_stride(sizes: list[tuple[int, int]]) -> bool:
    """Whether the stride may be the same along each dimension, with padding or without."""
    least = max((n / (m + _LEFT_OUT) for n, m in sizes), default=1)
    most = min((n / (m - _ADDED) for n, m in sizes), default=1)
    return all(m <= n for n, m in sizes) and max(ceil(least), 1) <= floor(most)


def _has_one_stride(sizes: list[tuple[int, int]]) -> bool:
    """Whether the stride is the same along each dimension, up to rounding."""
    return any(
        all(m in (n // s, -(-n // s)) for n, m in sizes) for a, b in sizes[:1] for s in {a // b or 1, -(-a // b)}
    )
