"""Which channels of a layer are scored: all, or representatives of them, since channels with like masks score alike."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_unioncam.engine.accelerators import widened
from captum_unioncam.engine.checks import check_choice, check_positive
from captum_unioncam.engine.maps import minmax, spatial_range

REPRESENTATIVES, DEVIATION = "representatives", "deviation"
CHANNEL_SELECTIONS = REPRESENTATIVES, DEVIATION
ROUNDS = 10
MOST_DISTANCES = 2**22  # at once: larger batches are split, which changes no number


def check_channel_selection(max_channels: int | None, channel_selection: str) -> None:
    """Raises ``ValueError`` for ``max_channels`` below 1 or an unknown ``channel_selection``."""
    check_positive("max_channels", max_channels)
    check_choice("channel_selection", channel_selection, CHANNEL_SELECTIONS)


def channel_representatives(
    activations: Tensor, max_channels: int | None = None, channel_selection: str = REPRESENTATIVES
) -> Tensor:
    """Which channel is scored in each channel's place: itself where it is scored, and -1 where none is.

    A channel that is constant over space has no mask, and none is scored in its place. The choice depends on the
    example alone, and draws no random numbers.

    Args:
        activations (Tensor): (N, K, *spatial).
        max_channels (int or None): At most so many channels of an example are scored. Default: None, all live ones
        channel_selection (str): "representatives" groups the live channels by their masks, and scores one of each
            group for all, as :func:`_grouped` says; "deviation" scores those of largest standard deviation over space,
            and nothing in place of the others. Default: "representatives"

    Returns:
        *Tensor* (N, K), int64, on the activations' device; nothing waits for the device.
    """
    live = spatial_range(activations).flatten(1) > 0
    examples, channels = live.shape
    own = torch.arange(channels, device=live.device).expand(examples, -1)
    if max_channels is None or max_channels >= channels:
        return own.masked_fill(~live, -1)
    if channel_selection == DEVIATION:
        deviation = activations.flatten(2).std(-1).masked_fill(~live, -1)
        kept = torch.zeros_like(live).scatter(1, deviation.topk(max_channels).indices, True)
        return own.masked_fill(~(live & kept), -1)
    at_once = max(MOST_DISTANCES // (channels * max(max_channels, activations[0, 0].numel())), 1)
    parts = zip(torch.split(activations, at_once), torch.split(live, at_once), strict=True)
    grouped = torch.cat([_grouped(some, alive, max_channels) for some, alive in parts])
    every = live.sum(1, keepdim=True) <= max_channels
    return own.where(every, grouped).masked_fill(~live, -1)


def scored_channels(representatives: Tensor) -> Tensor:
    """Which channels have a pass of their own (N, K), bool: those that represent themselves."""
    return representatives == torch.arange(representatives.shape[1], device=representatives.device)


def _grouped(activations: Tensor, live: Tensor, count: int) -> Tensor:
    """Weighted k-means of the masks: the member closest to a group's centre represents those it is nearest to.

    A point is a mask at the layer's resolution, minmax(A_k), and weighs the norm of A_k, by which the channel changes
    the map. The first centre is the heaviest point, each further one the point of largest weight times squared distance
    to the nearest centre; then ten rounds move the centres to the means of their groups. Equal masks are in one group,
    so fewer than ``count`` channels may be scored.
    """
    # Sums are made in float64, and compared in float32: in which order a device adds does not decide.
    values = widened(activations.flatten(2))
    masks = Points(minmax(values))
    weights = torch.linalg.vector_norm(values, dim=2).float() * live
    centres = _seeds(masks, weights.masked_fill(~live, -1), count)
    for _ in range(ROUNDS):
        groups = _one_hot(masks.distances(centres).argmin(2), count) * weights.unsqueeze(2)
        totals = groups.sum(1).unsqueeze(2)
        means = groups.mT.to(values) @ masks.places / totals.where(totals > 0, 1)
        centres = torch.where(totals > 0, means, centres)
    distances = masks.distances(centres)
    outside = (_one_hot(distances.argmin(2), count) == 0) | ~live.unsqueeze(2)
    closest = distances.masked_fill(outside, torch.inf).argmin(1)
    empty = outside.all(1)
    places = masks.places.take_along_dim(closest.unsqueeze(2), 1)
    nearest = masks.distances(places).masked_fill(empty.unsqueeze(1), torch.inf).argmin(2)
    scored = (_one_hot(closest, live.shape[1]) * ~empty.unsqueeze(2)).sum(1) > 0
    # Rounding must not give a representative another one.
    own = torch.arange(live.shape[1], device=live.device)
    return own.where(scored, closest.gather(1, nearest))


def _seeds(points: Points, weights: Tensor, count: int) -> Tensor:
    """The points (N, M, P) that the groups begin with; those of negative weight only where there are no others."""
    far = weights
    nearest: Tensor | None = None
    seeds = []
    for _ in range(count):
        number = far.argmax(1, keepdim=True)
        # None is taken twice.
        weights = weights.scatter(1, number, -torch.inf)
        seeds.append(points.places.take_along_dim(number.unsqueeze(2), 1))
        distances = points.distances(seeds[-1]).squeeze(2)
        nearest = distances if nearest is None else torch.minimum(nearest, distances)
        far = torch.where(weights > 0, weights * nearest, weights)
    return torch.cat(seeds, 1)


def _one_hot(group: Tensor, count: int) -> Tensor:
    """Each point's group (N, K) as 1 among zeros, (N, K, M), float32."""
    zeros = torch.zeros(*group.shape, count, device=group.device)
    return zeros.scatter(2, group.unsqueeze(2), 1)


class Points:
    """Points that distances are asked of.

    Args:
        places (Tensor): (N, K, P).
    """

    def __init__(self, places: Tensor) -> None:
        self.places = places
        self._squares = places.square().sum(2, keepdim=True)

    def distances(self, others: Tensor) -> Tensor:
        """Squared distances (N, K, M), float32, of other points (N, M, P)."""
        squares = others.square().sum(2).unsqueeze(1)
        return (torch.baddbmm(squares, self.places, others.mT, alpha=-2) + self._squares).clamp(min=0).float()
