import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from matplotlib import pyplot
from PIL import Image

from captum_unioncam import demo
from captum_unioncam.attr.union_cam import UnionCamDetails
from captum_unioncam.evaluation.explain import Explainer, Explanation, Settings
from captum_unioncam.report.images import Look, as_picture, dimmed, laid_over, sheet
from captum_unioncam.report.notebooks import explain, show
from captum_unioncam.report.panels import HeatMap, drawn, explanation_panel, panel, picture_file, png
from captum_unioncam.system.errors import WrongArgument


@pytest.fixture
def photo():
    return torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def without_warnings_or_pyplot(no_warnings):
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
        denoised_selected=torch.tensor([False]),
        channel_scores=torch.zeros(1, 3),
        representatives=torch.arange(3).unsqueeze(0),
        forward_passes=torch.tensor([7]),
    )
    selected = maps[2] if union_selected else maps[1]
    return Explanation(photo, 4, "a cat", 0.876, Settings(layer="features.3"), selected, maps[3], details)


@pytest.mark.parametrize("union_selected", [True, False])
def test_a_panel_shows_the_photo_and_four_maps_and_marks_the_selected(photo, union_selected):
    explained = explanation(photo, union_selected)
    figure = explanation_panel(explained)
    titles = [axis.get_title() for axis in drawn_on(figure)]
    marks = ["", " - selected"] if union_selected else [" - selected", ""]
    assert titles == [
        "photo",
        "Grad-CAM\nfor comparison",
        "denoised (AMD)\nbeta = 0.12",
        f"region (Score-CAM){marks[0]}\nbeta = 0.33",
        f"union (AMU){marks[1]}\nbeta = 0.54",
    ]
    framed = [axis.spines["top"].get_visible() for axis in drawn_on(figure)]
    assert framed == [False, False, False, not union_selected, union_selected]
    heading = figure.get_suptitle()
    assert all(part in heading for part in ("a cat", "0.88", "features.3"))


def test_a_panel_of_any_method_shows_its_map_and_grad_cams(photo):
    settings = Settings(layer="features.3", method="own_package.of_a_long_name.explainers:own_method")
    other = replace(explanation(photo, True), settings=settings, details=None)
    titles = ["photo", "Grad-CAM\nfor comparison", "own_package.of_a_long_name.expla\niners:own_method"]
    assert [axis.get_title() for axis in drawn_on(explanation_panel(other))] == titles
    alone = explanation_panel(replace(other, grad_cam=None))
    assert [axis.get_title() for axis in drawn_on(alone)] == [titles[0], titles[2]]
    np.testing.assert_array_equal(shown(alone.axes[1]), laid_over(as_picture(photo), other.map))


def drawn_on(figure):
    """The axes of the photo and the maps: not that of the colour bar, nor unused ones."""
    return [axis for axis in figure.axes if axis.axison and axis.get_images()]


def shown(axis):
    (picture,) = axis.get_images()
    return np.asarray(picture.get_array())


def glow(value):
    """Red rises first, then green, then half of blue, in 256 colours."""
    value = np.minimum(np.floor(value * 256), 255) / 255
    red, green = np.interp(value, [0, 0.415], [0, 1]), np.interp(value, [0.415, 0.85], [0, 1])
    return np.stack([red, green, np.interp(value, [0.85, 1], [0, 0.5])], axis=-1)


def expected_overlay(photo, values):
    """The gray photo, darkened, with the colours over it: 30 % of the lowest value's, 60 % of the highest's."""
    red, green, blue = photo.numpy() * 255
    gray = (0.299 * red + 0.587 * green + 0.114 * blue)[..., None]
    values = LayerAttribution.interpolate(values, photo.shape[1:], "bilinear")[0, 0].clamp(min=0).numpy()
    values = values - values.min()
    values = values / values.max() if values.any() else values
    opacity = 0.3 + 0.3 * values[..., None]
    return (1 - opacity) * 0.65 * gray + opacity * 255 * glow(values)


def test_maps_are_laid_over_the_gray_photo_as_interpolated(photo):
    explained = explanation(photo, True)
    details = explained.details
    figure = explanation_panel(explained)
    assert np.abs(shown(figure.axes[0]) - photo.permute(1, 2, 0).numpy() * 255).max() < 1
    maps = [explained.grad_cam, details.denoised_map, details.region_map, details.union_map]
    for axis, values in zip(drawn_on(figure)[1:], maps, strict=True):
        assert np.abs(shown(axis) - expected_overlay(photo, values)).max() < 2


@pytest.mark.parametrize("opacity", [0.0, 0.6, 1.0])
def test_a_sheet_laid_over_the_dimmed_photo_makes_the_overlay(opacity):
    """As a browser does by ``opacity``, which multiplies the file's own."""
    photo, values = as_picture(torch.rand(3, 60, 80)), torch.randn(1, 1, 4, 4)
    on_top = Image.open(io.BytesIO(base64.b64decode(sheet(values, photo.size).partition(",")[2]))).convert("RGBA")
    colors, share = np.asarray(on_top)[..., :3].astype(float), np.asarray(on_top)[..., 3:] / 255
    below = np.asarray(dimmed(photo))[..., None]
    expected = laid_over(photo, values, Look(opacity=opacity))
    assert np.abs((1 - opacity * share) * below + opacity * share * colors - np.asarray(expected)).max() < 3


def test_maps_that_are_positive_everywhere_are_shown_above_their_minimum(photo):
    values = torch.rand(1, 1, 4, 4)
    figure = panel(photo, [HeatMap(values, "low"), HeatMap(values + 9, "high")], "a class")
    assert np.abs(shown(figure.axes[1]).astype(int) - shown(figure.axes[2])).max() < 2


def test_maps_without_anything_to_show_and_tiny_ones_are_drawn(photo):
    tiny_values = torch.rand(1, 1, 4, 4)
    heat_maps = [
        HeatMap(torch.zeros(1, 1, 4, 4), "nothing"),
        HeatMap(-torch.ones(1, 1, 4, 4), "negative"),
        HeatMap(tiny_values * 1e-20, "tiny"),
    ]
    figure = panel(photo, heat_maps, "a $1 and a $2 class")
    png(figure)
    _, nothing, negative, tiny = drawn_on(figure)
    assert nothing.get_xlabel() == negative.get_xlabel() == "zero everywhere"
    assert np.abs(shown(nothing) - expected_overlay(photo, torch.zeros(1, 1, 4, 4))).max() < 2
    np.testing.assert_array_equal(shown(nothing), shown(negative))
    assert tiny.get_xlabel() == ""
    assert np.abs(shown(tiny) - expected_overlay(photo, tiny_values)).max() < 2


def test_a_panel_is_written_as_png(photo):
    with Image.open(io.BytesIO(png(explanation_panel(explanation(photo, True))))) as picture:
        assert picture.format == "PNG"
        assert picture.width > 3 * picture.height


@pytest.mark.parametrize(("maps", "rows", "columns"), [(1, 1, 2), (5, 1, 6), (6, 2, 4), (14, 3, 5)])
def test_many_maps_go_into_even_rows_of_at_most_six(photo, maps, rows, columns):
    figure = panel(photo, [HeatMap(torch.rand(1, 1, 4, 4), f"map {i}") for i in range(maps)], "a class")
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert grid.get_geometry() == (rows, columns)
    titles = [axis.get_title() for axis in drawn_on(figure)]
    assert titles == ["photo", *(f"map {i}" for i in range(maps))]


def test_the_look_is_that_asked_for(photo):
    values = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    heights = LayerAttribution.interpolate(values, photo.shape[1:], "bilinear")[0, 0].numpy()
    at = (heights - heights.min()) / (heights.max() - heights.min())
    over = np.asarray(laid_over(as_picture(photo), values, Look("gray", 1.0))) / 255
    gray = np.asarray(as_picture(photo).convert("L")) / 255
    opacity = 0.5 + 0.5 * at
    expected = (1 - opacity) * 0.65 * gray + opacity * at
    assert np.abs(over - expected[..., None]).max() < 0.01


@pytest.mark.parametrize(("given", "message"), [({"colormap": "viridiss"}, "viridis"), ({"opacity": 1.5}, "1.5")])
def test_a_look_that_there_is_not_is_refused(given, message):
    with pytest.raises(WrongArgument, match=message):
        Look(**given)


def test_the_colour_bar_has_the_colours_of_the_values(photo):
    figure = panel(torch.full((3, 10, 10), 0.5), [HeatMap(torch.arange(100.0).reshape(1, 1, 10, 10), "a map")], "")
    (bar,) = (axis for axis in figure.axes if axis not in drawn_on(figure))
    colors = bar.collections[-1].cmap
    over = shown(drawn_on(figure)[1]).reshape(-1, 3)
    for place in (0, 50, 99):
        assert np.abs(np.array(colors(place / 99))[:3] * 255 - over[place]).max() < 3
    assert [label.get_text() for label in bar.get_yticklabels()] == ["lowest", "highest"]
    assert len(panel(photo, [], "").axes) == 1


def test_a_map_of_a_part_of_the_picture_is_laid_over_that_part(photo):
    picture, values = as_picture(photo), torch.rand(1, 1, 5, 5)
    over = np.asarray(laid_over(picture, values, box=(10, 5, 30, 25)))
    part = np.asarray(laid_over(picture.crop((10, 5, 30, 25)), values))
    np.testing.assert_array_equal(over[5:25, 10:30], part)
    gray = 0.65 * np.asarray(picture.convert("L"))
    assert np.abs(over[:5] - gray[:5, :, None]).max() <= 0.5
    # A box may reach over the edges.
    beyond = np.asarray(laid_over(picture, values, box=(-10, -10, 50, 40)))
    np.testing.assert_array_equal(beyond, np.asarray(laid_over(padded(picture), values))[10:40, 10:50])


def padded(picture):
    larger = Image.new("RGB", (picture.width + 20, picture.height + 20))
    larger.paste(picture, (10, 10))
    return larger


@pytest.mark.parametrize(("form", "begin"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_and_pictures_are_files_of_the_form(photo, form, begin):
    figure, picture = explanation_panel(explanation(photo, True)), as_picture(photo)
    assert drawn(figure, form, 50).startswith(begin)
    assert picture_file(picture, form).startswith(begin)
    with Image.open(io.BytesIO(picture_file(picture, "png", 300))) as read:
        np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
        assert round(read.info["dpi"][0]) == 300


def test_show_takes_images_and_maps_of_many_forms(photo):
    values = torch.rand(1, 1, 4, 4)
    array = (photo.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    given = [photo, photo[None], array, array / 255, Image.fromarray(array)]
    figures = [show(image, {"a map": values}, "a class") for image in given]
    figures += [show(photo, {"a map": form}, "a class") for form in (values[0], values[0, 0])]
    for figure in figures:
        assert [axis.get_title() for axis in drawn_on(figure)] == ["photo", "a map"]
        np.testing.assert_array_equal(shown(drawn_on(figure)[1]), laid_over(as_picture(photo), values))
    assert len(drawn_on(show(photo, values, colormap="viridis", opacity=0.5))) == 2


@pytest.mark.parametrize(
    ("image", "maps", "message"),
    [
        (torch.rand(2, 3, 8, 8), torch.rand(4, 4), r"image: has the shape \(2, 3, 8, 8\)"),
        (torch.randn(3, 8, 8) * 9, torch.rand(4, 4), "not normalised"),
        (torch.rand(3, 8, 8), torch.rand(2, 1, 4, 4), r"maps: has the shape \(2, 1, 4, 4\)"),
    ],
)
def test_show_refuses_what_is_not_one_image_with_its_maps(image, maps, message):
    with pytest.raises(ValueError, match=message):
        show(image, maps)


def test_explain_gives_what_the_command_writes_and_show_its_panel(tmp_path):
    demo.load_picture().save(tmp_path / "picture.png")
    explained = explain(tmp_path / "picture.png", "heart", model="demo", max_channels=4, device="cpu")
    (expected,) = Explainer(Settings(max_channels=4, device="cpu")).explain(demo.load_picture(), explained.class_index)
    assert explained.class_name == "heart"
    assert torch.equal(explained.map, expected.map)
    assert explained.record() == expected.record()
    titles = [axis.get_title() for axis in drawn_on(show(explained))]
    assert titles == [axis.get_title() for axis in drawn_on(explanation_panel(expected))]
    assert explain(demo.load_picture(), model="demo", max_channels=4).confidence > 0.5
    of_photo = explain(demo.load_picture().resize((150, 120)), model="demo", max_channels=4, device="cpu")
    assert of_photo.warnings[0].startswith("The demo model knows only 8 drawn shapes")
    assert not any("demo model" in warning for warning in explained.warnings)


def noted(photo, denoised, region, union, selected, confidence=0.9, method="union_cam"):
    baseline = 0.2
    confidences = {"denoised": denoised, "region": region, "union": union}
    given = {f"{name}_confidence": torch.tensor([baseline + beta]) for name, beta in confidences.items()}
    base = explanation(photo, selected == "union")
    details = replace(base.details, baseline_confidence=torch.tensor([baseline]), **given)
    details = replace(details, denoised_selected=torch.tensor([selected == "denoised"]))
    return replace(base, details=details, confidence=confidence, settings=replace(base.settings, method=method))


@pytest.mark.parametrize(
    ("betas", "selected", "confidence", "words"),
    [
        ((0.1, 0.3, 0.4), "union", 0.9, []),
        ((0.1, 0.3, 0.4), "union", 0.19, ["confidence of only 0.19"]),
        ((-0.1, 0.0, -0.05), "region", 0.9, ["No beta is above 0"]),
        ((0.5, 0.3, 0.4), "union", 0.9, ["The union map is selected, though"]),
        ((0.5, 0.3, 0.2), "region", 0.1, ["confidence of only 0.10", "The region map is selected, though"]),
        ((0.404, 0.3, 0.4), "union", 0.9, []),
        ((0.5, 0.3, 0.4), "denoised", 0.9, []),
    ],
)
def test_what_to_know_before_a_map_is_trusted_is_said(photo, betas, selected, confidence, words):
    explained = noted(photo, *betas, selected, confidence)
    assert len(explained.warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, explained.warnings, strict=True))
    assert explained.record().get("warnings", []) == explained.warnings
    shown_below = explanation_panel(explained).get_supxlabel().replace("\n", " ")
    assert shown_below == " ".join(explained.warnings)
