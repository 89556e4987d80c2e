import pytest
import torch
from torch import nn

from captum_unioncam import LayerGradCamPlusPlus, LayerSmoothGradCamPlusPlus
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient
from tests.networks import TinyNet, counting, same, tiny_inputs

SAMPLES = 3
TRAITS = Traits(
    masked_passes=lambda live: SAMPLES,
    arguments={"n_samples": SAMPLES},
    # The mirror image has the same noise, which is not mirrored.
    without=("flips",),
)


def reference(forward_func, layer, example, target, n_samples=25, stdevs=None, seed=0):
    activations, _ = activation_and_gradient(lambda: forward_func(example), layer, target)
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.15 * (example.max().item() - example.min().item()) if stdevs is None else stdevs
    gradients = []
    for _ in range(n_samples):
        noisy = example + deviation * torch.randn(example.shape, generator=generator).double()
        gradients.append(activation_and_gradient(lambda x=noisy: forward_func(x), layer, target)[1])
    total = torch.zeros_like(activations[:, :1])
    for k in range(activations.shape[1]):
        a, weight = activations[0, k], 0.0
        for position in range(a.numel()):
            values = [g[0, k].flatten()[position].item() for g in gradients]
            d1, d2, d3 = (sum(v**p for v in values) / n_samples for p in (1, 2, 3))
            denominator = 2 * d2 + a.sum().item() * d3
            if d1 > 0 and denominator != 0:
                weight += d2 / denominator * d1
        total[0, 0] += weight * a
    return total.clamp(min=0)


@pytest.fixture
def net():
    return TinyNet(activation=nn.SiLU())


def test_without_noise_it_is_grad_cam_plus_plus(net):
    inputs = tiny_inputs()
    made = LayerSmoothGradCamPlusPlus(net, net.features).attribute(inputs, 1, n_samples=2, stdevs=0.0)
    assert same(made, LayerGradCamPlusPlus(net, net.features).attribute(inputs, 1))


@pytest.mark.parametrize(("stdevs", "seed"), [(0.4, 0), (None, 7)])
def test_the_noise_is_as_large_as_asked_for_and_of_the_generator(stdevs, seed):
    # Tanh behind the layer, or the gradients would not depend on the noise.
    net, inputs = TinyNet(), tiny_inputs()
    net.head.insert(0, nn.Tanh())
    cam = LayerSmoothGradCamPlusPlus(net, net.features)
    settings = {"n_samples": 2, "stdevs": stdevs}
    made = cam.attribute(inputs, 2, generator=torch.Generator().manual_seed(seed), **settings)
    for i, example in enumerate(inputs.split(1)):
        expected = reference(net, net.features, example, 2, seed=seed, **settings)
        assert torch.allclose(made[i : i + 1], expected, rtol=1e-9, atol=1e-12)
    other = cam.attribute(inputs, 2, generator=torch.Generator().manual_seed(seed + 1), **settings)
    assert not torch.allclose(made, other, rtol=1e-3)


def test_a_generator_draws_on_and_none_begins_again(net):
    net.head.insert(0, nn.Tanh())
    cam, generator = LayerSmoothGradCamPlusPlus(net, net.features), torch.Generator().manual_seed(0)
    first, second = (cam.attribute(tiny_inputs(), 1, n_samples=2, generator=generator) for _ in range(2))
    assert not torch.allclose(first, second, rtol=1e-3)
    for _ in range(2):
        assert same(cam.attribute(tiny_inputs(), 1, n_samples=2), first)


@pytest.mark.usefixtures("rows_tried")
def test_each_layer_and_target_gets_the_same_samples_in_the_same_passes(net):
    inputs, (forward, rows) = tiny_inputs(), counting(net)
    net.head.insert(0, nn.Tanh())
    layers = [net.features[2], net.features]
    made = LayerSmoothGradCamPlusPlus(forward, layers).attribute_targets(inputs, [[0, 3]] * 3, n_samples=2)
    assert rows == [3] * 3
    for of_layer, layer in zip(made, layers, strict=True):
        for t, target in enumerate((0, 3)):
            alone = LayerSmoothGradCamPlusPlus(net, layer).attribute(inputs, target, n_samples=2)
            assert same(of_layer[:, t], alone)


@pytest.mark.usefixtures("rows_tried")
def test_noise_goes_on_inputs_with_space_alone_each_with_its_deviation(net):
    seen, vector = [], torch.ones(3, 4, dtype=torch.float64)

    def forward(x, y):
        seen.append((x.detach(), y.detach()))
        return net(x) + y

    cam = LayerSmoothGradCamPlusPlus(forward, net.features)
    cam.attribute((tiny_inputs(), vector), 1, n_samples=1, stdevs=(0.5, 2.0))
    (clean, _), (noisy, untouched) = seen
    assert torch.equal(untouched, vector)
    noise = (noisy - clean) / 0.5
    assert torch.allclose(noise, noise[:1].expand_as(noise), atol=1e-9)
    assert 0.7 < noise.std() < 1.3


@pytest.mark.parametrize("scale", [1e-10, 1e-25])
def test_a_saturated_model_loses_nothing(net, scale):
    net, inputs = net.float(), tiny_inputs().float()
    maps = [
        LayerSmoothGradCamPlusPlus(lambda x, s=s: net(x) * s, net.features).attribute(inputs, 1, n_samples=2) / s
        for s in (scale, scale * 10)
    ]
    assert maps[0].abs().max() > 1e-3
    assert torch.allclose(*maps, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        *(("n_samples", value, ValueError) for value in (0, -1, 2.5, None, True, "3")),
        *(("stdevs", value, ValueError) for value in (-0.1, float("nan"), "a", (0.1, 0.2), (), [0.1], True)),
        *(("generator", value, TypeError) for value in (0, "a", True)),
    ],
)
def test_wrong_arguments_are_refused_before_any_pass(net, argument, value, error):
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=f"^{argument}: "):
        LayerSmoothGradCamPlusPlus(net, net.features).attribute(tiny_inputs(), 1, **{argument: value})
    assert calls == []


def test_noise_on_integer_pictures_is_rounded_to_whole_numbers(net):
    generator = torch.Generator().manual_seed(0)
    pictures, shown = torch.randint(100, 150, (3, 2, 8, 6), dtype=torch.uint8, generator=generator), []

    def of_integers(x):
        shown.append(x)
        return net(x.double() / 255)

    LayerSmoothGradCamPlusPlus(of_integers, net.features).attribute(pictures, 1, n_samples=2, stdevs=5.0)
    drawn = torch.Generator().manual_seed(0)
    expected = [(pictures + 5 * torch.randn(1, 2, 8, 6, generator=drawn)).round().to(torch.uint8) for _ in range(2)]
    assert all(any(torch.equal(x, one) for x in shown) for one in expected)
