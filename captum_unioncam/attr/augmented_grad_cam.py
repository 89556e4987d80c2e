"""Augmented Grad-CAM: one map at the input's size from the maps of turned and shifted inputs."""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam.attr.base import CamResult, GradientCam, LayerT
from captum_unioncam.engine._captum import BaselineType, format_baseline
from captum_unioncam.engine.checks import check_baselines, check_choice, check_count, check_generator
from captum_unioncam.engine.copies import CopyPasses
from captum_unioncam.engine.maps import divide_or_zero, full_precision, spatial_dims, up, weighted
from captum_unioncam.engine.perturbations import as_inputs, check_maskable, drawing

MOST_TURN = 0.5
"""Radians, in either direction."""
MOST_SHIFT = 30 / 224
"""Of the input's height and width, in either direction."""
TOTAL_VARIATION, ENERGY = 0.002, 0.0001
"""How much they count for each augmentation."""
LEARNING_RATE, ITERATIONS = 0.001, 200
"""Adam's: not until it converges, so that they are part of the method."""
SUPER_RESOLUTION, MEAN, MAX = AGGREGATIONS = ("super_resolution", "mean", "max")


class LayerAugmentedGradCam(GradientCam[LayerT]):
    r"""
    Augmented Grad-CAM: one map at the input's size, from Grad-CAM's maps of turned and shifted inputs.

    With :math:`T_l` a rotation about the centre followed by a shift (none for the first), :math:`g_l` Grad-CAM's map of
    the input :math:`T_l I`, divided by its maximum, :math:`D` the bilinear reduction to the layer's size, and
    :math:`\text{TV}(h)` the sum of the absolute differences between neighbouring pixels, the map is the :math:`h` that
    200 steps of Adam reach from 0 at minimising

    .. math::
        \sum_{l=1}^{n} \| D \, T_l h - g_l \|^2 + 0.002 \, n \, \text{TV}(h) + 0.0001 \, n \sum h^2

    (Morbidelli et al., *Augmented Grad-CAM: Heat-Maps Super Resolution Through Augmentation*, ICASSP 2020,
    https://doi.org/10.1109/ICASSP40776.2020.9054416, as in the authors' code). The steps do not converge and are part
    of the method. Values are at most about 0.2 and can be negative. The aggregations "mean" and "max", from the same
    code, combine Grad-CAM's maps, upsampled and moved back. Two details differ from that code and change values a
    little: rotation and shift are one interpolation, and resizing uses half-pixel centres. On a GPU, the order of sums
    varies, and total variation amplifies the differences beyond the last digits.

    The map is (N, 1, H, W), for 2-D layers only. It is not a sum over channels, so ``attr_dim_summation=False`` is
    refused.

    Passes per image: n_augmentations + 1 forward, n_augmentations backward, one at a time. For each augmentation, a map
    of the layer's size and its places in the input are kept. Use it for a finer map than interpolation gives. The map
    is speckled if few pixels are read: each augmentation reads four pixels per position of the layer. For 224x224
    inputs, 100 augmentations read 94 % of the pixels with a layer of 14x14, as the paper's, and 53 % with one of 7x7.
    Then use more augmentations, an earlier layer, or "mean".
    """

    name = "augmented_grad_cam"
    at_copies = True
    has_terms = False

    def check(
        self, aggregation: str, n_augmentations: int, baselines: BaselineType, generator: torch.Generator | None
    ) -> None:
        check_choice("aggregation", aggregation, AGGREGATIONS)
        check_count("n_augmentations", n_augmentations)
        check_generator(generator)

    def check_for(self, inputs: tuple[Tensor, ...], *, baselines: BaselineType, **_: Any) -> None:
        check_baselines(baselines, inputs)
        check_maskable(inputs, [x.dim() == 4 for x in inputs])

    def cam(
        self,
        activations: Tensor,
        copies: CopyPasses,
        *,
        summed: bool,
        aggregation: str = SUPER_RESOLUTION,
        n_augmentations: int = 100,
        baselines: BaselineType = None,
        generator: torch.Generator | None = None,
    ) -> CamResult:
        """
        Args:
            aggregation (str): "super_resolution"; or, faster, "mean" or "max" of the maps moved back, at each
                position. Default: "super_resolution", the paper's
            n_augmentations (int): Number of inputs, the first unchanged, the others rotated and shifted. Default: 100
            baselines (number, Tensor, tuple or None): Values outside the input's border, in the space of ``inputs``: a
                number, a tensor of one or N examples, or a tuple of those for a tuple of inputs. The paper uses black:
                for normalised inputs, that is the normalised black. Default: None, which is 0
            generator (torch.Generator or None): Draws the rotations, at most half a radian, and the shifts, at most
                30 / 224 of height and width; the same for all examples, layers and targets. Default: None, a new one
                with seed 0, so that two calls give the same map

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: The maps (N, 1, H, W) at the input's size, float32 for
            half-precision models; a tuple where the layer has several output tensors; a list of those, one a layer, for
            a list of layers.

        Raises:
            ValueError: ``attr_dim_summation=False``, a layer that has not two spatial dimensions, an unknown
                ``aggregation``, ``n_augmentations`` below 1.
            TypeError: A ``generator`` that is not a torch.Generator.
            AssertionError: A baseline that does not fit the inputs.

        Examples::

            >>> augmented = LayerAugmentedGradCam(model, model.features[29])
            >>> attr = augmented.attribute(images, target=3, n_augmentations=20)  # (N, 1, 224, 224)
        """
        if activations.dim() != 4:
            raise ValueError(
                f"layer: its output has {activations.dim() - 2} spatial dimensions, and turns are in two; choose a "
                "layer (N, K, H, W), or take LayerSmoothGradCamPlusPlus."
            )
        size = next(x for x in copies.inputs if x.dim() == 4).shape[2:]
        moves = drawn_moves(n_augmentations, generator)
        maps = copies.folded(moved_copies(copies.inputs, baselines, moves), add_grad_cam)
        moves = moves.to(activations)
        if aggregation == SUPER_RESOLUTION:
            return super_resolution(torch.cat(maps, 1), moves, size), None
        places = every_place(activations, size)
        together = torch.add if aggregation == MEAN else torch.maximum
        back = (sampled(up(g, size), moved_back(places, m, size)) for g, m in zip(maps, moves, strict=True))
        result: Tensor = reduce(together, back)
        return result / n_augmentations if aggregation == MEAN else result, None


def drawn_moves(count: int, generator: torch.Generator | None) -> Tensor:
    """Turns in radians, and shifts in y and x as parts of height and width, (count, 3), float64; the first is none."""
    source = drawing(generator)
    uniform = 2 * torch.rand(count - 1, 3, generator=source, device=source.device).cpu().double() - 1
    most = torch.tensor([MOST_TURN, MOST_SHIFT, MOST_SHIFT], dtype=torch.float64)
    return torch.cat([torch.zeros(1, 3, dtype=torch.float64), uniform * most])


def moved_copies(inputs: tuple[Tensor, ...], baselines: BaselineType, moves: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The inputs, and then turned and shifted ones; what is no image stays as it is."""
    yield inputs
    behind = format_baseline(baselines, inputs)
    for move in moves[1:]:
        yield tuple(_moved(x, black, move) if x.dim() == 4 else x for x, black in zip(inputs, behind, strict=True))


def _moved(inputs: Tensor, baseline: Tensor | float, move: Tensor) -> Tensor:
    values = full_precision(inputs) if inputs.is_floating_point() else inputs.float()
    size = inputs.shape[2:]
    places = moved(every_place(values, size), move.to(values), size)
    covered = sampled(torch.ones_like(values[:1, :1]), places)
    black = torch.as_tensor(baseline, dtype=values.dtype, device=values.device)
    return as_inputs(sampled(values, places) + (1 - covered) * black, inputs)


def add_grad_cam(maps: list[Tensor] | None, activations: Tensor, gradients: Tensor) -> list[Tensor]:
    """The maps so far and Grad-CAM's of one more copy, (N, 1, h, w)."""
    terms = weighted(gradients.mean(spatial_dims(gradients)), activations)
    return [*(maps or []), terms.sum(1, keepdim=True).relu()]


def every_place(like: Tensor, size: Sequence[int]) -> Tensor:
    """The places y, x of all pixels, (H, W, 2)."""
    rows, columns = (torch.arange(length, dtype=like.dtype, device=like.device) for length in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)


def moved(places: Tensor, move: Tensor, size: Sequence[int]) -> Tensor:
    """Where a turned and then shifted image takes what it has at the places (..., 2)."""
    centre, shift = _centre_and_shift(places, move, size)
    return _turned(places - shift - centre, move[0]) + centre


def moved_back(places: Tensor, move: Tensor, size: Sequence[int]) -> Tensor:
    """Where an image that is moved back takes what it has at the places (..., 2)."""
    centre, shift = _centre_and_shift(places, move, size)
    return _turned(places - centre, -move[0]) + centre + shift


def _centre_and_shift(places: Tensor, move: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    lengths = _lengths(size, places)
    return (lengths - 1) / 2, move[1:] * lengths


def _lengths(size: Sequence[int], like: Tensor) -> Tensor:
    # Filled on the device: a copy to it would wait for the passes before.
    return torch.stack([like.new_full((), length) for length in size])


def _turned(places: Tensor, angle: Tensor) -> Tensor:
    y, x = places.unbind(-1)
    return torch.stack([angle.cos() * y + angle.sin() * x, angle.cos() * x - angle.sin() * y], -1)


def sampled(pictures: Tensor, places: Tensor) -> Tensor:
    """Images (N, C, H, W) at places (h, w, 2), between pixels bilinearly and 0 outside: (N, C, h, w)."""
    lengths = _lengths(pictures.shape[2:], places)
    grid = ((2 * places + 1) / lengths - 1).flip(-1)
    # Examples as channels: one grid serves them all.
    flat = F.grid_sample(pictures.flatten(0, 1)[None], grid[None], align_corners=False)
    return flat.reshape(pictures.shape[:2] + places.shape[:2])


def super_resolution(maps: Tensor, moves: Tensor, size: Sequence[int]) -> Tensor:
    """The map (N, 1, H, W) whose moved and reduced copies are the maps (N, n, h, w), each divided by its maximum."""
    count = maps.shape[1]
    wanted = divide_or_zero(maps, maps.amax((2, 3), keepdim=True))
    places, weights = reducing(maps, size)
    # One grid for all augmentations, below each other.
    places = torch.cat([moved(places, move, size) for move in moves])
    with torch.enable_grad():
        h = torch.zeros(len(maps), 1, *size, dtype=maps.dtype, device=maps.device, requires_grad=True)
        adam = torch.optim.Adam([h], LEARNING_RATE)
        for _ in range(ITERATIONS):
            parts = sampled(h, places).reshape(len(maps), count, maps.shape[2], 2, maps.shape[3], 2)
            data = ((parts * weights).sum((3, 5)) - wanted).square().sum()
            variation = h.diff(dim=2).abs().sum() + h.diff(dim=3).abs().sum()
            loss = data + count * (TOTAL_VARIATION * variation + ENERGY * h.square().sum())
            (h.grad,) = torch.autograd.grad(loss, [h])
            adam.step()
    return h.detach()


def reducing(maps: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """How an image is reduced to the size of the maps (..., h, w), bilinearly.

    Returns:
        *tuple[Tensor, Tensor]*: The places that count, two in each direction for each position, (2h, 2w, 2), and their
        weights, (h, 2, w, 2).
    """
    pixels, weights = [], []
    for small, large in zip(maps.shape[-2:], size, strict=True):
        centres = (torch.arange(small, dtype=maps.dtype, device=maps.device) + 0.5) * (large / small) - 0.5
        lower = centres.clamp(min=0).floor()
        upper_part = centres.clamp(min=0) - lower
        pixels.append(torch.stack([lower, (lower + 1).clamp(max=large - 1)], 1).flatten())
        weights.append(torch.stack([1 - upper_part, upper_part], 1))
    places = torch.stack(torch.meshgrid(*pixels, indexing="ij"), -1)
    return places, weights[0][:, :, None, None] * weights[1]
