import copy

import pytest
import torch
from torch import nn

import captum_unioncam
from captum_unioncam import LayerGradPlusPlusScoreCam, LayerScoreCam, LayerUnionCam, metrics, shared_passes
from tests.networks import CHANNELS, PooledNet, TinyNet, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


class Counting:
    """A network as a function that counts the rows it is called with."""

    def __init__(self, net=None):
        self.net = net or TinyNet(activation=nn.SiLU())
        self.rows = 0

    def __call__(self, x):
        self.rows += len(x)
        return self.net(x)


def four_methods(forward_func, layer):
    return [
        LayerUnionCam(forward_func, layer),
        LayerScoreCam(forward_func, layer),
        LayerUnionCam(forward_func, layer),
        LayerScoreCam(forward_func, layer),
    ]


WEIGHTS = ["score", "softmax", "softmax", "score"]


@pytest.mark.usefixtures("rows_tried")
def test_four_methods_and_three_classes_run_the_channels_passes_of_one():
    model, inputs = Counting(), tiny_inputs(examples=1)
    layer = model.net.features
    alone = [
        [method.attribute(inputs, target, channel_weights=weights) for target in range(3)]
        for method, weights in zip(four_methods(model, layer), WEIGHTS, strict=True)
    ]
    rows, model.rows = model.rows, 0
    with shared_passes():
        shared = [
            [method.attribute(inputs, target, channel_weights=weights) for target in range(3)]
            for method, weights in zip(four_methods(model, layer), WEIGHTS, strict=True)
        ]
    assert model.rows == rows - (4 * 3 - 1) * CHANNELS
    for one, other in zip(alone, shared, strict=True):
        for expected, made in zip(one, other, strict=True):
            assert torch.allclose(made, expected, rtol=0, atol=1e-12)


def rows_of_two(first, second):
    """Rows that two calls take within the context, the rows of each alone, and whether the results are the same."""
    rows, results = [], []
    for call in (first, second):
        model, attribute = call()
        model.rows = 0
        results.append(attribute())
        rows.append(model.rows)
    model, attribute = first()
    model.rows = 0
    with shared_passes():
        attribute()
        other, attribute = second(model)
        assert other is model
        made = attribute()
    assert torch.allclose(made, results[1], rtol=0, atol=1e-12)
    return model.rows, sum(rows)


def score_cam(model=None, inputs=None, layer="features", target=1, method=LayerScoreCam, options=None, **arguments):
    model = model or Counting()
    net = model.net
    cam = method(model, getattr(net, layer) if layer == "features" else net.features[int(layer)], **(options or {}))
    given = tiny_inputs() if inputs is None else inputs
    return model, lambda: cam.attribute(given, target, **arguments)


SHARING = {
    "another class": {"target": 2},
    "a class for each example": {"target": [0, 3, 1]},
    "raw outputs": {"channel_weights": "softmax"},
    "equal inputs": {"inputs": tiny_inputs().clone()},
    "another confidence": {"options": {"confidence_fn": torch.sigmoid}},
}
NOT_SHARING = {
    "other inputs": {"inputs": tiny_inputs(seed=5)},
    "another number of inputs": {"inputs": tiny_inputs()[:2]},
    "another baseline": {"baselines": 0.3},
    "another layer": {"layer": "2"},
    "fewer channels": {"max_channels": 2},
    "another batch size": {"internal_batch_size": 2},
    "another precision": {"score_dtype": torch.bfloat16},
    "another function": {"options": {"score_func": lambda x: TinyNet(activation=nn.SiLU())(x)}},
}


@pytest.mark.usefixtures("rows_tried")
@pytest.mark.parametrize("arguments", SHARING.values(), ids=list(SHARING))
def test_what_differs_in_the_reading_is_read_from_the_same_passes(arguments):
    shared, alone = rows_of_two(score_cam, lambda model=None: score_cam(model, **arguments))
    assert shared == alone - 3 * CHANNELS


@pytest.mark.usefixtures("rows_tried")
@pytest.mark.parametrize("arguments", NOT_SHARING.values(), ids=list(NOT_SHARING))
def test_what_differs_in_the_passes_has_its_own(arguments):
    shared, alone = rows_of_two(score_cam, lambda model=None: score_cam(model, **arguments))
    assert shared == alone


def test_other_models_have_their_own_passes():
    inputs, model = tiny_inputs(), Counting()
    other = Counting(copy.deepcopy(model.net))
    nn.init.normal_(other.net.head[2].weight)
    expected = LayerScoreCam(other, other.net.features).attribute(inputs, 1)
    with shared_passes():
        LayerScoreCam(model, model.net.features).attribute(inputs, 1)
        assert torch.equal(LayerScoreCam(other, other.net.features).attribute(inputs, 1), expected)


def test_a_module_and_its_bound_method_are_known_again():
    model, inputs = TinyNet(), tiny_inputs()
    rows = []
    model.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    for forward_func in (lambda: model, lambda: model.forward):
        rows.clear()
        with shared_passes():
            for _ in range(2):
                LayerScoreCam(forward_func(), model.features).attribute(inputs, 1)
    live = (model.features(inputs).flatten(2).std(2) > 0).sum().item()
    assert sum(rows) in (0, 3 + live + 3)


@pytest.mark.usefixtures("rows_tried")
def test_without_the_context_nothing_is_kept():
    model, inputs = Counting(), tiny_inputs()
    with shared_passes():
        LayerScoreCam(model, model.net.features).attribute(inputs, 1)
    model.rows = 0
    LayerScoreCam(model, model.net.features).attribute(inputs, 1)
    with shared_passes():
        LayerScoreCam(model, model.net.features).attribute(inputs, 1)
    assert model.rows == 2 * (3 + 3 * CHANNELS)


@pytest.mark.usefixtures("rows_tried")
def test_a_context_that_is_entered_again_goes_on():
    model, inputs, shared = Counting(), tiny_inputs(), shared_passes()
    for _ in range(3):
        with shared, shared:
            LayerScoreCam(model, model.net.features).attribute(inputs, 1)
    assert model.rows == 3 * 3 + 3 * CHANNELS


def test_outputs_of_more_than_classes_are_not_kept():
    """They could be large."""
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()

    def model(x):
        return net(x)[:, :, None].expand(-1, -1, 3)

    expected = LayerScoreCam(model, net.features).attribute(inputs, (1, 0))
    with shared_passes():
        for _ in range(2):
            assert torch.equal(LayerScoreCam(model, net.features).attribute(inputs, (1, 0)), expected)


def test_classes_that_are_ruled_out_do_not_matter_to_others():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()

    def model(x):
        return net(x).index_fill(1, torch.tensor([3]), -torch.inf)

    expected = LayerScoreCam(model, net.features).attribute(inputs, 1)
    with shared_passes():
        score_cam = LayerScoreCam(model, net.features)
        assert torch.allclose(score_cam.attribute(inputs, 1), expected, rtol=0, atol=1e-12)
        with pytest.raises(ValueError, match="confidences: not finite"):
            score_cam.attribute(inputs, 3, channel_weights="softmax")


def test_outputs_that_are_no_logits_are_refused_as_ever():
    net, inputs = TinyNet(), tiny_inputs()
    with shared_passes():
        LayerScoreCam(lambda x: net(x), net.features).attribute(inputs, 1)
        sigmoid = nn.Sequential(net, nn.Sigmoid())
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^confidence_fn: got none"):
                LayerScoreCam(sigmoid, net.features).attribute(inputs, 1)


def test_channels_without_positive_gradients_are_another_choice_of_channels():
    net, inputs = PooledNet(), tiny_inputs()
    expected = LayerGradPlusPlusScoreCam(net, net.features).attribute(inputs, 2)
    with shared_passes():
        LayerScoreCam(net, net.features).attribute(inputs, 2)
        assert torch.allclose(
            LayerGradPlusPlusScoreCam(net, net.features).attribute(inputs, 2), expected, rtol=0, atol=1e-12
        )


def test_it_is_public():
    assert captum_unioncam.shared_passes is shared_passes


METRICS = [metrics.confidence_drop, metrics.confidence_increase, metrics.insertion, metrics.deletion]


def measured(metric, model, inputs, maps, target, **arguments):
    steps = {} if metric in METRICS[:2] else {"steps": 5, "return_curve": True}
    return metric(model, inputs, maps, target, **steps, **arguments)


@pytest.mark.usefixtures("rows_tried")
@pytest.mark.parametrize("target", [1, [0, 3, 1]])
@pytest.mark.parametrize("baselines", [None, 0.3])
def test_metrics_share_what_is_whole_and_what_is_gone(baselines, target):
    model, inputs = Counting(), tiny_inputs()
    maps = [torch.rand(3, 1, 4, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)]
    alone = [measured(metric, model, inputs, m, target, baselines=baselines) for m in maps for metric in METRICS]
    rows, model.rows = model.rows, 0
    assert rows == 2 * 3 * (2 + 2 + 6 + 6)
    with shared_passes():
        shared = [measured(metric, model, inputs, m, target, baselines=baselines) for m in maps for metric in METRICS]
    # For each map, what is seen through it and between the ends of two curves; once, the whole, the baseline, the blur.
    assert model.rows == 3 * (2 * (1 + 4 + 4) + (3 if baselines is None else 2))
    for expected, made in zip(alone, shared, strict=True):
        parts = (expected, made) if isinstance(made, tuple) else ([expected], [made])
        for one, other in zip(*parts, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)
