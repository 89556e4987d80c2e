"""After Ablation-CAM++: groups of similar channels ablated, and split where the output loses much without them."""

import torch
from torch import Tensor

from captum_unioncam.attr.base import LayerT, TailCam
from captum_unioncam.engine.accelerators import widened
from captum_unioncam.engine.checks import check_count, check_number
from captum_unioncam.engine.maps import broadcast_over, divide_unless_zero
from captum_unioncam.engine.tail import Replace, TailPasses

ROUNDS = 10
DECIMALS = 9
"""Squared distances of unit vectors are compared to so many: rounding, which differs between devices, does not choose
between equal channels."""


class LayerAblationCamPlusPlus(TailCam[LayerT]):
    r"""
    After Ablation-CAM++: a cheaper Ablation-CAM that removes groups of similar channels together.

    The channels of the layer's output :math:`A` are clustered into groups. Each group is the root of a binary tree: a
    node :math:`S`, a set of channels, has two parts of :math:`S` as its children. With :math:`y_c(A)` the target's
    output of the part of the model behind the layer, and :math:`A^{(S)}` equal to :math:`A` with the channels of
    :math:`S` set to 0,

    .. math::
        d(S) = y_c(A) - y_c(A^{(S)}), \qquad
        w_k = \frac{d(S)}{|S|} \text{ for } k \in S, \qquad
        L = \text{ReLU}\Big(\sum_k w_k A_k\Big)

    where :math:`S` is the first node below the group of :math:`k` that has a single channel, or for which
    :math:`d(S) \le \tau \max_G d(G)`, the maximum over the groups. Nodes below it are not evaluated.

    It follows the abstract of Ablation-CAM++ (Salama, Adly and Torki, ICIP 2022,
    https://doi.org/10.1109/ICIP46576.2022.9897617); the paper itself was not available, and no code is known. The
    abstract describes the clustering of activation maps into groups, a binary tree for each group, the ablation of its
    parts, pruning, and less than half of Ablation-CAM's time. The rest is this package's choice: what is clustered and
    how, ``groups``, the limit for pruning and ``tau``, and how the channels of a node share its drop. Do not compare
    the results with the paper's.

    Groups are clustered, and nodes split in two, by k-means of the flattened :math:`A_k` divided by their norms. It
    draws no random numbers: the first centre is the vector farthest from the mean, each further one the vector farthest
    from the centres so far; then vectors go to their nearest centre, and centres to the mean of their vectors, for at
    most 10 rounds. If distances are equal to 9 decimals, the first counts. Equal vectors are split in their order. A
    channel that is 0 everywhere is in no group and has weight 0.

    Use it for layers with many channels, if Ablation-CAM takes too long. With :math:`G` groups, it needs 1 pass of the
    model and from :math:`G + 1` to :math:`2 K - G + 1` passes of the part behind the layer, fewer for a larger ``tau``;
    :math:`G + 1` of them serve all targets. A removed channel is 0, as after a ReLU.
    """

    name = "ablation_cam_plus_plus"
    relu = True

    def check(self, groups: int, tau: float) -> None:
        check_count("groups", groups)
        check_number("tau", tau, 0, 1, "a number from 0 to 1, the share of the largest group's drop at which to stop")

    def weights(self, activations: Tensor, tail: TailPasses, *, groups: int = 32, tau: float = 0.05) -> Tensor:
        r"""
        Args:
            groups (int): Number of groups of channels, at least 1; at most one per channel. Default: 32
            tau (float): :math:`\tau`, in [0, 1]: a node whose drop is at most this share of the largest group's is not
                split. With 1, no group is split; with 0, every node with a positive drop is split. Default: 0.05

        Raises:
            ValueError: ``groups`` below 1, a ``tau`` outside [0, 1].

        Examples::

            >>> ablation_cam = LayerAblationCamPlusPlus(model, model.features[28])
            >>> attr = ablation_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        vectors = unit_vectors(activations)
        nodes = channel_groups(vectors, groups)
        sizes = node_sizes(nodes, min(groups, nodes.shape[1]))
        whole = torch.ones_like(sizes[:, :1])
        scored = torch.cat([sizes, whole], 1) > 0
        scores = tail.scores(activations, "groups", without_nodes(nodes), scored, raw=True)
        output, drops = scores[:, -1:], scores[:, -1:] - scores[:, :-1]
        limit = tau * drops.masked_fill(sizes == 0, -torch.inf).amax(1, keepdim=True)
        weights = torch.zeros_like(activations.flatten(2)[..., 0])
        while True:
            stopped = (sizes == 1) | (drops <= limit)
            ended = (nodes >= 0) & stopped.gather(1, nodes.clamp(min=0))
            shares = (drops / sizes.clamp(min=1)).gather(1, nodes.clamp(min=0))
            weights = torch.where(ended, shares, weights)
            nodes = nodes.masked_fill(ended, -1)
            if not (nodes >= 0).any():
                return weights
            nodes = split_nodes(vectors, nodes)
            sizes = node_sizes(nodes, int(nodes.amax()) + 1)
            drops = output - tail.own_scores(activations, without_nodes(nodes), sizes > 0, raw=True)


def unit_vectors(activations: Tensor) -> Tensor:
    """Each channel's activations over their norm, (N, K, P); 0 where it is 0 everywhere."""
    wide = widened(activations).flatten(2)
    # Squares of small numbers would be 0.
    scaled = divide_unless_zero(wide, wide.abs().amax(2, keepdim=True))
    return divide_unless_zero(scaled, torch.linalg.vector_norm(scaled, dim=2, keepdim=True))


def channel_groups(vectors: Tensor, count: int) -> Tensor:
    """The number of each channel's group (N, K), int64, from 0 to at most ``count`` - 1; -1 for vectors that are 0."""
    live = vectors.any(2)
    groups = torch.full(live.shape, -1, device=live.device)
    for own, alive, numbers in zip(vectors, live, groups, strict=True):
        some = own[alive]
        if len(some):
            one = torch.zeros(len(some), dtype=torch.int64, device=some.device)
            numbers[alive] = clusters(some, one, min(count, len(some)))
    return groups


def node_sizes(nodes: Tensor, count: int) -> Tensor:
    """How many channels are in each of ``count`` nodes, (N, count), given the node of each channel, or -1, (N, K)."""
    sizes = torch.zeros((len(nodes), count + 1), dtype=torch.int64, device=nodes.device)
    return sizes.scatter_add(1, nodes + 1, torch.ones_like(nodes))[:, 1:]


def without_nodes(nodes: Tensor) -> Replace:
    """Sets the channels of a row's node to 0, given the node of each channel (N, K)."""

    def replaced(rows: Tensor, examples: Tensor, numbers: Tensor) -> Tensor:
        absent = nodes.to(rows.device)[examples] == numbers.unsqueeze(1)
        return rows.masked_fill(broadcast_over(absent, rows), 0)

    return replaced


def split_nodes(vectors: Tensor, nodes: Tensor) -> Tensor:
    """The nodes' children: the new node of each channel (N, K), numbered anew in each example; -1 where it was in none.

    Args:
        vectors (Tensor): (N, K, P).
        nodes (Tensor): The node of each channel, of two and more, or -1; (N, K), int64.
    """
    examples, channels = (nodes >= 0).nonzero(as_tuple=True)
    own = nodes[examples, channels]
    sizes = node_sizes(nodes, int(nodes.amax()) + 1)
    present = sizes > 0
    # The nodes of all examples are one list.
    parts = (present.flatten().cumsum(0).reshape(present.shape) - 1)[examples, own]
    sizes = sizes[present]
    sides = clusters(vectors[examples, channels], parts, 2)
    seconds = torch.zeros_like(sizes).index_add(0, parts, sides)
    of_equals = (seconds == 0)[parts]
    sides = torch.where(of_equals, (2 * _places(parts, sizes) >= sizes[parts]).long(), sides)
    children = 2 * (present.cumsum(1) - 1)[examples, own] + sides
    return torch.full_like(nodes, -1).index_put((examples, channels), children)


def _places(parts: Tensor, sizes: Tensor) -> Tensor:
    """The place of each row among those of its part, (L,)."""
    order = parts.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    places = torch.arange(len(parts), device=parts.device) - starts[parts[order]]
    return torch.empty_like(places).scatter(0, order, places)


def clusters(vectors: Tensor, parts: Tensor, count: int) -> Tensor:
    """The cluster of each vector, by k-means within each part; as the class says.

    Args:
        vectors (Tensor): Of norm 1, (L, P).
        parts (Tensor): The part of each vector, (L,), int64: numbers from 0, each with ``count`` vectors or more.
        count (int): Clusters of a part.

    Returns:
        *Tensor* (L,), int64, from 0 to ``count`` - 1.
    """
    sizes = parts.bincount()
    everything = torch.zeros_like(vectors[: len(sizes)]).index_add(0, parts, vectors)
    centres = _seeds(vectors, parts, everything / sizes.unsqueeze(1), count)
    nearest = _distances(vectors, parts, centres).argmin(1)
    for _ in range(ROUNDS - 1):
        places = parts * count + nearest
        members = places.bincount(minlength=len(sizes) * count).unsqueeze(1)
        sums = torch.zeros_like(centres.flatten(0, 1)).index_add(0, places, vectors)
        centres = torch.where(members > 0, sums / members.clamp(min=1), centres.flatten(0, 1)).reshape(centres.shape)
        before, nearest = nearest, _distances(vectors, parts, centres).argmin(1)
        if torch.equal(before, nearest):
            break
    return nearest


def _seeds(vectors: Tensor, parts: Tensor, means: Tensor, count: int) -> Tensor:
    """The centres (M, count, P) that the clusters begin with, given the parts' means (M, P)."""
    far = _distances(vectors, parts, means.unsqueeze(1)).squeeze(1)
    numbers = torch.arange(len(vectors), device=vectors.device)
    nearest = torch.full_like(far, torch.inf)
    seeds: list[Tensor] = []
    for _ in range(count):
        farthest = torch.full_like(means[:, 0], -1).scatter_reduce(0, parts, far, "amax")[parts]
        first = numbers.masked_fill(far < farthest, len(vectors))
        chosen = torch.full_like(parts[: len(means)], len(vectors)).scatter_reduce(0, parts, first, "amin")
        seeds.append(vectors[chosen])
        far = nearest = torch.minimum(nearest, _distances(vectors, parts, seeds[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(seeds, 1)


def _distances(vectors: Tensor, parts: Tensor, centres: Tensor) -> Tensor:
    """Rounded squared distances (L, C) of each vector from its part's centres (M, C, P)."""
    if len(centres) == 1:
        products = vectors @ centres[0].mT
    else:
        products = torch.stack([(vectors * of_parts[parts]).sum(1) for of_parts in centres.unbind(1)], 1)
    return (1 + centres.square().sum(2)[parts] - 2 * products).round(decimals=DECIMALS)
