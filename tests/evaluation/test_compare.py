"""``captum-unioncam compare`` and ``methods``: the panel, the table and the page, and what goes wrong."""

import io
import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image

from captum_unioncam import demo, methods, metrics
from captum_unioncam.demo.pictures import CLASS_NAMES
from captum_unioncam.evaluation.compare import Comparison, compare
from captum_unioncam.evaluation.explain import Explainer, Settings
from captum_unioncam.evaluation.judge import Judge
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics import table as metric_table
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.report.comparison import comparison_page, comparison_panel, comparison_text
from tests.cli.test_cli import one_error, output_files, picture, run
from tests.metrics import reference

pytest_plugins = ("tests.browser",)

OWN_MODULES = {
    "own_methods": """
import torch

def zero(model, layer, settings):
    return lambda inputs, target, baselines: torch.zeros(1, 1, 4, 4)

def broken(model, layer, settings):
    def attribute(inputs, target, baselines):
        raise RuntimeError("out of <b>memory</b>,\\nas usual")
    return attribute

def infinite(model, layer, settings):
    return lambda inputs, target, baselines: torch.full((1, 1, 4, 4), torch.inf)

def a_factory_with_quite_a_long_name(model, layer, settings):
    return zero(model, layer, settings)
""",
}
COLUMNS = ["method", "drop", "increase", "insertion", "deletion", "seconds", "error"]
BROKEN = "raised RuntimeError: out of <b>memory</b>, as usual; try another layer or method."
INFINITE = "ValueError: not finite for the examples [0]; "
OUTPUT = Path("comparison")
HOSTILE = '"><img src=x onerror=alert(1)>'


pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


def quick(names, *more):
    return ["compare", "--methods", names, "--steps", 4, "--device", "cpu", *more]


def written(suffix, folder=OUTPUT):
    (path,) = folder.glob(f"*.{suffix}")
    return path


def table(folder=OUTPUT):
    return pd.read_csv(written("csv", folder), index_col="method")


def test_the_numbers_are_those_of_each_method_and_metric(capsys):
    code, lines, errors = run(capsys, *quick("grad_cam, own_methods:zero"), "--target", CLASS_NAMES[2])
    assert (code, errors) == (0, [])
    model = demo.load_model().eval()
    inputs = torch.from_numpy(np.asarray(demo.load_picture()) / np.float32(255)).permute(2, 0, 1)[None]
    black = torch.zeros_like(inputs)
    grad_cam = LayerGradCam(model, model.get_submodule(demo.EXPLAINED_LAYER)).attribute(inputs, 2).relu().detach()

    @torch.no_grad()
    def confidence(x):
        return model(x).softmax(1)[0, 2].item()

    rows = table()
    assert [rows.index.name, *rows.columns] == COLUMNS
    assert list(rows.index) == ["grad_cam", "own_methods:zero"]
    for name, attribution in (("grad_cam", grad_cam), ("own_methods:zero", torch.zeros(1, 1, 4, 4))):
        row, judged = rows.loc[name], (confidence, inputs, black, attribution)
        deletion, _, _ = reference.curve(confidence, inputs, black, attribution, 4)
        assert row["drop"] == pytest.approx(reference.confidence_drop(*judged), abs=1e-5)
        assert row["increase"] == reference.confidence_increase(*judged)
        assert row["insertion"] == pytest.approx(
            metrics.insertion(model, inputs, attribution, 2, steps=4).item(), abs=1e-5
        )
        if name == "grad_cam":
            assert row["deletion"] == pytest.approx(deletion, abs=1e-4)
        assert row["seconds"] > 0
        assert pd.isna(row["error"])
    # The same on the terminal, and before and after it what was explained and written.
    assert lines[0] == f"demo image: {CLASS_NAMES[2]} {confidence(inputs):.2f}; layer {demo.EXPLAINED_LAYER}"
    assert re.split(" {2,}| (?=[a-z])", lines[1].strip()) == [
        *("method", "drop ↓", "increase ↑", "insertion ↑", "deletion ↓", "seconds ↓"),
    ]
    for line, (name, row) in zip(lines[2:4], rows.iterrows(), strict=True):
        shown = [f"{row[column]:.3f}" for column in COLUMNS[1:5]]
        shown[1] = f"{row['increase']:.0f}"
        shown.append(f"{row['seconds']:.3g}")
        assert line.replace("*", "").split() == [name, *shown]
    stem = OUTPUT / f"demo-{CLASS_NAMES[2]}"
    assert lines[4:] == [f"{stem}.html, {stem}.png, {stem}.csv"]
    assert len(output_files(OUTPUT)) == 3


def test_methods_that_fail_are_told_of_and_keep_no_other_from_being_shown(capsys, open_page):
    names = "own_methods:broken,grad_cam,own_methods:infinite,saliency"
    code, lines, errors = run(capsys, *quick(names))
    assert code == 1
    assert errors[0] == f"Error: own_methods:broken: {BROKEN}"
    assert errors[1].startswith(f"Error: own_methods:infinite: {INFINITE}")
    assert [line.split()[0] for line in lines[1:4]] == ["method", "grad_cam", "saliency"]
    rows = table()
    assert list(rows.index) == ["grad_cam", "saliency", "own_methods:broken", "own_methods:infinite"]
    assert list(rows["error"].isna()) == [True, True, False, False]
    assert rows.iloc[2:][COLUMNS[1:6]].isna().all(axis=None)
    assert re.search("^grad_cam,[^,]+,[01],", written("csv").read_text(), flags=re.MULTILINE)
    page = open_page(written("html").absolute())
    measured, failed = page.locator("table").all()
    assert measured.locator("tbody th").all_inner_texts() == ["grad_cam", "saliency"]
    assert failed.locator("tbody th").all_inner_texts() == ["own_methods:broken", "own_methods:infinite"]
    assert failed.locator("tbody td").first.inner_text() == BROKEN


def test_where_every_method_fails_the_files_say_so(capsys, open_page):
    code, lines, errors = run(capsys, *quick("own_methods:broken"))
    assert code == 1
    assert BROKEN in one_error(errors)
    assert len(lines) == 2
    assert list(table()["error"]) == [BROKEN]
    page = open_page(written("html").absolute())
    assert page.get_by_text(BROKEN).is_visible()
    assert page.locator("table").count() == 1


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_the_page_shows_the_panel_and_the_table(capsys, open_page, tmp_path, width, dark):
    photo = picture(tmp_path / "a photo.png")
    names = ["grad_cam", "own_methods:a_factory_with_quite_a_long_name", "own_methods:broken"]
    assert run(capsys, *quick(",".join(names)), photo, "--model", "demo")[0] == 1
    page = open_page(written("html").absolute(), width=width, dark=dark)
    assert page.title() == page.locator("h1").inner_text() == "Comparison of attribution methods"
    assert page.locator("p", has_text=str(photo)).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    image = page.locator("img")
    assert image.count() == 1
    assert image.get_attribute("alt") == f"The photo, and over it the maps of {', '.join(names[:2])}"
    with Image.open(written("png")) as panel:
        assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(panel.size)
    assert page.locator("thead").first.locator("th").all_inner_texts()[1:3] == ["drop\u00a0↓", "increase\u00a0↑"]
    drop = "The share of the confidence that is lost when the image is masked by the map."
    assert page.locator("li", has_text="drop ↓").inner_text() == f"drop ↓: {drop}"
    cells = page.locator("table").first.locator("tbody tr").first.locator("td").all_inner_texts()
    assert cells[2] == f"{table().loc['grad_cam', 'insertion']:.3f}"


def test_the_page_escapes_every_text(open_page, tmp_path):
    page = tmp_path / "page.html"
    failing = {f"failing{HOSTILE}": HOSTILE}
    judged = compare(judge_of("grad_cam"), HOSTILE, demo.load_picture())
    judgements = {f"method{HOSTILE}": judged.judgements["grad_cam"]}
    hostile = Comparison(HOSTILE, judged.photo, 0, HOSTILE, 0.5, HOSTILE, judged.metrics, judgements, failing)
    page.write_bytes(comparison_page(hostile))
    opened = open_page(page)
    assert opened.locator("img").count() == 1
    assert opened.locator("p").first.inner_text() == (f"{HOSTILE}: {HOSTILE}, confidence 0.50; layer {HOSTILE}.")
    assert opened.locator("tbody th").all_inner_texts() == [f"method{HOSTILE}", f"failing{HOSTILE}"]


def judge_of(*names):
    return Judge(ExplainedModel(device="cpu"), names, MethodSettings(), steps=2)


def test_a_metric_of_ones_own_has_a_column(monkeypatch):
    monkeypatch.setattr(metric_table, "_metrics", dict(metric_table._metrics))

    @metric_table.metric("size", "map's size", larger_is_better=True, form=".0f", description="How large it is.")
    def size(attributions):
        return attributions.new_full((len(attributions),), attributions[0].numel())

    compared = compare(judge_of("grad_cam"), "an image", demo.load_picture())
    assert list(compared.table().columns) == [*COLUMNS[:5], "size", "seconds", "error"]
    assert compared.table()["size"].tolist() == [112 * 112]
    heading, row = comparison_text(compared).splitlines()
    assert "size ↑" in heading
    assert row.split()[5] == str(112 * 112)
    assert "size ↑: How large it is." in comparison_page(compared).decode()


def test_a_comparison_has_what_an_explanation_has():
    judge = Judge(ExplainedModel(device="cpu"), ["union_cam", "grad_cam"], MethodSettings(), steps=2)
    compared = compare(judge, "an image", demo.load_picture(), target=3)
    assert (compared.class_index, compared.class_name) == (3, CLASS_NAMES[3])
    (explained,) = Explainer(Settings(), subject=judge.subject).explain(demo.load_picture(), target=3)
    union_cam, grad_cam = compared.judgements.values()
    assert torch.allclose(union_cam.map, explained.map, atol=1e-5)
    assert torch.equal(grad_cam.map, explained.grad_cam)
    assert torch.allclose(union_cam.details.union_map, explained.details.union_map, atol=1e-5)
    assert compared.confidence == explained.confidence == union_cam.confidence


def test_the_best_value_is_marked_and_ties_are_not():
    judged = compare(judge_of("grad_cam"), "an image", demo.load_picture())
    judgement = judged.judgements["grad_cam"]
    shared = {"increase": 1.0, "deletion": 0.25}
    values = {"first": (0.5, 0.7, 2.0), "second": (0.25, 0.6, 1.0), "third": (0.75, 0.8, 3.0)}
    judgements = {
        name: replace(judgement, values={**shared, "drop": drop, "insertion": insertion, "seconds": seconds})
        for name, (drop, insertion, seconds) in values.items()
    }
    text = comparison_text(replace(judged, judgements=judgements))
    stars = {name: re.findall(r"\*([\d.]+)", line) for name, line in zip(values, text.splitlines()[1:], strict=True)}
    # The drop and the seconds are best where they are smallest, insertion where it is largest.
    assert stars == {"first": [], "second": ["0.250", "1"], "third": ["0.800"]}
    page = comparison_page(replace(judged, judgements=judgements)).decode()
    assert re.findall("<strong>(.*?)</strong>", page) == ["0.250", "1", "0.800"]
    assert "*" not in comparison_text(replace(judged, judgements={"first": judgements["first"]}))


def test_several_pictures_are_compared_and_missing_ones_told_before(capsys, tmp_path):
    for name in ("one.png", "two.png"):
        picture(tmp_path / "folder" / name)
    code, lines, errors = run(capsys, *quick("grad_cam", "--model", "demo"), "folder", "missing.png")
    assert code == 1
    assert errors == ["Error: missing.png: does not exist; check the path."]
    assert [line.partition(": ")[0] for line in lines if ": " in line] == ["folder/one.png", "folder/two.png"]
    assert len(output_files(OUTPUT)) == 6


def test_long_names_do_not_run_into_each_other_on_the_panel():
    judged = compare(judge_of("grad_cam"), "an image", demo.load_picture())
    judgement = judged.judgements["grad_cam"]
    judgements = {f"a_package.a_module:a_factory_with_quite_a_long_name_{i}": judgement for i in range(5)}
    # The last axis is the colour bar's.
    figure = comparison_panel(replace(judged, judgements=judgements))
    figure.savefig(io.BytesIO(), format="png")
    boxes = [axis.title.get_window_extent() for axis in figure.axes[:-1]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    titles = [axis.get_title().splitlines() for axis in figure.axes[1:-1]]
    assert ["".join(lines[:-1]) for lines in titles] == list(judgements)
    assert {lines[-1] for lines in titles} == {
        f"insertion {judgement.values['insertion']:.2f}, deletion {judgement.values['deletion']:.2f}"
    }


def test_the_seed_is_that_of_methods_that_draw_random_numbers(capsys):
    for folder, seed in (("first", 3), ("again", 3), ("other", 4)):
        assert run(capsys, *quick("gradient_shap"), "--seed", seed, "--out", folder)[0] == 0
    first, again, other = (table(Path(folder)).drop(columns="seconds") for folder in ("first", "again", "other"))
    assert first.equals(again)
    assert not first.equals(other)


def test_progress_is_shown_on_a_terminal_alone(capsys, monkeypatch):
    assert run(capsys, *quick("grad_cam"))[2] == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "methods: 100%" in run(capsys, *quick("grad_cam"))[2][-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", ","], "--methods: is empty; give names with commas between."),
        (["--methods", "grad_camm"], "there is no method 'grad_camm'; did you mean grad_cam"),
        (["--methods", "own_methods:zerro"], "own_methods has no function 'zerro'; did you mean zero"),
        (["--methods", "no_module:zero"], "there is no module 'no_module'"),
        (["--target", "tree"], "--target: there is no class 'tree'"),
        (["--target", "8"], "there are the classes 0 to 7"),
        (["--layer", "featurs.3"], "did you mean features.3"),
        (["--steps", "0"], "'--steps'"),
        (["--seed", "-1"], "'--seed'"),
        (["--colormap", "glowing"], "--colormap glowing: there is none of this name; did you mean glow"),
    ],
)
def test_wrong_arguments_end_with_exit_code_2_and_one_line(capsys, arguments, message):
    code, lines, errors = run(capsys, "compare", *arguments)
    assert (code, lines) == (2, [])
    assert message in one_error(errors)
    assert not OUTPUT.exists()


def test_failures_end_with_exit_code_1_and_one_line(capsys):
    for arguments, message in (
        (["missing.png"], "missing.png: does not exist; check the path."),
        (["--out", "own_methods.py", "--methods", "grad_cam"], "cannot write own_methods.py"),
    ):
        code, lines, errors = run(capsys, "compare", *arguments)
        assert (code, lines) == (1, [])
        assert message in one_error(errors)


def test_the_compared_picture_is_not_overwritten(capsys, tmp_path):
    photo = picture(tmp_path / f"photo-{CLASS_NAMES[1]}.png")
    Path("photo.png").symlink_to(photo)
    before = photo.read_bytes()
    assert run(capsys, *quick("grad_cam", "--model", "demo"), "photo.png", "--target", "1", "--out", ".")[0] == 0
    assert photo.read_bytes() == before
    assert {f"photo-{CLASS_NAMES[1]}-2.{suffix}" for suffix in ("png", "csv", "html")} <= set(output_files(Path()))


def test_methods_lists_every_name_that_compare_takes(capsys):
    code, lines, errors = run(capsys, "methods")
    assert (code, errors) == (0, [])
    assert lines[: len(methods.names())] == [f"{name}: {methods.describe(name)}" for name in methods.names()]
    assert all(any(form in line for line in lines) for form in ("torchcam:NAME", "grad_cam:NAME", "module:function"))


@pytest.mark.parametrize("command", ["", "explain", "methods", "compare", "evaluate", "report"])
def test_the_help_fits_80_columns_and_breaks_no_word(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, lines, errors = run(capsys, *command.split(), "--help")
    assert (code, errors) == (0, [])
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    if command in ("compare", "evaluate"):
        assert "union_cam, " in text
        assert "denoised_grad_cam, " in text
    if not command:
        # Their summaries are whole.
        assert not re.search(r"^  (compare|evaluate|methods|report) .*\.\.\.", "\n".join(lines), flags=re.MULTILINE)
