"""A layer's output replaced: the tail alone gives what the whole model gives, row by row, for models of every kind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_unioncam import LayerAblationCam, LayerAblationCamPlusPlus, LayerFDCam, LayerReciproCam
from captum_unioncam.engine.capture import LayerCall
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.outputs import Outputs
from captum_unioncam.engine.tail import TailPasses, TailScorer
from tests.attr.tail_reference import layer_output, output_with
from tests.networks import CHANNELS, TinyNet, same, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 4


class Net(nn.Module):
    """Modules for the forward functions below; ``layer`` is the one whose output is replaced."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Conv2d(2, CHANNELS, 3, padding=1)
        self.layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.behind = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(CHANNELS, 1, 1))
        self.register_buffer("shift", torch.rand(CHANNELS, 1, 1))
        self.head = nn.Linear(CHANNELS, 4)
        self.kept = []
        self.double().eval()

    def pooled(self, x):
        return self.head(x.tanh().mean((2, 3)))


class Residual(Net):
    def forward(self, x):
        skip = self.front(x)
        return self.pooled(self.behind(skip + F.silu(self.layer(skip))))


class ResidualInPlace(Net):
    def forward(self, x):
        skip = self.front(x)
        y = self.layer(skip)
        skip += y.relu_()
        return self.pooled(skip)


class Functional(Net):
    """Functions alone, with parameters and buffers, sizes taken in front of the layer, and the input once more."""

    def forward(self, x):
        n, _, height, width = x.shape
        y = F.max_pool2d(F.relu(self.layer(self.front(x)) * self.scale + self.shift), 2)
        y = torch.cat([y.reshape(n, CHANNELS, -1), F.avg_pool2d(x, 2).reshape(n, 2, height * width // 4)], 1)
        return self.head(y.tanh().mean(2)[:, :CHANNELS] + y[:, CHANNELS:].mean((1, 2)).unsqueeze(1))


class Dict(Net):
    def forward(self, x):
        y = self.layer(self.front(x))
        return {"auxiliary": y.mean((1, 2, 3)), "logits": self.pooled(y)}


class Keeping(Net):
    """Keeps what it computes, as models do to show it."""

    def forward(self, x):
        y = self.layer(self.front(x))
        self.kept.append(y)
        self.last = y
        return self.pooled(y)


class Transformer(Net):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.rand(1, 1, CHANNELS))
        self.layer = nn.LayerNorm(CHANNELS)
        self.attention = nn.MultiheadAttention(CHANNELS, 1, batch_first=True)
        self.double().eval()

    def forward(self, x):
        tokens = self.front(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        y = self.layer(tokens)
        return self.head((tokens + self.attention(y, y, y)[0])[:, 0])


class ControlFlow(Net):
    """Its layer is called in a function that asks for values."""

    def forward(self, x):
        return self.pooled(self.called(self.front(x)))

    def called(self, x):
        return self.layer(x) if x.abs().sum() > 0 else x


class AsksForTensors(Net):
    """Proxies are no tensors, so its graph is another model's."""

    def forward(self, x):
        y = self.layer(self.front(x))
        return self.pooled(2 * y if isinstance(y, torch.Tensor) else y)


class RowsSecond(Net):
    """What reaches around the layer has its rows in dimension 1."""

    def forward(self, x):
        skip = self.front(x).transpose(0, 1)
        return self.pooled((self.layer(skip.transpose(0, 1)).transpose(0, 1) + skip).transpose(0, 1))


TRACED = [Residual, ResidualInPlace, Functional, Dict, Keeping, Transformer]
WHOLE = [ControlFlow, AsksForTensors, RowsSecond]


def maps_of(tokens):
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (8, 6)) if tokens.dim() == 3 else tokens


def scored(forward_func, layer, inputs, factors, additional=None, **settings):
    """Scores (N, M) of target 1 with the activations times ``factors`` (N, M, K, *spatial), and the details."""
    with evaluation_mode(forward_func) as (evaluated,), torch.no_grad():
        outputs = Outputs([1], len(inputs))
        call = LayerCall(evaluated, [layer], (inputs,), additional, None, False, maps_of, outputs)
        ((activations,),) = call.activations()
        tail = TailPasses(TailScorer(call, [1], **settings), 0, {})
        everything = torch.ones(factors.shape[:2], dtype=torch.bool)
        result = tail.scores(
            activations,
            "times",
            lambda rows, examples, numbers: rows * factors[examples, numbers],
            everything,
            raw=True,
        )
        alone, passes = tail.details(activations)
        return result, bool(alone.all()), passes.tolist()


def factors_of(inputs, size=(8, 6), rows=ROWS):
    return torch.rand(len(inputs), rows, CHANNELS, *size, generator=torch.Generator().manual_seed(2)).double()


def in_a_loop(forward_func, layer, inputs, factors):
    """One row at a time, the whole model with a hook."""
    result = torch.zeros(factors.shape[:2], dtype=torch.float64)
    for i, example in enumerate(inputs.split(1)):
        for m in range(factors.shape[1]):
            replaced = layer_output(forward_func, layer, example)
            maps_of(replaced).mul_(factors[i, m])
            output = output_with(forward_func, layer, example, replaced)
            result[i, m] = (output["logits"] if isinstance(output, dict) else output)[0, 1]
    return result


@pytest.mark.parametrize("batch_size", [1, 5, None])
@pytest.mark.parametrize("kind", TRACED + WHOLE)
def test_rows_are_those_of_the_loop(kind, batch_size):
    net, inputs = kind(), tiny_inputs()
    factors = factors_of(inputs)
    expected = in_a_loop(net, net.layer, inputs, factors)
    made, alone, passes = scored(net, net.layer, inputs, factors, internal_batch_size=batch_size)
    assert alone is (kind in TRACED)
    assert passes == [ROWS] * 3
    assert same(made, expected)
    # A function is not traced.
    made, alone, _ = scored(lambda x: net(x), net.layer, inputs, factors, internal_batch_size=batch_size)
    assert not alone
    assert same(made, expected)


@pytest.mark.usefixtures("rows_tried")
def test_a_sequential_model_runs_its_front_once_and_its_tail_for_each_row():
    net, inputs, rows = TinyNet(), tiny_inputs(), {"front": 0, "tail": 0}
    for name, module in (("front", net.features[0]), ("tail", net.head[-1])):
        module.register_forward_hook(lambda _m, args, _o, name=name: rows.update({name: rows[name] + len(args[0])}))
    factors = factors_of(inputs, (4, 3))
    _, alone, _ = scored(net, net.features, inputs, factors, internal_batch_size=5)
    assert alone
    # The plain pass; the check of the tail, of one row more than examples; and the rows.
    assert rows == {"front": 3, "tail": 3 + 4 + 3 * ROWS}


@pytest.mark.usefixtures("rows_tried")
def test_what_reaches_around_the_layer_is_computed_once_more():
    net, inputs, rows = Residual(), tiny_inputs(), []
    net.front.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    scored(net, net.layer, inputs, factors_of(inputs))
    assert rows == [3, 3]


@pytest.mark.parametrize("kind", TRACED + WHOLE)
def test_the_model_is_left_as_it_was_found(kind):
    net, inputs = kind().train(), tiny_inputs()
    before = [{name: value for name, value in vars(module).items() if name != "last"} for module in net.modules()]
    parameters = [id(value) for value in (*net.parameters(), *net.buffers())]
    scored(net, net.layer, inputs, factors_of(inputs))
    after = [{name: value for name, value in vars(module).items() if name != "last"} for module in net.modules()]
    assert [sorted(one) for one in after] == [sorted(one) for one in before]
    assert [id(value) for value in (*net.parameters(), *net.buffers())] == parameters
    assert not any("forward" in vars(module) or module._forward_hooks for module in net.modules())
    assert all(module.training for module in net.modules())
    assert all(isinstance(value, torch.Tensor) for value in (*net.kept, *([net.last] if hasattr(net, "last") else [])))


def test_hooks_see_tensors_alone():
    seen = []
    for of_model in (False, True):
        net, inputs = Residual(), tiny_inputs()
        module = net if of_model else net.behind
        module.register_forward_hook(lambda _m, args, output: seen.extend([*args, output]))
        factors = factors_of(inputs)
        made, alone, _ = scored(net, net.layer, inputs, factors)
        assert alone is not of_model
        assert same(made, in_a_loop(net, net.layer, inputs, factors))
    assert seen
    assert all(isinstance(value, torch.Tensor) for value in seen)


class WithGain(Net):
    def forward(self, x, gain, scale):
        return self.pooled(self.layer(self.front(x)) * gain) * scale


def test_arguments_go_with_their_examples():
    net, inputs = WithGain(), tiny_inputs()
    gains, factors = torch.rand(3, 1, 1, 1).double(), factors_of(inputs)
    made, alone, _ = scored(net, net.layer, inputs, factors, (gains, 2.0), internal_batch_size=5)
    assert alone
    for i, gain in enumerate(gains.split(1)):
        expected = in_a_loop(lambda x, g=gain: net(x, g, 2.0), net.layer, inputs[i : i + 1], factors[i : i + 1])
        assert same(made[i : i + 1], expected)


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_wrapped_models(wrap):
    net, inputs = Residual(), tiny_inputs()
    factors = factors_of(inputs)
    expected = in_a_loop(net, net.layer, inputs, factors)
    if wrap is nn.DataParallel and torch.cuda.is_available():
        pytest.skip("with a GPU it would want the model there")
    made, _, _ = scored(wrap(net), net.layer, inputs, factors)
    assert same(made, expected)


class Hungry(nn.Module):
    def __init__(self, most):
        super().__init__()
        self.most, self.rows = most, []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("simulated")
        self.rows.append(len(x))
        return x


@pytest.mark.parametrize("as_a_function", [False, True])
def test_rows_are_halved_where_memory_runs_out(as_a_function):
    net, inputs = TinyNet(), tiny_inputs()
    expected = LayerAblationCam(net, net.features).attribute(inputs, 1)
    hungry = Hungry(4)
    net.head.insert(0, hungry)
    forward_func = (lambda x: net(x)) if as_a_function else net
    attr = LayerAblationCam(forward_func, net.features).attribute(inputs, 1, internal_batch_size=16)
    assert max(hungry.rows[2:]) == 4
    assert same(attr, expected)


@pytest.mark.usefixtures("rows_tried")
def test_targets_share_the_rows():
    net, inputs = TinyNet(), tiny_inputs()
    hungry = Hungry(100)
    net.head.insert(0, hungry)
    recipro_cam = LayerReciproCam(net, net.features)
    _, details = recipro_cam.attribute_targets(inputs, [[0, 1, 2]] * 3, return_details=True)
    assert sum(hungry.rows) == 3 + 4 + 3 * 12
    assert details.forward_passes.tolist() == [[12] * 3] * 3
    assert details.of_target(1).tail_alone.tolist() == [True] * 3


def test_a_model_whose_rows_vary_is_refused():
    net, inputs, calls = TinyNet(), tiny_inputs(), []

    def doubling(x):
        calls.append(len(x))
        return net(x if len(calls) == 1 else torch.cat([x, x]))[: len(x)]

    with pytest.raises(ValueError, match=r"^forward_func: its layer has the shape"):
        LayerReciproCam(doubling, net.features).attribute(inputs, 0)


@pytest.mark.parametrize("cls", [LayerAblationCam, LayerFDCam, LayerAblationCamPlusPlus])
def test_each_of_several_targets_counts_the_rows_that_it_uses(cls):
    net, inputs = TinyNet(), tiny_inputs()
    method = cls(net, net.features)
    _, details = method.attribute_targets(inputs, [[0, 1, 2]] * 3, return_details=True)
    for t in range(3):
        _, alone = method.attribute(inputs, t, return_details=True)
        assert details.of_target(t).forward_passes.equal(alone.forward_passes)
