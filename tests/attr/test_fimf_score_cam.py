import pytest
import torch
from torch import nn

from captum_unioncam import LayerFimfScoreCam
from captum_unioncam.testing import Traits
from tests.attr.reference import default_confidence, is_constant, minmax, select
from tests.attr.tail_reference import layer_output, output_with
from tests.networks import TinyNet, same, tiny_inputs

TRAITS = Traits(uses_gradients=False)


def reference(forward_func, layer, example, target, channel_weights="softmax"):
    activations = layer_output(forward_func, layer, example)
    scores = {}
    for k in range(activations.shape[1]):
        template = activations[:, k : k + 1].clamp(min=0)
        if not is_constant(template):
            output = output_with(forward_func, layer, example, activations * minmax(template))
            output = output if channel_weights == "softmax" else default_confidence(output)
            scores[k] = select(output, target)
    total = torch.zeros_like(activations[:, :1])
    for k, score in scores.items():
        others = sum((other - score).exp() for other in scores.values())
        weight = 1 / others if channel_weights == "softmax" else score
        total[0, 0] += weight * activations[0, k].clamp(min=0)
    return total.clamp(min=0)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_weights_by_confidence(activation):
    net, inputs = TinyNet(activation=activation), tiny_inputs()
    attr = LayerFimfScoreCam(net, net.features).attribute(inputs, 2, channel_weights="score")
    for i, example in enumerate(inputs.split(1)):
        assert same(attr[i : i + 1], reference(net, net.features, example, 2, channel_weights="score"))


def test_a_channel_that_is_nowhere_positive_costs_no_pass():
    class Signed(nn.Module):
        def forward(self, x):
            return torch.cat([-x[:, :1].abs() - 0.1, x[:, 1:]], 1)

    net = TinyNet(activation=Signed())
    attr, details = LayerFimfScoreCam(net, net.features).attribute(tiny_inputs(), 2, return_details=True)
    positive = (net.features(tiny_inputs()).flatten(2) > 0).any(2).sum(1)
    assert details.forward_passes.tolist() == positive.tolist()
    assert (positive < 5).all()
    assert attr.any()


@pytest.mark.parametrize("value", ["mean", None, 3])
def test_unknown_weights_are_refused_by_name(value):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^channel_weights: got"):
        LayerFimfScoreCam(net, net.features).attribute(tiny_inputs(), 0, channel_weights=value)
