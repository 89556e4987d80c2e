import pytest
import torch
from torch import nn

from captum_unioncam import LayerGradCamPlusPlus
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient
from tests.networks import TinyNet, tiny_inputs

TRAITS = Traits(masked_passes=lambda live: 0)


def reference(forward_func, layer, example, target, normalize_alpha=False):
    """The authors' code, less exp(y_c): the first form of the coefficients, where a denominator of 0 becomes 1."""
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    total = torch.zeros_like(activations[:, :1])
    for a, g in zip(activations[0], gradients[0], strict=True):
        positive = [value for value in g.flatten().tolist() if value > 0]
        alphas = []
        for value in positive:
            denominator = 2 * value**2 + a.sum().item() * value**3
            alphas.append(value**2 / (denominator if denominator != 0 else 1.0))
        normalizer = sum(alphas) if normalize_alpha and sum(alphas) != 0 else 1.0
        weight = sum(alpha / normalizer * value for alpha, value in zip(alphas, positive, strict=True))
        total[0, 0] += weight * a
    return total.clamp(min=0)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Tanh()])
def test_normalized_coefficients_agree_with_the_reference(activation):
    net, inputs = TinyNet(activation=activation), tiny_inputs()
    made = LayerGradCamPlusPlus(net, net.features).attribute(inputs, 2, normalize_alpha=True)
    plain = LayerGradCamPlusPlus(net, net.features).attribute(inputs, 2)
    assert not torch.allclose(made, plain, rtol=0.1)
    for i, example in enumerate(inputs.split(1)):
        expected = reference(net, net.features, example, 2, normalize_alpha=True)
        assert torch.allclose(made[i : i + 1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e-12, 1e-30])
def test_small_gradients_are_neither_lost_nor_drowned(scale):
    # Where g times the sum of A is small, each coefficient is a half: the map is that of the positive gradients.
    net, inputs = TinyNet().float(), tiny_inputs().float()
    made = LayerGradCamPlusPlus(lambda x: net(x) * scale, net.features).attribute(inputs, 1)
    activations = net.features(inputs).detach()
    weights = net.head[-1].weight[1].detach().reshape(activations.shape[1:]).relu().sum((1, 2)) / 2
    limit = (weights.reshape(1, -1, 1, 1) * activations).sum(1, keepdim=True)
    assert torch.allclose(made / scale, limit, rtol=0.05 if scale == 1e-3 else 1e-5)


def test_a_denominator_of_0_gives_no_weight():
    # g = -2 / sum(A), which signed activations allow.
    cam, activations = LayerGradCamPlusPlus(TinyNet(), nn.Identity()), torch.tensor([[[-1.0, 0.0], [-1.0, 4.0]]])
    assert cam.weights(activations, torch.full((1, 2, 2), 2.0)).tolist() == [[0.0, 0.5]]
