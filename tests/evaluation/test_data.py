"""Evaluations of data with objects: the difficult subset, outputs that are logits or not, and slices of brain MRI."""

import json
import os

import pytest
import torch
from PIL import Image

from captum_unioncam.cli.main import main
from captum_unioncam.evaluation.records import read_records, read_settings
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import WrongArgument

MRI = os.environ.get("BRAIN_MRI")

OWN_MODULES = {
    "own_outputs": """
import torch
from torch import nn

def net(*last, bias=0.0, scale=1.0, classes=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)]
    with torch.no_grad():
        layers[4].weight.mul_(scale)
        layers[4].bias.copy_(torch.linspace(-2, 2, classes) * scale + bias if classes > 1 else layers[4].bias)
    return nn.Sequential(*layers, *last)

class Percent(nn.Module):
    def forward(self, x): return 100 * x.softmax(1)

def logits(): return net()
def small_logits(): return net(scale=0.1, bias=0.5)
def softmax(): return net(nn.Softmax(1))
def log_softmax(): return net(nn.LogSoftmax(1))
def sigmoid(): return net(nn.Sigmoid())
def percent(): return net(Percent())
def relu(): return net(nn.ReLU(), bias=5.0)
def one(): return net(classes=1)
def one_sigmoid(): return net(nn.Sigmoid(), classes=1)
"""
}
pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


def write_table(folder, rows):
    """Grey images of 20x20, one for each name, and their objects."""
    lines = ["path,label,x0,y0,x1,y1"]
    for index, (name, boxes) in enumerate(rows.items()):
        Image.new("RGB", (20, 20), (20 * index, 90, 255 - 20 * index)).save(folder / f"{name}.png")
        lines += [f"{name}.png,{box}" for box in boxes]
    (folder / "boxes.csv").write_text("\n".join(lines))
    return str(folder / "boxes.csv")


ROWS = {
    "alone": ["0,0,0,9,9"],
    "large": ["1,0,0,20,20", "0,0,0,20,10"],
    "one_small": ["2,5,5,14,14", "1,0,0,20,20"],
    "two_small": ["0,0,0,5,5", "2,10,10,19,20"],
}
RUN = ["--methods", "grad_cam", "--metrics", "pointing", "--device", "cpu", "--workers", "0", "--out", "out"]


def evaluate(capsys, *options):
    code = main(["evaluate", *map(str, options)])
    out, err = capsys.readouterr()
    return code, out, err


def pairs_in(folder):
    return {(record.image, record.target) for record in read_records(folder)}


def test_the_difficult_subset_is_of_small_objects_with_distractors(capsys, tmp_path):
    data = write_table(tmp_path, ROWS)
    difficult = {("one_small.png", 2), ("two_small.png", 0), ("two_small.png", 2)}
    code, _, err = evaluate(capsys, data, "--model", "own_outputs:logits", "--subset", "difficult", *RUN)
    assert (code, err.count("Error")) == (0, 0)
    assert pairs_in(tmp_path / "out") == difficult
    assert read_settings(tmp_path / "out")["subset"] == "difficult"
    # The limit is of the images that have some.
    code, _, _ = evaluate(
        capsys, data, "--model", "own_outputs:logits", "--subset", "difficult", "--limit", 1, *RUN[:-1], "limited"
    )
    (name,) = {name for name, _ in pairs_in(tmp_path / "limited")}
    assert pairs_in(tmp_path / "limited") == {pair for pair in difficult if pair[0] == name}
    # A folder of all is another evaluation.
    code, _, err = evaluate(capsys, data, "--model", "own_outputs:logits", *RUN)
    assert code == 2
    assert "holds an evaluation with other settings" in err


def test_data_without_difficult_targets_is_refused(capsys, tmp_path):
    data = write_table(tmp_path, {name: ROWS[name] for name in ("alone", "large")})
    code, _, err = evaluate(capsys, data, "--model", "own_outputs:logits", "--subset", "difficult", *RUN)
    assert code == 2
    assert err.startswith("Error: --subset difficult: no image has an object on less than a quarter")
    assert not (tmp_path / "out").exists()


# Logits or not.


SETTLED = {
    "logits": "softmax",
    "small_logits": "softmax",
    "log_softmax": "softmax",
    "softmax": "none",
    "sigmoid": "none",
    "one_sigmoid": "none",
}


@pytest.mark.parametrize("function", SETTLED)
def test_auto_finds_out_what_the_outputs_are(capsys, tmp_path, function):
    data = write_table(tmp_path, {"a": ["0,0,0,9,9"], "b": ["0,0,0,9,9"]})
    code, _, err = evaluate(capsys, data, "--model", f"own_outputs:{function}", "--confidence", "auto", *RUN)
    assert (code, err.count("Error")) == (0, 0)
    assert read_settings(tmp_path / "out")["confidence"] == SETTLED[function]
    for record in read_records(tmp_path / "out"):
        shown = torch.tensor(Image.open(tmp_path / record.image).getpixel((0, 0))).reshape(1, 3, 1, 1) / 255
        subject = ExplainedModel(f"own_outputs:{function}", device="cpu", confidence="none")
        output = subject.model(shown.expand(1, 3, 224, 224))
        expected = output.softmax(1) if SETTLED[function] == "softmax" else output
        assert record.confidence == pytest.approx(expected[0, 0].item(), rel=1e-4)


@pytest.mark.parametrize("function", ["percent", "relu", "one"])
def test_auto_refuses_what_does_not_tell(capsys, tmp_path, function):
    data = write_table(tmp_path, {"a": ["0,0,0,9,9"]})
    code, _, err = evaluate(capsys, data, "--model", f"own_outputs:{function}", "--confidence", "auto", *RUN)
    assert code == 2
    assert err.startswith("Error: --confidence auto: for 2 images the ")
    assert "give --confidence softmax for logits of classes that exclude each other, 'sigmoid'" in err


def test_auto_refuses_logits_where_pictures_have_several_classes(capsys, tmp_path):
    data = write_table(tmp_path, ROWS)
    code, _, err = evaluate(capsys, data, "--model", "own_outputs:logits", "--confidence", "auto", *RUN)
    assert code == 2
    assert "some images have several classes; give --confidence softmax" in err
    code, _, _ = evaluate(capsys, data, "--model", "own_outputs:sigmoid", "--confidence", "auto", *RUN)
    assert code == 0
    assert read_settings(tmp_path / "out")["confidence"] == "none"


def test_auto_passes_over_pictures_that_cannot_be_read(capsys, tmp_path):
    data = write_table(tmp_path, {"a": ["0,0,0,9,9"], "b": ["1,0,0,9,9"]})
    (tmp_path / "a.png").write_text("no image")
    code, _, _ = evaluate(capsys, data, "--model", "own_outputs:softmax", "--confidence", "auto", *RUN)
    assert code == 0
    assert {record.image: record.error is None for record in read_records(tmp_path / "out")} == {
        "a.png": False,
        "b.png": True,
    }


def test_other_commands_and_subsets_are_refused(capsys, tmp_path):
    assert main(["explain", "--confidence", "auto"]) == 2
    assert main(["evaluate", "--subset", "easy"]) == 2
    with pytest.raises(WrongArgument, match="give confidence='softmax'"):
        ExplainedModel("own_outputs:one", device="cpu", confidence="auto").settle_confidence([], exclusive=True)


# Brain MRI.


@pytest.mark.skipif(not MRI, reason="BRAIN_MRI does not name the folder of the slices")
def test_slices_of_brain_mri_are_a_table(capsys, tmp_path, monkeypatch):
    from benchmarks.brain_mri import folder, write_data

    monkeypatch.syspath_prepend(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    data, classes = write_data(tmp_path / "data")
    boxes = json.loads((folder() / "boxes.json").read_text())
    code, _, err = evaluate(
        capsys,
        data,
        "--model",
        "benchmarks.brain_mri:load_model",
        "--classes",
        classes,
        "--layer",
        "features.30",
        "--methods",
        "grad_cam",
        "--metrics",
        "drop,pointing",
        "--limit",
        2,
        "--device",
        "cpu",
        "--workers",
        0,
    )
    assert (code, err.count("Error")) == (0, 0)
    records = list(read_records(tmp_path / "evaluation"))
    assert len(records) == 2
    for record in records:
        assert record.image.removeprefix("slices/") in boxes
        assert record.error is None
        assert record.target in (0, 1, 3)
        assert 0 <= record.values["drop"] <= 1
        assert record.values["pointing"] in (0, 1)
