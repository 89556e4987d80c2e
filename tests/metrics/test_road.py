"""Remove and debias: the imputation, and grad-cam's ROAD."""

import numpy as np
import pytest
import torch

from captum_unioncam import metrics
from captum_unioncam.metrics.imputation import impute
from tests.metrics import reference
from tests.networks import TinyNet, same, tiny_inputs

TARGETS = torch.tensor([3, 0, 2])


@pytest.mark.parametrize("size", [(1, 2), (2, 5), (7, 7), (13, 16)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_each_missing_pixel_is_the_mean_of_its_neighbours(size, share):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, *size, dtype=torch.float64, generator=generator)
    kept = torch.rand(3, 1, *size, generator=generator) > share
    kept[:, :, 0, 0] = True
    missing = [[tuple(place) for place in (~mask[0]).nonzero().tolist()] for mask in kept]
    expected = [reference.imputed(images[i : i + 1], missing[i]) for i in range(3)]
    assert torch.allclose(impute(images, kept), torch.cat(expected), rtol=0, atol=1e-10)


def test_a_plane_of_one_value_is_restored_from_one_pixel():
    images = torch.full((1, 1, 40, 33), 0.7, dtype=torch.float64)
    kept = torch.zeros(1, 1, 40, 33) > 0
    kept[..., 39, 0] = True
    assert torch.allclose(impute(images, kept), images, rtol=0, atol=1e-9)


def pixels(seed):
    return torch.rand(3, 1, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_scores_are_grad_cams(monkeypatch):
    road = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="grad-cam is not installed")
    # Theirs has no argument for the noise.
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0, road.neighbors_weights))
    model, images, maps = TinyNet(seed=3).float().eval(), tiny_inputs(seed=5).float(), pixels(0).float()
    targets = [lambda output, target=target: output.softmax(0)[target] for target in TARGETS.tolist()]
    arguments = images, maps[:, 0].numpy(), targets, model
    percentiles = [20, 40, 60, 80]
    ours = [
        function(model, images, maps, TARGETS, percentiles=percentiles, noise=0).numpy()
        for function in (metrics.road, metrics.road_most_relevant_first, metrics.road_least_relevant_first)
    ]
    theirs = [
        road.ROADCombined(percentiles)(*arguments),
        road.ROADMostRelevantFirstAverage(percentiles)(*arguments),
        road.ROADLeastRelevantFirstAverage(percentiles)(*arguments),
    ]
    assert np.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.abs(theirs[0]).min() > 1e-4


def test_the_true_order_of_pixels_has_the_best_score():
    """For the mean of an image's dark and bright pixels, the bright ones are relevant."""
    images = pixels(1)

    def mean(x):
        return x.mean((1, 2, 3)).clamp(0, 1)

    best, worst = (metrics.road(mean, images, sign * images) for sign in (1, -1))
    assert same(best, -worst)
    assert (best > 0.05).all()


def test_noise_is_drawn_by_the_generator_and_the_same_for_all_examples():
    model, images, maps = TinyNet(seed=3), tiny_inputs(seed=5), pixels(0)
    arguments = model, images, maps, TARGETS

    def drawn(seed, noise=1.0):
        return metrics.road(*arguments, noise=noise, generator=torch.Generator().manual_seed(seed))

    assert same(drawn(0), drawn(0))
    assert not same(drawn(0), drawn(1))
    assert same(drawn(0, noise=0), drawn(1, noise=0))
    together = metrics.road_most_relevant_first(model, images[[0, 0]], maps[[0, 0]], 3)
    assert same(together[:1], together[1:])


def test_integer_pictures_stay_whole_numbers():
    pictures = (tiny_inputs(seed=5).sigmoid() * 255).to(torch.uint8)
    model = TinyNet(seed=3)

    def of_integers(x):
        assert x.dtype == torch.uint8
        return model(x.double() / 255)

    assert metrics.road(of_integers, pictures, pixels(0), TARGETS).shape == (3,)


def test_wrong_arguments_are_named():
    model, images, maps = TinyNet(seed=3), tiny_inputs(seed=5), pixels(0)
    for percentiles in ([], [0], [100], [50, -1]):
        with pytest.raises(ValueError, match=r"^percentiles: got"):
            metrics.road(model, images, maps, TARGETS, percentiles=percentiles)
    with pytest.raises(ValueError, match=r"^noise: got -1"):
        metrics.road(model, images, maps, TARGETS, noise=-1)
    with pytest.raises(TypeError, match=r"^generator: got 0"):
        metrics.road(model, images, maps, TARGETS, generator=0)
    with pytest.raises(ValueError, match=r"^inputs: have 1 spatial dimensions"):
        metrics.road(TinyNet(1), tiny_inputs(1), torch.rand(3, 1, 4), TARGETS)
