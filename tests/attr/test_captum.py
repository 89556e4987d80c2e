"""With Captum's noise tunnel, metrics, visualisation; and its private helpers as we use them."""

import inspect
import re

import matplotlib.figure
import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, LayerGradientXActivation, NoiseTunnel
from captum.attr import visualization as viz
from captum.metrics import infidelity, sensitivity_max

from captum_unioncam import LayerUnionCam, UpsampledAttribution
from captum_unioncam.engine import _captum
from tests.networks import TinyNet, same, tiny_inputs


def test_noise_tunnel_over_an_upsampled_attribution_with_baselines():
    net, inputs = TinyNet(), tiny_inputs()
    tunnel = NoiseTunnel(UpsampledAttribution(LayerUnionCam(net, net.features)))
    attr = tunnel.attribute(inputs, nt_samples=2, stdevs=0.0, target=1, baselines=0.2 * inputs)
    expected = UpsampledAttribution(LayerUnionCam(net, net.features)).attribute(inputs, 1, baselines=0.2 * inputs)
    assert torch.allclose(attr, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [LayerGradCam, LayerGradientXActivation])
def test_sensitivity_of_captums_methods(method):
    net, inputs = TinyNet(), tiny_inputs()
    upsampled = UpsampledAttribution(method(net, net.features))
    torch.manual_seed(0)
    sensitivity = sensitivity_max(upsampled.attribute, inputs, target=[0, 1, 2], n_perturb_samples=3)
    assert sensitivity.shape == (3,)
    assert (sensitivity > 0).all()
    still = sensitivity_max(upsampled.attribute, inputs, target=[0, 1, 2], perturb_func=lambda x: x)
    assert torch.allclose(still, torch.zeros(3, dtype=torch.float64), atol=1e-9)


def test_sensitivity_of_a_layer_method_alone_still_fails_in_captum():
    """Why UpsampledAttribution exists; when this fails, Captum has mended it, and the README may say so."""
    net = TinyNet()
    with pytest.raises((IndexError, RuntimeError)):
        sensitivity_max(LayerGradCam(net, net.features).attribute, tiny_inputs(), target=1)


def test_infidelity_of_a_batch():
    net, inputs = TinyNet(), tiny_inputs()

    def perturb(x):
        return 0.01 * x, 0.99 * x

    attr = UpsampledAttribution(LayerUnionCam(net, net.features)).attribute(inputs, 1).expand_as(inputs)
    value = infidelity(net, perturb, inputs, attr, target=1, n_perturb_samples=4)
    change = (net(inputs) - net(0.99 * inputs))[:, 1]
    expected = ((0.01 * inputs * attr).flatten(1).sum(1) - change) ** 2
    assert torch.allclose(value, expected, rtol=1e-9, atol=0)


def test_upsampled_attribution_gives_the_inputs_size_and_form():
    net, inputs = TinyNet(), tiny_inputs()
    for method in (LayerUnionCam(net, net.features), LayerGradCam(net, net.features)):
        upsampled = UpsampledAttribution(method)
        expected = LayerAttribution.interpolate(method.attribute(inputs, 1), (8, 6), "bilinear")
        assert same(upsampled.attribute(inputs, 1), expected)
        of_tuple = upsampled.attribute((inputs,), target=1)
        assert isinstance(of_tuple, tuple)
        assert same(of_tuple[0], expected)
    nearest = UpsampledAttribution(LayerUnionCam(net, net.features), "nearest").attribute(inputs, 1)
    assert same(nearest[..., ::2, ::2], LayerUnionCam(net, net.features).attribute(inputs, 1))


@pytest.mark.parametrize(("ndim", "mode"), [(1, "linear"), (3, "trilinear")])
def test_upsampled_attribution_in_other_dimensions(ndim, mode):
    net, inputs = TinyNet(ndim), tiny_inputs(ndim)
    attr = UpsampledAttribution(LayerUnionCam(net, net.features), mode).attribute(inputs, 1)
    assert attr.shape == (3, 1, *inputs.shape[2:])


def test_upsampled_attribution_of_several_inputs():
    net = TinyNet()
    inputs = (tiny_inputs(), torch.zeros(3, 2, 16, 12, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64))

    def forward(image, other, vector):
        return net(image + other[:, :, ::2, ::2]) + vector

    attr = UpsampledAttribution(LayerUnionCam(forward, net.features)).attribute(inputs, 1)
    assert [a.shape for a in attr] == [(3, 1, 8, 6), (3, 1, 16, 12), (3, 4)]
    assert same(attr[2], torch.zeros(3, 4, dtype=torch.float64))
    assert sensitivity_max(
        UpsampledAttribution(LayerUnionCam(forward, net.features)).attribute, inputs, target=1, n_perturb_samples=2
    ).shape == (3,)


def test_upsampled_attribution_refuses_what_is_not_one_attribution():
    net = TinyNet()
    upsampled = UpsampledAttribution(LayerUnionCam(net, net.features))
    with pytest.raises(ValueError, match="returned 2 values, not one attribution"):
        upsampled.attribute(tiny_inputs(), 1, return_details=True)


def test_visualization_of_one_and_of_several_panels():
    net, inputs = TinyNet(), tiny_inputs()
    heat = UpsampledAttribution(LayerUnionCam(net, net.features)).attribute(inputs, 1)
    attr = heat[0].permute(1, 2, 0).numpy()
    picture = np.zeros((8, 6, 3))
    figure, axis = viz.visualize_image_attr(attr, picture, method="blended_heat_map", sign="positive", use_pyplot=False)
    assert isinstance(figure, matplotlib.figure.Figure)
    shown = axis.images[-1].get_array()
    assert np.allclose(shown, attr[..., 0] / np.percentile(attr, 100), atol=0.05)
    figure, axes = viz.visualize_image_attr_multiple(
        attr, picture, ["original_image", "heat_map"], ["all", "positive"], use_pyplot=False
    )
    assert len(axes) == 2


def test_two_methods_side_by_side_take_the_same_call():
    net, inputs = TinyNet(), tiny_inputs()
    maps = [m(net, net.features).attribute(inputs, 1, None, False, True) for m in (LayerGradCam, LayerUnionCam)]
    assert maps[0].shape == maps[1].shape
    assert IntegratedGradients(net).attribute(inputs, target=1).shape == inputs.shape


PARAMETERS = {
    "extract_device_ids": ["forward_fn", "saved_layer", "device_ids"],
    "format_additional_forward_args": ["additional_forward_args"],
    "format_baseline": ["baselines", "inputs"],
    "format_output": ["is_inputs_tuple", "output"],
    "format_tensor_into_tuples": ["inputs"],
    "forward_layer_distributed_eval": [
        "forward_fn",
        "inputs",
        "layer",
        "target_ind",
        "additional_forward_args",
        "attribute_to_layer_input",
        "forward_hook_with_return",
        "require_layer_grads",
    ],
    "gather_distributed_tensors": ["saved_layer", "device_ids", "key_list"],
    "run_forward": ["forward_func", "inputs", "target", "additional_forward_args"],
    "select_targets": ["output", "target"],
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_captums_private_helpers_have_not_changed(name):
    assert list(inspect.signature(getattr(_captum, name)).parameters) == PARAMETERS[name]


def test_private_helpers_are_imported_in_one_place():
    from pathlib import Path

    package = Path(_captum.__file__).parent.parent
    private = re.compile(r"captum(\.\w+)*\._\w+|captum\.log")
    assert {path.name for path in package.rglob("*.py") if private.search(path.read_text())} == {"_captum.py"}


def test_every_helper_is_watched_or_public():
    public = {"Attribution", "GradientAttribution", "LayerAttribution", "PerturbationAttribution"}
    watched = set(PARAMETERS) | public | {"BaselineType", "NullProgress", "TargetType", "log_usage", "progress"}
    imported = {"Any", "Callable", "TYPE_CHECKING", "common", "gradient"}
    assert {name for name in vars(_captum) if name[0] != "_"} - imported == watched
