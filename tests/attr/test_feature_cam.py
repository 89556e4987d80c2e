import pytest
import torch
from captum.attr import LayerGradCam

from captum_unioncam import LayerFeatureCam
from captum_unioncam.attr.feature_cam import sobel_edges
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient, mask_of, minmax
from tests.networks import SIZES, TinyNet, same, tiny_inputs

TRAITS = Traits(masked_passes=lambda live: 0, terms="none", at_input_size=True)


def sobel(image):
    """Position by position, neighbour by neighbour; outside, the border goes on."""
    mean = image[0].mean(0)
    edges = torch.zeros_like(mean)
    for position in torch.cartesian_prod(*map(torch.arange, mean.shape)).reshape(-1, mean.dim()).tolist():
        squares = 0.0
        for across in range(mean.dim()):
            slope = 0.0
            for offset in torch.cartesian_prod(*[torch.arange(-1, 2)] * mean.dim()).reshape(-1, mean.dim()).tolist():
                factor = 1
                for dim, step in enumerate(offset):
                    factor *= step if dim == across else 2 - abs(step)
                near = [min(max(p + o, 0), n - 1) for p, o, n in zip(position, offset, mean.shape, strict=True)]
                slope += factor * mean[tuple(near)].item()
            squares += slope**2
        edges[tuple(position)] = squares**0.5
    return minmax(edges[None, None])


def reference(forward_func, layer, example, target):
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    total = torch.zeros_like(activations[:, :1])
    for a, g in zip(activations[0], gradients[0], strict=True):
        total[0, 0] += g.sum() / g.numel() * a
    return mask_of(total.clamp(min=0), tuple(example.shape[2:])) * sobel(example)


@pytest.mark.parametrize("ndim", SIZES)
def test_edges_are_sobels(ndim):
    inputs = tiny_inputs(ndim)
    for example, made in zip(inputs.split(1), sobel_edges(inputs).split(1), strict=True):
        assert torch.allclose(made, sobel(example), rtol=0, atol=1e-12)


def test_a_step_has_an_edge_on_both_its_sides_and_a_plane_none():
    step = torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(1, 3, 4, 6)
    assert torch.equal(sobel_edges(step), torch.tensor([0.0, 0, 1, 1, 0, 0]).expand(1, 1, 4, 6))
    assert not sobel_edges(torch.full((1, 3, 4, 6), 0.7)).any()


def test_any_descriptor_shapes_the_map():
    net, inputs = TinyNet(), tiny_inputs()
    cam = LayerFeatureCam(net, net.features)
    everywhere = cam.attribute(inputs, 1, descriptor=lambda x: torch.ones_like(x[:, :1]))
    captums = LayerGradCam(net, net.features).attribute(inputs, 1, relu_attributions=True)
    for made, expected in zip(everywhere.split(1), captums.detach().split(1), strict=True):
        assert same(made, mask_of(expected, (8, 6)))
    left = torch.zeros(8, 6, dtype=torch.float64)
    left[:, :3] = 0.5
    halved = cam.attribute(inputs, 1, descriptor=lambda x: left.expand(3, 1, 8, 6))
    assert same(halved, everywhere * left)


def test_the_descriptor_gets_a_copy_of_the_input_that_has_the_layers_dimensions():
    net, inputs, seen = TinyNet(), tiny_inputs(), []
    vector, before = torch.ones(3, 4, dtype=torch.float64), inputs.clone()

    def writing(x):
        seen.append(x.clone())
        return x.zero_()[:, :1] + 1

    attr = LayerFeatureCam(lambda v, x: net(x) + v, net.features).attribute((vector, inputs), 1, descriptor=writing)
    assert attr.shape == (3, 1, 8, 6)
    assert torch.equal(seen[0], before)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize(
    "wrong", [lambda x: x, lambda x: x[:, 0], lambda x: None, lambda x: x[:, :1, ::2], lambda x: x[:1, :1]]
)
def test_what_a_descriptor_must_return_is_said(wrong):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^descriptor: returned .*; return a tensor of shape \(3, 1, 8, 6\)"):
        LayerFeatureCam(net, net.features).attribute(tiny_inputs(), 1, descriptor=wrong)


def test_what_is_not_finite_and_what_is_no_function_is_refused():
    net = TinyNet()
    cam = LayerFeatureCam(net, net.features)
    with pytest.raises(ValueError, match=r"^descriptor: not finite for the examples \[0, 1, 2\]"):
        cam.attribute(tiny_inputs(), 1, descriptor=lambda x: x[:, :1] / 0)
    with pytest.raises(TypeError, match=r"^descriptor: got 'sobel'"):
        cam.attribute(tiny_inputs(), 1, descriptor="sobel")
