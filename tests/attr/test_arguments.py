"""Every public argument of a wrong type, shape or range ends in an error that names it, before the model is run."""

import re
from ast import literal_eval
from inspect import getdoc, signature

import numpy as np
import pytest
import torch
from torch import nn

from captum_unioncam import LayerUnionCam, UpsampledAttribution, fuse, metrics
from captum_unioncam.attr.base import CAMS, GradientCam
from tests.networks import CLASSES, TinyNet, tiny_inputs

METHODS = sorted(set(CAMS.values()), key=lambda cls: cls.__name__)
OF_MASKS = [metrics.confidence_drop, metrics.confidence_increase, metrics.insertion, metrics.deletion]
MAPS = torch.linspace(0, 1, 36, dtype=torch.float64).reshape(3, 1, 4, 3)
OBJECTS = torch.ones(3, 1, 8, 6) > 0
NAN = torch.full((1, 2, 8, 6), torch.nan, dtype=torch.float64)

WRONG = {
    "target": [
        *(True, 1.0, "0", np.int64(0), {}, 10**30, [0, 1], [True] * 3, [0.0] * 3, ["0"] * 3, [-1] * 3, [0, 10**30, 0]),
        *([(0,), 1, 2], [None] * 3, torch.zeros(3), torch.ones(3) > 0, torch.zeros(2).long(), torch.zeros(3, 1).long()),
        *(torch.zeros(3).to(torch.uint8), slice(0, 1), [slice(0, 1)] * 3),
    ],
    "baselines": [
        *("0", True, [0], {}, float("nan"), (0, 0), ("a",), NAN, torch.zeros(2, 2, 8, 6), torch.zeros(1, 7)),
        *(
            torch.zeros(1, 2, 8, 6).to_sparse(),
            torch.zeros(1, 2, 8, 5),
            torch.zeros(1, 2, 8, 6, device="meta"),
            torch.zeros(1, 2, 8, 6) + 0j,
        ),
    ],
    "internal_batch_size": [0, -1, 1.5, True, "8", [4], torch.tensor([1, 2]), 10**30],
    "inputs": [
        *(None, "a", [tiny_inputs()], np.zeros((3, 2, 8, 6)), (), (tiny_inputs(), None), tiny_inputs()[:0]),
        *(tiny_inputs()[..., :0], torch.tensor(1.0), tiny_inputs().to("meta"), (tiny_inputs(), tiny_inputs()[:2])),
    ],
}
"""By argument of all methods or metrics of masks, what is none."""

FLAGS = [
    *("attribute_to_layer_input", "relu_attributions", "attr_dim_summation", "return_details", "show_progress"),
    *("difference", "normalize_alpha"),
]
OF_METHODS = {
    "theta": [-1, 101, float("nan"), "10", None, [10], True, 1j, torch.tensor([1.0, 2.0])],
    "channel_weights": ["mean", None, 1, ["score"], torch.ones(2)],
    "max_channels": [0, -1, 1.5, "2", True, [2], torch.tensor([1, 2])],
    "copies": [0, 1.5, "2", 10**30],
    "grad_kwargs": ["a", 1, [1], {"no": True}, {1: True}, torch.ones(2)],
    **{name: [None, "no", 2, 0.5, [], torch.ones(2), torch.tensor(True)] for name in FLAGS},
    "score_dtype": [torch.float32, torch.int8, "bfloat16", 16],
}
OF_METRICS = {
    "attributions": [
        *(None, "a", 1.0, [MAPS], MAPS.numpy(), (MAPS, MAPS), (None,), MAPS[:2], MAPS[0], MAPS.reshape(3, 12)),
        *(MAPS.to_sparse(), MAPS[..., :0], MAPS[:, :0], MAPS * torch.nan, MAPS + 0j, MAPS.to("meta"), MAPS[..., None]),
    ],
    "return_curve": [None, "no", 2, torch.ones(2)],
    "steps": [0, -1, 1.5, "3", None, True, [1], 101, 10**30, torch.tensor([1, 2])],
}


def kind_of(value):
    """An id that is the same in every process: no address in it."""
    return re.sub(r" at 0x\w+", "", repr(value))


class Forbidden(nn.Module):
    """A model that counts its calls."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()
        self.features = self.net.features
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x)


def rows(functions, tables):
    """One row a function, argument and wrong value, of the arguments that it has."""
    for function in functions:
        known = set(signature_of(function))
        for argument, values in ((argument, values) for table in tables for argument, values in table.items()):
            for number, value in enumerate(values if argument in known else ()):
                yield pytest.param(function, argument, value, id=f"{function.__name__}-{argument}-{number}")


def signature_of(function):
    return signature(function.attribute if isinstance(function, type) else function).parameters


def refused(call, name):
    with pytest.raises((ValueError, TypeError, AssertionError)) as error:
        call()
    assert name in str(error.value).split(";")[0], error.value


@pytest.mark.parametrize(("cls", "argument", "value"), list(rows(METHODS, [WRONG, OF_METHODS])))
def test_arguments_of_methods(cls, argument, value):
    model = Forbidden()
    arguments = {"inputs": tiny_inputs(), "target": 1, argument: value}
    refused(lambda: cls(model, model.features).attribute(**arguments), argument)
    assert model.calls == 0


@pytest.mark.parametrize(("metric", "argument", "value"), list(rows(OF_MASKS, [WRONG, OF_METRICS])))
def test_arguments_of_metrics(metric, argument, value):
    model = Forbidden()
    arguments = {"inputs": tiny_inputs(), "attributions": MAPS, "target": 1, argument: value}
    refused(lambda: metric(model, **arguments), argument)
    assert model.calls == 0


OUT_OF_RANGE = [None, CLASSES, -CLASSES - 1, (0, 0), [CLASSES, 0, 0], [(0, 0)] * 3, torch.tensor([0, 0, CLASSES])]


@pytest.mark.parametrize("target", OUT_OF_RANGE, ids=kind_of)
@pytest.mark.parametrize("judge", [*METHODS, *OF_MASKS], ids=lambda judge: judge.__name__)
def test_a_target_that_the_outputs_do_not_have_costs_one_pass(judge, target):
    model = Forbidden()
    if isinstance(judge, type):
        refused(lambda: judge(model, model.features).attribute(tiny_inputs(), target), "target")
    else:
        refused(lambda: judge(model, tiny_inputs(), MAPS, target), "target")
    assert model.calls == 1


SEVERAL = [
    *(None, 1, "0", [], [[0]] * 2, [[0], [1, 2], [0]], [[-1]] * 3, [[True]] * 3, [[0.5]] * 3, [["0"]] * 3),
    *([[10**30]] * 3, torch.zeros(3, 2), torch.zeros(3).long(), torch.zeros(2, 3).long(), np.zeros((3, 2), int)),
    [[CLASSES]] * 3,
]


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("targets", SEVERAL, ids=kind_of)
def test_several_targets(cls, targets):
    model = Forbidden()
    refused(lambda: cls(model, model.features).attribute_targets(tiny_inputs(), targets), "targets")
    assert model.calls <= 1


FUNCTIONS = ("forward_func", "layer", "reshape_transform", "confidence_fn", "score_func")
CONSTRUCTORS = [(cls, name) for cls in METHODS for name in FUNCTIONS if name in signature(cls).parameters]


@pytest.mark.parametrize(("cls", "name"), CONSTRUCTORS)
@pytest.mark.parametrize("value", [1, [None], {}, object()], ids=kind_of)
def test_arguments_of_constructors(cls, name, value):
    net = TinyNet()
    arguments = {"forward_func": net, "layer": net.features, name: value}
    refused(lambda: cls(**arguments), name)


def test_no_layer_and_no_function():
    net = TinyNet()
    refused(lambda: LayerUnionCam(None, net.features), "forward_func")
    refused(lambda: LayerUnionCam(net, None), "layer")


@pytest.mark.parametrize("cls", [cls for cls in METHODS if issubclass(cls, GradientCam)])
def test_negative_targets_count_from_the_end_as_in_captum(cls):
    net = TinyNet()
    method = cls(net, net.features)
    assert torch.equal(method.attribute(tiny_inputs(), -1), method.attribute(tiny_inputs(), CLASSES - 1))


@pytest.mark.parametrize("metric", OF_MASKS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float16])
def test_attributions_of_any_dtype(metric, dtype):
    whole = (8 * MAPS).to(dtype)
    made = metric(TinyNet(), tiny_inputs(), whole, 1, internal_batch_size=8)
    assert torch.allclose(made, metric(TinyNet(), tiny_inputs(), whole.double(), 1, internal_batch_size=8), atol=1e-3)


@pytest.mark.parametrize("metric", OF_MASKS)
def test_inputs_that_are_not_finite_are_named_before_any_pass(metric):
    model, inputs = Forbidden(), tiny_inputs()
    inputs[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^inputs: not finite for the examples \[1\]"):
        metric(model, inputs, MAPS, 1)
    assert model.calls == 0


GAMES = [metrics.pointing_game, metrics.energy_pointing_game]


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("attributions", value)
        for value in (None, "a", [MAPS], MAPS.numpy(), MAPS[..., :0], MAPS.to("meta"), MAPS * torch.nan)
    ]
    + [("attributions", value) for value in (torch.ones(3), torch.ones(3, 1), MAPS + 0j)]
    + [("objects", value) for value in (None, "a", [OBJECTS], OBJECTS.numpy(), OBJECTS[..., :0], OBJECTS[:2])]
    + [("objects", value) for value in (OBJECTS * 0.5, OBJECTS * torch.nan, OBJECTS.to("meta"), OBJECTS[:, 0, 0])],
)
def test_arguments_of_pointing_games(game, argument, value):
    refused(lambda: game(**{"attributions": MAPS, "objects": OBJECTS, argument: value}), argument)


@pytest.mark.parametrize("value", ["1", None, -1, float("nan"), True, [1], torch.tensor([1.0, 2.0])])
def test_tolerances(value):
    refused(lambda: metrics.pointing_game(MAPS, OBJECTS, value), "tolerance")


@pytest.mark.parametrize("value", [1e9, 1e300, 10**30, 10**400, float("inf")])
def test_every_place_is_within_a_large_tolerance(value):
    objects = torch.zeros(3, 1, 8, 6) > 0
    objects[0, 0, 0, 0] = True
    assert metrics.pointing_game(MAPS, objects, value).tolist() == [1, 0, 0]


@pytest.mark.parametrize("baselines", [None, 0])
def test_complex_inputs_are_not_inserted_whatever_the_baselines(baselines):
    with pytest.raises(ValueError, match=r"^inputs: number 0 is complex .* give real and imaginary parts as channels"):
        metrics.insertion(lambda x: TinyNet()(x.abs()), tiny_inputs() + 0j, MAPS, 1, baselines=baselines)


@pytest.mark.parametrize("number", [torch.uint8, torch.int64, torch.float32])
def test_objects_of_zeros_and_ones(number):
    objects = OBJECTS.clone()
    objects[:, :, :4] = False
    for game in GAMES:
        assert torch.equal(game(MAPS, objects.to(number)), game(MAPS, objects))


@pytest.mark.parametrize("size", [(4, 4, 4), (4,), 5, None, "ab", (-1, 4), (0, 4), (4.0, 4), (True, 4)])
def test_sizes_of_box_masks(size):
    refused(lambda: metrics.box_masks([[(0, 0, 2, 2)]], size), "size")


BOXES = [
    *(None, 1, "ab", [1], [None], [(0, 0, 2, 2)], [[(0, 0, 2)]], [["abcd"]], [[(0, 0, 2, None)]]),
    *([[(3, 0, 2, 2)]], [[(0, 3, 2, 2)]], [[(0, 0, float("nan"), 2)]]),
]


@pytest.mark.parametrize("boxes", BOXES, ids=kind_of)
def test_boxes(boxes):
    refused(lambda: metrics.box_masks(boxes, (4, 4)), "boxes")


def test_boxes_may_be_tensors_and_have_no_extent():
    masks = metrics.box_masks(torch.tensor([[[1.0, 1, 3, 3]], [[2.5, 2.5, 2.5, 2.5]]]), torch.Size((4, 4)))
    assert masks.flatten(1).sum(1).tolist() == [4, 1]


@pytest.mark.parametrize("size", [(0, 0), (-1, 4), 5, None, "ab", (), (4, 4, 4), (1.5, 2), (2, 2, 2, 2)])
def test_sizes_of_fuse(size):
    refused(lambda: fuse([MAPS], size), "size")


@pytest.mark.parametrize(
    "maps", [None, [], "ab", [None], [MAPS.numpy()], [MAPS, MAPS[:2]], [MAPS[..., :0]], [MAPS * torch.nan], [MAPS[0]]]
)
def test_maps_of_fuse(maps):
    refused(lambda: fuse(maps, (4, 4)), "maps")


def test_fuse_takes_whole_numbers():
    whole = (8 * MAPS).long()
    assert torch.allclose(fuse([whole], (8, 6)), fuse([whole.float()], (8, 6)))


def test_upsampled_attributions():
    model = Forbidden()
    method = LayerUnionCam(model, model.features)
    for wrong in (None, model, "union_cam"):
        refused(lambda wrong=wrong: UpsampledAttribution(wrong), "method")
    for mode in ("biliniar", None, 2):
        refused(lambda mode=mode: UpsampledAttribution(method, mode), "interpolate_mode")
    for mode in ("linear", "trilinear"):
        refused(lambda mode=mode: UpsampledAttribution(method, mode).attribute(tiny_inputs(), 1), "interpolate_mode")
    refused(lambda: UpsampledAttribution(method).attribute(tiny_inputs()[:0], 1), "inputs")
    assert model.calls == 0


@pytest.mark.parametrize("cls", METHODS)
def test_defaults_are_those_that_the_docstring_says(cls):
    document = getdoc(cls.attribute)
    for name, parameter in signature_of(cls).items():
        if parameter.default is not parameter.empty:
            entry = re.search(rf"^ *{name} \(.*?(?=^ *\w+ \(|\n\n|\Z)", document, re.MULTILINE | re.DOTALL)
            said = re.search(r"Default:\s+(\"\w*\"|[\w.-]+)", entry[0])[1].rstrip(".")
            assert literal_eval(said) == parameter.default, (name, said)
