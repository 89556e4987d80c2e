import numpy as np
import pytest
import torch

from captum_unioncam import LayerDenoisedGradCam
from captum_unioncam.attr.denoised_grad_cam import (
    denoised_gradients,
    denoised_terms,
    gradient_percentile,
    gradient_weights,
)
from captum_unioncam.testing import Traits
from tests.attr import reference as loops
from tests.networks import CHANNELS, PooledNet, TinyNet, tiny_inputs

THETAS = [0.0, 7.0, 10.0, 33.3, 50.0, 90.0, 100.0]
TRAITS = Traits(masked_passes=lambda live: 0)


def reference(forward_func, layer, example, target, **arguments):
    return loops.union_cam(forward_func, layer, example, target, **arguments).denoised


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("shape", [(2, 3, 11), (2, 3, 7, 7), (1, 2, 3, 4, 5), (1, 1, 1, 1)])
def test_percentile_is_numpys(shape, theta):
    gradients = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.percentile(gradients.flatten(2).numpy(), theta, axis=-1)
    percentile = gradient_percentile(gradients, theta)
    assert percentile.shape == shape[:2] + (1,) * (len(shape) - 2)
    assert np.allclose(percentile.numpy().reshape(shape[:2]), expected, rtol=0, atol=1e-14)


def test_gradients_below_the_percentile_are_removed_and_those_at_it_kept():
    gradients = torch.tensor([[[4.0, -2.0, 1.0, 3.0, 2.0]]])
    assert torch.equal(denoised_gradients(gradients, 50.0), torch.tensor([[[4.0, 0.0, 0.0, 3.0, 2.0]]]))
    assert torch.equal(denoised_gradients(gradients, 100.0), torch.tensor([[[4.0, 0.0, 0.0, 0.0, 0.0]]]))
    assert torch.equal(denoised_gradients(gradients, 0.0), gradients)


def test_weights_of_a_channel_sum_to_one_or_are_zero():
    gradients = torch.tensor([[[[1.0, -5.0], [3.0, 0.0]], [[-1.0, -2.0], [0.0, -3.0]]]])
    expected = torch.tensor([[[[0.25, 0.0], [0.75, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert torch.equal(gradient_weights(gradients), expected)


@pytest.mark.parametrize("scale", [1e-14, 1e-30, 1e14])
def test_scaled_gradients_leave_the_map_unchanged(scale):
    generator = torch.Generator().manual_seed(0)
    gradients, activations = torch.randn(2, 2, 6, 5, 5, generator=generator)
    plain, scaled = (denoised_terms(g, activations, 10.0).sum(1) for g in (gradients, gradients * scale))
    assert plain.abs().max() > 0.1
    assert torch.allclose(scaled, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-14, 1e-25])
def test_a_saturated_model_gives_the_same_map(scale):
    net = TinyNet().float()
    inputs = tiny_inputs().float()
    plain = LayerDenoisedGradCam(net, net.features).attribute(inputs, 1)
    scaled = LayerDenoisedGradCam(lambda x: net(x) * scale, net.features).attribute(inputs, 1)
    assert plain.abs().max() > 0.01
    assert torch.allclose(scaled, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("theta", THETAS)
def test_agrees_with_the_reference(theta):
    net, inputs = TinyNet(activation=torch.nn.SiLU()), tiny_inputs()
    attr = LayerDenoisedGradCam(net, net.features).attribute(inputs, 2, theta=theta)
    for i, example in enumerate(inputs.split(1)):
        expected = loops.union_cam(net, net.features, example, 2, theta=theta).denoised
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-12)


def test_theta_matters_behind_a_fully_connected_head_and_not_behind_global_pooling():
    inputs = tiny_inputs()
    maps = {}
    for net in (TinyNet(), PooledNet()):
        amd = LayerDenoisedGradCam(net, net.features)
        maps[type(net)] = [amd.attribute(inputs, 0, theta=theta) for theta in (0.0, 50.0)]
    assert not torch.allclose(*maps[TinyNet])
    assert torch.allclose(*maps[PooledNet], rtol=0, atol=1e-12)


def test_theta_does_nothing_where_max_pooling_left_most_gradients_zero():
    net, inputs = TinyNet(1, torch.nn.SiLU()), tiny_inputs(1)
    pooled = torch.nn.Sequential(torch.nn.MaxPool1d(4, stride=2), torch.nn.Flatten(), torch.nn.Linear(CHANNELS * 2, 2))
    net.head = pooled.double()  # two gradients of six at most
    with torch.no_grad():
        pooled[-1].weight.abs_()
    amd = LayerDenoisedGradCam(net, net.features)
    maps = {theta: amd.attribute(inputs, 0, theta=theta) for theta in (0.0, 10.0, 60.0, 90.0)}
    assert torch.equal(maps[10.0], maps[0.0])
    assert torch.equal(maps[60.0], maps[0.0])
    assert not torch.allclose(maps[90.0], maps[0.0])


@pytest.mark.parametrize("theta", [-0.1, 100.1, float("nan")])
def test_theta_outside_a_percentage_is_refused(theta):
    net = TinyNet()
    with pytest.raises(ValueError, match="theta"):
        LayerDenoisedGradCam(net, net.features).attribute(tiny_inputs(), 0, theta=theta)


def test_large_layers_are_no_obstacle():
    # torch.quantile refuses more than 16 million values.
    gradients = torch.zeros(1, 2, 3000, 3000)
    gradients[..., 0] = 1
    assert gradient_percentile(gradients, 10.0).flatten().tolist() == [0.0, 0.0]
