"""Models that return more than the tensor to explain: ``output_fn`` picks it, in every method and metric."""

import inspect

import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam, Rise, methods, shared_passes
from captum_unioncam.methods import MethodSettings
from captum_unioncam.methods.adapters.captum import CAPTUM_METHODS
from captum_unioncam.metrics.table import all_metrics, find_metrics
from captum_unioncam.system.errors import Failure
from tests.attr import OF_ANY_NETWORK
from tests.networks import TinyNet, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")
TARGETS = torch.tensor([1, 0])
OF_MAPS = [method for method in OF_ANY_NETWORK if method.name != "vit_recipro_cam"]
MASKS = {"n_masks": 8, "grid_size": 2}


class Twice(nn.Module):
    """Two tensors with a number between; neither is named as the one to explain."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def forward(self, x):
        output = self.net(x)
        return -output, 3, output


def last(output):
    return output[2]


@pytest.fixture(scope="module")
def twice():
    return Twice().eval()


def explained(method, model, net, **options):
    torch.manual_seed(0)
    if method is Rise:
        return Rise(model, **options).attribute(tiny_inputs(examples=2), TARGETS, **MASKS)
    return method(model, net.features, **options).attribute(tiny_inputs(examples=2), TARGETS)


@pytest.mark.parametrize("method", [*OF_MAPS, Rise], ids=lambda method: method.__name__)
def test_every_method_explains_the_tensor_that_is_picked(method, twice):
    expected = explained(method, twice.net, twice.net)
    assert expected.std() > 0
    for model in (twice, lambda x: twice(x)):
        assert torch.allclose(explained(method, model, twice.net, output_fn=last), expected, rtol=0, atol=1e-9)


class InADict(nn.Module):
    """The tensor to explain by its name."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def forward(self, x):
        return {"loss": x.sum(), "logits": self.net(x)}


OTHERS = [*CAPTUM_METHODS, "torchcam:GradCAM", "torchcam:ScoreCAM", "grad_cam:GradCAM", "grad_cam:ScoreCAM"]


@pytest.mark.parametrize("name", ["union_cam", "rise", *OTHERS])
def test_methods_by_name_explain_the_same_tensor(name):
    def maps(model, net, output_fn=None):
        torch.manual_seed(0)
        net.double()
        inputs = tiny_inputs(examples=2)
        settings = MethodSettings(output_fn=output_fn, show_progress=False)
        return methods.create(name, model, net.features, settings)(inputs, TARGETS, torch.zeros_like(inputs[:1]))

    net, twice, in_a_dict = TinyNet().eval(), Twice().eval(), InADict().eval()
    expected = maps(net, net)
    assert expected.std() > 0
    assert torch.allclose(maps(twice, twice.net, last), expected, rtol=0, atol=1e-9)
    assert torch.allclose(maps(in_a_dict, in_a_dict.net), expected, rtol=0, atol=1e-9)
    with pytest.raises((ValueError, Failure), match="returned tuple"):
        maps(twice, twice.net)
    assert not twice._forward_hooks


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["saliency", "integrated_gradients", "occlusion"])
def test_captums_methods_explain_models_of_torchscript(name):
    """Which take no hook that would pick the tensor."""
    net = TinyNet().eval()
    inputs = tiny_inputs(examples=2)
    scripted = torch.jit.script(net)
    made, expected = (
        methods.create(name, model, net.features)(inputs, TARGETS, torch.zeros_like(inputs[:1]))
        for model in (scripted, net)
    )
    assert expected.std() > 0
    assert torch.allclose(made, expected, rtol=0, atol=1e-9)


METRICS = find_metrics(all_metrics())
RUNS_THE_MODEL = [one for one in METRICS if "forward_func" in inspect.signature(one.function).parameters]


@pytest.mark.parametrize("metric", RUNS_THE_MODEL, ids=lambda metric: metric.name)
def test_every_metric_judges_by_the_tensor_that_is_picked(metric, twice):
    def explain(inputs):
        return (inputs * 0.5 + inputs.square()).sum(1, keepdim=True)

    def values(model, **options):
        torch.manual_seed(0)
        given = {"inputs": tiny_inputs(examples=2), "target": TARGETS, "steps": 4, "return_curve": False}
        functions = dict.fromkeys(("explanation_func", "randomized_func", "other_class_func"), explain)
        of_inputs = {"attributions": explain(given["inputs"]), "objects": given["inputs"][:, :1] > 0}
        return metric.compute({**given, **functions, **of_inputs, "forward_func": model, **options})

    assert torch.allclose(values(twice, output_fn=last), values(twice.net), rtol=0, atol=1e-9)


def test_an_output_that_does_not_tell_is_refused_with_what_to_give(twice):
    held = (
        r"returned tuple \(\[0\]: \(2, 4\), \[2\]: \(2, 4\)\) for 2 rows; give output_fn, .* lambda output: output\[0\]"
    )
    with pytest.raises(ValueError, match=rf"^forward_func: {held}"):
        explained(LayerScoreCam, twice, twice.net)
    with pytest.raises(ValueError, match=r"^score_func: returned tuple"):
        explained(LayerScoreCam, twice.net, twice.net, score_func=twice)
    with pytest.raises(TypeError, match=r"^output_fn: "):
        LayerScoreCam(twice, twice.net.features, output_fn=2)


def test_what_scores_in_place_of_the_model_returns_what_it_does(twice):
    seen = []

    def score(x):
        seen.append(len(x))
        return twice(x)

    picked = explained(LayerScoreCam, twice, twice.net, output_fn=last, score_func=score)
    assert sum(seen) > 0
    assert torch.allclose(picked, explained(LayerScoreCam, twice.net, twice.net), rtol=0, atol=1e-9)


def test_shared_passes_are_those_of_the_same_tensor(twice):
    with shared_passes():
        first = explained(LayerScoreCam, twice, twice.net, output_fn=lambda output: output[0])
        picked = explained(LayerScoreCam, twice, twice.net, output_fn=last)
    assert torch.allclose(picked, explained(LayerScoreCam, twice.net, twice.net), rtol=0, atol=1e-9)
    assert not torch.allclose(first, picked)
