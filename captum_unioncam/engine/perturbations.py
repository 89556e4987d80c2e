"""What the rows of a pass change: the input, seen through masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_unioncam.engine.maps import blend, minmax, up


class Placed:
    """A tensor that is moved once to each device where it is asked for, and not once a pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._on = {tensor.device: tensor}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on ``device``."""
        if device not in self._on:
            self._on[device] = self.tensor.to(device)
        return self._on[device]


@dataclass(frozen=True)
class Chunk:
    """The rows of one forward pass.

    Args:
        examples (Tensor): The example of each row, ascending, (R,), int64.
        numbers (Tensor): Which of the example's masks it has, (R,), int64.
        example_numbers (list[int]): The examples, known without asking the device.
        on (Callable): A device to the first two there.
    """

    examples: Tensor
    numbers: Tensor
    example_numbers: list[int]
    on: Callable[[torch.device], tuple[Tensor, Tensor]] = field(repr=False)


class Queue:
    """One row for each mask that is ``scored`` (N, M).

    Args:
        scored (Tensor): bool.
    """

    def __init__(self, scored: Tensor) -> None:
        self.examples, self.numbers = scored.nonzero(as_tuple=True)
        self.example_numbers: list[int] = self.examples.tolist()
        self._placed = Placed(torch.stack([self.examples, self.numbers]))

    def chunk(self, start: int, count: int, rows: int) -> Chunk:
        """The ``count`` rows from ``start`` on, the last repeated until there are ``rows``."""
        more = rows - count

        def on(device: torch.device) -> tuple[Tensor, Tensor]:
            taken = self._placed.on(device)[:, start : start + count]
            examples, numbers = torch.cat([taken, taken[:, -1:].expand(2, more)], 1) if more > 0 else taken
            return examples, numbers

        numbers = self.example_numbers[start : start + count]
        return Chunk(*on(self.examples.device), numbers + numbers[-1:] * more, on)


@dataclass(frozen=True)
class Change:
    """What becomes of masks, or of what they show, before a pass. Both functions get the number of the input too.

    Args:
        mask (Callable or None): Masks (R, 1, *spatial) to others. Default: None, as they are
        shown (Callable or None): Masked inputs (R, C, *spatial) to others. Default: None, as they are
    """

    mask: Callable[[Tensor, int], Tensor] | None = None
    shown: Callable[[Tensor, int], Tensor] | None = None


UNCHANGED = Change()


@dataclass(frozen=True)
class Masks:
    """Masks that are made when they are needed.

    Args:
        dims (int): Inputs of so many dimensions take a mask.
        make (Callable): A chunk, one such input, (N, C, *spatial), and its number among the inputs, to the masks of the
            chunk's rows for it, (R, 1, *spatial), in [0, 1].
        change (Change): What becomes of them. Default: ``UNCHANGED``
    """

    dims: int
    make: Callable[[Chunk, Tensor, int], Tensor]
    change: Change = UNCHANGED

    @classmethod
    def of_maps(cls, maps: Tensor, change: Change = UNCHANGED) -> Masks:
        """``minmax(up(m))`` for each of the maps (N, M, *spatial), which are of any resolution."""
        placed = Placed(maps)

        def make(chunk: Chunk, inputs: Tensor, _i: int) -> Tensor:
            examples, numbers = chunk.on(inputs.device)
            return minmax(up(placed.on(inputs.device)[examples, numbers].unsqueeze(1), inputs.shape[2:]))

        return cls(maps.dim(), make, change)

    def shown(self, chunk: Chunk, inputs: Tensor, i: int, rows: Tensor, baselines: Tensor) -> Tensor:
        """What the chunk's masks show of an input, (R, C, *spatial), in its dtype.

        Args:
            chunk (Chunk): R rows.
            inputs (Tensor): (N, C, *spatial), number ``i`` of the inputs.
            i (int): That number.
            rows, baselines (Tensor): Those of the chunk, (R or 1, C, *spatial).
        """
        mask = self.make(chunk, inputs, i)
        if self.change.mask is not None:
            mask = self.change.mask(mask, i)
        blended = blend(mask, rows, baselines)
        if self.change.shown is not None:
            blended = self.change.shown(blended, i)
        return as_inputs(blended, inputs)


def masked_as(inputs: Tensor, mask: Tensor, rows: Tensor, baselines: Tensor) -> Tensor:
    """The blend, in the dtype of ``inputs``."""
    return as_inputs(blend(mask, rows, baselines), inputs)


def as_inputs(blended: Tensor, inputs: Tensor) -> Tensor:
    """In the dtype of ``inputs``; whole numbers are rounded, or every mask would darken."""
    return (blended if inputs.is_floating_point() else blended.round()).to(inputs.dtype)


def drawing(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or a new one with seed 0, on the CPU: two calls without one draw the same numbers."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def check_maskable(inputs: tuple[Tensor, ...], masked: list[bool]) -> None:
    """Raises ``ValueError`` for inputs that no mask can go on."""
    for number, (x, takes_mask) in enumerate(zip(inputs, masked, strict=True)):
        if takes_mask and x.is_complex():
            raise ValueError(
                f"inputs: number {number} is complex ({x.dtype}), and what lies between it and the baseline is not "
                "known; give real and imaginary parts as channels, and join them in forward_func."
            )


def check_dense(inputs: tuple[Tensor, ...]) -> None:
    """Raises ``ValueError`` for inputs whose rows cannot be taken."""
    for number, x in enumerate(inputs):
        kinds = {
            "a nested tensor": x.is_nested,
            "a sparse tensor": x.layout != torch.strided,
            "quantised": x.is_quantized,
            "on the meta device, without values": x.is_meta,
        }
        what = next((kind for kind, is_it in kinds.items() if is_it), None)
        if what is not None:
            raise ValueError(f"inputs: number {number} is {what}; give a dense tensor with values (N, ...).")
