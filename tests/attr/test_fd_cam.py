import math

import numpy as np
import pytest
import torch
from torch import nn

from captum_unioncam import LayerFDCam
from captum_unioncam.testing import Traits
from captum_unioncam.testing.networks import WithChannels
from tests.attr.reference import activation_and_gradient, select
from tests.attr.tail_reference import output_with
from tests.networks import CHANNELS, TinyNet, same, tiny_inputs

# More channels have other quantiles, and one that is dead has a score.
TRAITS = Traits(masked_passes=lambda _live: 2 * CHANNELS + 1, without=("constant_channels", "pass_counts"))


def scaled(values):
    least, most = min(values), max(values)
    return [(value - least) / (most - least) if most > least else 0.0 for value in values]


def reference(forward_func, layer, example, target, quantile=0.95):
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    channels = activations.shape[1]

    def output(kept):
        replaced = torch.zeros_like(activations)
        for k in kept:
            replaced[0, k] = activations[0, k]
        return select(output_with(forward_func, layer, example, replaced), target).item()

    scores = []
    for k in range(channels):
        similarities = []
        for j in range(channels):
            one, other = activations[0, k].flatten(), activations[0, j].flatten()
            lengths = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
            similarities.append(float(one @ other) / lengths if lengths > 0 else 0.0)
        least = float(np.quantile(similarities, quantile))
        group = [j for j in range(channels) if similarities[j] > least]
        others = [j for j in range(channels) if j not in group]
        scores.append(output(group) + output(range(channels)) - output(others))
    gains = scaled([float(gradients[0, k].mean()) for k in range(channels)])
    total = torch.zeros_like(activations[:, :1])
    for k, (score, gain) in enumerate(zip(scaled(scores), gains, strict=True)):
        total[0, 0] += (math.exp(score) * gain - 0.5) * activations[0, k]
    return total.clamp(min=0)


@pytest.mark.parametrize("quantile", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("constants", [(), (0.0, 3.7)])
def test_groups_are_those_of_the_loop(quantile, constants):
    net, inputs = WithChannels(TinyNet(activation=nn.SiLU()), list(range(CHANNELS)), constants), tiny_inputs()
    attr, details = LayerFDCam(net, net.features).attribute(inputs, 2, quantile=quantile, return_details=True)
    assert details.forward_passes.tolist() == [2 * (CHANNELS + len(constants)) + 1] * 3
    assert details.tail_alone.all()
    for i, example in enumerate(inputs.split(1)):
        assert same(attr[i : i + 1], reference(net, net.features, example, 2, quantile=quantile))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", None])
def test_bad_quantiles_are_refused_by_name(value):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^quantile: got"):
        LayerFDCam(net, net.features).attribute(tiny_inputs(), 0, quantile=value)
