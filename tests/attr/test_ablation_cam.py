import pytest
import torch
from pytorch_grad_cam import AblationCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from captum_unioncam import LayerAblationCam
from captum_unioncam.engine.maps import minmax, up
from captum_unioncam.testing import Traits
from captum_unioncam.testing.contract import require_same
from captum_unioncam.testing.networks import WithChannels
from tests.attr.reference import select
from tests.attr.tail_reference import layer_output, output_with
from tests.networks import CHANNELS, TinyNet, same, tiny_inputs

TRAITS = Traits(uses_gradients=False)


def reference(forward_func, layer, example, target, normalize_weights=False, layer_baseline=0.0):
    activations = layer_output(forward_func, layer, example)
    output = select(output_with(forward_func, layer, example, activations), target)
    total = torch.zeros_like(activations[:, :1])
    for channel in range(activations.shape[1]):
        ablated = activations.clone()
        ablated[0, channel] = layer_baseline
        weight = output - select(output_with(forward_func, layer, example, ablated), target)
        if normalize_weights:
            weight = weight / output
        total[0, 0] += weight * activations[0, channel]
    return total.clamp(min=0)


@pytest.mark.parametrize("settings", [{"normalize_weights": True}, {"layer_baseline": -0.3}])
@pytest.mark.parametrize("target", [0, 3])
def test_agrees_with_the_reference(target, settings):
    net, inputs = TinyNet(activation=nn.Tanh()), tiny_inputs()
    attr = LayerAblationCam(net, net.features).attribute(inputs, target, **settings)
    for i, example in enumerate(inputs.split(1)):
        require_same(attr[i : i + 1], reference(net, net.features, example, target, **settings), "of the reference")


def test_normalised_weights_turn_the_map_around_where_the_output_is_negative():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs(examples=8)
    ablation_cam = LayerAblationCam(net, net.features)
    outputs = net(inputs)[:, 1].detach().reshape(-1, 1, 1, 1)
    assert (outputs < 0).any()
    assert (outputs > 0).any()
    plain = ablation_cam.attribute(inputs, 1, attr_dim_summation=False).sum(1, keepdim=True)
    normalised = ablation_cam.attribute(inputs, 1, normalize_weights=True)
    positive = outputs.flatten() > 0
    assert same(normalised[positive], (plain / outputs)[positive])
    assert (normalised[~positive] * plain[~positive] == 0).all()


def test_an_absent_channel_costs_no_pass():
    net = WithChannels(TinyNet(activation=nn.SiLU()), list(range(CHANNELS)), (0.0, 3.7))
    ablation_cam = LayerAblationCam(net, net.features)
    _, details = ablation_cam.attribute(tiny_inputs(), 1, return_details=True)
    assert details.forward_passes.tolist() == [CHANNELS + 2] * 3  # the present ones, and one without ablation
    _, details = ablation_cam.attribute(tiny_inputs(), 1, layer_baseline=3.7, return_details=True)
    assert details.forward_passes.tolist() == [CHANNELS + 2] * 3


def of_grad_cam(net, inputs, target):
    with AblationCAM(net, [net.features]) as cam:
        return torch.as_tensor(cam(inputs, [ClassifierOutputTarget(target)] * len(inputs))).unsqueeze(1)


def peers(activation):
    """An example whose output is positive, its map by grad-cam, which needs one example at a time, and ours."""
    net, inputs = TinyNet(activation=activation).float(), tiny_inputs(examples=8).float()
    with torch.no_grad():
        chosen = (net(inputs)[:, 1] > 0).nonzero().flatten().tolist()
    for i in chosen:
        example = inputs[i : i + 1]
        ours = LayerAblationCam(net, net.features).attribute(example, 1)
        if ours.any():
            yield minmax(up(ours, inputs.shape[2:])), of_grad_cam(net, example, 1)


def correlation(one, other):
    return torch.corrcoef(torch.stack([one.flatten().double(), other.flatten().double()]))[0, 1].item()


def test_parity_with_grad_cam_where_the_output_is_positive_and_the_layer_is_not_signed():
    correlations = [correlation(ours, theirs) for ours, theirs in peers(nn.ReLU())]
    assert len(correlations) >= 2
    assert min(correlations) > 0.9999


def test_grad_cam_ablates_signed_layers_with_minus_ten_million():
    correlations = [correlation(ours, theirs) for ours, theirs in peers(nn.Tanh())]
    assert len(correlations) >= 2
    assert min(correlations) < 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0", None])
def test_bad_baselines_are_refused_by_name(value):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^layer_baseline: got"):
        LayerAblationCam(net, net.features).attribute(tiny_inputs(), 0, layer_baseline=value)
