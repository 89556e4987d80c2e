import io
import warnings

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from matplotlib import pyplot
from PIL import Image

from captum_unioncam.attr.union_cam import UnionCamDetails
from captum_unioncam.evaluation.explain import Explanation, Settings
from captum_unioncam.report.panels import HeatMap, explanation_panel, panel, png


@pytest.fixture
def photo():
    return torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def without_warnings_or_pyplot():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert pyplot.get_fignums() == []


def explanation(photo, union_selected):
    maps = torch.rand(4, 1, 1, 5, 5, generator=torch.Generator().manual_seed(1)).unbind()
    details = UnionCamDetails(
        denoised_map=maps[0],
        region_map=maps[1],
        union_map=maps[2],
        baseline_confidence=torch.tensor([0.1]),
        denoised_confidence=torch.tensor([0.22]),
        region_confidence=torch.tensor([0.43]),
        union_confidence=torch.tensor([0.64]),
        union_selected=torch.tensor([union_selected]),
        channel_scores=torch.zeros(1, 3),
        forward_passes=torch.tensor([7]),
    )
    return Explanation(photo, 4, "a cat", 0.876, Settings(layer="features.3"), maps[3], maps[2], details)


@pytest.mark.parametrize("union_selected", [True, False])
def test_a_panel_shows_the_photo_and_four_maps_and_marks_the_selected(photo, union_selected):
    explained = explanation(photo, union_selected)
    figure = explanation_panel(explained)
    assert len(figure.axes) == 5
    titles = [axis.get_title() for axis in figure.axes]
    marks = ["", " - selected"] if union_selected else [" - selected", ""]
    assert titles == [
        "photo",
        "GradCAM\nfor comparison",
        "denoised (AMD)\nbeta = 0.12",
        f"region (Score-CAM){marks[0]}\nbeta = 0.33",
        f"union (AMU){marks[1]}\nbeta = 0.54",
    ]
    framed = [axis.spines["top"].get_visible() for axis in figure.axes]
    assert framed == [False, False, False, not union_selected, union_selected]
    heading = figure.get_suptitle()
    assert all(part in heading for part in ("a cat", "0.88", "features.3"))


def test_maps_are_laid_over_the_photo_as_interpolated(photo):
    explained = explanation(photo, True)
    details = explained.details
    figure = explanation_panel(explained)
    (shown,) = figure.axes[0].get_images()
    assert np.abs(shown.get_array() - photo.permute(1, 2, 0).numpy() * 255).max() < 1
    maps = [explained.grad_cam, details.denoised_map, details.region_map, details.union_map]
    for axis, values in zip(figure.axes[1:], maps, strict=True):
        grey, heat = axis.get_images()
        expected = LayerAttribution.interpolate(values, (30, 40), "bilinear")[0, 0]
        assert np.allclose(heat.get_array(), expected / expected.max(), atol=1e-6)
        assert 0 < heat.get_alpha() < 1
        assert grey.get_array().shape == (30, 40)


def test_maps_without_anything_to_show_and_tiny_ones_are_drawn(photo):
    heat_maps = [
        HeatMap(torch.zeros(1, 1, 4, 4), "nothing"),
        HeatMap(-torch.ones(1, 1, 4, 4), "negative"),
        HeatMap(torch.rand(1, 1, 4, 4) * 1e-20, "tiny"),
    ]
    figure = panel(photo, heat_maps, "a $1 and a $2 class")
    png(figure)
    _, nothing, negative, tiny = figure.axes
    assert nothing.get_xlabel() == negative.get_xlabel() == "zero everywhere"
    (grey,) = nothing.get_images()
    assert np.ptp(np.asarray(grey.get_array()), axis=2).max() == 0
    assert tiny.get_images()[1].get_array().max() == 1


def test_a_panel_is_written_as_png(photo):
    with Image.open(io.BytesIO(png(explanation_panel(explanation(photo, True))))) as picture:
        assert picture.format == "PNG"
        assert picture.width > 3 * picture.height


@pytest.mark.parametrize(("maps", "rows", "columns"), [(1, 1, 2), (5, 1, 6), (6, 2, 4), (14, 3, 5)])
def test_many_maps_go_into_even_rows_of_at_most_six(photo, maps, rows, columns):
    figure = panel(photo, [HeatMap(torch.rand(1, 1, 4, 4), f"map {i}") for i in range(maps)], "a class")
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert grid.get_geometry() == (rows, columns)
    shown = [axis.get_title() for axis in figure.axes if axis.axison]
    assert shown == ["photo", *(f"map {i}" for i in range(maps))]
