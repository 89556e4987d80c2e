import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from captum_unioncam import LayerGroupCam
from captum_unioncam.engine.blur import blurred
from captum_unioncam.testing import Traits
from tests.attr.reference import (
    activation_and_gradient,
    blend,
    default_confidence,
    is_constant,
    mask_of,
    select,
)
from tests.networks import TinyNet, counting, same, tiny_inputs

TRAITS = Traits()


def gaussian(image, pixels, sigma, mode):
    """One example, line by line."""
    reach = pixels // 2
    window = np.array([math.exp(-((i - reach) ** 2) / (2 * sigma**2)) for i in range(pixels)])
    window /= window.sum()
    result = image.numpy()
    for axis in range(2, result.ndim):
        result = correlate1d(result, window, axis=axis, mode=mode)
    return torch.from_numpy(result)


def reference(forward_func, layer, example, target, groups=32, denoise_percentile=None, baseline=None):
    activations, gradients = activation_and_gradient(lambda: forward_func(example), layer, target)
    channels = activations.shape[1]
    size = math.ceil(channels / groups)
    if baseline is None:
        # scipy calls "mirror" what torch calls "reflect".
        behind = gaussian(example, min(51, 2 * min(example.shape[2:]) - 1), 50.0, "mirror")
    else:
        behind = torch.full_like(example, baseline)

    def confidence(image):
        with torch.no_grad():
            return select(default_confidence(forward_func(image)), target)

    total = torch.zeros_like(activations[:, :1])
    for start in range(0, channels, size):
        group_map = torch.zeros_like(total)
        for k in range(start, min(start + size, channels)):
            group_map += gradients[:, k : k + 1].mean() * activations[:, k : k + 1]
        group_map = group_map.clamp(min=0)
        if denoise_percentile is not None:
            threshold = np.percentile(group_map.numpy(), denoise_percentile)
            group_map = torch.where(group_map > threshold, group_map, 0.0)
        if is_constant(group_map):
            continue
        shown = blend(mask_of(group_map, example.shape[2:]), example, behind)
        total += (confidence(shown) - confidence(behind)).clamp(min=0) * group_map
    return total


@pytest.mark.parametrize("denoise_percentile", [None, 70, 100])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5])
def test_groups_agree_with_the_reference(groups, denoise_percentile):
    net, inputs = TinyNet(activation=torch.nn.SiLU()), tiny_inputs()
    given = {"groups": groups, "denoise_percentile": denoise_percentile}
    method = LayerGroupCam(net, net.features)
    attr = method.attribute(inputs, 2, **given)
    terms = method.attribute(inputs, 2, attr_dim_summation=False, **given)
    assert same(terms.sum(1, keepdim=True), attr)
    for i in range(3):
        expected = reference(net, net.features, inputs[i : i + 1], 2, **given)
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-12)


def test_a_baseline_takes_the_place_of_the_blurred_input():
    net, inputs = TinyNet(), tiny_inputs(examples=1)
    attr = LayerGroupCam(net, net.features).attribute(inputs, 1, groups=2, baselines=0.4)
    assert torch.allclose(attr, reference(net, net.features, inputs, 1, groups=2, baseline=0.4), rtol=0, atol=1e-12)
    assert not torch.allclose(attr, LayerGroupCam(net, net.features).attribute(inputs, 1, groups=2))


@pytest.mark.usefixtures("rows_tried")
def test_passes_are_those_of_the_groups_that_have_a_map():
    net, inputs = TinyNet(), tiny_inputs()
    forward, rows = counting(net)
    LayerGroupCam(forward, net.features).attribute(inputs, 1, groups=2)
    groups = 0
    for example in inputs.split(1):
        activations, gradients = activation_and_gradient(lambda x=example: net(x), net.features, 1)
        terms = gradients.mean((2, 3), keepdim=True) * activations
        groups += sum(not is_constant(group.sum(1).clamp(min=0)) for group in (terms[:, :3], terms[:, 3:]))
    assert 3 < groups < 6
    assert sum(rows) == 3 + groups + 3


@pytest.mark.parametrize(("pixels", "border", "mode"), [(51, "reflect", "mirror"), (11, "replicate", "nearest")])
@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 3, 33, 60), (1, 2, 30, 28, 27)])
def test_blur(shape, pixels, border, mode):
    images = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = gaussian(images, pixels, 50.0, mode)
    assert torch.allclose(blurred(images, pixels, 50.0, border), expected, rtol=0, atol=1e-12)


def test_blur_of_small_and_whole_numbered_images():
    small = torch.randn(1, 2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blurred(small, 51, 50.0, "reflect"), gaussian(small, 7, 50.0, "mirror"), rtol=0, atol=1e-12)
    whole = (small * 50 + 120).to(torch.uint8)
    assert blurred(whole, 5, 2.0, "replicate").equal(
        gaussian(whole.double(), 5, 2.0, "nearest").round().to(torch.uint8)
    )


@pytest.mark.parametrize(
    "given",
    [{"groups": 0}, {"groups": None}, {"groups": 2.5}, {"denoise_percentile": 101}, {"denoise_percentile": "70"}],
)
def test_wrong_arguments_are_named(given):
    net = TinyNet()
    with pytest.raises(ValueError, match=f"^{next(iter(given))}: "):
        LayerGroupCam(net, net.features).attribute(tiny_inputs(), 0, **given)
