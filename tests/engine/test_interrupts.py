"""Ctrl-C before any line of this package leaves the model, hooks and PyTorch's modes as they were found."""

import gc
import sys
from pathlib import Path

import pytest
import torch

import captum_unioncam
from captum_unioncam import LayerScoreCam, LayerUnionCam, metrics
from captum_unioncam.testing.state_checks import state_of, training_net
from tests.networks import tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

# In lines of Captum, torch and Python alone nothing is raised: what they leave behind half-way is theirs.
PACKAGE = str(Path(captum_unioncam.__file__).parent)
INTERRUPTS = 60


def union_cam(forward_func, net):
    return LayerUnionCam(forward_func, net.features).attribute(tiny_inputs(examples=1), 1)


def score_cam(forward_func, net):
    return LayerScoreCam(forward_func, net.features).attribute(tiny_inputs(examples=1), 1)


def insertion(forward_func, net):
    return metrics.insertion(
        forward_func, tiny_inputs(examples=1), torch.arange(48.0).reshape(1, 1, 8, 6), target=1, steps=3
    )


def traced(call, before_line):
    """Calls ``before_line(number)`` before each line of this package that ``call`` runs."""
    lines = 0

    def trace(frame, event, _arg):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines += 1
            before_line(lines)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return lines


def interrupted(call, number):
    def before_line(line):
        if line == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        traced(call, before_line)


@pytest.mark.parametrize("in_a_function", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("explain", [union_cam, score_cam, insertion])
def test_nothing_is_left_behind_by_ctrl_c_before_any_line(explain, in_a_function):
    net = training_net()
    forward_func = (lambda x: net(x)) if in_a_function else net

    def call():
        explain(forward_func, net)

    call()
    before = state_of(net)
    lines = traced(call, lambda line: None)
    assert lines > INTERRUPTS
    for number in range(1, lines, lines // INTERRUPTS + 1):
        interrupted(call, number)
        changed = [name for name, value in state_of(net).items() if value != before[name]]
        assert not changed, f"{changed} changed by an interrupt before line {number} of {lines}"
    gc.collect()
    call()
    assert state_of(net) == before
