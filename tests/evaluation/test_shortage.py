"""Memory that runs out while a method is judged: it is tried again in smaller passes, and fails of one row alone."""

from contextlib import contextmanager

import pytest
import torch

from captum_unioncam import demo, methods
from captum_unioncam.evaluation import judge as judging
from captum_unioncam.evaluation.judge import Judge
from captum_unioncam.evaluation.records import read_records
from captum_unioncam.evaluation.run import Evaluation, evaluate
from captum_unioncam.methods.settings import Explained, MethodSettings
from captum_unioncam.metrics import table
from captum_unioncam.models.subject import ExplainedModel

pytestmark = pytest.mark.usefixtures("one_thread")

MASKED = ["score_cam", "ablation_cam", "occlusion"]
WITH_GRADIENTS = ["grad_cam", "grad_cam_plus_plus", "smooth_grad_cam_plus_plus", "integrated_gradients"]


@pytest.fixture(scope="module")
def subject():
    return ExplainedModel(device="cpu")


@pytest.fixture(scope="module")
def shown():
    images, _, _ = demo.generate(1, seed=5)
    return images[0]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})
    monkeypatch.setattr(table, "_metrics", dict(table._metrics))


@contextmanager
def room_for(rows, subject):
    """The model runs out of memory in passes of more rows; gives the rows of those that did."""
    failed = []

    def before(module, inputs):
        if len(inputs[0]) > rows:
            failed.append(len(inputs[0]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    handle = subject.model.register_forward_pre_hook(before)
    try:
        yield failed
    finally:
        handle.remove()


def judge_of(subject, *names, rows=16, metric_names=("deletion",)):
    settings = MethodSettings(internal_batch_size=rows, max_channels=4)
    return Judge(subject, names, settings, 3, metrics=metric_names)


@pytest.mark.parametrize("method", [*MASKED, *WITH_GRADIENTS])
def test_a_method_that_needs_less_room_says_the_same(subject, shown, method):
    (expected,) = judge_of(subject, method).run([(method, [2])], shown)
    with room_for(1, subject):
        (outcome,) = judge_of(subject, method).run([(method, [2])], shown)
    assert outcome.problem is None
    (judged,), (wanted,) = outcome.judgements, expected.judgements
    # float32 sums in another order, of logits that are larger than the maps.
    torch.testing.assert_close(judged.map, wanted.map, rtol=1e-4, atol=1e-4 * wanted.map.max().item())
    assert judged.values["deletion"] == pytest.approx(wanted.values["deletion"], rel=1e-4)


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_plus_plus", "smooth_grad_cam_plus_plus", "union_cam"])
def test_several_classes_are_explained_with_room_for_one_row(subject, shown, method):
    (expected,) = judge_of(subject, method, metric_names=[]).run([(method, [2, 5, 0])], shown)
    with room_for(1, subject):
        (outcome,) = judge_of(subject, method, metric_names=[]).run([(method, [2, 5, 0])], shown)
    assert outcome.problem is None
    for judged, wanted in zip(outcome.judgements, expected.judgements, strict=True):
        torch.testing.assert_close(judged.map, wanted.map, rtol=1e-4, atol=1e-4 * wanted.map.max().item())


def test_classes_that_do_not_fit_together_are_explained_one_at_a_time(subject, shown):
    asked = []

    class Sweeping:
        def __call__(self, inputs, target, baselines):
            raise AssertionError("each is called")

        def each(self, inputs, targets, baselines):
            asked.append(targets.tolist())
            if targets.shape[1] > 1:
                raise MemoryError
            return [Explained(inputs * (1 + t)) for t in targets[0]]

    methods.register("sweeping", lambda model, layer, settings: Sweeping())
    (outcome,) = judge_of(subject, "sweeping", metric_names=[]).run([("sweeping", [0, 1])], shown)
    assert outcome.problem is None
    assert asked == [[[0, 1]], [[0]], [[1]]]
    first, second = (judged.map for judged in outcome.judgements)
    assert torch.allclose(2 * first, second)


def test_rows_are_halved_until_they_fit_and_remembered(subject, shown, monkeypatch):
    tried, freed = [], []

    def factory(model, layer, settings):
        def attribute(inputs, target, baselines):
            tried.append(settings.internal_batch_size)
            if settings.internal_batch_size > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inputs

        return attribute

    methods.register("large", factory)
    methods.register("other", lambda model, layer, settings: lambda *_: tried.append(settings) or _[0])
    monkeypatch.setattr(judging, "release_memory", freed.append)
    judge = judge_of(subject, "large", "other", rows=20)
    first, other, again = judge.run([("large", [0]), ("other", [0]), ("large", [1])], shown)
    assert first.error is other.error is again.error is None
    assert [rows for rows in tried if isinstance(rows, int)] == [20, 10, 5, 2, 2]
    assert freed == [subject.device] * 3
    # It is that method's alone.
    (settings,) = (settings for settings in tried if not isinstance(settings, int))
    assert settings.internal_batch_size == 20


def test_one_row_that_does_not_fit_is_tried_once_more_and_fails(subject, shown):
    with room_for(0, subject) as failed:
        judge = judge_of(subject, "occlusion", rows=4, metric_names=[])
        confidences = torch.full((8,), 0.5)
        first, second = judge.run([("occlusion", [0]), ("occlusion", [1])], shown, confidences=confidences)
    assert first.is_shortage
    assert second.is_shortage
    # With 4 rows, 2, 1; then with one, and once more with the memory that was freed.
    assert len(failed) == 3 + 2


def test_a_metric_that_needs_too_much_is_computed_in_smaller_passes(subject, shown):
    given = []

    @table.metric("greedy", "greedy", larger_is_better=True)
    def greedy(attributions, internal_batch_size):
        given.append(internal_batch_size)
        if internal_batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attributions.flatten(1).sum(1)

    (outcome,) = judge_of(subject, "saliency", rows=8, metric_names=["greedy"]).run([("saliency", [3])], shown)
    assert outcome.problem is None
    assert given == [8, 4, 2]
    assert outcome.judgements[0].values["greedy"] == pytest.approx(outcome.judgements[0].attribution.sum().item())


def test_an_error_of_another_kind_is_not_tried_again(subject, shown):
    calls = []

    def attribute(inputs, target, baselines):
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    methods.register("broken", lambda model, layer, settings: attribute)
    (outcome,) = judge_of(subject, "broken").run([("broken", [0])], shown)
    assert outcome.error is not None
    assert calls == [1]


@pytest.mark.parametrize(("rows", "shortages"), [(2, 0), (0, 4)])
def test_records_hold_a_shortage_where_one_row_does_not_fit_alone(subject, tmp_path, rows, shortages):
    settings = MethodSettings(max_channels=4)
    names = ["grad_cam", "integrated_gradients"]
    with room_for(rows, subject):
        tally = evaluate(
            Evaluation("demo", limit=2, steps=2, settings=settings), subject, names, tmp_path / "out", 0, False
        )
    assert (tally.records, tally.failures, tally.shortages) == (4, 0, shortages)
    errors = [record.error for record in read_records(tmp_path / "out") if record.error is not None]
    assert len(errors) == shortages
    assert all(error.startswith("out of memory: ") for error in errors)
