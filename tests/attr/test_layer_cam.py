import torch
from torch import nn

from captum_unioncam import LayerLayerCam
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient
from tests.networks import TinyNet, same, tiny_inputs

TRAITS = Traits(masked_passes=lambda live: 0)


def reference(forward_func, layer, example, target):
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    total = torch.zeros_like(activations[:, :1])
    for a, g in zip(activations[0], gradients[0], strict=True):
        for position in range(a.numel()):
            if g.flatten()[position] > 0:
                total.view(-1)[position] += g.flatten()[position] * a.flatten()[position]
    return total.clamp(min=0)


def test_where_activations_are_not_negative_the_sum_needs_no_relu():
    net, inputs = TinyNet(activation=nn.ReLU()), tiny_inputs()
    cam = LayerLayerCam(net, net.features)
    terms = cam.attribute(inputs, 1, attr_dim_summation=False)
    assert (terms >= 0).all()
    assert same(cam.attribute(inputs, 1), terms.sum(1, keepdim=True))


def test_where_the_sum_is_negative_the_map_is_0():
    net, inputs = TinyNet(activation=nn.Tanh()), tiny_inputs()
    cam = LayerLayerCam(net, net.features)
    activations = net.features(inputs).detach()
    gradients = net.head[-1].weight[1].reshape(1, *activations.shape[1:]).detach()
    total = cam.terms(activations, gradients).sum(1, keepdim=True)
    assert (total < 0).any()
    assert same(cam.attribute(inputs, 1), total.clamp(min=0))
