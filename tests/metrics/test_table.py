"""Every metric of the table as evaluations call it, and how one gets there; by a file, `test_one_file.py` shows."""

import copy
import inspect
import sys
import warnings
from contextlib import contextmanager
from dataclasses import FrozenInstanceError

import pytest
import torch

from captum_unioncam.metrics import table
from captum_unioncam.metrics.table import SECONDS, Metric, all_metrics, find_metrics, metric
from captum_unioncam.system.errors import WrongArgument
from captum_unioncam.system.versions import package_versions
from tests.metrics import reference
from tests.networks import TinyNet, same, tiny_inputs

STEPS = 6
TARGETS = torch.tensor([3, 0, 2])

METRICS = find_metrics(all_metrics())

every_metric = pytest.mark.parametrize("judged", METRICS, ids=lambda judged: judged.name)


@pytest.fixture
def own_table(monkeypatch):
    """A table of the test's own, with what is there already."""
    monkeypatch.setattr(table, "_metrics", dict(table._metrics))


@pytest.fixture
def model():
    return TinyNet(seed=3, batch_norm=True, dropout=0.5).eval()


def explained(model, inputs, targets):
    """Attributions that depend on the inputs, the model and the target, with gradients: (N, 2, 4, 3)."""
    inputs = inputs.clone().requires_grad_()
    scores = model(inputs).gather(1, targets.reshape(-1, 1))
    (gradients,) = torch.autograd.grad(scores.sum(), inputs)
    return torch.nn.functional.avg_pool2d(gradients * inputs.detach(), 2)


def arguments(model, examples=slice(None), **changed):
    """What an evaluation gives, of some of three examples."""
    generator = torch.Generator().manual_seed(0)
    attributions = torch.rand(3, 2, 4, 3, dtype=torch.float64, generator=generator)
    objects = torch.rand(3, 1, 8, 6, generator=generator) < 0.3
    return {
        "forward_func": model,
        "inputs": tiny_inputs(seed=5)[examples],
        "attributions": attributions[examples],
        "target": TARGETS[examples],
        "baselines": torch.full((1, 2, 8, 6), -0.5, dtype=torch.float64),
        "objects": objects[examples],
        "steps": STEPS,
        "return_curve": False,
        "explanation_func": lambda inputs: explained(model, inputs, TARGETS[examples]),
        "randomized_func": lambda inputs: explained(model, 1 - inputs, TARGETS[examples]),
        "other_class_func": lambda inputs: explained(model, inputs, (TARGETS[examples] + 1) % 4),
        "confidence_fn": lambda output: output.softmax(1),
        "internal_batch_size": 4,
        **changed,
    }


@every_metric
def test_an_example_has_one_value_whatever_its_batch(model, judged):
    torch.manual_seed(0)
    values = judged.compute(arguments(model))
    assert values.shape == (3,)
    assert values.isfinite().all()
    alone = [judged.compute(arguments(model, slice(i, i + 1))) for i in range(3)]
    assert same(torch.cat(alone), values)
    if judged.is_yes_or_no:
        assert {*values.tolist()} <= {0.0, 1.0}


def loop_of(judged):
    return getattr(reference, judged.function.__name__, None)


def test_every_metric_has_its_plain_loop():
    ours = [judged for judged in METRICS if judged.function.__module__.startswith("captum_unioncam.")]
    assert [judged.name for judged in ours if loop_of(judged) is None] == []


@pytest.mark.parametrize("judged", [m for m in METRICS if loop_of(m)], ids=lambda judged: judged.name)
def test_the_values_are_those_of_plain_loops(model, judged):
    function = loop_of(judged)
    given = arguments(model)

    def value(i):
        @torch.no_grad()
        def confidence(image):
            return model(image).softmax(1)[0, TARGETS[i]].item()

        one = {name: given[name][i : i + 1] for name in ("inputs", "attributions")}
        known = {
            "confidence": confidence,
            "image": one["inputs"],
            "black": given["baselines"],
            "attribution": one["attributions"],
            "mask": given["objects"][i, 0],
            "steps": STEPS,
            "explain": lambda image: explained(model, image, TARGETS[i : i + 1]),
            "on_another_model": lambda image: explained(model, 1 - image, TARGETS[i : i + 1]),
            "for_another_class": lambda image: explained(model, image, (TARGETS[i : i + 1] + 1) % 4),
        }
        return function(**{name: known[name] for name in inspect.signature(function).parameters if name in known})

    assert same(judged.compute(given), torch.tensor([value(i) for i in range(3)], dtype=torch.float64))


@every_metric
def test_a_curve_has_the_confidences_at_equal_steps(model, judged):
    takes = inspect.signature(judged.function).parameters
    assert judged.has_curve == ("return_curve" in takes)
    assert judged.needs_objects == ("objects" in takes)
    if judged.has_curve:
        curve = judged.compute(arguments(model, return_curve=True))
        assert curve.confidences.shape == (3, STEPS + 1)
        assert same(curve.area, judged.compute(arguments(model)))


@every_metric
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(model, judged, fails):
    in_evaluation = judged.compute(arguments(model))
    model.train()
    before = copy.deepcopy(model.state_dict())
    inputs = tiny_inputs(seed=5)
    given = arguments(model, inputs=inputs.clone())
    if fails:
        given["attributions"] = torch.full_like(given["attributions"], torch.nan)
        with pytest.raises(ValueError, match="attributions: not finite"):
            judged.compute(given)
    else:
        # Dropout is off, and batches have no statistics of their own.
        assert same(judged.compute(given), in_evaluation)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(given["inputs"], inputs)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "deterministic": deterministic,
}


@every_metric
@pytest.mark.parametrize("surrounding", SURROUNDINGS.values(), ids=list(SURROUNDINGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_around_a_call_does_not_change_the_values(model, judged, surrounding, dtype):
    model = model.to(dtype)
    given = {name: x.to(dtype) if name in ("inputs", "attributions", "baselines") else x
             for name, x in arguments(model).items()}  # fmt: skip
    expected = judged.compute(given)
    with surrounding():
        autocast, inference = torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()
        made = judged.compute(given)
        assert (torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()) == (autocast, inference)
    assert made.dtype == expected.dtype
    assert torch.equal(made, expected)
    assert not made.requires_grad
    assert not made.is_inference()


@every_metric
def test_what_was_made_in_inference_mode_is_judged(model, judged):
    given = arguments(model)
    expected = judged.compute(given)
    with torch.inference_mode():
        given = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    assert torch.equal(judged.compute(given), expected)


@pytest.mark.parametrize("shown", all_metrics().values(), ids=list(all_metrics()))
def test_a_metric_says_what_it_is(shown):
    assert shown.name.isidentifier()
    assert shown.description.endswith(".")
    assert shown.heading == f"{shown.title} {'↑' if shown.larger_is_better else '↓'}"
    assert shown.text(1.0) in ("1", "1.000")


def test_texts_of_one_example_are_not_scaled():
    assert Metric("a", None, "a", True, scale=100, form=".1f").text(0.12345) == "0.123"
    assert Metric("a", None, "a", True, form=".3g").text(12345.6) == "1.23e+04"
    assert Metric("a", None, "a", True, scale=100, form=".1f", is_yes_or_no=True).text(1.0) == "1"


def test_metrics_are_found_by_name_in_the_order_of_tables():
    names = ["drop", "increase", "insertion", "deletion", "pointing", "energy"]
    assert list(all_metrics())[:6] == names
    assert list(all_metrics())[-1] == SECONDS.name
    assert [found.name for found in find_metrics()][:6] == names
    assert [found.name for found in find_metrics(["energy", "seconds", "drop"])] == ["drop", "energy"]
    assert find_metrics([]) == []
    with pytest.raises(
        WrongArgument, match="no metric 'delation'; did you mean deletion\\? Give some of drop, increase, "
    ):
        find_metrics(["drop", "delation"])


@pytest.mark.parametrize("name", ["drop", "seconds"])
def test_a_name_is_given_once(own_table, name):
    with pytest.raises(ValueError, match=f"there is a metric '{name}' already"):
        metric(name, "another", larger_is_better=True)(lambda attributions: attributions)


# From other places.

OWN_METRIC = """
from captum_unioncam.metrics.table import metric

@metric("{name}", "the map's mean", larger_is_better=False)
def mean_attribution(attributions):
    return attributions.flatten(1).mean(1)
"""


@pytest.fixture
def packages(own_table, tmp_path, monkeypatch):
    """Two installed packages that add metrics: one that works, and one that does not."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in (("good", OWN_METRIC.format(name="added")), ("bad", "raise OSError('no\\nlibrary.')")):
        (tmp_path / f"{name}_metrics.py").write_text(code)
        info = tmp_path / f"{name}_package-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[captum_unioncam.metrics]\n{name} = {name}_metrics\n")
    table._load_plugins.cache_clear()
    yield
    for name in ("good_metrics", "bad_metrics"):
        sys.modules.pop(name, None)


def test_other_packages_add_metrics_and_a_broken_one_is_a_warning(packages):
    with pytest.warns(
        UserWarning,
        match=r"^bad-package: loading 'bad' of captum_unioncam\.metrics \(bad_metrics\) raised OSError: no library; ",
    ) as told:
        found = all_metrics()
    assert len(told) == 1
    assert list(found)[-2:] == ["added", "seconds"]
    assert found["added"].compute({"attributions": torch.ones(2, 1, 3, 3), "target": 0}).tolist() == [1, 1]
    assert package_versions()["good-package"] == "1.5"
    # They are loaded once.
    with warnings.catch_warnings(record=True) as told_again:
        assert [each.name for each in find_metrics(["added"])] == ["added"]
    assert not [each for each in told_again if "bad-package" in str(each.message)]


def test_what_is_shown_in_percent_is_the_value_times_100():
    shown = {each.name: each.scale for each in all_metrics().values() if each.name in ("drop", "increase", "energy")}
    assert shown == {"drop": 100, "increase": 100, "energy": 100}
    for each in find_metrics(["drop", "increase", "insertion", "deletion", "pointing", "energy"]):
        assert (each.scale, each.form) == ((100, ".1f") if "(%)" in each.title else (1, ".3f"))


def test_what_is_better_as_the_papers_have_it():
    known = all_metrics()
    better = {
        **{"drop": "lower", "increase": "higher", "insertion": "higher", "deletion": "lower"},
        **{"pointing": "higher", "energy": "higher", "seconds": "lower"},
    }
    assert {name: "higher" if known[name].larger_is_better else "lower" for name in better} == better
    assert {name for name in better if known[name].is_yes_or_no} == {"increase", "pointing"}


def test_what_is_listed_does_not_change():
    with pytest.raises(FrozenInstanceError):
        find_metrics(["drop"])[0].larger_is_better = True
