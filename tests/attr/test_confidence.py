"""What makes a class confidence of an output, and what is none: the same in all methods with masks and in metrics."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_unioncam import LayerGradPlusPlusScoreCam, LayerScoreCam, LayerUnionCam, metrics
from captum_unioncam.attr.base import CAMS, PerturbationCam
from captum_unioncam.engine.confidence import class_confidence, default_confidence, output_tensor
from tests.attr import reference as loops
from tests.networks import CHANNELS, CLASSES, TinyNet, same, tiny_inputs

METHODS = sorted(set(CAMS.values()), key=lambda cls: cls.__name__)
MASKING = [cls for cls in METHODS if issubclass(cls, PerturbationCam)]
CURVES_AND_DROPS = [metrics.confidence_drop, metrics.confidence_increase, metrics.insertion, metrics.deletion]


def attributed(cls, forward_func, net, target, examples=3, **arguments):
    return cls(forward_func, net.features, **arguments).attribute(tiny_inputs(examples=examples), target)


def measured(metric, forward_func, _net, target, examples=3, **arguments):
    maps = torch.rand(examples, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return metric(forward_func, tiny_inputs(examples=examples), maps, target, **arguments)


with_confidences = pytest.mark.parametrize(
    "judge",
    [partial(attributed, cls) for cls in MASKING] + [partial(measured, metric) for metric in CURVES_AND_DROPS],
    ids=lambda judge: judge.args[0].__name__,
)
everything = pytest.mark.parametrize(
    "judge",
    [partial(attributed, cls) for cls in METHODS if cls.name not in ("cam", "augmented_grad_cam")]
    + [partial(measured, metric) for metric in CURVES_AND_DROPS],
    ids=lambda judge: judge.args[0].__name__,
)


@pytest.fixture
def net():
    return TinyNet()


def one_logit(net, dims):
    return lambda x: (net(x)[:, :1] - 50).reshape((-1,) + (1,) * (dims - 1))


@with_confidences
@pytest.mark.parametrize("dims", [1, 2])
def test_one_negative_output_is_no_confidence(judge, net, dims):
    model = one_logit(net, dims)
    with pytest.raises(ValueError, match=r"^confidence_fn: got none.* -.*torch\.sigmoid"):
        judge(model, net, None)
    judge(model, net, None, confidence_fn=torch.sigmoid)


@with_confidences
def test_one_positive_output_is_its_own_confidence(judge, net):
    model = one_logit(net, 2)
    made = judge(lambda x: model(x).exp(), net, None)
    assert same(made, judge(lambda x: model(x).exp(), net, None, confidence_fn=lambda output: output))


def test_explicit_confidences_weigh_as_they_are(net):
    """Negative ones too, as the plain loops have it."""
    inputs, negative = tiny_inputs(), lambda output: -output.softmax(1)
    for cls, part in ((LayerUnionCam, "attribution"), (LayerScoreCam, "region")):
        attr = cls(net, net.features, confidence_fn=negative).attribute(inputs, 1)
        for i, example in enumerate(inputs.split(1)):
            expected = loops.union_cam(net, net.features, example, 1, confidence_fn=negative)
            assert torch.allclose(attr[i : i + 1], getattr(expected, part), rtol=0, atol=1e-9)


@with_confidences
def test_no_softmax_is_laid_upon_probabilities(judge, net):
    def model(x):
        return net(x).softmax(1)

    assert same(judge(model, net, 1), judge(model, net, 1, confidence_fn=lambda output: output))


def saturated(output):
    """Some outputs are exactly 0 or 1."""
    return nn.functional.hardsigmoid(40 * (output - output.mean(1, keepdim=True)))


BOUNDED = {
    "a sigmoid": torch.sigmoid,
    "a hard sigmoid": nn.functional.hardsigmoid,
    "a hard sigmoid at its ends": saturated,
    "clamped": lambda o: o.clamp(0, 1),
    "a hyperbolic tangent scaled": lambda o: (o.tanh() + 1) / 2,
    "a sigmoid's mean over places": lambda o: o[:, :, None].sigmoid().mean(2),
    "what a sigmoid leaves": lambda o: 1 - o.sigmoid(),
    "a sigmoid by hand": lambda o: 1 / (1 + (-o).exp()),
    "in half precision": lambda o: o.bfloat16().sigmoid().to(o.dtype),
}


@with_confidences
@pytest.mark.parametrize("bounded", BOUNDED.values(), ids=list(BOUNDED))
def test_several_confidences_that_need_not_sum_to_1_are_refused(judge, net, bounded):
    def model(x):
        return bounded(net(x))

    if judge.args[0] is LayerGradPlusPlusScoreCam and bounded is saturated:
        # Without a gradient it scores no channel, and asks for no confidence.
        assert not judge(model, net, 1).any()
        return
    with pytest.raises(ValueError, match=r"^confidence_fn: got none.*lambda output: output"):
        judge(model, net, 1)


@with_confidences
def test_what_was_refused_is_taken_as_it_is_where_that_is_said(judge, net):
    def model(x):
        return net(x).sigmoid()

    assert judge(model, net, 1, confidence_fn=lambda output: output).isfinite().all()


@with_confidences
def test_a_softmax_in_half_precision_is_known(judge, net):
    def model(x):
        return torch.cat([net(x)] * 40, 1).bfloat16().softmax(1).to(x.dtype)

    assert same(judge(model, net, 1), judge(model, net, 1, confidence_fn=lambda output: output))


@with_confidences
@pytest.mark.parametrize("of", [torch.tanh, nn.functional.softsign, lambda o: 3 * o.tanh()])
def test_outputs_bounded_otherwise_are_logits(judge, net, of):
    def model(x):
        return of(net(x))

    assert same(judge(model, net, 1), judge(model, net, 1, confidence_fn=lambda output: output.softmax(1)))


@with_confidences
def test_logits_within_one_are_logits(judge, net):
    with torch.no_grad():
        limits = net(torch.cat([tiny_inputs(), 0 * tiny_inputs()])).abs().max()

    def model(x):
        return net(x) / (8 * limits) + 0.5

    with torch.no_grad():
        assert ((model(tiny_inputs()) > 0) & (model(tiny_inputs()) < 1)).all()
    assert same(judge(model, net, 1), judge(model, net, 1, confidence_fn=lambda output: output.softmax(1)))


def test_a_linear_layer_makes_logits_however_small():
    """Behind a normalisation, no input drives them out of [0, 1]."""
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3))
    nn.init.constant_(model[2].weight, 1e-3)
    nn.init.constant_(model[2].bias, 0.5)
    for inputs in (torch.rand(2, 3, 2, 2), torch.ones(2, 3, 2, 2)):
        assert default_confidence(model(inputs), (inputs,), model) is class_confidence


def test_confidences_are_known_where_there_is_no_graph():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    nn.init.constant_(model[1].weight, 0.5)
    black = torch.zeros(2, 3, 2, 2)

    def without_graph(x):
        return model(x).detach()

    assert default_confidence(model(black), (black,), model) is class_confidence
    assert default_confidence(without_graph(black), (black,), without_graph) is class_confidence
    for sigmoid in (lambda x: model(x).sigmoid()[:, 1:], lambda x: without_graph(x).sigmoid()):
        with pytest.raises(ValueError, match="confidence_fn"):
            default_confidence(sigmoid(black), (black,), sigmoid)


def test_confidences_of_whole_numbers_are_known():
    """Of images from 0 to 255, which cannot be made a thousand times as large."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).requires_grad_(False)
    nn.init.constant_(model[1].weight, 0.01)
    black = torch.zeros((2, 3, 2, 2), dtype=torch.uint8)
    for last, is_refused in ((torch.sigmoid, True), (lambda output: output, False)):

        def run(x, last=last):
            return last(model(x.float()))

        if is_refused:
            with pytest.raises(ValueError, match="confidence_fn"):
                default_confidence(run(black), (black,), run)
        else:
            assert default_confidence(run(black), (black,), run) is class_confidence


@with_confidences
@pytest.mark.parametrize(
    "wrong",
    [lambda output: output.softmax(1)[:, 0], lambda output: None, lambda output: 0.5, lambda output: output + 0j],
    ids=["(N,)", "None", "float", "complex"],
)
def test_a_confidence_function_that_returns_something_else_is_named(judge, net, wrong):
    with pytest.raises(ValueError, match=r"^confidence_fn: returned "):
        judge(net, net, 1, confidence_fn=wrong)


@with_confidences
@pytest.mark.parametrize("wrong", ["softmax", 1, [torch.sigmoid]])
def test_what_is_no_confidence_function_is_named(judge, net, wrong):
    with pytest.raises(TypeError, match=r"^confidence_fn: got "):
        judge(net, net, 1, confidence_fn=wrong)


@pytest.mark.parametrize("cls", MASKING)
@pytest.mark.parametrize("classes", [1, CLASSES - 1, CLASSES + 1])
def test_a_score_function_of_other_classes_is_named(cls, net, classes):
    def score(x):
        return torch.cat([net(x), net(x)], 1)[:, :classes]

    with pytest.raises(ValueError, match=r"^score_func: returned the shape "):
        attributed(cls, net, net, 0, score_func=score)


# What a model returns.

ModelOutput = namedtuple("ModelOutput", "loss logits hidden")


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Held:
    """An output of attributes."""

    def __init__(self, logits):
        self.logits = logits


FORMS = {
    "a dict with out": lambda o: OrderedDict(aux=2 * o, out=o),
    "a dict with logits": lambda o: {"hidden": 2 * o, "logits": o},
    "a dict of one": lambda o: {"scores": o},
    "a tuple with a loss": lambda o: (o.sum(), o),
    "a tuple with a table": lambda o: (torch.zeros(7777, 3), o, None, "text"),
    "a list": lambda o: [o],
    "a named tuple": lambda o: ModelOutput(None, o, 2 * o),
    "a dataclass": lambda o: Output(o, 2 * o),
    "an object": Held,
}


@everything
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_the_tensor_among_what_a_model_returns_is_found(judge, net, form):
    assert same(judge(lambda x: form(net(x)), net, 1), judge(net, net, 1))


@everything
@pytest.mark.parametrize(
    "form",
    [
        lambda o: (o, o),
        lambda o: {"a": o, "b": o},
        lambda o: None,
        lambda o: o.sum().item(),
        lambda o: [{"scores": o}],
        lambda o: o + 0j,
    ],
    ids=["two", "a dict of two", "None", "a float", "detections", "complex"],
)
def test_what_holds_no_tensor_to_explain_is_named(judge, net, form):
    with pytest.raises(ValueError, match=r"^forward_func: returned (tuple|dict|NoneType|float|list|complex)"):
        judge(lambda x: form(net(x)), net, 1)


@everything
@pytest.mark.parametrize(
    "wrong",
    [
        lambda o: o.T,
        lambda o: torch.cat([o, o]),
        lambda o: o.mean(0, keepdim=True),
        lambda o: o.flatten(),
        lambda o: o[:, 0].sum(),
    ],
    ids=["transposed", "twice", "the mean of the examples", "flat", "the sum"],
)
def test_outputs_of_other_rows_are_refused(judge, net, wrong):
    """A gradient of them would mix the examples."""
    with pytest.raises(
        ValueError, match=r"^forward_func: returned the shape .* for \d+ rows of input; give .* one row"
    ):
        judge(lambda x: wrong(net(x)), net, 0)


@everything
@pytest.mark.parametrize("examples", [1, 2])
def test_a_model_that_squeezes_its_output_is_explained(judge, net, examples):
    squeezing = judge(lambda x: net(x).squeeze(), net, 1, examples)
    assert same(squeezing, judge(net, net, 1, examples))


@everything
def test_a_sparse_output_is_read(judge, net):
    assert same(judge(lambda x: net(x).to_sparse(), net, 1), judge(net, net, 1))


def test_whole_numbers_are_read_as_numbers():
    assert output_tensor(torch.tensor([[1, 2]]), 1).dtype == torch.float32


# Arguments that have as many rows as there are examples.


class ZeroShot(nn.Module):
    """The similarity of an image to texts, as CLIP has it."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.features = net.features

    def forward(self, x, text):
        return 3 * self.features(x).mean((2, 3)) @ text.T


def texts(classes):
    return torch.randn(classes, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def additionally(judge_of, arguments, forward_func, net, target, examples=3):
    inputs = tiny_inputs(examples=examples)
    maps = torch.rand(examples, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if isinstance(judge_of, type):
        return judge_of(forward_func, net.features).attribute(inputs, target, arguments)
    return judge_of(forward_func, inputs, maps, target, additional_forward_args=arguments)


masked = pytest.mark.parametrize("judge_of", [*MASKING, *CURVES_AND_DROPS], ids=lambda judge_of: judge_of.__name__)


@masked
@pytest.mark.parametrize("examples", [1, 2, 3])
def test_texts_of_as_many_classes_as_examples_are_refused(judge_of, net, examples):
    model = ZeroShot(net)
    with pytest.raises(ValueError, match=r"^additional_forward_args: number 0 .* closure"):
        additionally(judge_of, texts(examples), model, net, 0, examples)


@masked
def test_texts_of_another_number_are_the_same_for_all(judge_of, net):
    model, text = ZeroShot(net), texts(4)
    shared = additionally(judge_of, text, model, net, 0)
    assert same(shared, additionally(judge_of, None, lambda x: model(x, text), net, 0))


@masked
def test_weights_of_as_many_classes_as_examples_are_refused(judge_of, net):
    with pytest.raises(ValueError, match=r"^additional_forward_args: number 0 "):
        additionally(judge_of, torch.linspace(0.5, 2, CLASSES).double(), lambda x, w: net(x) * w, net, 0, CLASSES)


@masked
def test_what_goes_row_by_row_does(judge_of, net):
    rows = torch.linspace(-1, 1, 3 * CLASSES, dtype=torch.float64).reshape(3, CLASSES)
    together = additionally(judge_of, rows, lambda x, row: net(x) + row, net, 0)
    inputs = tiny_inputs()
    maps = torch.rand(3, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i in range(3):

        def alone(x, i=i):
            return net(x) + rows[i]

        if isinstance(judge_of, type):
            one = judge_of(alone, net.features).attribute(inputs[i : i + 1], 0)
        else:
            one = judge_of(alone, inputs[i : i + 1], maps[i : i + 1], 0)
        assert torch.allclose(together[i : i + 1], one, rtol=0, atol=1e-9)


@masked
def test_sparse_rows_go_row_by_row(judge_of, net):
    rows = torch.eye(3, CLASSES, dtype=torch.float64)
    dense = additionally(judge_of, rows, lambda x, row: net(x) + row, net, 0)
    sparse = additionally(judge_of, rows.to_sparse(), lambda x, row: net(x) + row.to_dense(), net, 0)
    assert same(sparse, dense)


@masked
def test_rows_within_a_list_belong_to_no_example(judge_of, net):
    rows = [torch.linspace(-1, 1, 3 * CLASSES, dtype=torch.float64).reshape(3, CLASSES)]
    with pytest.raises(ValueError, match=r"^additional_forward_args: number 0 "):
        additionally(judge_of, (rows,), lambda x, row: net(x) + row[0], net, 0)
