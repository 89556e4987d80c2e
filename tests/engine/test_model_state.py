"""The model and the inputs are left as they were found."""

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import LayerScoreCam, LayerUnionCam, find_spatial_layer, metrics
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.testing.state_checks import state_of, training_net
from tests.networks import TinyNet, same, tiny_inputs


def in_a_function(model):
    return lambda x: model(x)


def compiled(function):
    """Captured by Dynamo and run as it is."""
    torch._dynamo.reset()
    return torch.compile(function, backend="eager")


@pytest.mark.parametrize(
    "score_func",
    [
        lambda net: compiled(net),
        lambda net: compiled(lambda x: net(x)),
        lambda net: compiled(net.forward),
        lambda net: in_a_function(compiled(net)),
        lambda net: torch.jit.freeze(torch.jit.trace(net.eval(), tiny_inputs())),
    ],
    ids=["compiled", "compiled function", "compiled method", "function of compiled", "frozen"],
)
def test_a_score_function_of_a_training_copy_is_run_in_evaluation_mode_too(score_func):
    net, copied, inputs = TinyNet(batch_norm=True), TinyNet(batch_norm=True).train(), tiny_inputs()
    function = score_func(copied)
    before = state_of(copied)
    attr = LayerUnionCam(net, net.features, score_func=function).attribute(inputs, 1)
    assert state_of(copied) == before
    assert torch.allclose(attr, LayerUnionCam(net, net.features).attribute(inputs, 1), rtol=0, atol=1e-12)


def test_a_data_parallel_model_in_a_function_is_switched_whole():
    net = TinyNet(dropout=0.5).train()
    parallel, modes = nn.DataParallel(net), []

    def in_other_thread(module, args):  # as its replicas run
        modes.append([m.training for m in net.modules()])

    parallel.register_forward_pre_hook(in_other_thread)
    LayerUnionCam(lambda x: parallel(x), net.features).attribute(tiny_inputs(), 1)
    assert not any(mode for of_call in modes for mode in of_call)


def test_every_module_is_seen_in_evaluation_mode_even_in_a_function_of_several_models():
    first, second = TinyNet(dropout=0.5).train(), TinyNet(seed=1, batch_norm=True).train()
    seen = []
    for module in (*first.modules(), *second.modules()):
        module.register_forward_hook(lambda m, _args, _out: seen.append(m.training))
    LayerUnionCam(lambda x: first(x) + second(x), first.features).attribute(tiny_inputs(), 1)
    assert len(seen) > 50
    assert not any(seen)
    assert all(module.training for net in (first, second) for module in net.modules())


def test_a_module_training_in_another_thread_is_left_alone():
    import threading

    other = nn.Dropout().train()
    modes = []

    def run():
        other(torch.ones(1))
        modes.append(other.training)

    def forward(x):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return x

    with evaluation_mode(forward) as (call,):
        call(torch.ones(1))
    assert modes == [True]


def test_grad_kwargs_reach_autograd():
    net, inputs = TinyNet(), tiny_inputs()
    expected = LayerUnionCam(net, net.features).attribute(inputs, 1)
    for method in (LayerUnionCam, LayerGradCam):
        attr = method(net, net.features).attribute(inputs, 1, grad_kwargs={"retain_graph": True})
        assert method is LayerGradCam or same(attr, expected)
        with pytest.raises(TypeError):
            method(net, net.features).attribute(inputs, 1, grad_kwargs={"no_such_argument": 1})


def test_find_spatial_layer_leaves_the_model_alone():
    net = training_net()
    before = state_of(net)
    find_spatial_layer(net, tiny_inputs())
    assert state_of(net) == before


class Written(nn.Module):
    """Changes what it keeps in every way, in every pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("in_place", torch.zeros((), dtype=torch.float64))
        self.register_buffer("replaced", torch.zeros((), dtype=torch.float64))
        self.register_buffer("unseen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("missing", None)
        self.hidden = None

    def forward(self, x):
        moved = x + self.in_place + self.replaced + (0 if self.hidden is None else 1)
        self.in_place.add_(1)
        self.replaced = self.replaced + 1
        self.unseen.data.add_(1)
        self.missing, self.hidden = torch.ones(()), (torch.ones(()), torch.ones(()))
        return moved + F.dropout(torch.zeros_like(x), training=True)


def kept(module):
    return [module.in_place.item(), module.replaced.item(), module.unseen.item(), module.missing, module.hidden]


def everything(forward_func, net, inputs):
    yield LayerUnionCam(forward_func, net.features).attribute(inputs, 1)
    yield LayerScoreCam(forward_func, net.features).attribute(inputs, 1)
    maps = torch.arange(48.0).reshape(1, 1, 8, 6).expand(3, -1, -1, -1)
    yield metrics.insertion(forward_func, inputs, maps, target=1, steps=5)
    yield metrics.confidence_drop(forward_func, inputs, maps, target=1)
    find_spatial_layer(net, inputs)


@pytest.mark.parametrize("make", [lambda net: net, lambda net: lambda x: net(x)], ids=["module", "function"])
def test_whatever_a_pass_writes_the_next_pass_and_the_caller_find_as_it_was(make):
    plain, net, inputs = TinyNet(), TinyNet(), tiny_inputs()
    written = Written()
    net.features.insert(0, written)
    found, before = kept(written), state_of(net)
    for made, expected in zip(everything(make(net), net, inputs), everything(plain, plain, inputs), strict=True):
        assert same(made, expected)
        assert kept(written) == found
    assert state_of(net) == before


def test_what_a_pass_leaves_alone_is_not_written_to():
    net = TinyNet(batch_norm=True)
    versions = [buffer._version for buffer in net.buffers()]
    LayerUnionCam(net, net.features).attribute(tiny_inputs(), 1)
    assert [buffer._version for buffer in net.buffers()] == versions


def by_attribute(net):
    holder = SimpleNamespace(net=net)
    return lambda x: holder.net(x)


class Caller:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


WAYS = {
    "by an attribute": by_attribute,
    "an object": Caller,
    "a partial method": lambda net: functools.partial(net.forward),
    "a decorated function": lambda net: torch.enable_grad()(lambda x: net(x)),
    "a method of a part": lambda net: nn.Sequential(net)[0].forward,
    "compiled": lambda net: compiled(net),
    "compiled by an attribute": lambda net: compiled(by_attribute(net)),
    "a compiled method": lambda net: compiled(net.forward),
    "a function of a compiled one": lambda net: in_a_function(compiled(net)),
    "compiled in place": lambda net: (net.compile(backend="eager"), net)[1],
}


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_however_a_model_in_training_is_called_it_is_explained_in_evaluation_mode(way, used):
    plain, net, inputs = TinyNet(batch_norm=True), TinyNet(batch_norm=True, dropout=0.5).eval(), tiny_inputs()
    expected = LayerUnionCam(plain, plain.features).attribute(inputs, 1)
    forward_func = WAYS[way](net)
    if used:
        # Compiled without hooks.
        for context in (torch.no_grad, torch.enable_grad):
            with context():
                forward_func(inputs)
    net.train()
    before = state_of(net)
    for _ in range(2):
        made = LayerUnionCam(forward_func, net.features).attribute(inputs, 1)
        assert torch.allclose(made, expected, rtol=0, atol=1e-12)
        assert state_of(net) == before


def test_layers_of_compiled_models_have_their_names():
    net, inputs = TinyNet(), tiny_inputs()
    expected = LayerScoreCam(net, net.features).attribute(inputs, 1)
    model = compiled(net)
    model(inputs)
    assert same(LayerScoreCam(model, "features").attribute(inputs, 1), expected)
    name, layer = find_spatial_layer(model, inputs)
    assert layer is net.features
    assert name.endswith("features")


def test_confidences_do_not_follow_a_surrounding_autocast_and_score_dtype_counts():
    net, inputs = TinyNet().float(), tiny_inputs().float()
    maps = torch.arange(48.0).reshape(1, 1, 8, 6).expand(3, -1, -1, -1)
    values, low = metrics.confidence_drop(net, inputs, maps, target=1), {"score_dtype": torch.bfloat16}
    scored = LayerScoreCam(net, net.features).attribute(inputs, 1, **low)
    assert not torch.allclose(scored, LayerScoreCam(net, net.features).attribute(inputs, 1), rtol=0, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Far below what bfloat16 can tell apart.
        assert torch.allclose(metrics.confidence_drop(net, inputs, maps, target=1), values, rtol=0, atol=1e-5)
        made = LayerScoreCam(net, net.features).attribute(inputs, 1, **low)
        assert torch.allclose(made, scored, rtol=0, atol=1e-5)
        assert torch.is_autocast_enabled("cpu")


def test_a_tensor_that_cannot_be_compared_is_left_alone():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = TinyNet()
            self.features = self.net.features
            self.register_buffer("table", torch.eye(4, dtype=torch.float64).to_sparse())

        def forward(self, x):
            return self.net(x) @ self.table

    net = Sparse()
    with pytest.raises(RuntimeError):
        torch.equal(net.table, net.table)
    version = net.table._version
    expected = LayerUnionCam(net.net, net.features).attribute(tiny_inputs(), 1)
    assert same(LayerUnionCam(net, net.features).attribute(tiny_inputs(), 1), expected)
    assert net.table._version == version
