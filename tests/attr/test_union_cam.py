"""LayerUnionCam against the reference, and what its interface promises."""

import itertools

import pytest
import torch
from captum.attr import GradientAttribution, LayerAttribution, LayerGradCam
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, UnionCamDetails
from captum_unioncam.engine.maps import minmax
from captum_unioncam.testing import Traits
from tests.attr import reference as loops
from tests.networks import CHANNELS, CLASSES, TinyNet, same, tiny_inputs

NDIMS = (1, 2, 3)
THETAS = (0.0, 10.0, 50.0, 90.0, 100.0)
WEIGHTS = ("score", "softmax")
BASELINES = (0.0, 0.6)
ACTIVATIONS = (nn.ReLU, nn.SiLU)


TRAITS = Traits(terms="map plus a constant", masked_passes=lambda live: live + 4)


def reference(forward_func, layer, example, target, **arguments):
    return loops.union_cam(forward_func, layer, example, target, **arguments).attribution


def union_cam(net):
    return LayerUnionCam(net, net.features)


@pytest.mark.parametrize(
    ("ndim", "theta", "channel_weights", "baseline", "activation"),
    list(itertools.product(NDIMS, THETAS, WEIGHTS, BASELINES, ACTIVATIONS)),
)
def test_agrees_with_the_reference(ndim, theta, channel_weights, baseline, activation):
    net, inputs = TinyNet(ndim, activation()), tiny_inputs(ndim)
    targets = [0, 2, 3]
    attr, details = union_cam(net).attribute(
        inputs, targets, baselines=baseline, theta=theta, channel_weights=channel_weights, return_details=True
    )
    for i, (example, target) in enumerate(zip(inputs.split(1), targets, strict=True)):
        expected = loops.union_cam(
            net, net.features, example, target, baseline=baseline, theta=theta, channel_weights=channel_weights
        )
        computed = {
            "attribution": attr[i : i + 1],
            "denoised_map": details.denoised_map[i, 0],
            "region_map": details.region_map[i, 0],
            "union_map": details.union_map[i, 0],
            "channel_scores": details.channel_scores[i],
            "baseline_confidence": details.baseline_confidence[i],
            "denoised_confidence": details.denoised_confidence[i],
            "region_confidence": details.region_confidence[i],
            "union_confidence": details.union_confidence[i],
        }
        for name, value in computed.items():
            wanted = torch.as_tensor(getattr(expected, name), dtype=torch.float64).reshape(value.shape)
            assert torch.allclose(value, wanted, rtol=0, atol=1e-6), name
        assert details.union_selected[i].item() == expected.union_selected
        assert details.forward_passes[i].item() == expected.forward_passes


def test_both_outcomes_of_the_selection_occur_and_are_the_references():
    selected = set()
    for seed, activation in itertools.product(range(4), ACTIVATIONS):
        net, inputs = TinyNet(activation=activation(), seed=seed), tiny_inputs(seed=seed)
        attr, details = union_cam(net).attribute(inputs, 1, return_details=True)
        for i, example in enumerate(inputs.split(1)):
            expected = loops.union_cam(net, net.features, example, 1)
            chosen = details.union_selected[i].item()
            selected.add(chosen)
            assert chosen == expected.union_selected
            assert same(attr[i], (details.union_map if chosen else details.region_map)[i])
    assert selected == {True, False}


def test_is_a_captum_layer_and_gradient_attribution():
    method = union_cam(TinyNet())
    assert isinstance(method, LayerAttribution)
    assert isinstance(method, GradientAttribution)
    assert not method.has_convergence_delta()


@pytest.mark.parametrize("ndim", NDIMS)
def test_shape_and_range(ndim):
    net, inputs = TinyNet(ndim), tiny_inputs(ndim)
    attr = union_cam(net).attribute(inputs, 0)
    grad_cam = LayerGradCam(net, net.features).attribute(inputs, 0)
    assert attr.shape == grad_cam.shape
    assert attr.dtype == grad_cam.dtype
    assert attr.flatten(1).amin(1).tolist() == [0.0] * 3
    assert attr.flatten(1).amax(1).tolist() == [1.0] * 3
    assert not attr.requires_grad


class TwoInputs(nn.Module):
    """An image, a second image of another size, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()
        self.features = self.net.features
        self.second = nn.Conv2d(1, CHANNELS, 2, stride=4).double()

    def forward(self, image, other, vector, scale=1.0):
        features = self.features(image) + self.second(other).mean((2, 3), keepdim=True)
        return self.net.head(features) * scale + vector


def test_every_input_with_the_layers_space_is_masked():
    net = TwoInputs()
    generator = torch.Generator().manual_seed(3)
    image, other = tiny_inputs(), torch.randn(3, 1, 16, 12, dtype=torch.float64, generator=generator)
    vector = torch.randn(3, CLASSES, dtype=torch.float64, generator=generator)
    method = LayerUnionCam(net, net.features)
    attr = method.attribute((image, other, vector), 1, 2.0, baselines=(0.1, 0.2, 0))
    assert attr.shape == (3, 1, 4, 3)
    for i in range(3):
        example = tuple(x[i : i + 1] for x in (image, other, vector))
        expected = loops.union_cam(
            net, net.features, example, 1, baseline=(0.1, 0.2, 0), additional_forward_args=(2.0,)
        )
        assert torch.allclose(attr[i : i + 1], expected.attribution, rtol=0, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_terms_sum_to_the_map_up_to_a_constant(activation):
    net, inputs = TinyNet(activation=activation()), tiny_inputs(examples=6)
    attr, details = union_cam(net).attribute(inputs, 1, return_details=True)
    terms, _ = union_cam(net).attribute(inputs, 1, attr_dim_summation=False, return_details=True)
    assert terms.shape == (6, CHANNELS, 4, 3)
    assert set(details.union_selected.tolist()) == {True, False}
    difference = (terms.sum(1, keepdim=True) - attr).flatten(1)
    assert torch.allclose(difference, difference[:, :1], rtol=0, atol=1e-12)
    assert torch.allclose(minmax(terms.sum(1, keepdim=True)), attr, rtol=0, atol=1e-12)
    clipped = union_cam(net).attribute(inputs, 1, attr_dim_summation=False, relu_attributions=True)
    assert same(clipped, terms.relu())


def test_details():
    net, inputs = TinyNet(), tiny_inputs()
    attr, details = union_cam(net).attribute(inputs, 1, return_details=True)
    assert isinstance(details, UnionCamDetails)
    confidence = net(inputs * 0).softmax(1)[:, 1]
    assert torch.allclose(details.baseline_confidence, confidence)
    assert same(details.union_beta, details.union_confidence - details.baseline_confidence)
    assert same(details.union_selected, details.union_beta > details.region_beta)
    denoised = LayerDenoisedGradCam(net, net.features).attribute(inputs, 1)
    region = LayerScoreCam(net, net.features).attribute(inputs, 1)
    assert same(details.denoised_map, minmax(denoised))
    assert same(details.region_map, minmax(region))
    assert same(union_cam(net).attribute(inputs, 1), attr)


def test_the_map_of_one_confidence_is_the_callers():
    net, inputs = TinyNet(), tiny_inputs()
    method = LayerUnionCam(net, net.features, confidence_fn=torch.sigmoid)
    attr, details = method.attribute(inputs, 1, return_details=True)
    for i, example in enumerate(inputs.split(1)):
        expected = loops.union_cam(net, net.features, example, 1, confidence_fn=torch.sigmoid)
        assert torch.allclose(attr[i : i + 1], expected.attribution, rtol=0, atol=1e-9)
        assert details.region_confidence[i].item() == pytest.approx(expected.region_confidence)


class Gate(nn.Module):
    """Passes channels, or replaces them by a constant."""

    def __init__(self, dead: list[int], value: float) -> None:
        super().__init__()
        self.dead, self.value = dead, value

    def forward(self, x):
        keep = torch.ones(1, x.shape[1], *[1] * (x.dim() - 2), dtype=x.dtype)
        keep[:, self.dead] = 0
        return x * keep + (1 - keep) * self.value


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_constant_channels_cost_no_pass_and_constant_maps_are_zero(value):
    inputs = tiny_inputs()
    some = TinyNet(activation=Gate([0, 3], value))
    attr, details = union_cam(some).attribute(inputs, 1, return_details=True)
    assert details.forward_passes.tolist() == [CHANNELS - 2 + 4] * 3
    assert (details.channel_scores[:, [0, 3]] == 0).all()
    for i, example in enumerate(inputs.split(1)):
        assert torch.allclose(attr[i : i + 1], loops.union_cam(some, some.features, example, 1).attribution)
    dead = TinyNet(activation=Gate(list(range(CHANNELS)), value))
    for weights in WEIGHTS:
        attr, details = union_cam(dead).attribute(inputs, 1, channel_weights=weights, return_details=True)
        assert same(attr, torch.zeros(3, 1, 4, 3, dtype=torch.float64))
        assert details.forward_passes.tolist() == [4, 4, 4]
    terms = union_cam(dead).attribute(inputs, 1, attr_dim_summation=False)
    assert same(terms, torch.zeros(3, CHANNELS, 4, 3, dtype=torch.float64))


def test_a_layer_without_space_is_told_where_to_find_one():
    net = TinyNet()
    with pytest.raises(ValueError, match=r"layer: its \w+ have shape \(3, 4\).*such as 'features'"):
        LayerUnionCam(net, net.head).attribute(tiny_inputs(), 0)


def test_confidences_that_are_not_finite_are_named():
    net, inputs = TinyNet(), tiny_inputs()

    def confidence(output):
        return output.softmax(1) / torch.where(output[:, :1] == output[:1, :1].max(), 0.0, 1.0)

    with pytest.raises(ValueError, match=r"confidences: not finite for the examples \["):
        LayerUnionCam(net, net.features, confidence_fn=confidence).attribute(inputs, 0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("theta", -1.0),
        ("theta", 101.0),
        ("theta", "10"),
        ("channel_weights", "sum"),
        ("max_channels", 0),
        ("channel_selection", "all"),
        ("internal_batch_size", -3),
        ("internal_batch_size", 2.5),
        ("internal_batch_size", True),
        ("score_dtype", torch.int8),
    ],
)
def test_bad_settings_are_refused_by_name_before_any_pass(argument, value):
    def forward(x):
        raise AssertionError("a forward pass was run")

    with pytest.raises(ValueError, match=f"^{argument}: got"):
        LayerUnionCam(forward, nn.Identity()).attribute(tiny_inputs(), 0, **{argument: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_models_on_a_gpu(dtype):
    net, inputs = TinyNet(), tiny_inputs()
    expected = union_cam(net).attribute(inputs, [0, 1, 2])
    attr = union_cam(net.to("cuda", dtype)).attribute(inputs.to("cuda", dtype), [0, 1, 2])
    correlation = torch.corrcoef(torch.stack([attr.flatten().double().cpu(), expected.flatten()]))[0, 1]
    assert correlation > (0.9999 if dtype is torch.float32 else 0.98)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_best_of_all_three_maps_agrees_with_the_reference(activation):
    net, inputs = TinyNet(activation=activation()), tiny_inputs(examples=12)
    method = union_cam(net)
    attr, details = method.attribute(inputs, 1, selection="best", return_details=True)
    terms = method.attribute(inputs, 1, selection="best", attr_dim_summation=False)
    for i, example in enumerate(inputs.split(1)):
        expected = loops.union_cam(net, net.features, example, 1, selection="best")
        assert torch.allclose(attr[i : i + 1], expected.attribution, rtol=0, atol=1e-9)
        assert details.union_selected[i].item() == expected.union_selected
    denoised = details.denoised_selected
    assert set(denoised.tolist()) == {True, False}
    assert not (denoised & details.union_selected).any()
    assert same(attr[denoised], details.denoised_map[denoised])
    difference = (terms.sum(1, keepdim=True) - attr).flatten(1)
    assert torch.allclose(difference, difference[:, :1], rtol=0, atol=1e-12)
    # The paper's selection is between the other two.
    _, paper = method.attribute(inputs, 1, return_details=True)
    assert not paper.denoised_selected.any()
    assert same(paper.forward_passes, details.forward_passes)


def test_an_unknown_selection_is_named():
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^selection: got 'worst'; give one of 'paper', 'best'"):
        union_cam(net).attribute(tiny_inputs(), 1, selection="worst")
