"""Average gain, coherency, complexity, ADCC, sensitivity and infidelity: closed forms, and Captum's own functions."""

import captum.metrics
import pytest
import torch

from captum_unioncam import metrics, shared_passes
from tests.networks import TinyNet, same, tiny_inputs

TARGETS = torch.tensor([3, 0, 2])


def first_pixel(x):
    """A confidence: the value of the upper left pixel."""
    return x[:, 0, 0, 0]


def halves():
    """Maps of 1 on the left half and 0 on the right, (2, 1, 4, 4)."""
    maps = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    maps[..., :2] = 1
    return maps


def images(value):
    return torch.full((2, 1, 4, 4), value, dtype=torch.float64)


def test_the_gain_is_the_share_of_what_is_missing():
    # The pixel is shown by one map and hidden by the other; the baseline is more confident than the image.
    maps = torch.cat([halves()[:1], halves()[:1].flip(3)])
    gain = metrics.confidence_gain(first_pixel, images(0.2), maps, baselines=0.6)
    assert same(gain, torch.tensor([0.0, (0.6 - 0.2) / (1 - 0.2)], dtype=torch.float64))
    assert metrics.confidence_gain(first_pixel, images(1.0), maps, baselines=0.6).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"^confidence_fn: gave confidences above 1 for the examples \[0, 1\]"):
        metrics.confidence_gain(first_pixel, images(2.0), maps, confidence_fn=lambda output: output)


def judged(metric, maps, again):
    arguments = first_pixel, images(0.5), maps
    return metric(*arguments, baselines=0.25, explanation_func=lambda _: again).tolist()


def test_coherency_is_one_for_an_equal_map_and_zero_for_the_opposite_or_a_constant_one():
    maps = halves()
    assert judged(metrics.coherency, maps, 3 * maps + 2) == pytest.approx([1, 1])
    assert judged(metrics.coherency, maps, -maps) == pytest.approx([0, 0], abs=1e-15)
    assert judged(metrics.coherency, maps, torch.full_like(maps, 0.1)) == [0, 0]
    # Upper and left half are uncorrelated.
    assert judged(metrics.coherency, maps, maps.transpose(2, 3)) == pytest.approx([0.5, 0.5])


def test_complexity_is_the_share_of_a_map_of_ones_and_zeros():
    maps = halves()
    maps[1, :, :, 1] = 0
    found = metrics.complexity(first_pixel, images(0.5), 7 * maps - 3)
    assert found.tolist() == [0.5, 0.25]


def test_adcc_is_the_harmonic_mean():
    # The left half is shown, and the confidence kept: coherency 1, complexity 1/2, no drop.
    assert judged(metrics.adcc, halves(), halves()) == pytest.approx([3 / (1 + 2 + 1)] * 2)
    # The confidence falls from 0.5 to the baseline's 0.25.
    assert judged(metrics.adcc, halves().flip(3), halves().flip(3)) == pytest.approx([3 / (1 + 2 + 2)] * 2)
    assert judged(metrics.adcc, halves(), -halves()) == pytest.approx([0, 0], abs=1e-15)


def test_the_method_explains_what_is_seen_through_the_map_once():
    seen = []

    def explain(inputs):
        assert torch.is_grad_enabled()
        seen.append(inputs)
        return halves()

    arguments = first_pixel, images(0.5), halves()
    with shared_passes():
        metrics.coherency(*arguments, baselines=0.25, explanation_func=explain)
        metrics.adcc(*arguments, baselines=0.25, explanation_func=explain)
    (once,) = seen
    assert torch.equal(once, 0.25 + 0.25 * halves())


@pytest.mark.parametrize("metric", [metrics.coherency, metrics.adcc, metrics.sensitivity_max])
def test_without_a_function_the_error_says_what_to_give(metric):
    with pytest.raises(ValueError, match=r"^explanation_func: got None; give a function of inputs"):
        metric(first_pixel, images(0.5), halves())


@pytest.mark.parametrize("metric", [metrics.coherency, metrics.sensitivity_max])
def test_the_model_is_explained_in_evaluation_mode(metric):
    model = TinyNet(dropout=0.5).train()

    def explain(inputs):
        assert not any(module.training for module in model.modules())
        return halves()

    pictures = tiny_inputs()[:2]
    metric(model, pictures, halves(), TARGETS[:2], explanation_func=explain)
    assert all(module.training for module in model.modules())


def test_sensitivity_of_a_map_that_is_the_input_is_the_noise():
    pictures = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    drawn = torch.Generator().manual_seed(7)
    found = metrics.sensitivity_max(
        first_pixel, pictures, pictures, explanation_func=lambda x: x, samples=3, radius=0.1, generator=drawn
    )
    again = torch.Generator().manual_seed(7)
    noises = [0.2 * torch.rand((1, 1, 4, 4), dtype=torch.float64, generator=again) - 0.1 for _ in range(3)]
    assert same(found, torch.stack([noise.norm() / 2 for noise in noises]).max().expand(2))
    steady = metrics.sensitivity_max(first_pixel, pictures, pictures, explanation_func=lambda _: pictures)
    assert steady.tolist() == [0, 0]


def test_infidelity_is_captums():
    model, pictures = TinyNet(seed=3).eval(), tiny_inputs(seed=5)
    maps = torch.rand(3, 1, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    corners = torch.rand((6, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    tops, lefts = (corners[:, 0] * 5).long().tolist(), (corners[:, 1] * 4).long().tolist()

    def perturbed(inputs):
        hidden = torch.zeros_like(inputs)
        for row in range(len(inputs)):
            top, left = tops[row % 6], lefts[row % 6]
            hidden[row, :, top : top + 4, left : left + 3] = 1
        return hidden, inputs * (1 - hidden)

    theirs = captum.metrics.infidelity(
        lambda x: model(x).softmax(1),
        perturbed,
        pictures,
        maps.expand_as(pictures) / pictures.shape[1],
        target=TARGETS,
        n_perturb_samples=6,
        normalize=True,
    )
    drawn = torch.Generator().manual_seed(4)
    ours = metrics.infidelity(model, pictures, maps, TARGETS, samples=6, side=0.5, generator=drawn)
    assert same(ours, theirs)
    assert (ours > 0).all()


def test_a_map_that_forecasts_every_loss_is_faithful():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=generator)

    def mean(x):
        return x.mean((1, 2, 3))

    exact = metrics.infidelity(mean, pictures, 5 * pictures)
    other = metrics.infidelity(mean, pictures, pictures.flip(3))
    assert exact.tolist() == pytest.approx([0, 0], abs=1e-15)
    assert (other > 1e-6).all()


@pytest.mark.parametrize(
    ("metric", "wrong", "said"),
    [
        (metrics.infidelity, {"samples": 0}, "samples"),
        (metrics.infidelity, {"side": 0}, "side"),
        (metrics.infidelity, {"side": 1.5}, "side"),
        (metrics.sensitivity_max, {"samples": None}, "samples"),
        (metrics.sensitivity_max, {"radius": -1}, "radius"),
    ],
)
def test_wrong_numbers_are_named(metric, wrong, said):
    with pytest.raises(ValueError, match=f"^{said}: got"):
        metric(first_pixel, images(0.5), halves(), **wrong)
    with pytest.raises(TypeError, match=r"^generator: got 3"):
        metric(first_pixel, images(0.5), halves(), generator=3)
