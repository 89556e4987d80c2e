"""One model in several threads gives right maps and values, and is left as it was found."""

import threading
import time

import pytest
import torch
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, find_spatial_layer, metrics
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.testing.state_checks import state_of
from tests.networks import TinyNet, same, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

THREADS, CALLS = 3, 4


def attribution(cls):
    return lambda forward_func, net, x: cls(forward_func, net.features).attribute(x, 1)


def insertion(forward_func, net, x):
    return metrics.insertion(forward_func, x, torch.arange(48.0).reshape(1, 1, 8, 6).expand(3, -1, -1, -1), target=1)


def found(forward_func, net, x):
    name, _ = find_spatial_layer(net, x)
    return torch.tensor([ord(letter) for letter in name])


WORK = {
    "union_cam": attribution(LayerUnionCam),
    "score_cam": attribution(LayerScoreCam),
    "denoised_grad_cam": attribution(LayerDenoisedGradCam),
    "insertion": insertion,
    "find_spatial_layer": found,
}


def slow_net(train):
    net = TinyNet(batch_norm=True, dropout=0.5).train(train)
    # Lets other threads in, in the middle of a pass.
    net.features[1].register_forward_hook(lambda *_: time.sleep(2e-4))
    return net


def in_threads(work, count=THREADS):
    """What ``work(number)`` returned in each thread."""
    results, errors = [None] * count, []

    def run(number):
        try:
            results[number] = work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    assert errors == []
    return results


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("what", WORK)
def test_threads_with_one_model_get_what_each_alone_gets(what, train):
    net, work = slow_net(train), WORK[what]
    inputs = [tiny_inputs(seed=seed) for seed in range(THREADS)]
    expected = [work(net, net, x) for x in inputs]
    before = state_of(net)
    for results in in_threads(lambda i: [work(net, net, inputs[i]) for _ in range(CALLS)]):
        assert all(any(same(result, right) for right in expected) for result in results)
    results = in_threads(lambda i: work(net, net, inputs[i]))
    assert all(same(result, right) for result, right in zip(results, expected, strict=True))
    assert state_of(net) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda net: [net, lambda x: net(x), net.forward],
        lambda net: [net, nn.DataParallel(net) if not torch.cuda.is_available() else net, nn.Sequential(net)],
        lambda net: [net, lambda x: net.head(net.features(x)), nn.Sequential(net.features, net.head)],
    ],
    ids=["functions", "wrappers", "parts"],
)
def test_whatever_reaches_the_same_modules_takes_turns(make):
    net, x = slow_net(train=True), tiny_inputs()
    forward_funcs = make(net)
    expected = WORK["score_cam"](net, net, x)
    before = state_of(net)
    results = in_threads(lambda i: [WORK["score_cam"](forward_funcs[i], net, x) for _ in range(CALLS)])
    assert all(same(result, expected) for of_thread in results for result in of_thread)
    assert state_of(net) == before


def test_threads_that_share_no_module_do_not_wait_for_each_other():
    nets, together = [TinyNet().train(), TinyNet(seed=1).train()], threading.Barrier(2, timeout=20)

    def work(number):
        with evaluation_mode(nets[number]):
            return together.wait()

    assert sorted(in_threads(work, 2)) == [0, 1]


def test_two_models_in_different_order_do_not_lock_each_other_out():
    nets = [TinyNet(), TinyNet(seed=1)]

    def work(number):
        for _ in range(20):
            with evaluation_mode(nets[number]), evaluation_mode(nets[1 - number]), evaluation_mode(lambda x: x):
                time.sleep(1e-4)
            with evaluation_mode(nets[number], nets[1 - number]):
                time.sleep(1e-4)
        return number

    assert in_threads(work, 2) == [0, 1]


def test_an_error_ends_the_turn():
    net = TinyNet()
    with pytest.raises(KeyError), evaluation_mode(net):
        raise KeyError

    def work(number):
        with evaluation_mode(net):
            return number

    assert in_threads(work, 1) == [0]
