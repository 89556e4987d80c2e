"""Passes with altered copies of the inputs."""

import weakref

import torch

from captum_unioncam.engine.capture import LayerCall
from captum_unioncam.engine.copies import CopyPasses, GradientCopies
from captum_unioncam.engine.outputs import Outputs
from captum_unioncam.engine.perturbations import as_inputs
from tests.networks import TinyNet, tiny_inputs


def copies_of(net, inputs, targets):
    outputs = Outputs(targets, len(inputs))
    return GradientCopies(LayerCall(net, [net.features], (inputs,), None, None, False, None, outputs), targets, None)


def test_nothing_of_a_copy_is_kept_but_what_is_made_of_it():
    inputs, alive, seen = tiny_inputs(), [], []

    def step(total, activations, gradients):
        alive.append(sum(reference() is not None for reference in seen))
        seen.extend(map(weakref.ref, (activations, gradients)))
        return (0 if total is None else total) + (activations * gradients).sum()

    copies = copies_of(TinyNet(), inputs, [1])
    CopyPasses(copies, 0, 0, 0).folded(((inputs * factor,) for factor in (1, 2, 3, 4)), step)
    # What a pass made is still there while the next one is taken up, and nothing before.
    assert max(alive) <= 2


def test_each_target_has_its_own_sum_of_the_same_passes():
    net, inputs, rows = TinyNet(), tiny_inputs(), []
    net.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    points = [(inputs * factor,) for factor in (1.0, 0.5)]
    copies = copies_of(net, inputs, [[0, 2, 3], [1, 1, 1]])
    made = [
        CopyPasses(copies, 0, 0, t).folded(points, lambda total, a, g: g if total is None else total + g)
        for t in range(2)
    ]
    assert rows == [3, 3]
    for of_target, target in zip(made, ([0, 2, 3], [1, 1, 1]), strict=True):
        expected = 2 * net.head[-1].weight[target].reshape(of_target.shape)
        assert torch.allclose(of_target, expected)


def test_values_are_rounded_for_whole_numbers_alone():
    values = torch.tensor([1.4, 1.6, -0.7])
    assert as_inputs(values, torch.zeros(3, dtype=torch.int16)).tolist() == [1, 2, -1]
    assert torch.equal(as_inputs(values, torch.zeros(3)), values)
