"""The model and the inputs are left as they were found."""

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import LayerUnionCam, find_spatial_layer
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
