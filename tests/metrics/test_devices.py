"""Metrics of tensors that are on several devices, which are pretended."""

from functools import partial

import pytest
import torch

from captum_unioncam import metrics
from captum_unioncam.metrics.table import all_metrics, find_metrics
from captum_unioncam.testing import PretendedDevices
from captum_unioncam.testing.device_checks import MIXES, PLACES
from tests.networks import TinyNet, tiny_inputs

PARTS = ("model", "inputs", "attributions", "target", "output", "confidences", "baselines", "scale", "objects")
# ROAD's halves run what ROAD runs.
METRICS = [metric for metric in find_metrics(all_metrics()) if not metric.name.startswith("road_")]
FAITHFULNESS = [metric for metric in METRICS if not metric.needs_objects]
# The others look at attributions alone, those of other inputs too.
OF_MAPS = ("coherency", "complexity", "sensitivity_max", "sparseness", "model_randomization", "random_logit")
RUNNING = [m for m in FAITHFULNESS if m.name not in OF_MAPS]


def explained(inputs):
    return torch.nn.functional.avg_pool2d(inputs, 2).square()


def arguments(put):
    """What a metric may take, each part where ``put(tensor, part)`` has it."""
    generator = torch.Generator().manual_seed(0)
    net, inputs = TinyNet(), tiny_inputs()
    for parameter in net.parameters():
        parameter.data = put(parameter.data, "model")
    output, confidences = (put(torch.zeros(1), part) for part in ("output", "confidences"))

    def forward(x, scale):
        device = next(net.parameters()).device
        return (net(x.to(device)) * scale.to(device)).to(output.device)

    return {
        "forward_func": forward,
        "inputs": put(inputs, "inputs"),
        "attributions": put(torch.rand(3, 1, 4, 3, dtype=torch.float64, generator=generator), "attributions"),
        "target": put(torch.tensor([3, 0, 2]), "target"),
        "baselines": put(0.3 * inputs, "baselines"),
        "additional_forward_args": put(torch.linspace(0.5, 1.5, 3, dtype=torch.float64).reshape(3, 1), "scale"),
        "confidence_fn": lambda output: output.softmax(1).to(confidences.device),
        "objects": put(torch.rand(3, 1, 8, 6, generator=generator) > 0.5, "objects"),
        "steps": 5,
        "samples": 4,
        "percentiles": (95,),
        **dict.fromkeys(("explanation_func", "randomized_func", "other_class_func"), explained),
    }


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_any_part_may_be_on_any_device(metric, mix):
    places = {part: PLACES[int(number)] for part, number in zip(PARTS, mix, strict=True)}
    devices = PretendedDevices()
    given = arguments(lambda tensor, part: devices.put(tensor, places[part]))
    with devices.active():
        made = metric.compute(given)
        assert str(made.device) == places["attributions" if metric.needs_objects else "inputs"]
    torch.testing.assert_close(made, metric.compute(arguments(lambda tensor, _part: tensor)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_an_accelerator_needs_no_float64(metric):
    devices = PretendedDevices()
    given = arguments(lambda tensor, _part: devices.put(single(tensor), "mps"))
    with devices.active():
        made = metric.compute(given)
        assert str(made.device) == "mps:0"
    expected = metric.compute(arguments(lambda tensor, _part: single(tensor)))
    torch.testing.assert_close(made, expected, check_dtype=False)


def single(tensor):
    return tensor.float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("place", ["cuda:1", "cpu"])
@pytest.mark.parametrize("metric", RUNNING, ids=lambda metric: metric.name)
def test_a_module_elsewhere_than_its_inputs_is_refused_as_pytorch_does(metric, place):
    devices, net = PretendedDevices(), TinyNet()
    devices.place(net, "cuda:0")
    given = {"forward_func": net, "attributions": torch.rand(3, 1, 4, 3), "target": 1, "explanation_func": explained}
    with devices.active():
        with pytest.raises(RuntimeError, match="same device"):
            metric.compute({**given, "inputs": devices.put(tiny_inputs(), place)})
        assert str(metric.compute({**given, "inputs": devices.put(tiny_inputs(), "cuda:0")}).device) == "cuda:0"


# The model, its output and its confidences go together: its function may wait in every pass.
ALONE = [(), ("attributions",), ("target",), ("baselines",), ("attributions", "target", "baselines")]


@pytest.mark.usefixtures("rows_tried")
@pytest.mark.parametrize(("here", "there"), [("cuda:0", "cpu"), ("cpu", "cuda:0")])
@pytest.mark.parametrize("alone", ALONE)
@pytest.mark.parametrize("metric", FAITHFULNESS, ids=lambda metric: metric.name)
def test_a_device_is_waited_for_as_often_whatever_the_batch_size(metric, alone, here, there):
    counts = []
    for size in (1, 64):
        devices = PretendedDevices()
        given = arguments(partial(put_apart, devices, alone, here, there))
        with devices.active():
            metric.compute({**given, "internal_batch_size": size})
        counts.append(devices.synchronisations)
    assert counts[0] == counts[1]


def put_apart(devices, alone, here, there, tensor, part):
    return devices.put(tensor, there if part in alone else here)


# Captum's own sensitivity takes inputs of one device.
OF_TWO_DEVICES = [m for m in METRICS if m.name in OF_MAPS and m.name != "sensitivity_max"]


@pytest.mark.parametrize("metric", OF_TWO_DEVICES, ids=lambda metric: metric.name)
def test_two_inputs_may_be_on_two_devices(metric):
    def forward(x, y):
        return x.flatten(1) + y.to(x.device).flatten(1)

    def value(put):
        inputs = put(tiny_inputs(), "cuda:0"), put(tiny_inputs(seed=2), "cuda:1")
        attr = put(torch.linspace(0, 1, 36, dtype=torch.float64).reshape(3, 1, 4, 3), "cpu")
        given = {"forward_func": forward, "inputs": inputs, "attributions": attr, "target": 1}
        functions = ("explanation_func", "randomized_func", "other_class_func")
        return metric.compute({**given, **dict.fromkeys(functions, lambda inputs: inputs)})

    devices = PretendedDevices()
    with devices.active():
        made = value(devices.put)
        assert str(made.device) == "cuda:0"
    torch.testing.assert_close(made, value(lambda tensor, _place: tensor), rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_boxes_may_be_on_any_device(place):
    devices, boxes = PretendedDevices(), torch.tensor([[[1.0, 2.0, 4.0, 5.0]], [[0.0, 0.0, 3.0, 3.0]]])
    attr = devices.put(torch.rand(2, 1, 8, 6), "cuda:0")
    with devices.active():
        masks = metrics.box_masks(devices.put(boxes, place), (8, 6))
        assert str(metrics.pointing_game(attr, masks).device) == "cuda:0"
    assert torch.equal(masks, metrics.box_masks(boxes, (8, 6)))
