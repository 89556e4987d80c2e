"""The model and the inputs are left as they were found."""

import copy

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn.modules.module import _global_forward_pre_hooks

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, find_spatial_layer
from captum_unioncam.engine.model_state import evaluation_mode
from tests.networks import TinyNet, same, tiny_inputs

METHODS = (LayerUnionCam, LayerScoreCam, LayerDenoisedGradCam)


def state_of(net):
    return {
        "flags": [module.training for module in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grad": [None if p.grad is None else p.grad.clone().tolist() for p in net.parameters()],
        "state": {name: value.clone().tolist() for name, value in net.state_dict().items()},
        "hooks": [
            len(hooks)
            for m in net.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]
        + [len(_global_forward_pre_hooks)],
    }


def training_net():
    net = TinyNet(batch_norm=True, dropout=0.5).train()
    net.features[3].eval()  # a frozen batch norm in a model that trains
    net.features[0].requires_grad_(False)
    net.features[2].weight.grad = torch.ones_like(net.features[2].weight)
    return net


def in_a_function(model):
    return lambda x: model(x)


FORWARDS = {
    "module": lambda net: net,
    "function": lambda net: lambda x: net(x),
    "method": lambda net: net.forward,
    "data parallel": lambda net: nn.DataParallel(net),
    "function of data parallel": lambda net: in_a_function(nn.DataParallel(net)),
}


def compiled(function):
    """Captured by Dynamo and run as it is."""
    torch._dynamo.reset()
    return torch.compile(function, backend="eager")


@pytest.mark.parametrize("kind", FORWARDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_training_model_ends_as_it_began_and_is_explained_in_evaluation_mode(method, kind):
    net, inputs = training_net(), tiny_inputs()
    before = state_of(net)
    attr = method(FORWARDS[kind](net), net.features).attribute(inputs, 1)
    assert state_of(net) == before
    expected = method(net.eval(), net.features).attribute(inputs, 1)
    assert same(attr, expected)


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


@pytest.mark.parametrize("method", METHODS)
def test_state_comes_back_after_an_error(method):
    net, inputs = training_net(), tiny_inputs()
    before = state_of(net)
    for forward in (net, lambda x: net(x)):
        with pytest.raises((AssertionError, IndexError)):
            method(forward, net.features).attribute(inputs, 99)
    assert state_of(net) == before


def test_an_error_in_a_masked_pass_leaves_nothing_behind():
    net, inputs = training_net(), tiny_inputs()
    before = state_of(net)
    passes = []

    def forward(x):
        passes.append(x.shape[0])
        if len(passes) == 3:
            raise KeyError("stop")
        return net(x)

    with pytest.raises(KeyError):
        LayerUnionCam(forward, net.features).attribute(inputs, 1, internal_batch_size=2)
    assert len(passes) == 3
    assert state_of(net) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_inputs_and_baselines_are_not_touched(method, requires_grad):
    net = TinyNet()
    net.features.insert(0, nn.ReLU(inplace=True))  # writes into the model's input
    inputs = tiny_inputs().requires_grad_(requires_grad)
    values = inputs.detach().clone()
    expected = method(net, net.features).attribute(values.clone(), 1)
    attr = method(net, net.features).attribute(inputs, 1, attribute_to_layer_input=False)
    assert same(attr, expected)
    assert same(inputs.detach(), values)
    assert inputs.requires_grad is requires_grad
    assert inputs.grad is None
    method(net, net.features).attribute(inputs, 1, attribute_to_layer_input=True)
    assert inputs.requires_grad is requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_in_place_relu_frozen_parameters_and_no_grad_change_nothing(method):
    net, inputs = TinyNet(), tiny_inputs()
    expected = method(net, net.features).attribute(inputs, 1)
    in_place = TinyNet(activation=nn.ReLU(inplace=True))
    assert same(method(in_place, in_place.features).attribute(inputs, 1), expected)
    smooth = TinyNet(activation=nn.SiLU())
    followed = []
    for relu in (nn.ReLU(), nn.ReLU(inplace=True)):
        net_with_relu = copy.deepcopy(smooth)
        net_with_relu.head.insert(0, relu)
        followed.append(method(net_with_relu, net_with_relu.features).attribute(inputs, 1))
    assert same(*followed)
    frozen = copy.deepcopy(net).requires_grad_(False)
    with torch.no_grad():
        assert same(method(frozen, frozen.features).attribute(inputs, 1), expected)
        assert not torch.is_grad_enabled()


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
