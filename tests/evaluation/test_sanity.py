"""Sanity checks: similarities in plain loops, which layers are reinitialised in which copies, the command."""

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import InputXGradient, LayerGradCam
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import interpolate
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import VisionTransformer

from captum_unioncam import demo, methods
from captum_unioncam.demo.pictures import CLASS_NAMES
from captum_unioncam.engine.randomization import initialize, layers_from_the_top, randomized_copies
from captum_unioncam.evaluation.sanity import model_randomization, random_logit, similarity_table
from captum_unioncam.metrics.similarity import rank_correlation, structural_similarity
from captum_unioncam.report.sanity import randomization_plot
from tests.cli.test_cli import one_error, output_files, run

OWN_MODULES = {
    "own_methods": """
import torch

def edges(model, layer, settings):
    return lambda inputs, target, baselines: inputs.diff(dim=-1, append=inputs[..., -1:]).abs()

def drawn(model, layer, settings):
    return lambda inputs, target, baselines: torch.rand(len(inputs), 1, 9, 9)

def zero(model, layer, settings):
    return lambda inputs, target, baselines: torch.zeros(1, 1, 4, 4)

def broken(model, layer, settings):
    def attribute(inputs, target, baselines):
        raise RuntimeError("out of luck")
    return attribute
""",
}
SIDE = 16

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


class Net(nn.Module):
    """Its layers are defined in another order than they run in, one of them never does, and one is the user's own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.unused = nn.Linear(3, 3)
        self.second = nn.Conv2d(5, 6, 3, padding=1)
        self.scale = Scale(5)
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.double()

    def forward(self, x):
        return self.head(self.second(self.scale(self.first(x).relu())).relu().mean((2, 3)))


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.factors = nn.Parameter(torch.linspace(0.5, 1.5, channels)[:, None, None])

    def forward(self, x):
        return self.factors * x


LAYERS = ["head", "second", "scale", "first"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# The judges: plain loops.


def ssim_in_loops(one, other):
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    values = []
    for row in range(len(one) - 10):
        for column in range(len(one[0]) - 10):
            sums = [0.0] * 5
            for i in range(11):
                for j in range(11):
                    x, y = float(one[row + i][column + j]), float(other[row + i][column + j])
                    for k, term in enumerate((x, y, x * x, y * y, x * y)):
                        sums[k] += weights[i][j] / total * term
            x, y, xx, yy, xy = sums
            numerator = (2 * x * y + 1e-4) * (2 * (xy - x * y) + 9e-4)
            values.append(numerator / ((x * x + y * y + 1e-4) * (xx - x * x + yy - y * y + 9e-4)))
    return sum(values) / len(values)


def scaled(values):
    low, high = values.min(), values.max()
    return (values - low) / (high - low)


def similarities(one, other):
    """SSIM and rank correlation of absolute maps (H, W), and of signed ones."""
    absolute = one.abs(), other.abs()
    ssim = ssim_in_loops(*(scaled(each).tolist() for each in absolute))
    return [ssim, *(spearmanr(a.flatten(), b.flatten())[0] for a, b in (absolute, (one, other)))]


def numbers(row):
    return [row.ssim, row.rank_correlation, row.signed_rank_correlation]


def pair(height, width, seed=0):
    one, noise = torch.rand(2, 2, 1, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return one, (one + noise) / 2


def test_ssim_is_that_of_plain_loops():
    one, other = pair(14, 12)
    expected = [ssim_in_loops(x[0].tolist(), y[0].tolist()) for x, y in zip(one, other, strict=True)]
    assert structural_similarity(one, other).tolist() == pytest.approx(expected, abs=1e-12)
    assert structural_similarity(one, one).tolist() == [1, 1]
    # The window is as wide as fits.
    assert structural_similarity(*pair(3, 5)).isfinite().all()


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    one, other = pair(30, 23)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [
        metrics.structural_similarity(x[0].numpy(), y[0].numpy(), **how) for x, y in zip(one, other, strict=True)
    ]
    assert structural_similarity(one, other).tolist() == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_is_that_of_scipy_also_where_values_are_equal():
    one, other = ((each * 6).round() for each in pair(7, 9))
    expected = [spearmanr(x.flatten(), y.flatten())[0] for x, y in zip(one, other, strict=True)]
    assert rank_correlation(one, other).tolist() == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(one, 3 * one + 1).tolist() == pytest.approx([1, 1], abs=1e-12)
    assert rank_correlation(one, -one).tolist() == pytest.approx([-1, -1], abs=1e-12)
    assert rank_correlation(one, torch.full_like(one, 2)).tolist() == [0, 0]


def test_layers_are_in_the_order_in_which_they_run(net, images):
    assert layers_from_the_top(net, images) == LAYERS


def test_a_layer_that_runs_twice_counts_where_it_runs_last(images):
    shared, between = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    assert layers_from_the_top(nn.Sequential(shared, between, shared).double(), images) == ["0", "1"]


def test_attention_counts_with_the_layer_that_it_is_part_of():
    model = VisionTransformer(32, 16, 1, 2, 12, 16, num_classes=3).eval()
    found = layers_from_the_top(model, torch.rand(1, 3, 32, 32))
    owners = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    assert set(found) == owners
    order = [found.index(name) for name in ("heads.head", "encoder.ln", "encoder.layers.encoder_layer_0.mlp.0")]
    attention = found.index("encoder.layers.encoder_layer_0.self_attention.out_proj")
    assert [*order, attention, found.index("conv_proj")] == sorted([*order, attention, found.index("conv_proj")])


def changed(model, other):
    return {
        name.rpartition(".")[0]
        for name, value in model.named_parameters()
        if not torch.equal(value, other.get_parameter(name))
    }


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_which_layers_are_reinitialised(net, images, order):
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    copies = list(randomized_copies(net, net.second, images, order, seed=3))
    assert [name for name, _, _ in copies] == LAYERS
    for i, (name, copied, layer) in enumerate(copies):
        assert changed(net, copied) == (set(LAYERS[: i + 1]) if order == "cascading" else {name})
        assert layer is copied.second
        assert layer is not net.second
    again = [copied for _, copied, _ in randomized_copies(net, net.second, images, order, seed=3)]
    other = [copied for _, copied, _ in randomized_copies(net, net.second, images, order, seed=4)]
    assert not any(changed(one, copied) for one, (_, copied, _) in zip(again, copies, strict=True))
    assert changed(other[0], again[0]) == {"head"}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_layer_has_the_same_new_values_in_both_orders(net, images):
    *_, (_, cascaded, _) = randomized_copies(net, net.second, images, "cascading")
    for name, alone, _ in randomized_copies(net, net.second, images, "independent"):
        assert name not in changed(alone, cascaded)


def test_fewer_layers_are_spread_evenly_and_a_cascade_leaves_none_out(net, images):
    cascade = list(randomized_copies(net, net.second, images, "cascading", max_layers=2))
    assert [name for name, _, _ in cascade] == ["second", "first"]
    assert [changed(net, copied) for _, copied, _ in cascade] == [{"head", "second"}, set(LAYERS)]
    (alone,) = randomized_copies(net, net.second, images, "independent", max_layers=1)
    assert changed(net, alone[1]) == {"first"}


def test_new_values_are_those_of_reset_parameters_or_have_the_old_ones_mean_and_spread():
    linear = nn.Linear(4, 3)
    torch.manual_seed(5)
    initialize(linear)
    torch.manual_seed(5)
    assert torch.equal(linear.weight, nn.Linear(4, 3).weight)

    own = nn.Module()
    own.values = nn.Parameter(torch.randn(10_000) * 0.2 + 3)
    old = own.values.detach().clone()
    initialize(own)
    assert own.values.mean().item() == pytest.approx(3, abs=0.01)
    assert own.values.std().item() == pytest.approx(0.2, rel=0.03)
    assert abs(np.corrcoef(old, own.values.detach())[0, 1]) < 0.05


def test_parametrized_weights_are_initialised_too(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), weight_norm(nn.Linear(4 * 14 * 14, 3))).double()
    *_, (_, copied, _) = randomized_copies(model, model[0], images)
    assert not torch.allclose(copied[3].weight, model[3].weight, rtol=0.1)


def grad_cam(model, images, target):
    """Upsampled maps (N, H, W) of the layer that the net calls second."""
    maps = LayerGradCam(model, model.second).attribute(images, target, relu_attributions=True)
    return interpolate(maps, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0].detach()


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_similarities_are_those_of_models_changed_by_hand(net, images, order):
    target = torch.tensor([2, 0])
    rows = model_randomization(net, "grad_cam", images, target, "second", order=order, seed=7)
    original = grad_cam(net, images, target)
    by_hand = copy.deepcopy(net)
    expected = []
    for number, name in enumerate(LAYERS):
        if order == "independent":
            by_hand = copy.deepcopy(net)
        torch.manual_seed(7 + number)
        if name == "scale":
            factors = net.scale.factors.detach()
            spread = float(((factors - factors.mean()) ** 2).mean() ** 0.5)
            with torch.no_grad():
                by_hand.scale.factors.normal_(float(factors.mean()), spread)
        else:
            by_hand.get_submodule(name).reset_parameters()
        maps = grad_cam(by_hand, images, target)
        expected += [similarities(*maps_of_example) for maps_of_example in zip(original, maps, strict=True)]
    assert [row.changed for row in rows] == [name for name in LAYERS for _ in images]
    assert [(row.step, row.example) for row in rows] == [(step, i) for step in (1, 2, 3, 4) for i in (0, 1)]
    assert {(row.method, row.check, row.constant) for row in rows} == {("grad_cam", order, False)}
    for row, by_loops in zip(rows, expected, strict=True):
        assert numbers(row) == pytest.approx(by_loops, abs=1e-9)


def test_signs_count_where_maps_have_them(net, images):
    rows = model_randomization(net, "input_x_gradient", images, 1, "second", max_layers=1)
    *_, (_, copied, _) = randomized_copies(net, net.second, images)
    one, other = (InputXGradient(model).attribute(images.clone().requires_grad_(), 1).sum(1) for model in (net, copied))
    for row, x, y in zip(rows, one.detach(), other.detach(), strict=True):
        assert numbers(row) == pytest.approx(similarities(x, y), abs=1e-9)
        assert row.rank_correlation != pytest.approx(row.signed_rank_correlation, abs=1e-3)


def test_a_method_that_does_not_look_at_the_model_fails_the_checks(net, images):
    names = ["own_methods:edges", "own_methods:drawn"]
    rows = model_randomization(net, names, images, 1, "second") + random_logit(net, names, images, 1, "second")
    assert {row.method for row in rows} == set(names)
    for row in rows:
        assert numbers(row) == pytest.approx([1, 1, 1], abs=1e-12)


def test_the_caller_finds_everything_as_it_was(net, images):
    net.train()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before, random, given = copy.deepcopy(net.state_dict()), torch.get_rng_state(), images.clone()
    model_randomization(net, "own_methods:drawn", images, 1, "second", max_layers=1)
    random_logit(net, "union_cam", images, 1, "second")
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(images, given)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.head.weight.grad.eq(1).all()
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_another_class_is_drawn_the_same_for_all_methods(net, images):
    rows = random_logit(net, ["grad_cam", "saliency"], images, 1, "second", seed=2)
    drawn = [row.changed for row in rows]
    assert drawn[:2] == drawn[2:]
    for row, one, other in zip(rows, grad_cam(net, images, 1), images, strict=False):
        by_hand = grad_cam(net, other[None], int(row.changed))[0]
        assert numbers(row) == pytest.approx(similarities(one, by_hand), abs=1e-9)
    of_seeds = [random_logit(net, "saliency", images[:1], 1, "second", seed=seed)[0].changed for seed in range(20)]
    assert set(of_seeds) == {"0", "2", "3"}


def test_a_map_that_becomes_constant_is_said_to_be(net, images):
    methods.register("of weight", weight_of_head)
    rows = model_randomization(net, "of weight", images[:1], 0, "second", order="independent")
    assert [row.constant for row in rows] == [True, False, False, False]
    assert (rows[0].rank_correlation, rows[0].signed_rank_correlation) == (0, 0)
    assert rows[1].rank_correlation == 1


def weight_of_head(model, layer, settings):
    """A map that is flat where the head is not as it was."""
    usual = abs(float(model.head.weight.detach().sum()) - HEAD_SUM) < 1e-9
    return lambda inputs, target, baselines: inputs if usual else torch.ones_like(inputs)


torch.manual_seed(0)
HEAD_SUM = float(Net().head.weight.detach().sum())


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})


def locked():
    import threading

    model = Net()
    model.lock = threading.Lock()
    return model


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (Net, {"order": "upwards"}, "order: got 'upwards'; give one of 'cascading', 'independent'."),
        (Net, {"max_layers": 0}, "max_layers: got 0"),
        (Net, {"layer": "third"}, "the model has no layer 'third'"),
        (Net, {"methods": "own_methods:zero"}, r"own_methods:zero: its map is constant for the examples \[0"),
        (Net, {"methods": "grad_camm"}, "there is no method 'grad_camm'"),
        (locked, {}, "model: cannot be copied .TypeError: cannot pickle '_thread.lock' object.; give one that"),
    ],
)
def test_what_is_refused(images, model, changes, message):
    torch.manual_seed(0)
    given = {"model": model(), "methods": "grad_cam", "inputs": images[:1], "target": 0, "layer": "second", **changes}
    with pytest.raises(ValueError, match=message):
        model_randomization(**given)


def test_a_model_of_one_output_has_no_other_class(images):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 1)).double()
    with pytest.raises(ValueError, match="model: has one output"):
        random_logit(model, "grad_cam", images, 0, "0")


def test_the_table_has_the_means_over_the_examples_and_the_plot_a_line_for_each_method(net, images):
    names = ["saliency", "grad_cam"]
    rows = model_randomization(net, names, images, 1, "second") + random_logit(net, names, images, 1, "second")
    table = similarity_table(rows, "ssim")
    assert list(table.columns) == names
    assert list(table.index) == [*(("cascading", name) for name in LAYERS), ("random_logit", "another class")]
    of_second = [row.ssim for row in rows if row.method == "grad_cam" and row.changed == "second"]
    assert table.loc[("cascading", "second"), "grad_cam"] == pytest.approx(sum(of_second) / 2)
    figure = randomization_plot(rows)
    ranks, ssim = figure.axes
    assert [line.get_label() for line in ssim.get_lines()][:2] == names
    assert list(ssim.get_lines()[1].get_ydata()) == [1, *table.loc["cascading", "grad_cam"]]
    assert [label.get_text() for label in ranks.get_xticklabels()] == ["none", *LAYERS]


# The command.

QUICK = ["sanity", "--device", "cpu", "--max-layers", 2]


def test_the_command_writes_a_plot_and_the_numbers(capsys):
    code, lines, errors = run(capsys, *QUICK, "--methods", "grad_cam,saliency", "--target", "star", "--order", "both")
    assert (code, errors) == (0, [])
    assert lines[0] == f"demo image: star; layer {demo.EXPLAINED_LAYER}"
    assert output_files(Path("sanity")) == [f"demo-star.{suffix}" for suffix in ("csv", "json", "png")]
    table = pd.read_csv("sanity/demo-star.csv")
    assert list(table.check.unique()) == ["cascading", "independent", "random_logit"]
    assert len(table) == 2 * (2 + 2 + 1)
    pixels = torch.from_numpy(np.asarray(demo.load_picture()) / np.float32(255)).permute(2, 0, 1)[None]
    how = (demo.load_model(), "saliency", pixels, CLASS_NAMES.index("star"), demo.EXPLAINED_LAYER)
    expected = model_randomization(*how, max_layers=2, baselines=torch.zeros_like(pixels))
    shown = table[(table.method == "saliency") & (table.check == "cascading")]
    assert list(shown.ssim) == pytest.approx([row.ssim for row in expected], abs=1e-4)
    assert list(shown.changed) == [row.changed for row in expected]
    document = json.loads(Path("sanity/demo-star.json").read_text())
    assert document["rows"][0] == {**table.iloc[0].to_dict(), "changed": table.changed[0]}
    assert document["settings"]["max_layers"] == 2
    assert document["settings"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    printed = [line.split() for line in lines if line.strip().startswith("cascading")]
    assert [float(cell) for cell in printed[0][2:]] == pytest.approx(list(table.rank_correlation[[0, 5]]), abs=0.006)
    with Image.open("sanity/demo-star.png") as plot:
        assert plot.size[0] > 500


def test_a_method_that_fails_keeps_no_other_from_being_checked(capsys):
    code, lines, errors = run(capsys, *QUICK, "--methods", "own_methods:broken,saliency", "--out", "there")
    assert code == 1
    assert "own_methods:broken: raised RuntimeError: out of luck" in one_error(errors)
    assert set(pd.read_csv(next(Path("there").glob("*.csv"))).method) == {"saliency"}
    code, lines, errors = run(capsys, *QUICK, "--methods", "own_methods:broken", "--out", "nowhere")
    assert (code, lines) == (1, [])
    assert output_files(Path("nowhere")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "upwards"], "'--order'"),
        (["--max-layers", "0"], "'--max-layers'"),
        (["--target", "tree"], "--target: there is no class 'tree'"),
        (["--layer", "featurs.3"], "did you mean features.3"),
    ],
)
def test_wrong_options_end_with_exit_code_2_and_one_line(capsys, arguments, message):
    code, lines, errors = run(capsys, "sanity", *arguments)
    assert (code, lines) == (2, [])
    assert message in one_error(errors)
    assert not Path("sanity").exists()


def test_the_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, lines, errors = run(capsys, "sanity", "--help")
    assert (code, errors) == (0, [])
    assert max(map(len, lines)) <= 80
    assert "union_cam, denoised_grad_cam" in " ".join(" ".join(lines).split())


def test_progress_is_shown_on_a_terminal_alone(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "methods: 100%" in run(capsys, *QUICK, "--methods", "saliency")[2][-1]
