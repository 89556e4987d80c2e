import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam
from captum_unioncam.attr.score_cam import region_weights
from captum_unioncam.testing import Traits
from tests.attr import reference as loops
from tests.networks import CHANNELS, TinyNet, same, tiny_inputs

TRAITS = Traits(uses_gradients=False, masked_passes=lambda live: live)


def reference(forward_func, layer, example, target, **arguments):
    return loops.union_cam(forward_func, layer, example, target, **arguments).region


@pytest.mark.parametrize("channel_weights", ["score", "softmax"])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_agrees_with_the_reference(ndim, baseline, channel_weights):
    net, inputs = TinyNet(ndim, nn.SiLU()), tiny_inputs(ndim)
    score_cam = LayerScoreCam(net, net.features)
    attr = score_cam.attribute(inputs, 2, baselines=baseline, channel_weights=channel_weights)
    for i, example in enumerate(inputs.split(1)):
        expected = loops.union_cam(
            net, net.features, example, 2, baseline=baseline, channel_weights=channel_weights
        ).region
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-12)


def test_terms_are_zero_where_the_sum_is_clipped():
    net, inputs = TinyNet(activation=nn.Tanh()), tiny_inputs()
    score_cam = LayerScoreCam(net, net.features)
    terms = score_cam.attribute(inputs, 0, attr_dim_summation=False)
    attr = score_cam.attribute(inputs, 0)
    clipped = attr == 0
    assert clipped.any()
    assert (attr >= 0).all()
    assert terms.shape == (3, CHANNELS, 4, 3)
    assert (terms.masked_select(clipped.expand_as(terms)) == 0).all()
    assert torch.allclose(terms.sum(1, keepdim=True), attr)
    assert terms.min() < 0
    positive = score_cam.attribute(inputs, 0, relu_attributions=True, attr_dim_summation=False)
    assert same(positive, terms.relu())


def test_channels_selected_by_deviation_leave_the_others_without_weight():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    score_cam = LayerScoreCam(net, net.features)
    every = score_cam.attribute(inputs, 0, attr_dim_summation=False)
    deviation = net.features(inputs).flatten(2).std(-1)
    kept = deviation >= deviation.sort(1, descending=True).values[:, 1:2]
    terms = score_cam.attribute(inputs, 0, attr_dim_summation=False, max_channels=2, channel_selection="deviation")
    assert kept.sum(1).tolist() == [2, 2, 2]
    assert (terms[~kept] == 0).all()
    assert (terms[kept].flatten(1).abs().sum(1) > 0).all()
    whole = score_cam.attribute(inputs, 0, attr_dim_summation=False, max_channels=CHANNELS + 9)
    assert same(whole, every)


def test_softmax_weights_leave_out_what_was_not_scored():
    scores = torch.tensor([[2.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    scored = torch.tensor([[True, False, True], [False, False, False]])
    weights = region_weights(scores, scored, "softmax")
    assert same(weights[0], torch.tensor([0.5, 0.0, 0.5]))
    assert same(weights[1], torch.zeros(3))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("channel_weights", "mean"), ("max_channels", 0), ("internal_batch_size", 0), ("score_dtype", torch.float32)],
)
def test_bad_settings_are_refused_by_name(argument, value):
    net = TinyNet()
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        LayerScoreCam(net, net.features).attribute(tiny_inputs(), 0, **{argument: value})
