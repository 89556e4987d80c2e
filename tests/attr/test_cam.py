import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import LayerLinearCam
from captum_unioncam.testing import Traits
from tests.networks import CHANNELS, CLASSES, PooledNet, TinyNet, same, tiny_inputs

TRAITS = Traits(
    masked_passes=lambda live: 0,
    uses_gradients=False,
    network=PooledNet,
    # The class weights are those of the channels of one layer, in its order; and a model without classes has no row.
    without=(
        *("permuted_channels", "constant_channels", "pass_counts", "lists_of_layers", "layers_by_name"),
        *("layer_inputs", "no_target", "untouched_inputs"),
    ),
)


def reference(forward_func, layer, example, target, fc=None):
    """The authors' code, for any of the test networks; tuples have the class first."""
    kept, linear = [], []
    handles = [layer.register_forward_hook(lambda module, args, output: kept.append(output.detach()))]
    handles.append(nn.modules.module.register_module_forward_hook(lambda module, *_: linear.append(module)))
    with torch.no_grad():
        forward_func(example)
    for handle in handles:
        handle.remove()
    (head,) = (module for module in linear if isinstance(module, nn.Linear))
    total = torch.zeros_like(kept[0][:, :1])
    for k in range(kept[0].shape[1]):
        total[0, 0] += head.weight[target[0] if isinstance(target, tuple) else target, k].item() * kept[0][0, k]
    return total


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Tanh()])
def test_is_grad_cam_without_relu_times_the_number_of_positions(ndim, activation):
    net, inputs = PooledNet(ndim, activation), tiny_inputs(ndim)
    made = LayerLinearCam(net, net.features).attribute(inputs, [0, 2, 3])
    captums = LayerGradCam(net, net.features).attribute(inputs, [0, 2, 3])
    assert (made < 0).any()
    assert same(made, captums * made[0].numel())


@pytest.mark.parametrize("fc", [lambda net: net.head[-1], lambda net: "head.2", lambda net: None])
def test_the_linear_layer_is_given_named_or_the_only_one(fc):
    net, inputs = PooledNet(), tiny_inputs()
    expected = LayerGradCam(net, net.features).attribute(inputs, 1) * 12
    assert same(LayerLinearCam(net, net.features, fc=fc(net)).attribute(inputs, 1), expected)


def test_of_several_one_is_given():
    net, inputs = PooledNet(), tiny_inputs()
    net.other = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"^fc: got none, and the model has 2, the last 'head\.2', 'other'; give"):
        LayerLinearCam(net, net.features).attribute(inputs, 1)
    made = LayerLinearCam(net, net.features, fc="head.2").attribute(inputs, 1)
    plain = PooledNet()
    assert same(made, LayerLinearCam(plain, plain.features).attribute(inputs, 1))


def test_a_1x1_convolution_in_front_of_the_pooling_is_a_linear_layer_too():
    net, inputs = PooledNet(), tiny_inputs()
    expected = LayerLinearCam(net, net.features).attribute(inputs, 1)
    convolution = nn.Conv2d(CHANNELS, CLASSES, 1).double()
    with torch.no_grad():
        convolution.weight.copy_(net.head[-1].weight[..., None, None])
    net.head = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert same(LayerLinearCam(net, net.features).attribute(inputs, 1), expected)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_model_of_one_output_needs_no_target(shape):
    net, inputs = PooledNet(), tiny_inputs()
    net.head[-1] = nn.Linear(CHANNELS, 1).double()
    attr = LayerLinearCam(lambda x: net(x).reshape(shape), net.features).attribute(inputs)
    expected = (net.head[-1].weight.detach().reshape(1, -1, 1, 1) * net.features(inputs).detach()).sum(1, keepdim=True)
    assert same(attr, expected)


def test_several_layers_of_as_many_channels():
    net, inputs = PooledNet(), tiny_inputs()
    layers = [net.features[2], net.features]
    for made, layer in zip(LayerLinearCam(net, layers).attribute(inputs, 1), layers, strict=True):
        assert same(made, LayerLinearCam(net, layer).attribute(inputs, 1))


def test_what_does_not_fit_is_refused():
    net, inputs = PooledNet(), tiny_inputs()
    refused = {
        r"^fc: takes 60 values where the layer has 5 channels": (TinyNet(), None),
        r"^fc: the model has no layer 'head\.3'": (net, "head.3"),
        r"^fc: got ReLU; give a linear layer": (net, nn.ReLU()),
        r"^fc: has 3 classes where the model's outputs have shape \(N, 4\)": (net, nn.Linear(CHANNELS, 3)),
        r"^fc: got none, and the model has no linear layer": (nn.Sequential(net.features, nn.Flatten()), None),
    }
    for message, (model, fc) in refused.items():
        layer = model[0] if isinstance(model, nn.Sequential) else model.features
        with pytest.raises(ValueError, match=message):
            LayerLinearCam(model, layer, fc=fc).attribute(inputs, 1)
    with pytest.raises(TypeError, match=r"^fc: got 3"):
        LayerLinearCam(net, net.features, fc=3)


def test_a_model_that_cannot_be_explained_is_refused_before_it_runs():
    net, calls = PooledNet(), []
    net.other = nn.Linear(3, 3)
    net.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"^fc: "):
        LayerLinearCam(net, net.features).attribute(tiny_inputs(), 1)
    assert calls == []


@pytest.mark.usefixtures("rows_tried")
def test_one_forward_pass_and_no_gradient():
    net, inputs, rows = PooledNet(), tiny_inputs(), []

    def forward(x):
        rows.append(len(x))
        return net(x).detach()

    LayerLinearCam(forward, net.features).attribute(inputs, 1)
    assert rows == [3]


def test_a_model_that_writes_into_its_input_gets_a_copy():
    net, inputs = PooledNet(), tiny_inputs()
    expected = LayerLinearCam(net, net.features).attribute(inputs.relu(), 1)
    net.features.insert(0, nn.ReLU(inplace=True))
    before = inputs.clone()
    assert same(LayerLinearCam(net, net.features).attribute(inputs, 1), expected)
    assert torch.equal(inputs, before)
