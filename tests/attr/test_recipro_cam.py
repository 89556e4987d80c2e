from itertools import product

import pytest
import torch
from torch import nn

from captum_unioncam import LayerReciproCam
from captum_unioncam.testing import Traits
from tests.attr.reference import default_confidence, select
from tests.attr.tail_reference import layer_output, output_with
from tests.networks import PooledNet, TinyNet, same, tiny_inputs

POSITIONS = 12  # of the layer of the 2-D network

TRAITS = Traits(uses_gradients=False, masked_passes=lambda _live: POSITIONS)


def reference(forward_func, layer, example, target, gaussian=False):
    activations = layer_output(forward_func, layer, example)
    made = torch.zeros_like(activations[:, :1])
    places = list(product(*map(range, activations.shape[2:])))
    for center in places:
        alone = torch.zeros_like(activations)
        for place in places:
            distances = [abs(one - other) for one, other in zip(center, place, strict=True)]
            weight = 1.0 if max(distances) == 0 else 0.0
            if gaussian and max(distances) <= 1:
                weight = 0.5 ** distances.count(0) * 0.25 ** distances.count(1)
            alone[(0, slice(None), *place)] = weight * activations[(0, slice(None), *center)]
        confidence = default_confidence(output_with(forward_func, layer, example, alone))
        made[(0, 0, *center)] = select(confidence, target)
    return made


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_gaussian_copies_the_centre(ndim):
    net, inputs = TinyNet(ndim, nn.SiLU()), tiny_inputs(ndim)
    attr = LayerReciproCam(net, net.features).attribute(inputs, 2, gaussian=True)
    for i, example in enumerate(inputs.split(1)):
        assert same(attr[i : i + 1], reference(net, net.features, example, 2, gaussian=True))


def test_behind_global_pooling_a_position_is_the_head_of_its_own_values():
    net, inputs = PooledNet(), tiny_inputs()
    attr = LayerReciproCam(net, net.features).attribute(inputs, 1)
    with torch.no_grad():
        values = net.features(inputs)
        logits = net.head[-1](values.flatten(2).transpose(1, 2) / values.shape[2:].numel())
    assert same(attr.flatten(1), logits.softmax(2)[..., 1])


def test_channels_have_equal_shares():
    net, inputs = TinyNet(), tiny_inputs()
    terms = LayerReciproCam(net, net.features).attribute(inputs, 1, attr_dim_summation=False)
    assert same(terms, terms[:, :1].expand(terms.shape))


def test_confidences_are_those_of_the_function_given():
    net, inputs = TinyNet(), tiny_inputs()
    attr = LayerReciproCam(net, net.features, confidence_fn=torch.sigmoid).attribute(inputs, 1)
    alone = torch.zeros_like(net.features(inputs))
    alone[..., 2, 1] = net.features(inputs)[..., 2, 1]
    assert same(attr[:, 0, 2, 1], net.head(alone).sigmoid()[:, 1].detach())
    with pytest.raises(ValueError, match=r"^confidence_fn: got none"):
        LayerReciproCam(nn.Sequential(net, nn.Sigmoid()), net.features).attribute(inputs, 1)
