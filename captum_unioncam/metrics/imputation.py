"""Missing pixels filled in from their neighbours: a sparse linear system, solved for many images at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam.engine.maps import divide_or_zero

# Each pixel's neighbours to the right, below, and on both diagonals below, with their weights; and the opposite ones.
_NEIGHBOURS = ((0, 1, 1 / 6), (1, 0, 1 / 6), (1, 1, 1 / 12), (1, -1, 1 / 12))

_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
_MOST_ROUNDS = 1000

# Of weighted Jacobi iteration; and since constants in blocks of pixels are stiffer than what they stand for.
_DAMPING, _OVERCORRECTION = 0.8, 1.7


def impute(images: Tensor, kept: Tensor) -> Tensor:
    r"""Fills in missing pixels: each becomes the weighted mean of its neighbours, the missing ones included.

    The weights are 1/6 for the four next pixels and 1/12 for the four diagonal ones, without those outside of an image
    (noisy linear imputation of Rong et al., ICML 2022, https://arxiv.org/abs/2202.00449, without the noise). The system
    is solved by conjugate gradients with a multigrid cycle as preconditioner, in the images' precision.

    Args:
        images (Tensor): (N, C, H, W), float32 or float64.
        kept (Tensor): The pixels of each that are not missing, at least one: bool, (N, 1, H, W).

    Returns:
        *Tensor* (N, C, H, W).
    """
    missing, kept = (~kept).to(images), kept.to(images)
    shown = images * kept
    edges = [weight * missing * _neighbour(missing, down, right) for down, right, weight in _NEIGHBOURS]
    of_kept, known = torch.zeros_like(missing), torch.zeros_like(shown)
    for down, right, weight in _NEIGHBOURS:
        for sign in (1, -1):
            of_kept += weight * missing * _neighbour(kept, sign * down, sign * right)
            known += weight * missing * _neighbour(shown, sign * down, sign * right)
    return shown + _solved(_Grid(of_kept, edges), known)


@dataclass(frozen=True)
class _Grid:
    """Equations of missing pixels: each times its weights, minus the sum of its missing neighbours, is what is known.

    Args:
        of_kept (Tensor): Sum of each missing pixel's weights of kept neighbours, (N, 1, H, W).
        edges (list[Tensor]): Weight between each pixel and its neighbour in each direction of ``_NEIGHBOURS``, 0 unless
            both are missing, each (N, 1, H, W).
    """

    of_kept: Tensor
    edges: Sequence[Tensor]

    @cached_property
    def weights(self) -> Tensor:
        """The sum of all weights of each missing pixel."""
        return self.of_kept + self.sums(torch.ones_like(self.of_kept))

    def sums(self, values: Tensor) -> Tensor:
        """The weighted sum of each missing pixel's missing neighbours."""
        total = torch.zeros_like(values)
        for (down, right, _), edge in zip(_NEIGHBOURS, self.edges, strict=True):
            (y, beside_y), (x, beside_x) = _overlap(down), _overlap(right)
            weight = edge[..., y, x]
            total[..., y, x].addcmul_(weight, values[..., beside_y, beside_x])
            total[..., beside_y, beside_x].addcmul_(weight, values[..., y, x])
        return total

    def applied(self, values: Tensor) -> Tensor:
        """The left-hand side."""
        return self.weights * values - self.sums(values)

    @cached_property
    def coarser(self) -> _Grid | None:
        """The equations of blocks of 2x2 pixels of the same value; None for a single pixel."""
        if max(self.of_kept.shape[-2:]) == 1:
            return None
        of_kept, (right, below, falling, rising) = _even(self.of_kept), map(_even, self.edges)
        a, b, c, d = ((..., slice(y, None, 2), slice(x, None, 2)) for y in (0, 1) for x in (0, 1))
        return _Grid(
            of_kept[a] + of_kept[b] + of_kept[c] + of_kept[d],
            [
                right[b] + right[d] + falling[b] + _neighbour(rising[a], 0, 1),
                below[c] + below[d] + falling[c] + rising[d],
                falling[d],
                rising[c],
            ],
        )

    def cycle(self, known: Tensor) -> Tensor:
        """Solves roughly, by smoothing here and correcting on coarser grids."""
        solved = divide_or_zero(known, self.weights)
        if self.coarser is None:
            return solved
        solved = _DAMPING * solved
        height, width = known.shape[-2:]
        rest = 4 * F.avg_pool2d(_even(known - self.applied(solved)), 2)
        blocks = self.coarser.cycle(rest).repeat_interleave(2, -2).repeat_interleave(2, -1)
        solved = solved + _OVERCORRECTION * blocks[..., :height, :width] * (self.weights > 0)
        return solved + _DAMPING * divide_or_zero(known - self.applied(solved), self.weights)


def _solved(grid: _Grid, known: Tensor) -> Tensor:
    """Preconditioned conjugate gradients, of each image and channel by itself."""
    solved, rest = torch.zeros_like(known), known
    bound = _TOLERANCE[known.dtype] ** 2 * _product(known, known)
    direction = cycled = grid.cycle(rest)
    slope = _product(rest, cycled)
    for _ in range(_MOST_ROUNDS):
        applied = grid.applied(direction)
        step = divide_or_zero(slope, _product(direction, applied))
        solved, rest = solved + step * direction, rest - step * applied
        if (_product(rest, rest) <= bound).all():
            break
        cycled = grid.cycle(rest)
        slope, before = _product(rest, cycled), slope
        direction = cycled + divide_or_zero(slope, before) * direction
    return solved


def _product(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((-2, -1), keepdim=True)


def _neighbour(values: Tensor, down: int, right: int) -> Tensor:
    """Of each pixel the one that is so far below it and to its right, 0 outside."""
    height, width = values.shape[-2:]
    return F.pad(values, (1, 1, 1, 1))[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def _overlap(distance: int) -> tuple[slice, slice]:
    """The places that have another in that distance, and those others."""
    places = slice(max(0, -distance), -distance if distance > 0 else None)
    return places, slice(max(0, distance), distance if distance < 0 else None)


def _even(values: Tensor) -> Tensor:
    """With zeros at the end, so that height and width are even."""
    return F.pad(values, (0, values.shape[-1] % 2, 0, values.shape[-2] % 2))
