"""A method judged on one image: against the methods and metrics called by themselves."""

import copy
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from captum_unioncam import demo, methods, metrics
from captum_unioncam.attr.union_cam import LayerUnionCam
from captum_unioncam.engine.randomization import randomized_copies
from captum_unioncam.engine.sharing import kept
from captum_unioncam.evaluation.judge import Judge
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics import table
from captum_unioncam.metrics.attributions import one_channel
from captum_unioncam.models.preprocessing import own_preprocessing
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


@pytest.fixture
def own_metric(monkeypatch):
    """Lists a metric of the test's own for its time."""
    monkeypatch.setattr(table, "_metrics", dict(table._metrics))
    return table.metric


def judge_of(subject, *names, seed=0, metric_names=None, **settings):
    return Judge(subject, names, MethodSettings(internal_batch_size=ROWS, **settings), STEPS, seed, metric_names)


def judge_all(judge, method, shown, targets, objects=None, name=NAME, confidences=None):
    (outcome,) = judge.run([(method, targets)], shown, objects, name, confidences)
    if outcome.error is not None:
        raise outcome.error
    return outcome.judgements


def judge_one(judge, method, shown, target, objects=None, name=NAME, confidences=None):
    (judged,) = judge_all(judge, method, shown, [target], {target: objects}, name, confidences)
    return judged


def normalized(subject):
    """The same model, told that it wants its images normalized."""
    preprocessing = own_preprocessing("size=112 mean=0.4,0.5,0.6 std=0.2,0.3,0.25")
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

    judged = judge_one(judge_of(subject, method, theta=30.0), method, shown, target, objects)

    rows = {"internal_batch_size": ROWS}
    curves = {**rows, "steps": STEPS, "return_curve": True}
    assert torch.equal(judged.attribution, attribution)
    assert judged.attribution.shape == (1, 1, 112, 112)
    values = judged.values
    assert list(values) == ["drop", "increase", "insertion", "deletion", "pointing", "energy", "seconds"]
    # What several metrics ask for is computed once, in a pass of its own: float32 sums in another order.
    drop = metrics.confidence_drop(model, inputs, attribution, target, black, **rows).item()
    assert values["drop"] == pytest.approx(drop, rel=1e-5)
    assert values["increase"] == metrics.confidence_increase(model, inputs, attribution, target, black, **rows).item()
    # Insertion starts from the blurred image, and deletion ends in the model's black.
    for name, expected in (
        ("insertion", metrics.insertion(model, inputs, attribution, target, None, **curves)),
        ("deletion", metrics.deletion(model, inputs, attribution, target, black, **curves)),
    ):
        assert len(judged.curves[name]) == STEPS + 1
        assert judged.curves[name] == pytest.approx(expected.confidences[0].tolist(), rel=1e-5)
        assert values[name] == pytest.approx(expected.area.item(), rel=1e-5)
    assert values["pointing"] == metrics.pointing_game(attribution, objects[None]).item()
    assert values["energy"] == metrics.energy_pointing_game(attribution, objects[None]).item()
    with torch.no_grad():
        confidences = [model(x).softmax(1)[0, target].item() for x in (inputs, black)]
    # Of one row instead of ROWS: float32 sums in another order.
    assert judged.confidence == pytest.approx(confidences[0], rel=1e-5)
    assert judged.curves["deletion"][0] == pytest.approx(confidences[0], rel=1e-5)
    assert judged.curves["deletion"][-1] == pytest.approx(confidences[1], rel=1e-5)


def test_where_no_object_is_seen_no_pointing_game_is_played(subject, picture):
    shown, target, objects = picture
    judge = judge_of(subject, "grad_cam")
    for unseen in (None, torch.zeros_like(objects)):
        judged = judge_one(judge, "grad_cam", shown, target, unseen)
        assert not {"pointing", "energy"} & judged.values.keys()
    assert "pointing" not in judge_one(judge, "grad_cam", shown, target).values
    assert {"pointing", "energy"} <= judge_one(judge, "grad_cam", shown, target, objects).values.keys()


def test_random_methods_follow_seed_picture_class_and_method_alone(subject, picture, own):
    shown, target, _ = picture
    own("noise", lambda inputs, target, baselines: torch.rand_like(inputs))
    own("other_noise", lambda inputs, target, baselines: torch.rand_like(inputs))
    random_ones = ("noise", "other_noise", "gradient_shap")
    judge = judge_of(subject, *random_ones, "grad_cam")

    def map_of(judge, method, target=target, name=NAME):
        return judge_one(judge, method, shown, target, None, name).attribution

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
    judge_one(judge_of(subject, "gradient_shap"), "gradient_shap", shown, target, objects)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)


def test_names_that_are_no_text_have_a_seed(subject, picture):
    shown, target, _ = picture
    judged = judge_one(judge_of(subject, "gradient_shap"), "gradient_shap", shown, target, name="\udcff.jpg")
    assert judged.attribution.isfinite().all()


def test_the_seconds_are_the_attributions(subject, picture, own, own_metric):
    shown, target, _ = picture

    @own_metric("slow", "slow", larger_is_better=True)
    def slow_metric(attributions):
        time.sleep(0.4)
        return attributions.flatten(1).mean(1)

    def slow_method(inputs, target, baselines):
        time.sleep(0.1)
        return inputs

    own("slow", slow_method)
    judge = judge_of(subject, "slow")
    assert 0.1 <= judge_one(judge, "slow", shown, target).values["seconds"] < 0.4
    # Of several classes, each one's share.
    assert all(0.1 <= judged.values["seconds"] < 0.15 for judged in judge_all(judge, "slow", shown, [0, 1, 2]))


def test_methods_keep_their_order_and_must_exist(subject):
    assert judge_of(subject, "saliency", "grad_cam").method_names == ["saliency", "grad_cam"]
    with pytest.raises(WrongArgument, match="there is no method 'grad_can'; did you mean grad_cam"):
        judge_of(subject, "grad_cam", "grad_can")


def test_the_metrics_are_those_named_and_must_exist(subject, picture):
    shown, target, objects = picture
    judge = judge_of(subject, "grad_cam", metric_names=["energy", "deletion"])
    assert [metric.name for metric in judge.metrics] == ["deletion", "energy"]
    judged = judge_one(judge, "grad_cam", shown, target, objects)
    assert judged.values.keys() == {"deletion", "energy", "seconds"}
    assert judged.curves.keys() == {"deletion"}
    with pytest.raises(WrongArgument, match="there is no metric 'delation'; did you mean deletion"):
        judge_of(subject, "grad_cam", metric_names=["delation"])


def test_without_metrics_only_the_map_is_computed(subject, picture):
    shown, target, _ = picture
    judge, passes = judge_of(subject, "grad_cam", metric_names=[]), []
    handle = subject.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        judged = judge_one(judge, "grad_cam", shown, target, confidences=torch.arange(8) / 8)
    finally:
        handle.remove()
    assert len(passes) == 1
    assert judged.values.keys() == {"seconds"}
    assert judged.curves == {}
    assert judged.confidence == target / 8


@pytest.mark.parametrize("is_random", [False, True])
def test_a_metric_of_ones_own_is_judged(subject, picture, own_metric, is_random):
    shown, target, objects = picture

    @own_metric("own", "a metric of one's own", larger_is_better=True, needs_objects=True)
    def own_metric(attributions, objects, baselines):
        assert baselines.shape == (1, 3, 112, 112)
        value = (attributions * objects).flatten(1).sum(1)
        return torch.rand_like(value) if is_random else value

    judge = judge_of(subject, "grad_cam")
    judged = judge_one(judge, "grad_cam", shown, target, objects)
    assert list(judged.values)[-2:] == ["own", "seconds"]
    # What is random is the same again, whatever else is computed.
    alone = judge_one(judge_of(subject, "grad_cam", metric_names=["own"]), "grad_cam", shown, target, objects)
    assert judged.values["own"] == alone.values["own"]
    assert is_random or judged.values["own"] == (judged.attribution * objects).sum().item()


@pytest.mark.parametrize("method", ["grad_cam", "score_cam", "gradient_shap"])
def test_metrics_may_run_the_method_again(subject, picture, own_metric, method):
    shown, target, _ = picture

    @own_metric("again", "the change of the explanation", larger_is_better=False)
    def change(inputs, attributions, explanation_func):
        # What draws random numbers draws the same again.
        again = one_channel(explanation_func(inputs), inputs.shape[2:])
        other = one_channel(explanation_func(inputs.flip(3)), inputs.shape[2:])
        assert not torch.allclose(other, attributions, atol=1e-3)
        return (again - attributions).abs().flatten(1).amax(1)

    judge = judge_of(subject, method, metric_names=["again", "coherency", "sensitivity_max"])
    judged = judge_one(judge, method, shown, target)
    assert judged.values["again"] < 1e-6
    assert 0.5 < judged.values["coherency"] <= 1
    assert judged.values["sensitivity_max"] > 0


def test_numbers_that_are_none_are_refused(subject, picture, own_metric):
    shown, target, _ = picture
    own_metric("broken", "broken", larger_is_better=True)(lambda attributions: attributions.flatten(1).sum(1) / 0)
    with pytest.raises(ValueError, match="broken: is inf"):
        judge_one(judge_of(subject, "grad_cam"), "grad_cam", shown, target)
    with pytest.raises(ValueError, match="confidence: is nan"):
        judge_one(
            judge_of(subject, "grad_cam", metric_names=[]),
            "grad_cam",
            shown,
            target,
            confidences=torch.full((8,), torch.nan),
        )


def test_several_classes_are_judged_as_each_alone(subject, picture):
    shown, target, objects = picture
    classes = [target, (target + 1) % 8, (target + 5) % 8]
    seen = {target: objects, classes[1]: None, classes[2]: ~objects}
    for method in ("union_cam", "score_cam", "gradient_shap"):
        judge = judge_of(subject, method)
        together = judge_all(judge, method, shown, classes, seen)
        assert len(together) == 3
        for index, judged in zip(classes, together, strict=True):
            alone = judge_one(judge, method, shown, index, seen[index])
            assert torch.allclose(judged.map, alone.map, atol=1e-5)
            assert judged.values.keys() == alone.values.keys()
            for name in alone.values.keys() - {"seconds"}:
                assert judged.values[name] == pytest.approx(alone.values[name], abs=1e-4)
            assert judged.confidence == alone.confidence


def test_several_classes_are_one_sweep(subject, picture):
    shown, rows = picture[0], []
    judge = judge_of(subject, "union_cam", metric_names=[])
    confidences = torch.ones(8)
    handle = subject.model.register_forward_hook(lambda _model, inputs, _output: rows.append(len(inputs[0])))
    try:
        counts = []
        for classes in ([0], [0, 1, 2]):
            rows.clear()
            judge_all(judge, "union_cam", shown, classes, confidences=confidences)
            counts.append(sum(rows))
    finally:
        handle.remove()
    one, three = counts
    # Each class adds its own maps' few passes to those of the channels.
    assert three <= one + 2 * 8


def test_maps_keep_their_resolution_and_details(subject, picture):
    shown, target, _ = picture
    judge = judge_of(subject, "union_cam", "saliency", metric_names=[])
    judged = judge_one(judge, "union_cam", shown, target)
    inputs, black = subject.input_and_baseline(shown)
    attribution, details = LayerUnionCam(subject.model, subject.layer).attribute(
        inputs, target, baselines=black, internal_batch_size=ROWS, return_details=True
    )
    assert torch.equal(judged.map, attribution)
    assert torch.equal(judged.details.union_map, details.union_map)
    judged = judge_one(judge, "saliency", shown, target)
    assert judged.map.shape == (1, 1, 112, 112)
    assert judged.details is None


def test_a_method_that_raises_keeps_no_other_from_being_judged(subject, picture, own):
    shown, target, _ = picture

    def broken(inputs, target, baselines):
        raise MemoryError("too\nlarge")

    own("broken", broken)
    judge = judge_of(subject, "broken", "grad_cam", metric_names=[])
    failed, done = judge.run([("broken", [target]), ("grad_cam", [target, 0])], shown, name=NAME)
    assert (failed.method, failed.targets, failed.judgements) == ("broken", (target,), [])
    assert isinstance(failed.error.__cause__, MemoryError)
    assert failed.problem.startswith("raised MemoryError: too large")
    assert (done.method, done.targets, done.error, done.problem) == ("grad_cam", (target, 0), None, None)
    assert len(done.judgements) == 2


class WritesIntoItsInput(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.mul_(1.0))


def test_a_model_may_write_into_its_input(subject, picture):
    shown, target, objects = picture
    subject = copy.copy(subject)
    subject.model = WritesIntoItsInput(subject.model)
    judge = judge_of(subject, "grad_cam", metric_names=["drop"])
    (outcome,) = judge.run([("grad_cam", [target])], shown, {target: objects})
    assert outcome.problem is None


def test_a_model_that_does_not_depend_on_its_input_is_warmed_up(subject, picture):
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1, 8))

        def forward(self, x):
            return self.bias.expand(len(x), -1)

    judge = judge_of(subject, "grad_cam")
    judge.subject = copy.copy(subject)
    judge.subject.model = Constant()
    judge._warm_up(subject.input_and_baseline(picture[0])[0])
    assert judge._is_warm


def test_more_steps_than_pixels_are_refused(subject):
    for steps, metric_names in ((112 * 112, None), (112 * 112 + 1, ["drop"]), (112 * 112 + 1, [])):
        Judge(subject, ["grad_cam"], MethodSettings(), steps, metrics=metric_names)
    for steps in (112 * 112 + 1, 10**9):
        with pytest.raises(WrongArgument, match=f"steps={steps}: there are 12544 pixels"):
            Judge(subject, ["grad_cam"], MethodSettings(), steps)


def test_all_generators_that_are_seeded_are_restored(subject, picture, monkeypatch):
    """torch.manual_seed seeds every GPU, also those that are not computed on."""
    states, seeds = ["initial"], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states[-1])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", states.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: seeds.append(seed) or states.append(seed))
    shown, target, _ = picture
    judge_one(judge_of(subject, "grad_cam", metric_names=["drop"]), "grad_cam", shown, target)
    assert seeds
    assert states[-1] == "initial"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("out of memory"), None])
def test_a_shortage_of_memory_is_told_from_other_errors(subject, picture, own, error):
    def broken(inputs, target, baselines):
        raise error or RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    own("broken", broken)
    (outcome,) = judge_of(subject, "broken", metric_names=[]).run([("broken", [0])], picture[0])
    assert outcome.is_shortage == (error is not None)


SWEEPING = ["union_cam", "union_cam_softmax", "score_cam", "union_cam_best"]


def test_the_methods_of_a_picture_share_the_channels_passes(subject, picture):
    shown, target, _ = picture
    classes = [target, (target + 1) % 8, (target + 2) % 8]
    judge = judge_of(subject, *SWEEPING, metric_names=["drop"])
    rows = []
    handle = subject.model.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        alone = {method: judge_all(judge, method, shown, classes) for method in SWEEPING}
        each = sum(rows)
        rows.clear()
        together = {outcome.method: outcome for outcome in judge.run([(m, classes) for m in SWEEPING], shown, {}, NAME)}
    finally:
        handle.remove()
    channels = int((alone["union_cam"][0].details.channel_scores[0] != 0).sum())
    assert sum(rows) <= each - 3 * channels
    for method in SWEEPING:
        for one, other in zip(alone[method], together[method].judgements, strict=True):
            assert torch.allclose(one.map, other.map, rtol=0, atol=1e-6)
            assert other.values["drop"] == pytest.approx(one.values["drop"], abs=1e-6)


def test_the_seconds_of_a_method_count_the_passes_that_it_shares(subject, picture, own):
    calls = []

    def slow(inputs, target, baselines):
        return kept(lambda: ("slow",), lambda: computed(inputs))

    def computed(inputs):
        calls.append(inputs)
        time.sleep(0.2)
        return inputs.sum(1, keepdim=True)

    own("first", slow)
    own("second", slow)
    shown, target, _ = picture
    judge = judge_of(subject, "first", "second", metric_names=["drop"])
    outcomes = judge.run([("first", [target]), ("second", [target])], shown)
    assert all(outcome.judgements[0].values["seconds"] >= 0.2 for outcome in outcomes)
    assert len(calls) == 1


SANITY = ["model_randomization", "random_logit"]


def test_sanity_is_the_likeness_to_the_maps_of_a_copy_and_of_another_class(subject, picture):
    shown, target, _ = picture
    inputs, black, before = shown[None], torch.zeros(1, 3, 112, 112), copy.deepcopy(subject.model.state_dict())
    *_, (_, copied, layer) = randomized_copies(subject.model, subject.layer, inputs, seed=4)
    others = []
    for method in ("input_x_gradient", "saliency"):

        def likeness(model, layer, index, method=method):
            maps = [
                methods.create(method, *where)(inputs, torch.tensor([of]), black).flatten()
                for where, of in (((subject.model, subject.layer), target), ((model, layer), index))
            ]
            return spearmanr(*maps).statistic

        judged = [
            judge_one(judge_of(subject, method, seed=4, metric_names=SANITY), method, shown, target) for _ in range(2)
        ]
        values = [[each.values[name] for name in SANITY] for each in judged]
        assert values[0] == values[1]
        assert values[0][0] == pytest.approx(likeness(copied, layer, target), abs=1e-6)
        of_classes = [likeness(subject.model, subject.layer, index) for index in range(subject.classes)]
        assert of_classes[target] == pytest.approx(1)
        (other,) = (i for i, value in enumerate(of_classes) if abs(value - values[0][1]) < 1e-6)
        others.append(other)
    assert others[0] == others[1] != target
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


def test_a_method_that_draws_the_same_map_whatever_the_model_and_the_class_fails_the_checks(subject, picture, own):
    own("drawn", lambda inputs, target, baselines: torch.rand(1, 1, 9, 9))
    own("flat", lambda inputs, target, baselines: torch.ones(1, 1, 9, 9))
    judge = judge_of(subject, "drawn", "flat", metric_names=SANITY)
    for method in ("drawn", "flat"):
        judged = judge_one(judge, method, *picture[:2])
        assert [judged.values[name] for name in SANITY] == pytest.approx([1, 1])


def test_another_class_is_needed(subject):
    alone = copy.copy(subject)
    alone.classes = 1
    with pytest.raises(WrongArgument, match="metrics: random_logit needs another class"):
        judge_of(alone, "grad_cam", metric_names=SANITY)
