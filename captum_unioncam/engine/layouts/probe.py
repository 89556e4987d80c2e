"""Finds which layers return maps, by how their outputs change with the input and not by names."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_unioncam.engine.accelerators import widened

Outputs = Mapping[str, Tensor]
"""The last output of each layer, by name."""

# A model's strides divide it, so that a larger input has all that the smaller one had.
_STEP = 32
# How much more a half of a map answers to its own half of the input than to the other: measured, tokens and heads 1.5
# at most, convolutions from 2 (deep ones, without training) to no end.
_OWN_OVER_OTHER = 2.0
# Networks without training mix places so well that little is left of this, though nearly every channel shows it: so
# many channels at least, and their mean so many standard errors above chance.
_MANY, _CLEAR = 16, 5.0


@dataclass(frozen=True)
class MapProbe:
    """Tells maps from what merely has their number of dimensions, by running the model on other inputs.

    A map has a row for each example, and the row depends on the example, unlike a position embedding. It grows with the
    input along the same dimensions, and its channels stay. Where the model takes inputs of one size only, or pools to a
    fixed size, that cannot be tried: then the layer has to answer to each half of the input in that half.

    Args:
        run (Callable): Inputs to the layers' outputs: of those that were reached, where the model raises.
        inputs (tuple[Tensor, ...]): Examples, each (N, ...).
        outputs (Outputs): What ``run`` gave for them.
        likely (Collection[str]): Layers that are taken for maps where larger inputs do not tell: tokens that a model
            itself has made maps of answer to all of the input. Default: ()
        by_place (Collection[str]): Layers whose places are assumed, as those of tokens, so that larger inputs do not
            tell. Default: ()
    """

    run: Callable[[tuple[Tensor, ...]], Outputs]
    inputs: tuple[Tensor, ...]
    outputs: Outputs
    likely: Collection[str] = ()
    by_place: Collection[str] = ()

    def maps(self) -> set[str]:
        """The names of the layers whose outputs are maps."""
        examples = self.inputs[0].shape[0]
        own = {name: output for name, output in self.outputs.items() if output.shape[0] == examples}
        return {name for dims in {x.dim() for x in own.values()} for name in self._maps_of_dims(own, dims)}

    def _maps_of_dims(self, outputs: Outputs, dims: int) -> set[str]:
        """The maps among the outputs of so many dimensions, for which the inputs of as many are changed."""
        masked = next((x for x in self.inputs if x.dim() == dims), None)
        if masked is None:
            return set()
        tensors = {name: output for name, output in outputs.items() if output.dim() == dims}
        by_size = {name: output for name, output in tensors.items() if name not in self.by_place}
        said = self._by_size(by_size, masked) if by_size else {}
        maps = {name for name, is_map in said.items() if is_map or (is_map is None and name in self.likely)}
        undecided = {name for name in tensors if said.get(name) is None} - maps
        return maps | (self._local(undecided, masked) if undecided else set())

    def _by_size(self, outputs: Outputs, masked: Tensor) -> dict[str, bool | None]:
        """Whether each output grows as a map does with larger inputs; None where that does not tell."""
        other = 3 if masked.shape[0] == 2 else 2
        larger = self.run(tuple(_larger(_with_another(x, other), masked.dim()) for x in self.inputs))
        growth = [_longer(size, dim) / size for dim, size in enumerate(masked.shape) if dim >= 2]
        return {
            name: not _is_constant(larger.get(name)) and _grows(output, larger.get(name), other, growth)
            for name, output in outputs.items()
        }

    def _local(self, names: set[str], masked: Tensor) -> set[str]:
        """The layers whose outputs answer to each half of the inputs, along each dimension, in that half."""
        if masked.is_meta or not masked.is_floating_point():
            return names
        answers = self.run(tuple(_with_changed_halves(x, masked.dim()) for x in self.inputs))
        rows = 1 + 2 * (masked.dim() - 2)
        reached = {name: answers[name] for name in names if name in answers}
        if not reached:
            # Not even the first layer ran: the model takes a fixed number of rows.
            return names - {*self.by_place}
        return {
            name
            for name, answer in reached.items()
            if answer.shape[0] == rows
            and _answers_locally(answer, tuple(answer.shape[2:]) in grids(tuple(masked.shape[2:])))
        }


def grids(size: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The sizes of maps of an input's at every stride, with the rest left out or padded."""
    strides = range(1, max(size) + 1)
    made = {tuple(n // s for n in size) for s in strides} | {tuple(-(-n // s) for n in size) for s in strides}
    return {grid for grid in made if min(grid) > 0 and math.prod(grid) > 1}


def _grows(output: Tensor, larger: Tensor | None, rows: int, growth: Sequence[float]) -> bool | None:
    """Whether an output grows as a map does with the larger inputs; None if that does not tell."""
    if larger is None:
        return None
    if larger.dim() != output.dim() or larger.shape[0] != rows or larger.shape[1] != output.shape[1]:
        return False
    before, after = output.shape[2:], larger.shape[2:]
    if before == after:
        return None
    if _grows_as_products(before, after, growth):
        return False
    if all(a > b or a == b == 1 for a, b in zip(after, before, strict=True)):
        squares = len(before) > 1 and len({*before}) == len({*after}) == 1
        # Weights of attention are square whatever the input's aspect, which may be the same by chance.
        return not squares or (None if len({*growth}) == 1 else False)
    # A map of a few positions may be too coarse to grow.
    coarse = (a > b or (a == b and b * (g - 1) < 1) for a, b, g in zip(after, before, growth, strict=True))
    return None if all(coarse) else False


def _grows_as_products(before: Sequence[int], after: Sequence[int], growth: Sequence[float]) -> bool:
    """Whether every side grows as the number of places does: weights of attention of queries by (fewer) keys."""
    places = math.prod(growth)
    return all(
        b * (places - g) > 2 and abs(a - b * places) < abs(a - b * g)
        for b, a, g in zip(before, after, growth, strict=True)
    )


def _is_constant(larger: Tensor | None) -> bool:
    """Whether an output is the same for the first example and for another, without being zero."""
    if larger is None or larger.is_meta or larger.shape[0] < 2:
        return False
    values = _dequantised(larger)
    return torch.equal(values[0], values[1]) and bool(values[0].any())


def _dequantised(values: Tensor) -> Tensor:
    return values.dequantize() if values.is_quantized else values


def _of_first(inputs: Tensor, rows: int) -> Tensor:
    return inputs[:1].expand(rows, *inputs.shape[1:]).clone()


def _with_another(inputs: Tensor, rows: int) -> Tensor:
    """The first example, and one changed at random behind it."""
    made = _of_first(inputs, rows)
    if inputs.is_floating_point() and not inputs.is_meta:
        made[1] += _noise(inputs)
    return made


def _noise(inputs: Tensor) -> Tensor:
    """Of one example's shape, with the first example's deviation."""
    deviation = inputs[0].std(correction=0)
    noise = torch.randn(inputs.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return deviation.where(deviation > 0, 1.0) * noise.to(inputs)


def _larger(inputs: Tensor, dims: int) -> Tensor:
    """Each spatial dimension longer, where there are so many dimensions."""
    if inputs.dim() != dims:
        return inputs
    for dim in range(2, dims):
        size = inputs.shape[dim]
        index = torch.arange(_longer(size, dim), device=inputs.device) % size
        inputs = inputs.index_select(dim, index)
    return inputs


def _longer(size: int, dim: int) -> int:
    """By another factor for each dimension, as a rule: an image's aspect changes."""
    more = _STEP * -(-size // (4 * _STEP)) if size >= _STEP else size
    return size + (dim - 1) * more


def _with_changed_halves(inputs: Tensor, dims: int) -> Tensor:
    """The first example; and for each spatial dimension, with its first half changed, and with its second."""
    rows = _of_first(inputs, 1 + 2 * (dims - 2))
    if inputs.dim() != dims:
        return rows
    changed = rows[0] + _noise(inputs)
    for dim in range(2, dims):
        half = inputs.shape[dim] // 2
        for row, part in ((2 * dim - 3, slice(None, half)), (2 * dim - 2, slice(half, None))):
            index = (slice(None),) * (dim - 1) + (part,)
            rows[row][index] = changed[index]
    return rows


def _answers_locally(answer: Tensor, fits: bool) -> bool:
    """Each half along a dimension to the input's half along the same one, and less so along another.

    Args:
        fits (bool): The answer has the input's size at some stride: a difference that most channels show is enough.
    """
    answer = _dequantised(answer)
    change = widened((answer[1:] - answer[:1]).detach().abs())
    dims = range(2, answer.dim())
    return all(_is_own(change, dim, dims, fits) for dim in dims if answer.shape[dim] > 1)


def _is_own(change: Tensor, dim: int, dims: Sequence[int], fits: bool) -> bool:
    # A token's place counts row by row: weights of attention answer to the upper half along both dimensions.
    own, other = _answers(change.mean(1, keepdim=True), dim, dim)
    crossed = (_answers(change.mean(1, keepdim=True), dim, of_input) for of_input in dims if of_input != dim)
    is_clear = bool(own > _OWN_OVER_OTHER * other) or (fits and _shown_by_channels(change, dim))
    return is_clear and all(own * b > a * other for a, b in crossed)


def _shown_by_channels(change: Tensor, dim: int) -> bool:
    """Whether the channels answer more in the own half than in the other, beyond chance."""
    own, other = _answers(change, dim, dim)
    odds = (own / other).log()
    odds = odds[odds.isfinite()]
    beyond_chance = len(odds) >= _MANY and bool(odds.mean() > _CLEAR * odds.std() / len(odds) ** 0.5)
    return beyond_chance and _is_in_order(change, dim)


def _is_in_order(change: Tensor, dim: int) -> bool:
    """Whether the halves along ``dim`` differ more in what they answer to than the places within each do.

    Tokens in an order that jumps, such as window by window, go through the whole input several times.
    """
    of_halves = change[[2 * dim - 4, 2 * dim - 3]].transpose(1, dim).flatten(2).mean(2)
    first, second = of_halves.clamp(min=1e-6 * float(of_halves.max()))
    profile = (first / second).log()
    half = len(profile) // 2
    above, below = profile[:half], profile[len(profile) - half :]
    within = torch.cat([above - above.mean(), below - below.mean()]).square().mean().sqrt()
    return bool(above.mean() - below.mean() > within)


def _answers(change: Tensor, dim: int, of_input: int) -> tuple[Tensor, Tensor]:
    """How much the halves along ``dim`` answer to the input's halves along ``of_input``: to the same, to the other.

    Of each channel, (K,).
    """
    half = change.shape[dim] // 2
    halves = change.narrow(dim, 0, half), change.narrow(dim, change.shape[dim] - half, half)
    (a, b), (c, d) = ([part[2 * of_input - row].flatten(1).mean(1) for part in halves] for row in (4, 3))
    return a * d, b * c
