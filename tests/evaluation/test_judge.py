"""A method judged on one picture: against the methods and metrics called by themselves."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from captum_unioncam import demo, methods, metrics
from captum_unioncam.evaluation import judge as judging
from captum_unioncam.evaluation.judge import Judge
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.models.preprocessing import Preprocessing, squeezed_to
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import WrongArgument

ROWS, STEPS = 8, 5
NAME = "demo/00000.png"


pytestmark = pytest.mark.usefixtures("one_thread", "deterministic")


@pytest.fixture(scope="module")
def deterministic():
    # Then passes are run as given, and not as was fastest so far, which rounds differently.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def subject():
    return ExplainedModel(device="cpu")


@pytest.fixture(scope="module")
def picture():
    """What the model sees, its class, and where the object is."""
    images, labels, masks = demo.generate(1, seed=5)
    return images[0], int(labels[0]), masks[0, 0].bool()


@pytest.fixture
def own(monkeypatch):
    """Gives a method of the test's own a name for its time."""
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})

    def register(name, attribute):
        methods.register(name, lambda model, layer, settings: attribute)

    return register


def judge_of(subject, *names, seed=0, **settings):
    return Judge(subject, names, MethodSettings(internal_batch_size=ROWS, **settings), STEPS, seed)


def normalized(subject):
    """The same model, told that it wants its pictures normalized."""
    preprocessing = Preprocessing(squeezed_to(112), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    changed = ExplainedModel(device="cpu")
    changed.classifier = replace(changed.classifier, preprocessing=preprocessing)
    return changed


@pytest.mark.parametrize("method", ["union_cam", "saliency"])
@pytest.mark.parametrize("preprocessed", [False, True])
def test_a_judgement_is_what_the_metrics_say_of_the_method(subject, picture, method, preprocessed):
    shown, target, objects = picture
    inputs, black = shown[None], torch.zeros(1, 3, 112, 112)
    if preprocessed:
        subject = normalized(subject)
        mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.25]]).reshape(2, 1, 3, 1, 1)
        inputs, black = (inputs - mean) / std, (black - mean) / std
    model, settings = subject.model, MethodSettings(theta=30.0, internal_batch_size=ROWS)
    attribution = methods.create(method, model, subject.layer, settings)(inputs, torch.tensor([target]), black)

    judged = judge_of(subject, method, theta=30.0).judge(method, shown, target, objects, NAME)

    rows = {"internal_batch_size": ROWS}
    curves = {**rows, "steps": STEPS, "return_curve": True}
    assert torch.equal(judged.attribution, attribution)
    assert judged.attribution.shape == (1, 1, 112, 112)
    assert judged.drop == metrics.confidence_drop(model, inputs, attribution, target, black, **rows).item()
    assert judged.increase == metrics.confidence_increase(model, inputs, attribution, target, black, **rows).item()
    # Insertion starts from the blurred picture, and deletion ends in the model's black.
    for curve, expected in (
        (judged.insertion, metrics.insertion(model, inputs, attribution, target, None, **curves)),
        (judged.deletion, metrics.deletion(model, inputs, attribution, target, black, **curves)),
    ):
        assert curve.confidences.shape == (1, STEPS + 1)
        assert all(map(torch.equal, curve, expected))
    assert judged.pointing == metrics.pointing_game(attribution, objects[None]).item()
    assert judged.energy == metrics.energy_pointing_game(attribution, objects[None]).item()
    with torch.no_grad():
        confidences = [model(x).softmax(1)[0, target].item() for x in (inputs, black)]
    # Of one row instead of ROWS: float32 sums in another order.
    assert judged.confidence == pytest.approx(confidences[0], rel=1e-5)
    assert judged.deletion.confidences[0, 0].item() == pytest.approx(confidences[0], rel=1e-5)
    assert judged.deletion.confidences[0, -1].item() == pytest.approx(confidences[1], rel=1e-5)


def test_where_no_object_is_seen_no_pointing_game_is_played(subject, picture):
    shown, target, objects = picture
    judge = judge_of(subject, "grad_cam")
    for unseen in (None, torch.zeros_like(objects)):
        judged = judge.judge("grad_cam", shown, target, unseen, NAME)
        assert judged.pointing is None
        assert judged.energy is None
    assert judge.judge("grad_cam", shown, target, objects, NAME).pointing is not None


def test_random_methods_follow_seed_picture_class_and_method_alone(subject, picture, own):
    shown, target, _ = picture
    own("noise", lambda inputs, target, baselines: torch.rand_like(inputs))
    own("other_noise", lambda inputs, target, baselines: torch.rand_like(inputs))
    random_ones = ("noise", "other_noise", "gradient_shap")
    judge = judge_of(subject, *random_ones, "grad_cam")

    def map_of(judge, method, target=target, name=NAME):
        return judge.judge(method, shown, target, None, name).attribution

    first = [map_of(judge, method) for method in random_ones]
    torch.manual_seed(9)
    np.random.seed(9)
    map_of(judge, "noise", name="another")
    again = [map_of(judge_of(subject, method), method) for method in reversed(random_ones)]
    assert all(map(torch.equal, first, reversed(again)))
    others = [map_of(judge_of(subject, "noise", seed=1), "noise"), map_of(judge, "noise", target=(target + 1) % 8)]
    others += [map_of(judge, "noise", name="another"), first[1]]
    assert not any(torch.equal(first[0], other) for other in others)


def test_the_global_generators_are_left_as_they_were(subject, picture):
    shown, target, objects = picture
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    judge_of(subject, "gradient_shap").judge("gradient_shap", shown, target, objects, NAME)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)


def test_names_that_are_no_text_have_a_seed(subject, picture):
    shown, target, _ = picture
    judged = judge_of(subject, "gradient_shap").judge("gradient_shap", shown, target, None, "\udcff.jpg")
    assert judged.attribution.isfinite().all()


def test_the_seconds_are_the_attributions(subject, picture, own, monkeypatch):
    shown, target, _ = picture
    curve = metrics.insertion

    def slow_metric(*arguments, **more):
        time.sleep(0.4)
        return curve(*arguments, **more)

    def slow_method(inputs, target, baselines):
        time.sleep(0.1)
        return inputs

    monkeypatch.setattr(judging.metrics, "insertion", slow_metric)
    own("slow", slow_method)
    assert 0.1 <= judge_of(subject, "slow").judge("slow", shown, target, None, NAME).seconds < 0.4


def test_methods_keep_their_order_and_must_exist(subject):
    assert judge_of(subject, "saliency", "grad_cam").method_names == ["saliency", "grad_cam"]
    with pytest.raises(WrongArgument, match="there is no method 'grad_can'; did you mean grad_cam"):
        judge_of(subject, "grad_cam", "grad_can")
