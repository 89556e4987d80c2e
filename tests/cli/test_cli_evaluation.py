"""``captum-unioncam evaluate`` and ``report``, from the command line to the files."""

import csv
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from captum_unioncam.cli.main import main
from captum_unioncam.datasets.base import subset
from captum_unioncam.datasets.open import open_data_set
from captum_unioncam.demo.pictures import CLASS_NAMES
from captum_unioncam.evaluation.records import read_records
from captum_unioncam.evaluation.run import Tally
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.models.zoo import preprocessing_of
from tests.cli.test_cli import one_error, picture, run

pytest_plugins = ("tests.browser",)

OWN_CODE = """
import torch
from torch import nn

def broken(model, layer, settings):
    def attribute(inputs, target, baselines):
        raise RuntimeError("out of order")
    return attribute

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 32, stride=32), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 3))
"""
OWN_MODULES = {"own_code": OWN_CODE}
OUT = Path("evaluation")
FILES = ["table.csv", "table.md", "table.tex", "curves.png", "box.png", "trade_off.png", "report.html"]
NO_EVALUATION = "holds no evaluation; give the folder that captum-unioncam evaluate has written."
QUICK = ["--steps", "4", "--workers", "0", "--device", "cpu"]

METRICS = tuple(metric for metric in all_metrics().values() if not metric.on_request)


pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Four generated images under three methods; one fails."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "own_code.py").write_text(OWN_CODE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", list(sys.path))
        # Another file's tests may have theirs.
        monkeypatch.delitem(sys.modules, "own_code", raising=False)
        assert main(["evaluate", "--methods", "grad_cam,saliency,own_code:broken", "--limit", "4", *QUICK]) == 0
    return folder / OUT


@pytest.fixture
def evaluation(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / OUT)


def pictured(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(path, seed)


def settings(folder=OUT):
    return json.loads((folder / "settings.json").read_text())


def test_a_record_for_each_picture_and_method(evaluated):
    records = list(read_records(evaluated))
    names = subset(open_data_set("demo", CLASS_NAMES, len(CLASS_NAMES)).names, 4, seed=0)
    methods = ("grad_cam", "saliency", "own_code:broken")
    assert sorted((record.image, record.method) for record in records) == sorted(
        (name, method) for name in names for method in methods
    )
    assert {record.method for record in records if record.error} == {"own_code:broken"}
    assert all(len(record.curves["insertion"]) == 5 for record in records if not record.error)
    assert settings(evaluated)["model"] == "demo"


def test_started_again_only_what_is_missing_is_done(capsys, evaluation):
    again = ["evaluate", "--limit", "4", *QUICK, "--methods"]
    code, lines, _ = run(capsys, *again, "grad_cam, saliency")
    assert (code, lines[-1].split(" in ")[0]) == (0, "0 new records of 0 images")
    code, lines, _ = run(capsys, *again, "grad_cam,deconvolution")
    assert (code, lines[-1].split(" in ")[0]) == (0, "4 new records of 4 images")
    assert lines[-1].endswith("in evaluation, 0 of them failures; captum-unioncam report evaluation shows all.")
    code, _, errors = run(capsys, *again, "grad_cam", "--theta", "20")
    assert code == 2
    assert "theta 10.0 there, 20.0 now" in one_error(errors)


def test_metrics_are_those_asked_for_and_the_folders_where_none_are(capsys):
    some = ["evaluate", "--methods", "grad_cam", "--limit", "2", *QUICK]
    assert run(capsys, *some, "--metrics", "energy, drop")[0] == 0
    assert settings()["metrics"] == ["drop", "energy"]
    assert all(set(record.values) == {"drop", "energy", "seconds"} for record in read_records(OUT))
    code, _, errors = run(capsys, *some, "--metrics", "drop")
    assert code == 2
    assert "metrics ['drop', 'energy'] there, ['drop'] now; give the same" in one_error(errors)
    code, lines, _ = run(capsys, *some, "--methods", "saliency")
    assert (code, lines[-1].split(" in ")[0]) == (0, "2 new records of 2 images")
    assert {tuple(record.values) for record in read_records(OUT)} == {("drop", "energy", "seconds")}


def test_a_method_that_fails_is_recorded_and_the_exit_code_is_0(capsys):
    # torchrun would end all other processes if it were not.
    code, lines, _ = run(capsys, "evaluate", "--methods", "own_code:broken", "--limit", "2", *QUICK)
    assert code == 0
    assert lines[-1].startswith("2 new records of 2 images in evaluation, 2 of them failures; ")


def test_options_reach_the_model_the_data_and_the_methods(capsys, tmp_path):
    for seed, name in enumerate(("ant", "bee", "cat", "cat")):
        pictured(Path("data", name, f"{seed}.png"), seed)
    Path("classes.json").write_text(json.dumps({"ant": 2, "bee": 0, "cat": 1}))
    options = ["--model", "own_code:net", "--classes", "classes.json", "--layer", "1", "--theta", "30", "--seed", "7"]
    arguments = [*options, "--dtype", "bfloat16", "--max-channels", "3", "--methods", "union_cam", "--out", "other"]
    code, lines, errors = run(capsys, "evaluate", "data", *arguments, *QUICK)
    assert (code, lines[0]) == (0, "layer: 1"), errors
    assert {record.image: record.target for record in read_records(Path("other"))} == {
        "ant/0.png": 2,
        "bee/1.png": 0,
        "cat/2.png": 1,
        "cat/3.png": 1,
    }
    assert {record.target: record.target_name for record in read_records(Path("other"))} == {
        2: "ant",
        0: "bee",
        1: "cat",
    }
    recorded = settings(Path("other"))
    given = ("model", "layer", "theta", "seed", "dtype", "max_channels", "steps", "limit", "preprocess")
    assert [recorded[name] for name in given] == ["own_code:net", "1", 30.0, 7, "bfloat16", 3, 4, None, "auto"]
    assert recorded["data"] == str(tmp_path / "data")


PAPER = {"model": "vgg16", "layer": "features.29", "preprocess": "paper", "theta": 10.0, "limit": 2000}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The theta of a method of its own is that method's.
        ([], {"model": "demo", "layer": None, "preprocess": "auto", "theta": None, "limit": None}),
        (["--protocol", "own"], {"model": "demo", "layer": None, "preprocess": "auto", "theta": None, "limit": None}),
        (["--protocol", "paper"], PAPER),
        (["--protocol", "paper", "--limit", "9", "--theta", "20"], {**PAPER, "limit": 9, "theta": 20.0}),
        (["--layer", "features.28", "--protocol", "paper"], {**PAPER, "layer": "features.28"}),
        (["--protocol", "paper", "--preprocess", "auto"], {**PAPER, "preprocess": "auto"}),
        # Another model has other layers, and the demo is given too where it is named.
        (["--protocol", "paper", "--model", "demo"], {**PAPER, "model": "demo", "layer": None}),
    ],
)
def test_the_papers_protocol_is_that_of_what_is_not_given(capsys, monkeypatch, options, expected):
    received = {}

    class Subject:
        layer_name, layer_found = "a layer", False

        def __init__(self, model, _weights, layer, preprocess, *_others):
            received.update(model=model, layer=layer, preprocess=preprocess)

    def evaluate(evaluation, *_args, **_options):
        received.update(theta=evaluation.settings.theta, limit=evaluation.limit)
        return Tally()

    monkeypatch.setattr("captum_unioncam.evaluation.explain.ExplainedModel", Subject)
    monkeypatch.setattr("captum_unioncam.evaluation.run.evaluate", evaluate)
    monkeypatch.setattr("captum_unioncam.models.zoo.download_of", lambda _name: None)
    code, _, errors = run(capsys, "evaluate", *options)
    assert (code, errors) == (0, [])
    assert received == expected


def test_the_papers_protocol_of_another_model_is_carried_out(capsys):
    Path("classes.json").write_text(json.dumps({name: i % 3 for i, name in enumerate(CLASS_NAMES)}))
    arguments = ["--protocol", "paper", "--model", "own_code:net", "--classes", "classes.json", "--limit", "2"]
    code, lines, _ = run(capsys, "evaluate", *arguments, "--methods", "grad_cam", *QUICK)
    assert code == 0
    assert lines[-1].startswith("2 new records of 2 images in evaluation, 0 of them failures")
    assert [settings()[name] for name in ("preprocess", "limit", "theta", "layer")] == ["paper", 2, 10.0, "1"]


def test_the_printed_table_holds_means_intervals_counts_and_failures(capsys, evaluation):
    code, lines, errors = run(capsys, "report", evaluation)
    assert (code, errors) == (0, [])
    records = [record for record in read_records(evaluation) if record.method == "saliency"]
    assert lines[0] == "images: 4; maps: 8; failures: 4"
    (heading,) = (line for line in lines if "insertion ↑" in line)
    rows = {line.split()[0]: line for line in lines[lines.index(heading) + 1 :][:3]}
    assert set(rows) == {"grad_cam", "saliency", "own_code:broken"}
    # Not on a terminal a row is a line, whatever its length.
    for metric in METRICS:
        assert metric.heading in heading
        mean = metric.scale * statistics.fmean(record.values[metric.name] for record in records)
        assert f" {mean:{metric.form}} [" in rows["saliency"]
    assert rows["saliency"].split()[-2:] == ["4", "0"]
    assert rows["own_code:broken"].split()[-2:] == ["0", "4"]
    # Insertion shows the same digits for both, and neither is marked as the best.
    best = min(("grad_cam", "saliency"), key=lambda method: mean_of(evaluation, method, "average drop (%)"))
    column = heading.index("average drop (%) ↓") + len("average drop (%) ↓")
    assert rows[best][:column].endswith(" *")
    (failure,) = (line for line in lines[lines.index("failures:") + 1 :] if "out of order" in line)
    assert failure.split()[:2] == ["4", "own_code:broken:"]
    assert lines[-1] == ", ".join(str(evaluation / "report" / name) for name in FILES)


def mean_of(folder, method, title):
    with (folder / "report" / "table.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if (row["method"], row["metric"]) == (method, title))
    return float(row["mean"])


@pytest.fixture
def without_files(monkeypatch):
    """The report is printed alone."""
    monkeypatch.setattr("captum_unioncam.report.page.write_report", lambda *_args: [])


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_the_table_is_no_wider(capsys, monkeypatch, evaluated, without_files, width):
    _, piped, _ = run(capsys, "report", evaluated)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    code, lines, _ = run(capsys, "report", evaluated)
    assert code == 0
    table = lines[: lines.index("failures:")]
    assert max(map(len, table)) <= width
    assert not any(line.endswith((" ", "\\")) for line in table)
    words = [word for line in table for word in line.split()]
    # Each block repeats the methods' names, and loses nothing else.
    blocks = words.count("grad_cam")
    assert blocks > 1
    piped_words = [word for line in piped[: piped.index("failures:")] for word in line.split()]
    names = ["grad_cam", "saliency", "own_code:broken"]
    assert sorted(words) == sorted([*piped_words, *(names * (blocks - 1))])


def test_what_the_terminal_cannot_show_ends_no_report(evaluated, monkeypatch, without_files, capfdbinary):
    with open(1, "w", encoding="cp1252", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["report", str(evaluated)]) == 0
    assert b"insertion \\u2191" in capfdbinary.readouterr().out


def test_the_report_is_written_with_the_photos_and_opens(capsys, monkeypatch, evaluation, open_page):
    asked = []
    monkeypatch.setattr(
        "captum_unioncam.models.zoo.preprocessing_of", lambda *names: asked.append(names) or preprocessing_of(*names)
    )
    run(capsys, "report", evaluation)
    # A user's own model is built for it, which may take long.
    assert asked == [("demo", "auto")]
    assert sorted(path.name for path in (evaluation / "report").iterdir()) == sorted(FILES)
    page = open_page(evaluation / "report" / "report.html")
    # Three plots, of both methods the four maps, over the photos that they are of, and one photo with both maps.
    assert page.locator("img").count() == 3 + 8 + 3
    assert page.get_by_alt_text("The photo, and the map over it, of").count() == 8
    assert page.locator("h3").all_inner_texts() == ["grad_cam", "saliency"]
    failure = page.get_by_role("rowheader").filter(has_text="out of order")
    assert failure.is_visible()


def test_without_the_photos_the_report_is_of_the_maps_alone(capsys, open_page):
    for seed, name in enumerate(CLASS_NAMES[:2]):
        pictured(Path("data", name, "photo.png"), seed)
    assert run(capsys, "evaluate", "data", "--model", "demo", "--methods", "grad_cam", *QUICK)[0] == 0
    Path("data", CLASS_NAMES[0], "photo.png").unlink()
    assert run(capsys, "report")[0] == 0
    page = open_page((OUT / "report" / "report.html").absolute())
    assert page.get_by_alt_text("The map of grad_cam").count() == 1
    assert page.get_by_alt_text("The photo, and the map over it, of grad_cam").count() == 1


def test_an_unfinished_evaluation_is_reported_on(capsys, evaluation, without_files):
    (file,) = (evaluation / "records").iterdir()
    with file.open("ab") as records:
        records.write(b'{"image":"torn')
    assert run(capsys, "report", evaluation)[1][:2] == [
        "images: 4; maps: 8; failures: 4",
        # The third method fails on every image.
        "The methods' means are over different maps (grad_cam 4, own_code:broken 0, saliency 4), so they are not "
        "directly comparable.",
    ]
    lines = file.read_text().splitlines(keepends=True)
    last = json.loads(lines[-2])["image"]
    file.write_text("".join(line for line in lines[:-1] if json.loads(line)["image"] != last))
    printed = run(capsys, "report", evaluation)[1]
    assert printed[:2] == [
        "images: 3; maps: 6; failures: 3",
        "Not finished: 4 records of each method are expected. Records so far: grad_cam 3, own_code:broken 3, "
        "saliency 3.",
    ]


def test_the_page_says_so_where_an_evaluation_is_unfinished(capsys, evaluation):
    settings = json.loads((evaluation / "settings.json").read_text())
    (evaluation / "settings.json").write_text(json.dumps({**settings, "records_of_a_method": 50}))
    assert run(capsys, "report", evaluation)[0] == 0
    page = (evaluation / "report" / "report.html").read_text()
    assert "Not finished: 50 records of each method are expected" in page
    assert "different maps" in page


CONFIDENCES = """
import torch
from torch import nn

def logits():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 32, stride=32), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 3))

def probabilities():
    return nn.Sequential(logits(), nn.Softmax(1))

def sigmoids():
    return nn.Sequential(logits(), nn.Sigmoid())
"""


def test_outputs_that_are_confidences_are_judged_as_such_and_not_taken_for_logits(capsys):
    Path("own_code.py").write_text(CONFIDENCES)
    Path("classes.json").write_text(json.dumps(dict(zip(CLASS_NAMES, [0, 1, 2, 0, 1, 2, 0, 1], strict=True))))
    arguments = ["--limit", "2", "--classes", "classes.json", "--methods", "union_cam,grad_cam", *QUICK]
    for out, options in (
        ("logits", ["--model", "own_code:logits"]),
        ("probabilities", ["--model", "own_code:probabilities"]),
        ("as they are", ["--model", "own_code:probabilities", "--confidence", "none"]),
        ("sigmoid", ["--model", "own_code:logits", "--confidence", "sigmoid"]),
        ("sigmoids", ["--model", "own_code:sigmoids", "--confidence", "none"]),
    ):
        layer = "1" if "logits" in options[1] else "0.1"
        assert run(capsys, "evaluate", *arguments, *options, "--layer", layer, "--out", out)[0] == 0
    logits, probabilities, as_they_are, sigmoid, sigmoids = (
        {(r.image, r.method): r for r in read_records(Path(out))}
        for out in ("logits", "probabilities", "as they are", "sigmoid", "sigmoids")
    )
    # GradCAM's gradients are of the outputs themselves, so its maps differ; the confidences do not.
    for one, other in ((logits, probabilities), (logits, as_they_are), (sigmoid, sigmoids)):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].confidence == pytest.approx(other[key].confidence, rel=1e-4)
    assert all(logits[key].confidence != sigmoid[key].confidence for key in logits)
    code, _, errors = run(capsys, "evaluate", *arguments, "--model", "own_code:sigmoids")
    assert code == 2
    assert one_error(errors).endswith("and so are confidences already; give --confidence none.")
    assert not Path("evaluation").exists()


def test_the_papers_protocol_takes_all_of_vocs_test_set(capsys, monkeypatch):
    Path("VOCdevkit", "VOC2007", "Annotations").mkdir(parents=True)
    seen = []
    monkeypatch.setattr("captum_unioncam.evaluation.explain.ExplainedModel", lambda *_: type(
        "Subject", (), {"layer_name": "features.29", "layer_found": False}))  # fmt: skip
    monkeypatch.setattr(
        "captum_unioncam.evaluation.run.evaluate", lambda evaluation, *_: seen.append(evaluation.limit) or Tally()
    )
    for data in (".", "demo"):
        assert run(capsys, "evaluate", data, "--protocol", "paper")[0] == 0
    assert seen == [None, 2000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "nowhere: does not exist; give demo, a table .csv of path,label,x0,y0,x1,y1"),
        (["evaluate", "own_code.py"], "own_code.py: is not a folder"),
        (["evaluate", "--methods", ","], "--methods: is empty; give names with commas between."),
        (["evaluate", "--methods", "saliencyy"], "there is no method 'saliencyy'; did you mean saliency"),
        (["evaluate", "--metrics", "dropp"], "there is no metric 'dropp'; did you mean drop"),
        (["evaluate", "--model", "resnet81"], "did you mean resnet18"),
        (["evaluate", "--classes", "none.txt"], "--classes none.txt: No such file or directory"),
        (["evaluate", "--limit", "0"], "'--limit'"),
        (["evaluate", "--workers", "-1"], "'--workers'"),
        (["evaluate", "--protocol", "papers"], "see captum-unioncam evaluate --help."),
        (["report", "nowhere"], f"nowhere: {NO_EVALUATION}"),
        (["report", "."], f".: {NO_EVALUATION}"),
        (["report", "--all"], "see captum-unioncam report --help."),
    ],
)
def test_wrong_arguments_end_with_exit_code_2_and_one_line(capsys, tmp_path, arguments, message):
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert message in one_error(errors)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


def test_an_evaluation_without_records_cannot_be_reported_on(capsys, evaluation):
    shutil.rmtree(evaluation / "records")
    code, lines, errors = run(capsys, "report", evaluation)
    assert (code, lines) == (1, [])
    assert one_error(errors).endswith("holds no records; run captum-unioncam evaluate with it first.")
    assert not (evaluation / "report").exists()


@pytest.mark.parametrize("missing", ["matplotlib", "tabulate"])
def test_a_package_that_the_report_needs_is_named_with_the_extra_that_brings_it(evaluation, missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from captum_unioncam.cli.main import main; sys.exit(main(['report', {str(evaluation)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    advice = "install what the command needs with: pip install 'captum-unioncam[cli]'"
    assert (done.returncode, done.stderr) == (1, f"Error: {missing} is missing; {advice}\n")
