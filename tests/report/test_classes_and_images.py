"""The means of classes, and what the page shows of one class and of one image."""

import base64
import statistics

import numpy as np
import pandas as pd
import pytest
import torch

from captum_unioncam.cli.main import main
from captum_unioncam.evaluation.records import Record
from captum_unioncam.report.images import Look
from captum_unioncam.report.page import report_page
from captum_unioncam.report.statistics import class_table, summarize
from captum_unioncam.report.tables import classes_text, display_classes
from tests.report import write_evaluation

pytest_plugins = ("tests.browser",)

NAMES = {3: "ring", 7: "star", 9: "star"}
METHODS = ("grad_cam", "union_cam")


def a_record(generator, image, target, method):
    values = {"drop": generator.random(), "insertion": generator.random()}
    small = np.zeros((16, 16), np.uint8)
    small[:, : 4 if method == "grad_cam" else 12] = 255
    shown = base64.b64encode(small.tobytes()).decode()
    return Record(image, target, NAMES[target], method, confidence=0.5, values=values, map=shown)


@pytest.fixture(scope="module")
def records():
    """70 images of three classes, two of the same name; every fifth has two. One failed."""
    generator = np.random.default_rng(0)
    targets = [(f"{i:03}.png", target) for i in range(70) for target in ([3, 7, 9][i % 3], 3)[: 1 + (i % 15 == 1)]]
    made = [a_record(generator, *pair, method) for pair in targets for method in METHODS]
    return [*made[:-1], Record(made[-1].image, made[-1].target, "star", "union_cam", error="RuntimeError: out of luck")]


def test_class_means_are_those_of_plain_loops(records):
    table = class_table(summarize(records, resamples=10))
    assert table[["class", "target"]].drop_duplicates().to_numpy().tolist() == [["ring", 3], ["star", 7], ["star", 9]]
    assert len(table) == 3 * 2 * 2
    for row in table.to_dict("records"):
        name, scale = {"average drop (%)": ("drop", 100), "insertion": ("insertion", 1)}[row["metric"]]
        of_class = [r for r in records if (r.target, r.method) == (row["target"], row["method"]) and not r.error]
        assert row["mean"] == pytest.approx(scale * statistics.fmean(r.values[name] for r in of_class))
        assert row["n"] == len(of_class)
        assert row["low"] < row["mean"] < row["high"]
    # The intervals are those of an evaluation of the class alone.
    alone = summarize([r for r in records if r.target == 7]).table
    of_seven = class_table(summarize(records), [7])
    np.testing.assert_allclose(of_seven[["low", "high"]], alone[["low", "high"]])


def test_the_best_of_each_class_is_marked(records):
    table = class_table(summarize(records))
    texts, best = display_classes(table)
    assert list(texts["class"]) == ["ring"] * 2 + ["star"] * 4
    by_target = table[table["metric"] == "insertion"].groupby("target")["mean"]
    assert best["insertion ↑"].tolist() == [mean == means.max() for _, means in by_target for mean in means]
    lines = classes_text(table).splitlines()
    assert [line for line in lines if line in NAMES.values()] == ["ring", "star", "star"]
    assert sum(line.startswith("grad_cam") for line in lines) == 3


def test_a_sample_of_the_images_is_kept_whole_in_any_order(records):
    sample = summarize(records).sample
    assert len(sample) == 48
    assert sample == summarize(reversed(records)).sample
    for image, found in sample.items():
        assert sorted(r.key for r in found) == sorted(r.key for r in records if r.image == image)
    few = [r for r in records if r.image < "010.png"]
    assert list(summarize(few).sample) == sorted({r.image for r in few})


@pytest.fixture
def folder(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_evaluation(
        tmp_path / "evaluation", records, {"data": "nowhere", "model": "demo", "preprocess": "auto"}
    )


def test_the_command_prints_classes_and_writes_them(capsys, folder, records):
    assert main(["report", str(folder), "--by-class"]) == 0
    out = capsys.readouterr().out
    assert "by class: means over maps" in out
    written = pd.read_csv(folder / "report" / "by_class.csv")
    pd.testing.assert_frame_equal(written, class_table(summarize(records)), check_dtype=False)
    assert main(["report", str(folder), "--by-class", "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3 * len(METHODS)
    assert lines[0].split("|")[2].strip() == "class"
    assert main(["report", str(folder), "--by-class", "--against", "grad_cam", "--format", "csv"]) == 2
    assert "--against and --by-class: are two tables; give one" in capsys.readouterr().err


def test_where_all_failed_there_is_no_class(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = Record("a.png", 3, "ring", "union_cam", error="RuntimeError: out of luck")
    folder = write_evaluation(tmp_path / "evaluation", [failed], {"data": "x", "model": "demo", "preprocess": "auto"})
    assert main(["report", str(folder), "--by-class"]) == 0
    assert "out of luck" in capsys.readouterr().out
    header = "class,target,method,metric,mean,low,high,n"
    assert (folder / "report" / "by_class.csv").read_text().splitlines() == [header]
    assert main(["report", str(folder), "--by-class", "--format", "markdown"]) == 0


def page_in(folder, records, photo):
    """Without the plots."""
    path = folder / "report.html"
    path.write_bytes(report_page(summarize(records, resamples=10), {}, photo, []))
    return path


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_class_and_an_image_are_chosen_in_the_page(open_page, tmp_path, records, width, dark):
    photos = {"000.png": torch.full((3, 60, 80), 0.5)}
    page = open_page(page_in(tmp_path, records, photos.get), width=width, dark=dark)
    assert page.get_by_label("Class", exact=True).locator("option").all_inner_texts() == [
        "all classes", "ring", "star", "star",
    ]  # fmt: skip
    assert page.locator("#class-table tr").count() == 0
    page.get_by_label("Class", exact=True).select_option("7")
    rows = page.locator("#class-table tbody tr")
    mean = statistics.fmean(r.values["insertion"] for r in records if (r.target, r.method) == (7, "grad_cam"))
    assert rows.locator("th").all_inner_texts() == list(METHODS)
    assert rows.nth(0).locator("td").nth(1).inner_text().startswith(f"{mean:.3f}")
    sample = summarize(records).sample
    sampled = [image for image, found in sample.items() if any(one.target == 7 for one in found)]
    options = page.get_by_label("Image", exact=True).locator("option").all_inner_texts()
    assert options == [f"{image}: star" for image in sampled]
    assert page.locator("figure[data-target]:visible").count() == page.locator("figure[data-target='7']").count() > 0
    with_maps = page.locator("h4:visible:has(+ .gallery > figure:not([hidden]))")
    assert 0 < with_maps.count() == page.locator("h4:visible").count() < page.locator("h4").count()
    # Step by step, the buttons end where the images do.
    following, previous = page.get_by_role("button", name="Next"), page.get_by_role("button", name="Previous")
    assert previous.is_disabled()
    following.click()
    assert page.get_by_label("Image", exact=True).input_value() == options[1]
    assert not previous.is_disabled()
    maps = page.locator("#image-maps figure")
    assert maps.locator("strong").all_inner_texts() == list(METHODS)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_map_is_drawn_in_the_colours_of_the_look_over_its_photo(open_page, tmp_path, records):
    page = open_page(page_in(tmp_path, records, lambda name: torch.full((3, 60, 80), 0.5)))
    figures = page.locator("#image-maps figure")
    assert figures.count() == 1 + len(METHODS)
    assert figures.nth(0).locator("img").get_attribute("alt").startswith("The photo 0")
    pixels = (
        figures.nth(1)
        .locator("canvas")
        .evaluate("canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, 16, 1).data)")
    )
    look = Look()
    shown = np.array(pixels).reshape(16, 4)
    for column, value in ((0, 1.0), (15, 0.0)):
        expected = [*look.colors(value)[:3], look.opacities(np.array([value]))[0]]
        # The browser keeps colours multiplied by their opacity.
        assert shown[column] == pytest.approx([255 * part for part in expected], abs=3)
    box, under = figures.nth(1).locator("canvas").bounding_box(), figures.nth(1).locator("img").bounding_box()
    assert box == under
