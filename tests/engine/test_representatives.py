"""Which channels are scored, and which is scored in whose place."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam, LayerUnionCam
from captum_unioncam.engine import representatives as module
from captum_unioncam.engine.representatives import channel_representatives, scored_channels
from captum_unioncam.testing.devices import PretendedDevices
from tests.attr import reference as loops
from tests.networks import CHANNELS, TinyNet, same, tiny_inputs


def distance(one, other):
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def nearest(point, centres):
    return min(range(len(centres)), key=lambda number: distance(point, centres[number]))


def by_loops(activations, count):
    """The representative of each channel of one example (K, *spatial), in Python's own numbers."""
    values = [channel.flatten().tolist() for channel in activations.double()]
    live = [k for k, channel in enumerate(values) if max(channel) > min(channel)]
    if len(live) <= count:
        return [k if k in live else -1 for k in range(len(values))]
    masks = {k: [(v - min(values[k])) / (max(values[k]) - min(values[k])) for v in values[k]] for k in live}
    weights = {k: math.sqrt(sum(v * v for v in values[k])) for k in live}
    seeds = [max(live, key=lambda k: weights[k])]
    while len(seeds) < count:
        others = [k for k in live if k not in seeds]
        seeds.append(max(others, key=lambda k: weights[k] * min(distance(masks[k], masks[s]) for s in seeds)))
    centres = [masks[s] for s in seeds]
    for _ in range(10):
        groups = [[k for k in live if nearest(masks[k], centres) == number] for number in range(count)]
        for number, group in enumerate(groups):
            if group:
                total = sum(weights[k] for k in group)
                centres[number] = [
                    sum(weights[k] * masks[k][place] for k in group) / total for place in range(len(values[0]))
                ]
    groups = [[k for k in live if nearest(masks[k], centres) == number] for number in range(count)]
    chosen = [
        min(group, key=lambda member, centre=centre: distance(masks[member], centre))
        for centre, group in zip(centres, groups, strict=True)
        if group
    ]
    return [chosen[nearest(masks[k], [masks[c] for c in chosen])] if k in live else -1 for k in range(len(values))]


def drawn(examples=3, channels=17, size=(5, 4), seed=0):
    """Activations as behind a ReLU, with a dead channel an example."""
    activations = torch.randn(examples, channels, *size, generator=torch.Generator().manual_seed(seed)).relu()
    for example in range(examples):
        activations[example, 2 * example] = 1.5
    return activations


@pytest.mark.parametrize(
    ("count", "seed", "size"), list(itertools.product([1, 2, 5, 12, 15], range(3), [(6,), (5, 4)]))
)
def test_the_representatives_are_those_of_plain_loops(count, seed, size):
    activations = drawn(size=size, seed=seed)
    made = channel_representatives(activations, count)
    assert made.dtype == torch.int64
    assert made.tolist() == [by_loops(example, count) for example in activations]


def test_each_channel_has_a_scored_one_in_its_place_and_dead_ones_have_none():
    made = channel_representatives(drawn(), 4)
    scored = scored_channels(made)
    assert scored.sum(1).tolist() == [4, 4, 4]
    assert (made == -1).nonzero().tolist() == [[0, 0], [1, 2], [2, 4]]
    assert scored.take_along_dim(made.clamp(min=0), 1).masked_fill(made < 0, True).all()


@pytest.mark.parametrize("count", [16, 17, 40, None])
@pytest.mark.parametrize("selection", ["representatives", "deviation"])
def test_every_live_channel_represents_itself_where_the_passes_are_enough(count, selection):
    activations = drawn()
    own = [[k if k != 2 * example else -1 for k in range(17)] for example in range(3)]
    assert channel_representatives(activations, count, selection).tolist() == own


def test_an_example_has_the_same_ones_in_any_batch(monkeypatch):
    activations = drawn(examples=6, channels=64, size=(7, 7))
    activations[:, 1:20] = (activations[:, 1:20] > 1.5).float()  # many masks as far from each other as others are
    whole = channel_representatives(activations, 9)
    for rows in ([3], [5, 0], [4, 4, 2, 1, 3, 5, 0]):
        assert channel_representatives(activations[rows], 9).equal(whole[rows])
    monkeypatch.setattr(module, "MOST_DISTANCES", 1)
    assert channel_representatives(activations, 9).equal(whole)


def test_equal_masks_are_scored_once():
    activations = drawn(examples=1, channels=4)[:, 1:].repeat(1, 5, 1, 1)
    made = channel_representatives(activations, 7)
    assert len(set(made[0].tolist())) == 3
    assert made.reshape(5, 3).unique(dim=0).shape[0] == 1


def test_the_order_of_channels_and_the_scale_of_activations_do_not_matter():
    activations = drawn()
    order = list(range(17))
    random.Random(0).shuffle(order)
    made = channel_representatives(activations, 5)
    permuted = channel_representatives(activations[:, order], 5)
    back = [[order[k] if k >= 0 else -1 for k in example] for example in permuted.tolist()]
    assert back == made[:, order].tolist()
    assert channel_representatives(activations * 2.0**-20, 5).equal(made)


def test_no_host_waits_for_the_device():
    asked = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                asked.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        channel_representatives(drawn(), 4)
    assert asked == []


def test_the_largest_deviations_are_kept_on_request():
    activations = torch.zeros(2, 4, 3)
    activations[0, :, 0] = torch.tensor([1.0, 3.0, 0.0, 2.0])
    activations[1, :, 1] = torch.tensor([0.0, 0.0, 5.0, 0.0])
    assert channel_representatives(activations).tolist() == [[0, 1, -1, 3], [-1, -1, 2, -1]]
    assert channel_representatives(activations, 2, "deviation").tolist() == [[-1, 1, -1, 3], [-1, -1, 2, -1]]


@pytest.mark.parametrize("channel_weights", ["score", "softmax"])
def test_each_channel_is_weighted_by_the_score_of_its_representative(channel_weights):
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    terms = LayerScoreCam(net, net.features).attribute(
        inputs, 2, channel_weights=channel_weights, max_channels=2, attr_dim_summation=False
    )
    for i, example in enumerate(inputs.split(1)):
        activations = net.features(example)[0].detach()
        chosen = by_loops(activations, 2)
        scores = loops.union_cam(net, net.features, example, 2, channel_weights=channel_weights).channel_scores[chosen]
        weights = scores.softmax(0) if channel_weights == "softmax" else scores
        expected = weights.reshape(-1, 1, 1) * activations
        expected = expected * (expected.sum(0) > 0)
        assert torch.allclose(terms[i], expected, rtol=0, atol=1e-9)


def test_details_say_who_was_scored_and_in_whose_place():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    method = LayerUnionCam(net, net.features)
    _, details = method.attribute(inputs, 1, max_channels=2, return_details=True)
    expected = [by_loops(net.features(example)[0].detach(), 2) for example in inputs.split(1)]
    assert details.representatives.tolist() == expected
    assert details.forward_passes.tolist() == [2 + 4] * 3
    assert (details.channel_scores != 0).equal(scored_channels(details.representatives))
    full, every = method.attribute(inputs, 1, return_details=True)
    assert every.representatives.tolist() == [list(range(CHANNELS))] * 3
    assert method.attribute(inputs, 1, max_channels=CHANNELS).equal(full)


def test_several_targets_share_the_passes_of_the_representatives():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    method, targets = LayerUnionCam(net, net.features), [[0, 1], [2, 3], [1, 0]]
    several = method.attribute_targets(inputs, targets, max_channels=3)
    for t in range(2):
        assert same(several[:, t], method.attribute(inputs, [each[t] for each in targets], max_channels=3))


@pytest.mark.parametrize("value", ["range", None, 3, ["deviation"]])
@pytest.mark.parametrize("method", [LayerScoreCam, LayerUnionCam])
def test_an_unknown_selection_is_refused_by_name(method, value):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^channel_selection: got .*'representatives', 'deviation'"):
        method(net, net.features).attribute(tiny_inputs(), 0, channel_selection=value)


def test_all_is_made_where_the_activations_are():
    devices = PretendedDevices()
    activations = devices.put(drawn(), "cuda:0")
    with devices.active():
        made = channel_representatives(activations, 4)
        assert made.device.type == "cuda"
    assert torch.equal(made, channel_representatives(drawn(), 4))
