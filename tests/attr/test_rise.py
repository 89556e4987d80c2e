import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from captum_unioncam import Rise
from captum_unioncam.attr import rise
from captum_unioncam.testing.state_checks import require_as_found, training_net
from tests.attr.reference import default_confidence, select
from tests.networks import SIZES, TinyNet, counting, same, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

MASKS = 70
"""More than are drawn at once."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def masks_of(sizes, n_masks, grid_size, p1, generator):
    """Each mask for each spatial size, in float64: pixel by pixel out of the stretched grid."""
    dims = len(sizes[0])
    for start in range(0, n_masks, 64):
        count = min(64, n_masks - start)
        grids = torch.rand(count, *[grid_size] * dims, generator=generator) < p1
        places = torch.rand(count, dims, generator=generator, dtype=torch.float64)
        for grid, place in zip(grids.double().numpy(), places.tolist(), strict=True):
            masks = []
            for size in sizes:
                cells = [math.ceil(length / grid_size) for length in size]
                mask = np.zeros(size)
                for pixel in itertools.product(*map(range, size)):
                    where = []
                    for at, cell, share in zip(pixel, cells, place, strict=True):
                        stretched = at + int(share * cell)
                        where.append((stretched + 0.5) * grid_size / ((grid_size + 1) * cell) - 0.5)
                    mask[pixel] = map_coordinates(grid, [[u] for u in where], order=1, mode="mirror")[0]
                masks.append(torch.from_numpy(mask))
            yield masks


def reference(forward_func, example, target, baseline=0.0, n_masks=MASKS, grid_size=7, p1=0.5, generator=None):
    total = torch.zeros(1, 1, *example.shape[2:], dtype=torch.float64)
    for (mask,) in masks_of([example.shape[2:]], n_masks, grid_size, p1, generator or seeded()):
        shown = mask * example + (1 - mask) * baseline
        with torch.no_grad():
            total += select(default_confidence(forward_func(shown)), target) * mask
    return total / (n_masks * p1)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_agrees_with_the_reference(ndim):
    net, inputs = TinyNet(ndim), tiny_inputs(ndim)
    attr = Rise(net).attribute(inputs, [0, 2, 3], n_masks=MASKS)
    for i, target in enumerate([0, 2, 3]):
        expected = reference(net, inputs[i : i + 1], target)
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("grid_size", "p1", "baseline"), [(2, 0.5, 0.7), (5, 0.1, -1.0), (7, 1.0, 0.3)])
def test_arguments_agree_with_the_reference(grid_size, p1, baseline):
    net, inputs = TinyNet(), tiny_inputs(examples=1)
    given = {"n_masks": 9, "grid_size": grid_size, "p1": p1}
    attr = Rise(net).attribute(inputs, 1, baseline, generator=seeded(3), **given)
    expected = reference(net, inputs, 1, baseline, generator=seeded(3), **given)
    assert torch.allclose(attr, expected, rtol=0, atol=1e-12)


def test_masks_show_the_input_with_the_probability_that_is_asked_for():
    for p1 in (0.1, 0.5, 0.9):
        shown = [m[0] for m in rise.random_masks({0: torch.zeros(1, 1, 30, 20)}, 640, 7, p1, None)]
        assert [len(masks) for masks in shown] == [64] * 10
        every = torch.cat(shown)
        assert every.shape == (640, 1, 30, 20)
        assert every.min() >= 0
        assert every.max() <= 1
        # Each of 7 x 7 cells of 640 masks.
        assert abs(every.mean().item() - p1) < 4 * math.sqrt(p1 * (1 - p1) / (640 * 49)) + 0.01


def test_examples_and_batch_sizes_do_not_matter():
    net, inputs = TinyNet(), tiny_inputs()
    method = Rise(net)
    attr = method.attribute(inputs, 2, n_masks=MASKS)
    assert same(attr[1:2], method.attribute(inputs[1:2], 2, n_masks=MASKS))
    assert same(attr, method.attribute(inputs, 2, n_masks=MASKS, internal_batch_size=5))
    assert same(attr, method.attribute(inputs, 2, n_masks=MASKS, internal_batch_size=1000))
    assert torch.equal(attr, Rise(net).attribute(inputs, 2, n_masks=MASKS))


@pytest.mark.usefixtures("rows_tried")
def test_several_targets_are_those_of_several_calls_for_the_passes_of_one():
    net, inputs = TinyNet(), tiny_inputs()
    forward, rows = counting(net)
    targets = torch.tensor([[0, 1], [2, 3], [1, 1]])
    attr = Rise(forward).attribute_targets(inputs, targets, n_masks=10)
    assert sum(rows) == 30
    assert attr.shape == (3, 2, 1, *SIZES[2])
    for t in range(2):
        assert same(attr[:, t], Rise(net).attribute(inputs, targets[:, t], n_masks=10))
    assert same(Rise(net).attribute_targets(inputs, targets.tolist(), n_masks=10), attr)


def test_no_more_masks_are_drawn_at_once_than_a_chunk(monkeypatch):
    """So that memory does not grow with their number."""
    drawn, stretched = [], rise.grids_at

    def counted(grids, places, inputs):
        drawn.append(len(grids))
        return stretched(grids, places, inputs)

    monkeypatch.setattr(rise, "grids_at", counted)
    Rise(TinyNet()).attribute(tiny_inputs(examples=1), 0, n_masks=2 * rise.MASKS_AT_ONCE + 3, grid_size=2)
    assert drawn == [rise.MASKS_AT_ONCE, rise.MASKS_AT_ONCE, 3]


def test_a_generator_goes_on():
    net, inputs = TinyNet(), tiny_inputs()
    generator = seeded(1)
    first, second = (Rise(net).attribute(inputs, 0, n_masks=4, generator=generator) for _ in range(2))
    assert not torch.allclose(first, second)
    assert torch.equal(first, Rise(net).attribute(inputs, 0, n_masks=4, generator=seeded(1)))


def test_the_global_generator_draws_other_masks_each_time():
    net, inputs = TinyNet(), tiny_inputs(examples=1)
    torch.manual_seed(5)
    attr = Rise(net).attribute(inputs, 0, n_masks=128, generator=torch.default_generator)
    assert torch.allclose(attr, reference(net, inputs, 0, n_masks=128, generator=seeded(5)), rtol=0, atol=1e-12)


class TwoSizes(nn.Module):
    """Two images of different sizes and a vector."""

    def __init__(self):
        super().__init__()
        self.first, self.second = TinyNet(), TinyNet(seed=1)

    def forward(self, large, vector, small):
        return self.first(large) + vector.mean(1, keepdim=True) * self.second(small.repeat_interleave(2, 2))


def test_of_several_inputs_those_with_space_are_masked_at_the_same_places():
    net, large = TwoSizes(), tiny_inputs()
    inputs = large, torch.ones(3, 5).double(), large[:, :, ::2]
    with_space, without, small = Rise(net).attribute(inputs, 1, n_masks=3, grid_size=2)
    assert without.shape == inputs[1].shape
    assert not without.any()
    totals = [torch.zeros(3, 1, *x.shape[2:], dtype=torch.float64) for x in (large, inputs[2])]
    for masks in masks_of([(8, 6), (4, 6)], 3, 2, 0.5, seeded()):
        for i in range(3):
            shown = net(masks[0] * large[i : i + 1], inputs[1][:1], masks[1] * inputs[2][i : i + 1])
            for total, mask in zip(totals, masks, strict=True):
                total[i, 0] += shown.softmax(1)[0, 1].detach() * mask
    for made, total in zip((with_space, small), totals, strict=True):
        assert torch.allclose(made, total / (3 * 0.5), rtol=0, atol=1e-12)


def test_the_model_is_left_as_it_was_found_and_evaluated():
    inputs, net = tiny_inputs(), training_net()
    expected = Rise(copy.deepcopy(net).eval()).attribute(inputs, 0, n_masks=5)
    with require_as_found(net):
        assert same(Rise(net).attribute(inputs, 0, n_masks=5), expected)
    with require_as_found(net), pytest.raises(AssertionError, match="target"):
        Rise(net).attribute(inputs, 99, n_masks=5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_float32(dtype):
    net, inputs = TinyNet(), tiny_inputs()
    expected = Rise(net).attribute(inputs, 0, n_masks=20)
    made = Rise(copy.deepcopy(net).to(dtype)).attribute(inputs.to(dtype), 0, n_masks=20)
    assert made.dtype == torch.float32
    assert torch.corrcoef(torch.stack([made.flatten().double(), expected.flatten()]))[0, 1] > 0.99


def test_whole_numbers_are_masked_too():
    pictures = (tiny_inputs() * 50).clamp(0, 255).to(torch.uint8)
    net = TinyNet()
    attr = Rise(lambda x: net(x.double() / 50)).attribute(pictures, 0, n_masks=8)
    assert attr.dtype == torch.float32
    assert attr.shape == (3, 1, *SIZES[2])
    close = Rise(net).attribute(pictures.double() / 50, 0, n_masks=8)
    assert torch.allclose(attr.double(), close, atol=0.05)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n_masks": 0}, ValueError, "n_masks"),
        ({"n_masks": None}, ValueError, "n_masks"),
        ({"grid_size": 1}, ValueError, "grid_size"),
        ({"grid_size": 2.5}, ValueError, "grid_size"),
        ({"p1": 0}, ValueError, "p1"),
        ({"p1": 1.5}, ValueError, "p1"),
        ({"p1": float("nan")}, ValueError, "p1"),
        ({"generator": 3}, TypeError, "generator"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size"),
        ({"baselines": torch.zeros(7, 2, 8, 6)}, AssertionError, "baselines"),
    ],
)
def test_wrong_arguments_are_named_before_any_pass(given, error, message):
    def never(_):
        raise RuntimeError("a pass was run")

    with pytest.raises(error, match=f"^{message}: "):
        Rise(never).attribute(tiny_inputs(), 0, **given)


def test_inputs_without_space_are_refused():
    with pytest.raises(ValueError, match=r"^inputs: none of the shapes \[\(3, 4\)\]"):
        Rise(nn.Linear(4, 2)).attribute(torch.zeros(3, 4), 0)


def test_a_method_can_be_pickled_after_use():
    net, inputs = TinyNet(), tiny_inputs()
    method = Rise(net)
    attr = method.attribute(inputs, 0, n_masks=5)
    assert torch.equal(pickle.loads(pickle.dumps(method)).attribute(inputs, 0, n_masks=5), attr)


@pytest.mark.parametrize("name", ["forward_func", "confidence_fn"])
def test_what_is_no_function_is_named_where_it_is_given(name):
    with pytest.raises(TypeError, match=rf"^{name}: got "):
        Rise(**{"forward_func": nn.Identity(), name: "softmax"})


def test_the_progress_bar_counts_the_masks(capsys):
    net = TinyNet(activation=nn.SiLU())
    Rise(net).attribute(tiny_inputs(), 1, n_masks=MASKS, show_progress=True)
    shown = capsys.readouterr().err
    assert "Rise masks" in shown
    assert f"{MASKS}/{MASKS}" in shown
    Rise(net).attribute(tiny_inputs(), 1, n_masks=2)
    assert capsys.readouterr().err == ""
