"""Quantus' metrics over this package's methods, and in its table of metrics."""

import copy
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from captum_unioncam import demo, methods
from captum_unioncam.evaluation.compare import compare
from captum_unioncam.evaluation.judge import Judge
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics import table
from captum_unioncam.metrics.table import find_metrics
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.quantus import ConstantMapWarning, explain_func, metric
from captum_unioncam.system.errors import Failure, WrongArgument

pytestmark = pytest.mark.usefixtures("one_thread")

SCORED = {
    "Sparseness": {},
    "Complexity": {},
    "EffectiveComplexity": {},
    "RandomLogit": {"num_classes": 8},
    "MPRT": {"layer_order": "top_down"},
    "MaxSensitivity": {"nr_samples": 2},
    "LocalLipschitzEstimate": {"nr_samples": 2},
    "RelevanceMassAccuracy": {},
    "RelevanceRankAccuracy": {},
    "PointingGame": {},
    "Selectivity": {"patch_size": 56, "perturb_baseline": "black"},
}
"""Metrics of Quantus, of each of its kinds but the axioms, with arguments for which they are quick."""


@pytest.fixture(scope="module")
def data():
    images, labels, masks = demo.generate(4, seed=2024)
    return images, labels, masks


@pytest.fixture(scope="module")
def model():
    return demo.load_model()


@pytest.fixture(autouse=True)
def own_tables(monkeypatch):
    monkeypatch.setattr(table, "_metrics", dict(table._metrics))
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})


def run(name, model, data, explain, **arguments):
    quantus = pytest.importorskip("quantus", reason="needs captum-unioncam[quantus]")
    images, labels, masks = (each.numpy() for each in data)
    with warnings.catch_warnings():
        # Quantus' own.
        warnings.simplefilter("ignore")
        return getattr(quantus, name)(disable_warnings=True, **arguments)(
            model=model, x_batch=images, y_batch=labels, a_batch=None, s_batch=masks, explain_func=explain, device="cpu"
        )


# Towards Quantus.


def test_the_maps_are_the_methods_own(model, data):
    images, labels, _ = data
    expected = methods.create("union_cam", model, model.features[15])(images, labels, torch.zeros_like(images[:1]))
    maps = explain_func("union_cam", "features.15")(model, images.numpy(), labels.numpy(), device="cpu")
    assert isinstance(maps, np.ndarray)
    assert maps.shape == (4, 1, 112, 112)
    assert np.allclose(maps, expected.numpy(), atol=1e-6)
    # Without a layer, the last with space, which it is.
    assert np.array_equal(maps, explain_func("union_cam")(model, images, labels))


def test_the_layer_is_that_of_the_model_that_is_given(model, data):
    images, labels, _ = data
    explain = explain_func("grad_cam", "features.15")
    before = explain(model, images.numpy(), labels.numpy())
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        other.features[13].weight.mul_(torch.rand(64, 1, 1, 1))
    maps = explain(other, images.numpy(), labels.numpy())
    expected = methods.create("grad_cam", other, other.features[15])(images, labels, torch.zeros_like(images[:1]))
    assert np.array_equal(maps, expected.numpy())
    assert not np.allclose(maps, before)
    with pytest.raises(ValueError, match=r"the model has no layer 'layer4'"):
        explain_func("grad_cam", "layer4")(model, images.numpy(), labels.numpy())


def test_it_is_computed_as_the_model_is(model, data):
    images, labels, _ = data
    double = copy.deepcopy(model).double()
    maps = explain_func("grad_cam", "features.15")(double, images.numpy(), labels.numpy())
    assert maps.dtype == np.float64
    single = explain_func("grad_cam", "features.15")(model, images.numpy().astype(np.float64), labels.numpy())
    assert single.dtype == np.float32
    assert np.allclose(maps, single, atol=1e-4 * maps.max())


def test_black_and_settings_reach_the_method(model, data):
    images, labels, _ = data
    white = torch.ones_like(images[:1])
    few = MethodSettings(max_channels=3)
    expected = methods.create("score_cam", model, model.features[15], few)(images, labels, white).numpy()
    for baselines in (1.0, white, white.numpy()):
        explain = explain_func("score_cam", "features.15", baselines=baselines, settings=few)
        assert np.allclose(explain(model, images.numpy(), labels.numpy()), expected, atol=1e-6)


def test_random_numbers_are_those_of_the_seed_and_of_no_other_generator(model, data):
    images, labels, _ = data
    methods.register("drawn", lambda model, layer, settings: lambda x, target, black: torch.rand_like(x))
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (explain_func("drawn", "features.15", seed=seed)(model, images, labels) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_map_that_is_the_same_everywhere_is_warned_of(model, data):
    images, labels, _ = data
    flat = torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1, 1)
    methods.register("half flat", lambda model, layer, settings: lambda x, target, black: x * flat[: len(x)])
    with pytest.warns(ConstantMapWarning, match=r"half flat: its map is the same everywhere for the examples \[1\]"):
        explain_func("half flat", "features.15")(model, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain_func("half flat", "features.15")(model, images[:1], labels[:1])


FLAT_BATCHES = """
import torch
from captum_unioncam import methods
from captum_unioncam.quantus import explain_func

methods.register("flat", lambda model, layer, settings: lambda x, target, black: torch.ones_like(x))
model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
for image in torch.ones(3, 1, 1, 8, 8):
    explain_func("flat", "0")(model, image.numpy(), [0])
"""


def test_each_batch_is_warned_of_under_pythons_own_filters():
    command = [sys.executable, "-c", FLAT_BATCHES]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr.count("ConstantMapWarning: flat: its map is the same everywhere for the examples [0]") == 3


@pytest.mark.parametrize("name", SCORED)
def test_metrics_of_quantus_run_over_it(model, data, name):
    explain, flat = explain_func("grad_cam", "features.15"), []

    def watched(model, inputs, targets, **kwargs):
        maps = explain(model, inputs, targets, **kwargs)
        flat.extend(each.min() == each.max() for each in maps)
        return maps

    scores = run(name, model, data, watched, **SCORED[name])
    scores = scores if isinstance(scores, dict) else {"scores": scores}
    assert [len(values) for values in scores.values()] == [4] * len(scores)
    # Those that are the same everywhere, which are warned of, have no score, and all others have.
    assert len(flat) >= 4
    assert np.isnan(np.asarray(list(scores.values()), dtype=float)).sum() == sum(flat)
    if name == "MPRT":
        assert list(scores)[:3] == ["original", "classifier.3", "classifier.0"]
        assert scores["original"] == pytest.approx([1] * 4)
        assert np.nanmax(scores["features.0"]) < 0.9


def test_a_method_that_ignores_the_model_fails_the_randomisation_of_quantus(model, data):
    methods.register("edges", lambda model, layer, settings: lambda x, target, black: x.diff(dim=-1).abs())
    scores = run("MPRT", model, data, explain_func("edges", "features.15"), layer_order="top_down")
    assert np.allclose(list(scores.values()), 1)


# From Quantus.


def gini(values):
    """The Gini index of values that are not negative, in plain loops."""
    ordered = sorted(values)
    total, n = sum(ordered), len(ordered)
    return 1 - 2 * sum(value / total * (n - rank - 0.5) / n for rank, value in enumerate(ordered))


def test_a_metric_of_quantus_is_computed_as_others_are(data):
    pytest.importorskip("quantus", reason="needs captum-unioncam[quantus]")
    metric("Sparseness")
    metric("Sparseness")  # a notebook's cell may be run again
    metric("RelevanceRankAccuracy")
    assert "quantus_sparseness" in [found.name for found in find_metrics()]
    judge = Judge(ExplainedModel(device="cpu"), ["grad_cam"], MethodSettings(), steps=2)
    compared = compare(judge, "an image", demo.load_picture())
    value = compared.table()["quantus_sparseness"].item()
    (judged,) = compared.judgements.values()
    assert value == pytest.approx(gini(judged.attribution.double().flatten().tolist()), abs=2e-3)

    (ranked,) = find_metrics(["quantus_relevancerankaccuracy"])
    assert (ranked.needs_objects, ranked.larger_is_better) == (True, True)
    model, (images, labels, masks) = judge.subject.model, data
    maps = methods.create("grad_cam", model, judge.subject.layer)(images, labels, torch.zeros_like(images[:1]))
    given = {"forward_func": model, "inputs": images, "attributions": maps, "target": labels, "objects": masks}
    for i, share in enumerate(ranked.compute(given).tolist()):
        inside = masks[i].flatten()
        top = maps[i].flatten().argsort(descending=True)[: int(inside.sum())]
        assert share == pytest.approx(sum(bool(inside[place]) for place in top) / len(top), abs=1e-6)


def test_random_numbers_of_quantus_are_seeded_and_restored(model, data):
    pytest.importorskip("quantus", reason="needs captum-unioncam[quantus]")
    metric("FaithfulnessCorrelation", nr_runs=4, subset_size=500, return_aggregate=False)
    (found,) = find_metrics(["quantus_faithfulnesscorrelation"])
    images, labels, _ = data
    given = {"forward_func": model, "inputs": images, "attributions": images, "target": labels}
    state = np.random.get_state()[1].copy()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(found.compute(given).tolist())
    assert values[0] == values[1] != values[2]
    assert np.array_equal(np.random.get_state()[1], state)


def test_what_is_refused(model, data, monkeypatch):
    pytest.importorskip("quantus", reason="needs captum-unioncam[quantus]")
    with pytest.raises(WrongArgument, match="Quantus has no metric 'Sparsness'; did you mean Sparseness"):
        metric("Sparsness")
    for name in ("MaxSensitivity", "MPRT"):
        with pytest.raises(WrongArgument, match=f"Quantus' {name} explains other inputs or models; call it in Quantus"):
            metric(name)
    metric("FaithfulnessCorrelation", nr_runs=2)
    (found,) = find_metrics(["quantus_faithfulnesscorrelation"])
    given = {"forward_func": model, "inputs": data[0], "attributions": data[0], "target": data[1]}
    with pytest.raises(WrongArgument, match=r"returned numbers of shape \(1,\) for 4 examples"):
        found.compute(given)
    monkeypatch.setitem(sys.modules, "quantus", None)
    with pytest.raises(Failure, match=r"pip install 'captum-unioncam\[quantus\]'"):
        metric("Complexity")


def test_a_model_without_parameters_is_explained():
    images = torch.rand(2, 3, 8, 8)
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    maps = explain_func("saliency", "0")(model, images.numpy(), np.array([0, 5]))
    assert maps.shape == (2, 1, 8, 8)
    assert (maps.reshape(2, -1) > 0).sum(1).tolist() == [4, 4]
