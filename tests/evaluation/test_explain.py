"""Classes of an image explained by any method."""

import pytest
import torch

from captum_unioncam import demo, methods
from captum_unioncam.evaluation.explain import Explainer, Settings
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import Failure, WrongArgument

ROWS = 8

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def subject():
    return ExplainedModel(device="cpu")


@pytest.fixture
def register(monkeypatch):
    """Gives a method of the test's own a name for its time."""
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})
    return lambda name, attribute: methods.register(name, lambda model, layer, settings: attribute)


def explained(subject, method="union_cam", target=2, top_k=1, **settings):
    explainer = Explainer(Settings(method=method, batch_size=ROWS, **settings), subject=subject)
    return list(explainer.explain(demo.load_picture(), target, top_k))


@pytest.mark.parametrize("method", ["score_cam", "saliency", "grad_cam"])
def test_any_method_is_explained_with_grad_cam_beside_it(subject, method):
    (explanation,) = explained(subject, method, theta=30.0)
    inputs, black = subject.input_and_baseline(subject.shown(demo.load_picture()))
    settings = methods.MethodSettings(theta=30.0, internal_batch_size=ROWS)

    def map_of(name):
        run = methods.create(name, subject.model, subject.layer, settings)
        return run.each(inputs, torch.tensor([[2]]), black)[0].attributions

    assert torch.allclose(explanation.map, map_of(method), atol=1e-6)
    assert torch.allclose(explanation.grad_cam, map_of("grad_cam"), atol=1e-6)
    assert explanation.betas is explanation.choice is None
    record = explanation.record()
    assert list(record) == ["class", "confidence", "warnings", "settings", "versions"]
    assert record["settings"]["method"] == method
    assert record["class"] == {"index": 2, "name": demo.CLASS_NAMES[2]}


def test_union_cams_record_has_how_its_map_came_to_be(subject):
    (explanation,) = explained(subject)
    details, record = explanation.details, explanation.record()
    assert list(record) == [
        *("class", "confidence", "black_confidence", "betas", "choice", "forward_passes"),
        *("warnings", "settings", "versions"),
    ]
    assert record["black_confidence"] == details.baseline_confidence.item()
    assert record["forward_passes"] == details.forward_passes.item()
    assert record["betas"] == {
        name: getattr(details, f"{name}_beta").item() for name in ("denoised", "region", "union")
    }
    assert torch.equal(explanation.map, getattr(details, f"{record['choice']}_map"))


@pytest.mark.parametrize(("weights", "method"), [("score", "union_cam"), ("softmax", "union_cam_softmax")])
def test_the_channel_weights_are_union_cams(subject, weights, method):
    (explanation,) = explained(subject, channel_weights=weights)
    (named,) = explained(subject, method)
    assert torch.allclose(explanation.map, named.map, atol=1e-6)


def test_the_top_classes_are_explained_in_one_sweep(subject):
    rows = []
    handle = subject.model.register_forward_hook(lambda _model, inputs, _output: rows.append(len(inputs[0])))
    try:
        (one,) = explained(subject, target=None)
        of_one = sum(rows)
        rows.clear()
        three = explained(subject, target=None, top_k=3)
        # Of each class its own maps' four confidences, and the passes with gradients, Grad-CAM's among them.
        assert sum(rows) <= of_one + 2 * ROWS
    finally:
        handle.remove()
    assert [each.confidence for each in three] == sorted((each.confidence for each in three), reverse=True)
    assert three[0].class_index == one.class_index
    for each in three:
        (alone,) = explained(subject, target=each.class_index)
        assert torch.allclose(each.map, alone.map, atol=1e-5)
        assert torch.equal(each.grad_cam, alone.grad_cam)


def test_what_the_method_raises_is_raised(subject, register):
    def broken(inputs, target, baselines):
        raise MemoryError("too large")

    register("broken", broken)
    with pytest.raises(Failure, match=r"^broken: raised MemoryError: too large"):
        explained(subject, "broken")
    with pytest.raises(WrongArgument, match="there is no method 'score_can'; did you mean score_cam"):
        explained(subject, "score_can")


def test_a_grad_cam_that_fails_keeps_no_explanation_from_being_made(subject, register, monkeypatch):
    def broken(inputs, target, baselines):
        raise MemoryError("too large")

    register("broken", broken)
    monkeypatch.setattr("captum_unioncam.evaluation.explain._COMPARED", "broken")
    explanations = explained(subject, target=None, top_k=2)
    assert [each.grad_cam for each in explanations] == [None, None]
    assert all(each.map.max() > 0 for each in explanations)


def test_what_is_random_is_the_same_again(subject):
    (first,), (again,) = (explained(subject, "gradient_shap") for _ in range(2))
    assert torch.equal(first.map, again.map)


def test_the_record_of_a_variant_has_the_arguments_that_its_name_stands_for(subject):
    (explanation,) = explained(subject, "union_cam_softmax", channel_weights="score", max_channels=4)
    assert explanation.record()["settings"]["channel_weights"] == "softmax"
    assert explanation.record()["settings"]["method"] == "union_cam_softmax"


def test_the_record_has_the_methods_own_defaults_for_what_is_not_given(subject):
    def recorded(method, **given):
        (explanation,) = explained(subject, method, **given)
        return [explanation.record()["settings"][name] for name in ("theta", "channel_weights")]

    assert recorded("union_cam") == [10.0, "score"]
    assert recorded("union_cam", theta=40.0) == [40.0, "score"]
    assert recorded("denoised_grad_cam") == [10.0, None]
    assert recorded("grad_cam") == [None, None]
