"""What the rows of a pass change: the input, seen through masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_unioncam.engine.maps import minmax, up


@dataclass(frozen=True)
class Chunk:
    """The rows of one forward pass.

    Args:
        examples (Tensor): The example of each row, ascending, (R,), int64.
        numbers (Tensor): Which of the example's masks it has, (R,), int64.
        example_numbers (list[int]): The examples, known without asking the device.
    """

    examples: Tensor
    numbers: Tensor
    example_numbers: list[int]

    def padded(self, rows: int) -> Chunk:
        """The chunk with its last row repeated until it has ``rows``."""
        more = rows - len(self.example_numbers)
        examples, numbers = (torch.cat([x, x[-1:].expand(more)]) for x in (self.examples, self.numbers))
        return Chunk(examples, numbers, self.example_numbers + self.example_numbers[-1:] * more)


@dataclass(frozen=True)
class Masks:
    """Masks that are made when they are needed.

    Args:
        dims (int): Inputs of so many dimensions take a mask.
        make (Callable): A chunk, one such input, (N, C, *spatial), and its number among the inputs, to the masks of the
            chunk's rows for it, (R, 1, *spatial), in [0, 1].
    """

    dims: int
    make: Callable[[Chunk, Tensor, int], Tensor]

    @classmethod
    def of_maps(cls, maps: Tensor) -> Masks:
        """``minmax(up(m))`` for each of the maps (N, M, *spatial), which are of any resolution."""

        def make(chunk: Chunk, inputs: Tensor, _i: int) -> Tensor:
            rows = maps[chunk.examples.to(maps.device), chunk.numbers.to(maps.device)].unsqueeze(1)
            return minmax(up(rows.to(inputs.device), inputs.shape[2:]))

        return cls(maps.dim(), make)
