"""LayerUnionCam against the reference, and what its interface promises."""

import itertools

import pytest
import torch
from captum.attr import GradientAttribution, LayerAttribution, LayerGradCam
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, UnionCamDetails
from captum_unioncam.engine.maps import minmax
from tests.attr import reference
from tests.networks import CHANNELS, CLASSES, SIZES, TinyNet, same, tiny_inputs

NDIMS = (1, 2, 3)
THETAS = (0.0, 10.0, 50.0, 90.0, 100.0)
WEIGHTS = ("score", "softmax")
BASELINES = (0.0, 0.6)
ACTIVATIONS = (nn.ReLU, nn.SiLU)


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
        expected = reference.union_cam(
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
            expected = reference.union_cam(net, net.features, example, 1)
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
    assert method.attribute.__wrapped__ is LayerUnionCam.attribute.__wrapped__


def test_positional_arguments_are_layer_grad_cams():
    import inspect

    ours, captums = (list(inspect.signature(c.attribute).parameters.values()) for c in (LayerUnionCam, LayerGradCam))
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in captums]
    ours, captums = (list(inspect.signature(c).parameters.values()) for c in (LayerUnionCam, LayerGradCam))
    assert [(p.name, p.default) for p in ours[: len(captums)]] == [(p.name, p.default) for p in captums]


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


def spatial_output(x):
    """(N, CLASSES, 2): an output of more than two dimensions, as a segmentation network's."""
    return torch.stack([x, x.sin() * 2], dim=2)


@pytest.mark.parametrize(
    ("target", "each"),
    [
        (2, [2, 2, 2]),
        (torch.tensor(2), [2, 2, 2]),
        (torch.tensor([2]), [2, 2, 2]),
        ([3, 0, 1], [3, 0, 1]),
        (torch.tensor([3, 0, 1]), [3, 0, 1]),
    ],
)
def test_targets_of_two_dimensional_outputs(target, each):
    net, inputs = TinyNet(), tiny_inputs()
    attr = union_cam(net).attribute(inputs, target)
    for i, one in enumerate(each):
        expected = reference.union_cam(net, net.features, inputs[i : i + 1], one).attribution
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("target", "each"), [((2, 1), [(2, 1)] * 3), ([(3, 0), (0, 1), (1, 1)], None)])
def test_tuple_targets_of_outputs_with_more_dimensions(target, each):
    net, inputs = TinyNet(), tiny_inputs()

    def forward(x):
        return spatial_output(net(x))

    attr = LayerUnionCam(forward, net.features).attribute(inputs, target)
    for i, one in enumerate(each or target):
        expected = reference.union_cam(forward, net.features, inputs[i : i + 1], one).attribution
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_no_target_for_one_output_an_example(shape):
    net, inputs = TinyNet(), tiny_inputs()

    def forward(x):
        return net(x)[:, 1].reshape(shape)

    attr, details = LayerUnionCam(forward, net.features).attribute(inputs, return_details=True)
    for i, example in enumerate(inputs.split(1)):
        expected = reference.union_cam(forward, net.features, example, None if shape == (-1,) else 0)
        assert torch.allclose(attr[i : i + 1], expected.attribution, rtol=0, atol=1e-9)
        assert details.region_confidence[i].item() == pytest.approx(expected.region_confidence)


@pytest.mark.parametrize("method", [LayerUnionCam, LayerScoreCam, LayerDenoisedGradCam])
@pytest.mark.parametrize("target", [CLASSES, [0, 1], [0, 1, CLASSES], (0, 0, 0), torch.tensor([0, 1]), None, "0"])
def test_a_bad_target_fails_as_in_captum(method, target):
    net, inputs = TinyNet(), tiny_inputs()
    with pytest.raises(Exception) as captums:  # noqa: PT011 - whatever Captum raises
        LayerGradCam(net, net.features).attribute(inputs, target)
    with pytest.raises(captums.type):
        method(net, net.features).attribute(inputs, target)


@pytest.mark.parametrize("seed", range(3))
def test_an_example_does_not_depend_on_its_batch(seed):
    net = TinyNet(activation=nn.SiLU(), seed=seed, batch_norm=True)
    inputs, extra = tiny_inputs(examples=5, seed=seed), torch.randn(5, 1, 1, 1, dtype=torch.float64)
    baselines = 0.3 * tiny_inputs(examples=5, seed=seed + 10)
    targets = [0, 3, 1, 1, 2]

    def forward(x, gain, scale):
        return net(x * gain) * scale

    method = LayerUnionCam(forward, net.features)
    whole = method.attribute(inputs, targets, (extra, 2.0), baselines=baselines)
    for i in range(5):
        one = slice(i, i + 1)
        alone = method.attribute(inputs[one], targets[one], (extra[one], 2.0), baselines=baselines[one])
        assert torch.allclose(whole[one], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_the_batch_size_changes_nothing(batch_size):
    net, inputs = TinyNet(), tiny_inputs()
    assert torch.allclose(
        union_cam(net).attribute(inputs, 1, internal_batch_size=batch_size),
        union_cam(net).attribute(inputs, 1),
        rtol=0,
        atol=1e-9,
    )


def test_baselines_in_every_form():
    net, inputs = TinyNet(), tiny_inputs()
    method = union_cam(net)
    number = method.attribute(inputs, 1, baselines=0.4)
    for baselines in (torch.full_like(inputs, 0.4), torch.full_like(inputs[:1], 0.4), (0.4,)):
        assert torch.allclose(method.attribute(inputs, 1, baselines=baselines), number, rtol=0, atol=1e-12)
    assert same(method.attribute(inputs, 1, baselines=None), method.attribute(inputs, 1, baselines=0))
    assert not torch.allclose(method.attribute(inputs, 1), number)
    with pytest.raises(AssertionError, match="baseline"):
        method.attribute(inputs, 1, baselines=inputs[:2])


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
        expected = reference.union_cam(
            net, net.features, example, 1, baseline=(0.1, 0.2, 0), additional_forward_args=(2.0,)
        )
        assert torch.allclose(attr[i : i + 1], expected.attribution, rtol=0, atol=1e-9)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TinyNet(seed=0).features, TinyNet(seed=1).features

    def forward(self, x):
        return self.first(x), self.second(x)


def test_a_layer_of_two_outputs_gives_two_maps():
    layer, head = TwoOutputs(), TinyNet().head
    inputs = tiny_inputs()

    def forward(x):
        first, second = layer(x)
        return head(first + 2 * second)

    maps, details = LayerUnionCam(forward, layer).attribute(inputs, 1, return_details=True)
    assert isinstance(maps, tuple)
    assert len(maps) == len(details) == 2
    grad_cams = LayerGradCam(forward, layer).attribute(inputs, 1)
    for i, (one, grad_cam) in enumerate(zip(maps, grad_cams, strict=True)):
        assert one.shape == grad_cam.shape
        layer_of_one = (layer.first, layer.second)[i]
        alone = LayerUnionCam(forward, layer_of_one).attribute(inputs, 1)
        assert torch.allclose(one, alone, rtol=0, atol=1e-9)


def test_attribute_to_layer_input():
    net, inputs = TinyNet(), tiny_inputs()
    at_input = LayerUnionCam(net, net.head).attribute(inputs, 1, attribute_to_layer_input=True)
    assert torch.allclose(at_input, union_cam(net).attribute(inputs, 1), rtol=0, atol=1e-12)
    first_layer = LayerUnionCam(net, net.features).attribute(inputs, 1, attribute_to_layer_input=True)
    assert first_layer.shape == (3, 1, *SIZES[2])


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
        expected = reference.union_cam(net, net.features, example, 1, confidence_fn=torch.sigmoid)
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
        assert torch.allclose(attr[i : i + 1], reference.union_cam(some, some.features, example, 1).attribution)
    dead = TinyNet(activation=Gate(list(range(CHANNELS)), value))
    for weights in WEIGHTS:
        attr, details = union_cam(dead).attribute(inputs, 1, channel_weights=weights, return_details=True)
        assert same(attr, torch.zeros(3, 1, 4, 3, dtype=torch.float64))
        assert details.forward_passes.tolist() == [4, 4, 4]
    terms = union_cam(dead).attribute(inputs, 1, attr_dim_summation=False)
    assert same(terms, torch.zeros(3, CHANNELS, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("method", [LayerUnionCam, LayerScoreCam, LayerDenoisedGradCam])
class TestErrors:
    def test_a_layer_without_space(self, method):
        net = TinyNet()
        with pytest.raises(ValueError, match=r"layer: its \w+ have shape \(3, 4\).*find_spatial_layer"):
            method(net, net.head).attribute(tiny_inputs(), 0)

    def test_an_empty_batch(self, method):
        net = TinyNet()
        with pytest.raises(ValueError, match="inputs: no example"):
            method(net, net.features).attribute(tiny_inputs()[:0], 0)

    def test_inputs_with_nan_are_named(self, method):
        net, inputs = TinyNet(), tiny_inputs()
        inputs[1, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"not finite for the examples \[1\]"):
            method(net, net.features).attribute(inputs, 0)


def test_confidences_that_are_not_finite_are_named():
    net, inputs = TinyNet(), tiny_inputs()

    def confidence(output):
        return output.softmax(1) / torch.where(output[:, :1] == output[:1, :1].max(), 0.0, 1.0)

    with pytest.raises(ValueError, match=r"confidences: not finite for the examples \["):
        LayerUnionCam(net, net.features, confidence_fn=confidence).attribute(inputs, 0)


def test_inputs_without_the_layers_space():
    net = TinyNet()

    def forward(flat):
        return net(flat.reshape(-1, 2, *SIZES[2]))

    with pytest.raises(ValueError, match=r"inputs: none of the shapes \(3, 96\) has the 2 spatial dimensions"):
        LayerUnionCam(forward, net.features).attribute(tiny_inputs().flatten(1), 0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("theta", -1.0),
        ("theta", 101.0),
        ("channel_weights", "sum"),
        ("max_channels", 0),
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


def test_float32_models_and_inputs():
    net, inputs = TinyNet(), tiny_inputs()
    expected = union_cam(net).attribute(inputs, 1)
    attr = union_cam(net.float()).attribute(inputs.float(), 1)
    assert attr.dtype == torch.float32
    assert torch.allclose(attr.double(), expected, rtol=0, atol=1e-4)


def test_bfloat16_models_give_float32_maps():
    net, inputs = TinyNet(), tiny_inputs()
    expected = union_cam(net).attribute(inputs, 1)
    attr = union_cam(net.bfloat16()).attribute(inputs.bfloat16(), 1)
    assert attr.dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([attr.flatten().double(), expected.flatten()]))[0, 1]
    assert correlation > 0.98


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_models_on_a_gpu(dtype):
    net, inputs = TinyNet(), tiny_inputs()
    expected = union_cam(net).attribute(inputs, [0, 1, 2])
    attr = union_cam(net.to("cuda", dtype)).attribute(inputs.to("cuda", dtype), [0, 1, 2])
    correlation = torch.corrcoef(torch.stack([attr.flatten().double().cpu(), expected.flatten()]))[0, 1]
    assert correlation > (0.9999 if dtype is torch.float32 else 0.98)
