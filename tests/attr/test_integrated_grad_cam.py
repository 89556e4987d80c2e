import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import LayerIntegratedGradCam
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient
from tests.networks import TinyNet, same, tiny_inputs

STEPS = 3
TRAITS = Traits(masked_passes=lambda live: STEPS, arguments={"n_steps": STEPS})


def reference(forward_func, layer, example, target, n_steps=50, baseline=0.0, difference=False):
    total, of_baseline = 0.0, None
    for t in range(n_steps):
        point = baseline + t / n_steps * (example - baseline)
        activations, gradients = activation_and_gradient(lambda x=point: forward_func(x), layer, target)
        of_baseline = activations if of_baseline is None else of_baseline
        added = torch.zeros_like(activations[:, :1])
        for k in range(activations.shape[1]):
            increment = activations[0, k] - of_baseline[0, k] if difference else activations[0, k]
            added[0, 0] += gradients[0, k].sum() / gradients[0, k].numel() * increment
        total = total + added.clamp(min=0)
    return total / n_steps


@pytest.fixture
def net():
    return TinyNet(activation=nn.SiLU())


@pytest.mark.parametrize("difference", [True, False])
def test_agrees_with_the_reference_from_any_baseline(net, difference):
    inputs = tiny_inputs()
    net.head.insert(0, nn.Tanh())
    baselines = 0.5 * inputs.flip(0)
    cam = LayerIntegratedGradCam(net, net.features)
    made = cam.attribute(inputs, 2, n_steps=4, baselines=baselines, difference=difference)
    assert made.max() > 0
    for i in range(3):
        example, black = inputs[i : i + 1], baselines[i : i + 1]
        expected = reference(net, net.features, example, 2, 4, black, difference)
        assert torch.allclose(made[i : i + 1], expected, rtol=1e-9, atol=1e-12)


def test_one_step_is_grad_cam_of_the_baseline(net):
    inputs = tiny_inputs()
    black = 0.3 * inputs
    made = LayerIntegratedGradCam(net, net.features).attribute(inputs, 1, n_steps=1, baselines=black)
    assert same(made, LayerGradCam(net, net.features).attribute(black, 1, relu_attributions=True))


def test_the_map_does_not_grow_with_the_steps(net):
    cam = LayerIntegratedGradCam(net, net.features)
    few, many = (cam.attribute(tiny_inputs(), 1, n_steps=steps) for steps in (100, 200))
    assert torch.allclose(few, many, rtol=0.05, atol=0.01 * many.max())


@pytest.mark.usefixtures("rows_tried")
def test_whole_numbers_are_rounded_and_other_inputs_stay():
    net, seen, vector = TinyNet(), [], torch.ones(3, 4, dtype=torch.float64)

    def forward(x, y):
        seen.append((x.clone(), y.clone()))
        return net(x.double() / 255) + y

    inputs = (tiny_inputs().abs() * 60).clamp(max=255).to(torch.uint8)
    LayerIntegratedGradCam(forward, net.features).attribute((inputs, vector), 1, n_steps=2, baselines=(255, 0))
    assert [x.dtype for x, _ in seen] == [torch.uint8] * 3
    assert torch.equal(seen[1][0], torch.full_like(inputs, 255))
    assert torch.equal(seen[2][0], ((inputs.double() + 255) / 2).round().to(torch.uint8))
    assert all(torch.equal(y, vector) for _, y in seen)


@pytest.mark.parametrize("value", [0, -1, 2.5, None, True, "3"])
def test_steps_are_whole_numbers(net, value):
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"^n_steps: "):
        LayerIntegratedGradCam(net, net.features).attribute(tiny_inputs(), 1, n_steps=value)
    assert calls == []
