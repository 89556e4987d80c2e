"""Several targets of an example in one sweep of the masked passes."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from captum_unioncam import LayerUnionCam
from tests.networks import CHANNELS, CLASSES, TinyNet, counting, same, tiny_inputs

TARGETS = [[0, 3, 1], [2, 2, 0], [1, 0, 3]]


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("channel_weights", ["score", "softmax"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_equals_a_call_for_each_target(ndim, channel_weights, as_tensor):
    net, inputs = TinyNet(ndim), tiny_inputs(ndim)
    method = LayerUnionCam(net, net.features)
    settings = {"baselines": 0.2, "theta": 40.0, "channel_weights": channel_weights, "max_channels": 3}
    targets = torch.tensor(TARGETS) if as_tensor else TARGETS
    attr, details = method.attribute_targets(inputs, targets, return_details=True, **settings)
    assert attr.shape[:3] == (3, 3, 1)
    for t in range(3):
        one, one_details = method.attribute(inputs, [row[t] for row in TARGETS], return_details=True, **settings)
        assert same(attr[:, t], one)
        assert torch.equal(details.union_selected[:, t], one_details.union_selected)
        assert same(details.union_beta[:, t], one_details.union_beta)
        for field in fields(one_details):
            if field.name != "forward_passes":
                ours, expected = (getattr(d, field.name) for d in (details.of_target(t), one_details))
                assert same(ours.double(), expected.double()), field.name
    assert same(method.attribute_targets(inputs, targets, **settings), attr)


@pytest.mark.usefixtures("rows_tried")
def test_the_channels_are_swept_once():
    net = TinyNet(activation=nn.SiLU())
    forward, rows = counting(net)
    method, inputs = LayerUnionCam(forward, net.features), tiny_inputs()
    _, details = method.attribute_targets(inputs, TARGETS, internal_batch_size=1000, return_details=True)
    assert rows == [3, 3 * CHANNELS] + [9, 3] * 3
    assert details.forward_passes.tolist() == [CHANNELS + 3 * 4] * 3


def test_tuple_targets_and_layers_of_several_outputs():
    net, inputs = TinyNet(), tiny_inputs()

    class Doubled(nn.Module):
        def forward(self, x):
            return x, x * 2

    doubled = Doubled()

    def forward(x):
        first, second = doubled(net.features(x))
        return torch.stack([net.head(first), net.head(second).sin()], dim=2)

    targets = [[(0, 1), (2, 0)], [(1, 1), (3, 1)], [(0, 0), (1, 0)]]
    method = LayerUnionCam(forward, doubled)
    maps = method.attribute_targets(inputs, targets)
    assert len(maps) == 2
    for t in range(2):
        for one, expected in zip(maps, method.attribute(inputs, [row[t] for row in targets]), strict=True):
            assert same(one[:, t], expected)


def test_terms_of_each_target():
    net, inputs = TinyNet(), tiny_inputs()
    terms = LayerUnionCam(net, net.features).attribute_targets(inputs, TARGETS, attr_dim_summation=False)
    assert terms.shape == (3, 3, CHANNELS, 4, 3)


def test_a_target_out_of_range_fails_as_in_attribute():
    net = TinyNet()
    for attribute in (LayerUnionCam(net, net.features).attribute, LayerUnionCam(net, net.features).attribute_targets):
        wrong = [CLASSES] * 3 if attribute.__name__ == "attribute" else [[0, CLASSES]] * 3
        with pytest.raises(AssertionError, match=r"^targets?: got .*outputs of shape"):
            attribute(tiny_inputs(), wrong)


def test_further_arguments_of_the_model_go_with_every_target():
    net, inputs = TinyNet(), tiny_inputs()
    factor = torch.tensor([[0.5], [2.0], [-1.0]]).double()

    def forward(x, factor):
        return net(x) * factor

    method = LayerUnionCam(forward, net.features)
    attr = method.attribute_targets(inputs, TARGETS, factor)
    for t in range(3):
        assert same(attr[:, t], method.attribute(inputs, [row[t] for row in TARGETS], factor))
