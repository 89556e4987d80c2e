import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import LayerHiResCam
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient
from tests.networks import PooledNet, TinyNet, same, tiny_inputs

TRAITS = Traits(masked_passes=lambda live: 0)


def reference(forward_func, layer, example, target):
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    total = torch.zeros_like(activations[:, :1])
    for channel in range(activations.shape[1]):
        for position in range(total.numel()):
            gradient, activation = (x[0, channel].flatten()[position] for x in (gradients, activations))
            total.view(-1)[position] += gradient * activation
    return total.clamp(min=0)


def test_in_front_of_one_fully_connected_layer_the_uncut_map_sums_to_the_class_score():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    cam = LayerHiResCam(net, net.features)
    activations = net.features(inputs).detach()
    gradients = net.head[-1].weight[1].reshape(1, *activations.shape[1:]).detach()
    score = net(inputs)[:, 1] - net.head[-1].bias[1]
    assert torch.allclose(cam.terms(activations, gradients).flatten(1).sum(1), score)


def test_is_grad_cam_behind_global_pooling():
    net, inputs = PooledNet(), tiny_inputs()
    expected = LayerGradCam(net, net.features).attribute(inputs, 1, relu_attributions=True)
    assert expected.max() > 0
    assert same(LayerHiResCam(net, net.features).attribute(inputs, 1), expected)
