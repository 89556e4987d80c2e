import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam, LayerSSCam
from captum_unioncam.testing import Traits
from tests.attr.reference import blend, default_confidence, is_constant, mask_of, select
from tests.networks import TinyNet, counting, same, tiny_inputs

# Noise that is flipped is other noise.
TRAITS = Traits(
    uses_gradients=False, masked_passes=lambda live: 3 * live, arguments={"n_samples": 3}, without=("flips",)
)


def reference(
    forward_func,
    layer,
    example,
    target,
    n_samples=35,
    stdevs=2.0,
    variant="input",
    stdev_rule="squared",
    generator=None,
    baseline=0.0,
):
    generator = generator or torch.Generator().manual_seed(0)
    shape = example.shape if variant == "input" else (1, 1, *example.shape[2:])
    draws = [torch.randn(shape, generator=generator).to(example) for _ in range(n_samples)]
    seen = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        forward_func(example)
        handle.remove()
        (activations,) = seen
        behind = torch.full_like(example, baseline)
        total = torch.zeros_like(activations[:, :1])
        for k in range(activations.shape[1]):
            channel = activations[:, k : k + 1]
            if is_constant(channel):
                continue
            mask = mask_of(channel, example.shape[2:])
            score = 0.0
            for noise in draws:
                if variant == "activation":
                    shown = blend(mask + stdevs * noise, example, behind)
                else:
                    shown = blend(mask, example, behind)
                    deviation = stdevs / (shown.max() - shown.min())
                    shown = shown + (deviation**2 if stdev_rule == "squared" else deviation) * noise
                score += select(default_confidence(forward_func(shown)), target).item() / n_samples
            total += score * channel
    return total.clamp(min=0)


@pytest.mark.parametrize(
    "given",
    [
        {"n_samples": 35},
        {"n_samples": 2, "stdev_rule": "plain"},
        {"n_samples": 3, "stdevs": 0.5, "variant": "activation"},
        {"n_samples": 1, "stdevs": 0},
    ],
)
@pytest.mark.parametrize("baseline", [0.0, 0.6])
def test_arguments_agree_with_the_reference(baseline, given):
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    attr = LayerSSCam(net, net.features).attribute(inputs, 2, baselines=baseline, **given)
    for i in range(3):
        expected = reference(net, net.features, inputs[i : i + 1], 2, baseline=baseline, **given)
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["input", "activation"])
def test_a_generator_draws_the_noise_and_goes_on(variant):
    net, inputs = TinyNet(), tiny_inputs(examples=1)
    generator, other = (torch.Generator().manual_seed(4) for _ in range(2))
    ss_cam = LayerSSCam(net, net.features)
    given = {"n_samples": 2, "variant": variant}
    first, second = (ss_cam.attribute(inputs, 2, generator=generator, **given) for _ in range(2))
    for attr in (first, second):
        expected = reference(net, net.features, inputs, 2, generator=other, **given)
        assert torch.allclose(attr, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(first, second)


def test_no_noise_is_score_cam():
    net, inputs = TinyNet(), tiny_inputs()
    score_cam = LayerScoreCam(net, net.features).attribute(inputs, 1)
    assert same(LayerSSCam(net, net.features).attribute(inputs, 1, n_samples=2, stdevs=0), score_cam)


def test_a_constant_input_gets_no_noise():
    net, inputs = TinyNet(), torch.zeros(1, 2, 8, 6, dtype=torch.float64)
    silent = LayerSSCam(net, net.features).attribute(inputs, 1, n_samples=1, stdevs=0)
    assert same(LayerSSCam(net, net.features).attribute(inputs, 1, n_samples=1), silent)


@pytest.mark.usefixtures("rows_tried")
def test_samples_and_targets_share_their_passes_and_draws():
    net, inputs = TinyNet(), tiny_inputs()
    forward, rows = counting(net)
    targets = torch.tensor([[0, 1], [2, 3], [1, 1]])
    given = {"n_samples": 2, "max_channels": 3}
    attr = LayerSSCam(forward, net.features).attribute_targets(inputs, targets, **given)
    assert sum(rows) == 3 + 3 * 2 * 3
    for t in range(2):
        assert same(attr[:, t], LayerSSCam(net, net.features).attribute(inputs, targets[:, t], **given))


@pytest.mark.usefixtures("rows_tried")
def test_no_more_than_a_pass_of_masked_inputs_is_held():
    net, inputs = TinyNet(), tiny_inputs()
    forward, rows = counting(net)
    LayerSSCam(forward, net.features).attribute(inputs, 0, n_samples=4, internal_batch_size=2)
    assert max(rows[1:]) == 2


WRONG = [
    ({"n_samples": 0}, ValueError),
    ({"n_samples": 1.5}, ValueError),
    ({"stdevs": -1}, ValueError),
    ({"stdevs": float("inf")}, ValueError),
    ({"stdevs": float("nan")}, ValueError),
    ({"variant": "mask"}, ValueError),
    ({"stdev_rule": None}, ValueError),
    ({"generator": 0}, TypeError),
    ({"channel_selection": 3}, ValueError),
]


@pytest.mark.parametrize(("given", "error"), WRONG)
def test_wrong_arguments_are_named(given, error):
    net = TinyNet()
    with pytest.raises(error, match=f"^{next(iter(given))}: "):
        LayerSSCam(net, net.features).attribute(tiny_inputs(), 0, **given)
