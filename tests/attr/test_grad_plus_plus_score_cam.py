import pytest
import torch
from torch import nn

from captum_unioncam import LayerGradPlusPlusScoreCam
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient, blend, default_confidence, is_constant, mask_of, select
from tests.networks import PooledNet, TinyNet, counting, tiny_inputs

TRAITS = Traits()


def weight_of(activation, gradient, normalize_alpha):
    """Grad-CAM++'s of one channel (*spatial), position by position."""
    total, alphas = activation.sum().item(), []
    for g in gradient.flatten().tolist():
        alphas.append(1 / (2 + g * total) if g > 0 else 0.0)
    norm = sum(alphas) if normalize_alpha and sum(alphas) != 0 else 1.0
    return sum(alpha / norm * max(g, 0) for alpha, g in zip(alphas, gradient.flatten().tolist(), strict=True))


def reference(forward_func, layer, example, target, normalize_alpha=False):
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    total = torch.zeros_like(activations[:, :1])
    for k in range(activations.shape[1]):
        channel = activations[:, k : k + 1]
        weight = weight_of(activations[0, k], gradients[0, k], normalize_alpha)
        if is_constant(channel) or weight == 0:
            continue
        shown = blend(mask_of(channel, example.shape[2:]), example, torch.zeros_like(example))
        with torch.no_grad():
            score = select(default_confidence(forward_func(shown)), target)
        total += weight * score * channel
    return total.clamp(min=0)


@pytest.mark.parametrize("normalize_alpha", [False, True])
def test_arguments_agree_with_the_reference(normalize_alpha):
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    attr = LayerGradPlusPlusScoreCam(net, net.features).attribute(inputs, 2, normalize_alpha=normalize_alpha)
    for i in range(3):
        expected = reference(net, net.features, inputs[i : i + 1], 2, normalize_alpha)
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("rows_tried")
def test_channels_without_positive_gradients_cost_no_pass():
    # Behind global average pooling, the gradient of a channel is its weight in the head.
    net, inputs = PooledNet(), tiny_inputs()
    forward, rows = counting(net)
    positive = (net.head[2].weight[2] > 0).tolist()
    varies = (net.features(inputs).flatten(2).std(2) > 0).tolist()
    expected = sum(p and v for of_example in varies for p, v in zip(positive, of_example, strict=True))
    assert 0 < sum(positive) < len(positive)
    LayerGradPlusPlusScoreCam(forward, net.features).attribute(inputs, 2)
    assert sum(rows) == 3 + expected


def test_wrong_arguments_are_named():
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^max_channels: "):
        LayerGradPlusPlusScoreCam(net, net.features).attribute(tiny_inputs(), 0, max_channels=0)
