import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import LayerXGradCam
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient
from tests.networks import PooledNet, TinyNet, same, tiny_inputs

TRAITS = Traits(masked_passes=lambda live: 0)


def reference(forward_func, layer, example, target):
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    total = torch.zeros_like(activations[:, :1])
    for a, g in zip(activations[0], gradients[0], strict=True):
        weight = 0.0
        for a_ij, g_ij in zip(a.flatten(), g.flatten(), strict=True):
            weight += g_ij.item() * a_ij.item()
        if a.sum() != 0:
            total[0, 0] += weight / a.sum() * a
    return total.clamp(min=0)


def test_a_channel_that_is_nowhere_active_has_no_weight():
    cam, dead = LayerXGradCam(TinyNet(), nn.Identity()), torch.zeros(1, 1, 2, 2)
    alive = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]])
    weights = cam.weights(torch.cat([dead, alive], 1), torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]]).expand(1, 2, 2, 2))
    assert weights.tolist() == [[0.0, 7 / 4]]


def test_there_is_no_epsilon():
    generator = torch.Generator().manual_seed(0)
    activations, gradients = torch.rand(2, 1, 4, 3, 3, generator=generator, dtype=torch.float64)
    cam = LayerXGradCam(TinyNet(), nn.Identity())
    small = cam.weights(activations * 1e-12, gradients)
    assert torch.allclose(small, cam.weights(activations, gradients), rtol=1e-12, atol=0)


@pytest.mark.parametrize("single", [True, False])
def test_is_grad_cam_where_a_gradient_is_the_same_everywhere(single):
    net, inputs = PooledNet(), tiny_inputs()
    if single:
        # One position, whatever is behind it.
        net.features.append(nn.AdaptiveMaxPool2d(1))
    expected = LayerGradCam(net, net.features).attribute(inputs, 1, relu_attributions=True)
    assert expected.max() > 0
    assert same(LayerXGradCam(net, net.features).attribute(inputs, 1), expected)


def test_is_not_grad_cam_in_front_of_a_fully_connected_layer():
    net, inputs = TinyNet(), tiny_inputs()
    captums = LayerGradCam(net, net.features).attribute(inputs, 1, relu_attributions=True)
    assert not torch.allclose(LayerXGradCam(net, net.features).attribute(inputs, 1), captums, rtol=0.1)
