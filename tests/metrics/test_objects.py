"""Metrics of where objects are, and sparseness: closed forms, scikit-learn's and Quantus' values."""

import numpy as np
import pytest
import torch

from captum_unioncam import metrics
from captum_unioncam.metrics.boxes import _regions
from tests.metrics import reference
from tests.networks import same


def random_pairs(count=12):
    """Attributions of few different values, some negative, and masks; one is empty."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randint(-3, 6, (count, 1, 7, 9), generator=generator).double()
    masks = torch.rand(count, 1, 7, 9, generator=generator) < 0.3
    maps[0], masks[1] = 0, False
    return maps, masks


NAMES = ["relevance_mass", "relevance_rank", "localization_iou", "localization_accuracy", "pixel_average_precision"]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_plain_loops(name):
    maps, masks = random_pairs()
    expected = [getattr(reference, name)(maps[i : i + 1], masks[i, 0]) for i in range(len(maps))]
    assert same(getattr(metrics, name)(maps, masks), torch.tensor(expected, dtype=torch.float64))
    assert len(set(expected)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_map_that_is_the_object_has_the_best_value(name):
    masks = metrics.box_masks([[(2, 1, 6, 5)], [(0, 0, 3, 4)]], (7, 9))
    function = getattr(metrics, name)
    assert function(masks.double(), masks).tolist() == [1, 1]
    assert (function(masks.double(), ~masks & False) == 0).all()


@pytest.mark.parametrize("density", [0.2, 0.4, 0.5, 0.6])
def test_regions_are_those_of_flooding(density):
    masks = torch.rand(4, 11, 13, generator=torch.Generator().manual_seed(1)) < density
    for found, mask in zip(_regions(masks), masks, strict=True):
        expected = torch.full((11, 13), 11 * 13)
        for region in reference.regions(mask):
            for place in region:
                expected[place] = region[0][0] * 13 + region[0][1]
        assert torch.equal(found, expected)


def test_a_spiral_is_one_region():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    path = [(0, x) for x in range(9)] + [(y, 8) for y in range(9)] + [(8, x) for x in range(9)]
    path += [(y, 0) for y in range(2, 9)] + [(2, x) for x in range(7)] + [(y, 6) for y in range(2, 7)] + [(6, 4)]
    for place in path:
        mask[place] = True
    assert _regions(mask[None])[0][mask].unique().numel() == 2


def test_boxes_at_thresholds():
    # A bright square of 2 within a dimmer one of 4, and the object is the larger one.
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., 2:6, 2:6] = 0.5
    maps[..., 3:5, 3:5] = 1
    masks = metrics.box_masks([[(2, 2, 6, 6)]], (8, 8))
    ious = metrics.box_ious(maps, masks, thresholds=[0, 0.4, 0.5, 0.9])
    assert ious.tolist() == [[1, 1, 0.25, 0.25]]
    assert metrics.localization_iou(maps, masks, thresholds=[0.5]).tolist() == [0.25]
    assert metrics.localization_accuracy(maps, masks, thresholds=[0.5]).tolist() == [0]
    assert metrics.localization_accuracy(maps, masks, thresholds=[0.5], least_iou=0.25).tolist() == [1]


def test_the_best_of_several_boxes_counts():
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., :3, :3] = 1
    masks = metrics.box_masks([[(0, 0, 3, 3), (5, 5, 8, 8)]], (8, 8))
    assert metrics.localization_iou(maps, masks).tolist() == [1]


def test_max_box_acc_takes_one_threshold_for_all():
    maps = torch.zeros(2, 1, 8, 8)
    maps[..., 2:6, 2:6] = 0.5
    maps[..., 3:5, 3:5] = 1
    masks = metrics.box_masks([[(2, 2, 6, 6)], [(3, 3, 5, 5)]], (8, 8))
    # At each threshold, one of the two boxes fits; each example has its own best.
    assert (metrics.box_ious(maps, masks) >= 0.5).double().mean(0).max() == 0.5
    assert metrics.localization_accuracy(maps, masks).tolist() == [1, 1]


def test_average_precision_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    maps, masks = random_pairs()
    masks[1, 0, 0, 0] = True
    theirs = [sklearn.average_precision_score(m.flatten(), a.flatten()) for a, m in zip(maps, masks, strict=True)]
    assert metrics.pixel_average_precision(maps, masks).tolist() == pytest.approx(theirs, abs=1e-12)
    pooled = metrics.pixel_average_precision(maps.reshape(1, 1, -1), masks.reshape(1, 1, -1))
    assert pooled.item() == pytest.approx(sklearn.average_precision_score(masks.flatten(), maps.flatten()), abs=1e-12)


def one_output(x):
    return x.sigmoid().mean((1, 2, 3))


def test_sparseness_of_one_place_and_of_all():
    maps = torch.zeros(3, 1, 5, 4, dtype=torch.float64)
    maps[0, 0, 2, 1] = -3
    maps[1] = 0.1
    maps[2, 0, :, :2] = 2
    found = metrics.sparseness(one_output, maps, maps)
    assert same(found, torch.tensor([1 - 1 / 20, 0, 0.5], dtype=torch.float64))


# Not RandomLogit and MPRT: Quantus compares signed maps by SSIM with a class that it draws itself, and initialises
# layers in its own way, one after the other; here it is the rank correlation of absolute maps, all layers at once.
def test_the_values_are_quantus_where_the_definitions_coincide():
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed")
    maps = torch.rand(4, 1, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    masks = metrics.box_masks([[(2, 1, 6, 5)], [(0, 0, 3, 4)], [(4, 4, 9, 7)], [(1, 1, 2, 2)]], (7, 9))
    arrays = {"x_batch": maps.numpy(), "y_batch": np.zeros(4, int), "a_batch": maps.numpy(), "s_batch": masks.numpy()}
    quiet = {"disable_warnings": True, "display_progressbar": False, "abs": True, "normalise": False}

    def theirs(metric):
        return metric(**quiet)(model=torch.nn.Identity(), **arrays)

    assert metrics.relevance_mass(maps, masks).tolist() == pytest.approx(theirs(quantus.RelevanceMassAccuracy))
    assert metrics.relevance_rank(maps, masks).tolist() == pytest.approx(theirs(quantus.RelevanceRankAccuracy))
    assert metrics.pointing_game(maps, masks).tolist() == theirs(quantus.PointingGame) == [0, 1, 0, 0]
    # It adds 1e-7 to each value.
    ours = metrics.sparseness(one_output, maps, maps).tolist()
    assert ours == pytest.approx(theirs(quantus.Sparseness), rel=1e-5)
