import pytest
import torch
from torch import nn

from captum_unioncam import LayerISCam
from captum_unioncam.testing import Traits
from tests.attr.reference import blend, default_confidence, is_constant, mask_of, select
from tests.networks import TinyNet, counting, same, tiny_inputs

TRAITS = Traits(uses_gradients=False, masked_passes=lambda live: 3 * live, arguments={"n_steps": 3})


def reference(forward_func, layer, example, target, n_steps=10, coefficients="cumulative", baseline=0.0):
    seen = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        forward_func(example)
        handle.remove()
        (activations,) = seen
        total = torch.zeros_like(activations[:, :1])
        for k in range(activations.shape[1]):
            channel = activations[:, k : k + 1]
            if is_constant(channel):
                continue
            mask = mask_of(channel, example.shape[2:])
            score, coefficient = 0.0, 0.0
            for i in range(1, n_steps + 1):
                coefficient = coefficient + i / n_steps if coefficients == "cumulative" else i / n_steps
                shown = blend(coefficient * mask, example, torch.full_like(example, baseline))
                score += select(default_confidence(forward_func(shown)), target).item() / n_steps
            total += score * channel
    return total.clamp(min=0)


@pytest.mark.parametrize("coefficients", ["cumulative", "linear"])
@pytest.mark.parametrize(("n_steps", "baseline"), [(1, 0.0), (4, 0.6), (10, 0.0)])
def test_arguments_agree_with_the_reference(n_steps, baseline, coefficients):
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    given = {"n_steps": n_steps, "coefficients": coefficients}
    attr = LayerISCam(net, net.features).attribute(inputs, 2, baselines=baseline, **given)
    for i in range(3):
        expected = reference(net, net.features, inputs[i : i + 1], 2, baseline=baseline, **given)
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-12)


def test_the_strongest_mask_of_the_default_is_far_above_one():
    shown = []

    def watching(x):
        shown.append(x.amax().item())
        return net(x)

    net, inputs = TinyNet(), torch.ones(1, 2, 8, 6, dtype=torch.float64)
    LayerISCam(watching, net.features).attribute(inputs, 2)
    assert max(shown) == pytest.approx(5.5)


@pytest.mark.usefixtures("rows_tried")
def test_steps_and_targets_share_their_passes():
    net, inputs = TinyNet(), tiny_inputs()
    forward, rows = counting(net)
    targets = torch.tensor([[0, 1], [2, 3], [1, 1]])
    attr = LayerISCam(forward, net.features).attribute_targets(inputs, targets, n_steps=2, max_channels=3)
    assert sum(rows) == 3 + 3 * 2 * 3
    for t in range(2):
        alone = LayerISCam(net, net.features).attribute(inputs, targets[:, t], n_steps=2, max_channels=3)
        assert same(attr[:, t], alone)


WRONG = [{"n_steps": 0}, {"n_steps": None}, {"coefficients": "cubic"}, {"max_channels": 0}, {"channel_selection": "x"}]


@pytest.mark.parametrize("given", WRONG)
def test_wrong_arguments_are_named(given):
    net = TinyNet()
    with pytest.raises(ValueError, match=f"^{next(iter(given))}: "):
        LayerISCam(net, net.features).attribute(tiny_inputs(), 0, **given)
