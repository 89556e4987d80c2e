import math

import pytest
import torch
from torch import nn

from captum_unioncam import LayerAblationCam, LayerAblationCamPlusPlus
from captum_unioncam.testing import Traits
from captum_unioncam.testing.networks import WithChannels
from tests.attr.reference import select
from tests.attr.tail_reference import layer_output, output_with
from tests.networks import CHANNELS, TinyNet, same, tiny_inputs

# Of more than two groups, the few channels of a tiny network would each have their own; and a further one has others.
TRAITS = Traits(uses_gradients=False, arguments={"groups": 2}, without=("constant_channels",))


def squared_distance(one, other):
    return round(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)), 9)


def mean_of(vectors):
    return [sum(values) / len(vectors) for values in zip(*vectors, strict=True)]


def first_of_largest(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def first_of_smallest(values):
    return min(range(len(values)), key=lambda i: (values[i], i))


def k_means(vectors, count):
    """The cluster of each of a list of vectors, which are lists."""
    mean = mean_of(vectors)
    centres = [vectors[first_of_largest([squared_distance(v, mean) for v in vectors])]]
    while len(centres) < count:
        far = [min(squared_distance(v, centre) for centre in centres) for v in vectors]
        centres.append(vectors[first_of_largest(far)])
    clusters = []
    for _ in range(10):
        clusters = [first_of_smallest([squared_distance(v, centre) for centre in centres]) for v in vectors]
        for c in range(count):
            members = [v for v, cluster in zip(vectors, clusters, strict=True) if cluster == c]
            if members:
                centres[c] = mean_of(members)
    return clusters


def halves(channels, vectors):
    sides = k_means([vectors[k] for k in channels], 2)
    first, second = ([k for k, side in zip(channels, sides, strict=True) if side == i] for i in (0, 1))
    middle = math.ceil(len(channels) / 2)
    return (first, second) if first and second else (channels[:middle], channels[middle:])


def reference_weights(forward_func, layer, example, target, groups=32, tau=0.05):
    """The weights of a batch of one, and how many rows were run for them."""
    activations = layer_output(forward_func, layer, example)
    rows = []

    def drop(channels):
        ablated = activations.clone()
        for k in channels:
            ablated[0, k] = 0
        rows.append(channels)
        return output - select(output_with(forward_func, layer, example, ablated), target).item()

    output = 0.0
    output = -drop([])
    vectors = {}
    for k, channel in enumerate(activations[0]):
        values = [float(value) for value in channel.flatten()]
        if any(values):
            norm = math.sqrt(sum(value**2 for value in values))
            vectors[k] = [value / norm for value in values]
    weights = [0.0] * activations.shape[1]
    live = list(vectors)
    if live:
        count = min(groups, len(live))
        clusters = k_means([vectors[k] for k in live], count)
        roots = [[k for k, cluster in zip(live, clusters, strict=True) if cluster == c] for c in range(count)]
        nodes = [(root, drop(root)) for root in roots if root]
        limit = tau * max(d for _, d in nodes)
        while nodes:
            node, d = nodes.pop()
            if len(node) == 1 or d <= limit:
                for k in node:
                    weights[k] = d / len(node)
            else:
                nodes += [(half, drop(half)) for half in halves(node, vectors)]
    return weights, len(rows)


def reference(forward_func, layer, example, target, groups=32, tau=0.05):
    activations = layer_output(forward_func, layer, example)
    weights, _ = reference_weights(forward_func, layer, example, target, groups, tau)
    total = torch.zeros_like(activations[:, :1])
    for k, weight in enumerate(weights):
        total[0, 0] += weight * activations[0, k]
    return total.clamp(min=0)


class WideNet(nn.Module):
    """More channels, some alike and one 0 everywhere, and a head in which they act together."""

    def __init__(self, channels=18, seed=0, copied=None, hidden=True):
        super().__init__()
        torch.manual_seed(seed)
        convolution = nn.Conv2d(2, channels, 3, padding=1, stride=2)
        copies = nn.Identity() if copied is None else Copies(copied)
        positions = 12 * (channels if copied is None else len(copied))
        self.features = nn.Sequential(convolution, nn.ReLU(), copies)
        layers = [nn.Linear(positions, 16), nn.Tanh(), nn.Linear(16, 4)] if hidden else [nn.Linear(positions, 4)]
        self.head = nn.Sequential(nn.Flatten(), *layers)
        with torch.no_grad():
            half = channels // 2
            convolution.weight[-half:] = convolution.weight[:half] + 0.1 * convolution.weight[-half:]
            convolution.bias[1] = -100
        self.double().eval()

    def forward(self, x):
        return self.head(self.features(x))


class Copies(nn.Module):
    """Multiples of the channels numbered ``order``, which may name one several times."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        gains = torch.tensor([0.1 * k + 0.3 for k in range(len(self.order))], dtype=x.dtype)
        return x[:, self.order] * gains.reshape(-1, 1, 1)


def all_drops_positive(**settings):
    """A network whose output every channel that is not 0 adds to."""
    net = WideNet(hidden=False, **settings)
    with torch.no_grad():
        net.head[1].weight.abs_()
    return net


COPIED = [0, 2, 3, 0, 2, 3, 3, 2, 2]


@pytest.mark.parametrize("tau", [0, 0.05, 0.3])
@pytest.mark.parametrize("groups", [1, 2, 5, 32])
@pytest.mark.parametrize("copied", [None, COPIED])
@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_the_loop_in_maps_and_rows(seed, copied, groups, tau):
    net, inputs, targets = WideNet(seed=seed, copied=copied), tiny_inputs(seed=seed), [0, 2, 3]
    settings = {"groups": groups, "tau": tau}
    ablation_cam = LayerAblationCamPlusPlus(net, net.features)
    attr, details = ablation_cam.attribute(inputs, targets, return_details=True, **settings)
    assert details.tail_alone.all()
    for i, (example, target) in enumerate(zip(inputs.split(1), targets, strict=True)):
        assert same(attr[i : i + 1], reference(net, net.features, example, target, **settings))
        _, rows = reference_weights(net, net.features, example, target, **settings)
        assert details.forward_passes[i] == rows


def test_without_pruning_the_weights_are_those_of_ablation_cam():
    net, inputs = all_drops_positive(), tiny_inputs()
    expected = LayerAblationCam(net, net.features).attribute(inputs, 1, attr_dim_summation=False)
    live = (net.features(inputs).flatten(2) > 0).any(2).sum(1)
    assert (live < 18).all()
    for groups in (1, 3, 5):
        terms, details = LayerAblationCamPlusPlus(net, net.features).attribute(
            inputs, 1, attr_dim_summation=False, groups=groups, tau=0, return_details=True
        )
        assert same(terms, expected)
        # Trees of so many leaves have 2 K - G nodes; one more row has all channels.
        assert details.forward_passes.tolist() == (2 * live - groups + 1).tolist()


@pytest.mark.parametrize("tau", [0, 0.05, 1])
@pytest.mark.parametrize("seed", range(3))
def test_as_many_groups_as_channels_are_ablation_cam(seed, tau):
    net, inputs = WideNet(seed=seed), tiny_inputs()
    expected, passes = LayerAblationCam(net, net.features).attribute(inputs, 2, return_details=True)
    attr, details = LayerAblationCamPlusPlus(net, net.features).attribute(inputs, 2, tau=tau, return_details=True)
    assert same(attr, expected)
    assert details.forward_passes.tolist() == passes.forward_passes.tolist()


def test_pruning_saves_rows():
    net, inputs = WideNet(channels=64), tiny_inputs()
    rows = []
    for tau in (0, 0.05, 0.3, 1):
        _, details = LayerAblationCamPlusPlus(net, net.features).attribute(
            inputs, 2, groups=8, tau=tau, return_details=True
        )
        rows.append(details.forward_passes)
    assert (rows[0] < 2 * 64 + 1).all()
    for less, more in zip(rows[1:], rows, strict=False):
        assert (less <= more).all()
        assert (less < more).any()
    assert rows[-1].tolist() == [8 + 1] * 3


def test_the_largest_tau_shares_the_drop_of_each_group():
    net, inputs = WideNet(copied=COPIED), tiny_inputs()
    terms = LayerAblationCamPlusPlus(net, net.features).attribute(
        inputs, 1, attr_dim_summation=False, groups=3, tau=1, relu_attributions=False
    )
    for i, example in enumerate(inputs.split(1)):
        activations = layer_output(net, net.features, example)
        expected = torch.zeros_like(activations)
        for channel in set(COPIED):
            group = [k for k, copied in enumerate(COPIED) if copied == channel]
            ablated = activations.clone()
            ablated[0, group] = 0
            drop = net(example)[0, 1] - output_with(net, net.features, example, ablated)[0, 1]
            expected[0, group] = drop / len(group) * activations[0, group]
        assert same(terms[i : i + 1], expected * (expected.sum(1, keepdim=True) > 0))
    assert terms.any()


def test_dead_channels_are_in_no_group():
    net, inputs = TinyNet(), tiny_inputs()
    widened = WithChannels(net, list(range(CHANNELS)), (0.0, 0.0))
    for settings in ({"groups": 2}, {"groups": 3, "tau": 1}, {}):
        (attr, details), (terms, of_widened) = (
            LayerAblationCamPlusPlus(of, of.features).attribute(
                inputs, 1, attr_dim_summation=False, return_details=True, **settings
            )
            for of in (net, widened)
        )
        assert same(terms[:, :CHANNELS], attr)
        assert not terms[:, CHANNELS:].any()
        assert details.forward_passes.tolist() == of_widened.forward_passes.tolist()


def test_a_layer_without_live_channels_takes_one_row():
    net = TinyNet(activation=Copies([0, 0]))
    net.features[2].weight.data.zero_()
    net.features[2].bias.data.zero_()
    net.head[2] = nn.Linear(2 * 12, 4).double()
    attr, details = LayerAblationCamPlusPlus(net, net.features).attribute(tiny_inputs(), 1, return_details=True)
    assert not attr.any()
    assert details.forward_passes.tolist() == [1] * 3


def test_examples_do_not_depend_on_their_batch():
    net, inputs = WideNet(channels=30), tiny_inputs(examples=6)
    targets, ablation_cam = [0, 1, 2, 3, 1, 0], LayerAblationCamPlusPlus(net, net.features)
    attr, details = ablation_cam.attribute(inputs, targets, groups=4, return_details=True)
    assert len(set(details.forward_passes.tolist())) > 1
    for rows in ([0], [3], [5, 1], [4, 2, 0]):
        some, of_some = ablation_cam.attribute(
            inputs[rows], [targets[i] for i in rows], groups=4, return_details=True, internal_batch_size=7
        )
        assert same(some, attr[rows])
        assert of_some.forward_passes.tolist() == details.forward_passes[rows].tolist()


@pytest.mark.usefixtures("rows_tried")
def test_targets_share_the_rows_of_the_groups():
    net, inputs, rows = WideNet(), tiny_inputs(), []
    net.head.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    ablation_cam = LayerAblationCamPlusPlus(lambda x: net(x), net.features)
    targets, alone = [[0, 2, 3], [1, 1, 2], [3, 0, 1]], []
    for t in range(3):
        alone.append(ablation_cam.attribute(inputs, [row[t] for row in targets], groups=3))
    apart = sum(rows)
    rows.clear()
    attr = ablation_cam.attribute_targets(inputs, targets, groups=3)
    assert same(attr, torch.stack(alone, 1))
    # Two calls less, each of the examples, and for each of them the groups' rows and one with all channels.
    assert sum(rows) == apart - 2 * 3 * (1 + 3 + 1)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None])
def test_bad_groups_are_refused_by_name(value):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^groups: got"):
        LayerAblationCamPlusPlus(net, net.features).attribute(tiny_inputs(), 0, groups=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.05", None])
def test_bad_limits_are_refused_by_name(value):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^tau: got"):
        LayerAblationCamPlusPlus(net, net.features).attribute(tiny_inputs(), 0, tau=value)
