import argparse
import json
import os
import pickle
import re
import sys
import zipfile
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from captum_unioncam.models.zoo import load_classifier
from captum_unioncam.system.errors import Failure, WrongArgument

NAME = "squeezenet1_1"
OWN_MODULES = {"own": ""}
pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return models.get_model(NAME, weights=None, num_classes=3).eval()


@pytest.fixture
def photo():
    return Image.effect_mandelbrot((300, 260), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def outputs(model, photo):
    with torch.no_grad():
        return model(models.get_model_weights(NAME).DEFAULT.transforms()(photo).unsqueeze(0))


def classified(classifier, photo):
    preprocessing = classifier.preprocessing
    with torch.no_grad():
        return classifier.model(preprocessing.normalized(preprocessing.fit(photo)).unsqueeze(0))


def named(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


WEIGHT = nn.Parameter(torch.ones(3))
OPTIMIZER = torch.optim.Adam([WEIGHT])
WEIGHT.grad = torch.ones(3)
OPTIMIZER.step()
TRAINING = {"epoch": 3, "optimizer": OPTIMIZER.state_dict(), "lr_scheduler": {"last_epoch": 3}, "best": 0.5}
LIGHTNING = {
    "pytorch-lightning_version": "2.4",
    "global_step": 7,
    "loops": {"fit_loop": {"state_dict": {}}},
    "optimizer_states": [OPTIMIZER.state_dict()],
    "hyper_parameters": {"lr": 0.1},
}


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("weights.safetensors", lambda state: state),
        ("weights.pt", lambda state: state),
        ("weights.pth", lambda state: {f"module.{key}": value for key, value in state.items()}),
        ("checkpoint.pt", lambda state: {"epoch": 3, "state_dict": state}),
        ("checkpoint.bin", lambda state: {"model": {f"module.{key}": value for key, value in state.items()}}),
        ("compiled.pt", lambda state: named(state, "_orig_mod.")),
        ("compiled_parallel.pt", lambda state: named(state, "module._orig_mod.")),
        ("parallel_compiled.safetensors", lambda state: named(state, "_orig_mod.module.")),
        (
            "compiled_parts.pt",
            lambda state: {key.replace(".", "._orig_mod.", 1): value for key, value in state.items()},
        ),
        ("averaged.pt", lambda state: {"n_averaged": torch.tensor(3), **named(state, "module.")}),
        ("lightning.ckpt", lambda state: {**LIGHTNING, "state_dict": named(state, "model.")}),
        ("lightning_net.ckpt", lambda state: {**LIGHTNING, "state_dict": named(state, "net.")}),
        ("lightning_own.ckpt", lambda state: {**LIGHTNING, "state_dict": named(state, "classifier_of_mine.")}),
        ("loss.ckpt", lambda state: {"state_dict": {"loss.weight": torch.ones(3), **named(state, "model.")}}),
        ("averages.ckpt", lambda state: {"state_dict": {**zeros(named(state, "ema.")), **named(state, "model.")}}),
        ("model_state_dict.pt", lambda state: {**TRAINING, "model_state_dict": state}),
        ("net.pt", lambda state: {**TRAINING, "net": state}),
        ("ema.pt", lambda state: {**TRAINING, "ema": {"module": state, "updates": 3}}),
        ("model_and_ema.pt", lambda state: {"model_ema": zeros(state), "model": state, **TRAINING}),
        ("only_one.pt", lambda state: {**TRAINING, "the weights": state}),
        ("arguments.pth", lambda state: {"args": argparse.Namespace(lr=0.1), "model": state, **TRAINING}),
        ("nested.pt", lambda state: {"model": {"state_dict": state, "epoch": 1}}),
    ],
)
def test_weights_of_three_classes_are_loaded_from_every_kind_of_file(tmp_path, trained, photo, file, wrap):
    path = tmp_path / file
    content = wrap(trained.state_dict())
    save_file(content, path) if file.endswith(".safetensors") else torch.save(content, path)
    classifier = load_classifier(NAME, path)
    assert torch.allclose(classified(classifier, photo), outputs(trained, photo), atol=1e-5)
    assert not any(module.training for module in classifier.model.modules())
    assert classifier.class_names is None
    assert classifier.class_name(2) == "class 2"


def test_as_many_classes_as_torchvision_has_bear_its_names(tmp_path):
    torch.save(models.get_model(NAME, weights=None).state_dict(), tmp_path / "weights.pt")
    classifier = load_classifier(NAME, tmp_path / "weights.pt")
    assert classifier.class_name(281) == "tabby"


def test_torchvisions_own_weights_are_taken_without_a_file(monkeypatch, photo):
    model = models.get_model(NAME, weights=None)
    asked = []

    def download(url, **_options):
        asked.append(url)
        return model.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    classifier = load_classifier(NAME)
    assert asked == [models.get_model_weights(NAME).DEFAULT.url]
    assert torch.allclose(classified(classifier, photo), outputs(model.eval(), photo), atol=1e-5)


def test_without_a_network_the_file_option_is_named(tmp_path, monkeypatch):
    def no_network(*_args, **_options):
        raise URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(Failure, match=r"cannot download https://.*\(no network here\); .* weights=FILE"):
        load_classifier(NAME)


def test_preprocessing_of_the_weights_shows_the_crop_and_knows_black(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    preprocessing = load_classifier(NAME, tmp_path / "weights.pt").preprocessing
    wide = Image.new("RGB", (600, 200), "red")
    wide.paste("white", (200, 0, 400, 200))
    shown = preprocessing.fit(wide)
    assert shown.shape == (3, 224, 224)
    assert (shown == 1).all()
    black = preprocessing.normalized(torch.zeros_like(shown))
    assert torch.allclose(black[:, 0, 0], -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))


def test_the_papers_preprocessing_resizes_and_does_nothing_else(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    preprocessing = load_classifier(NAME, tmp_path / "weights.pt", preprocess="paper").preprocessing
    half = Image.new("RGB", (600, 200), "black")
    half.paste((255, 51, 0), (300, 0, 600, 200))
    shown = preprocessing.fit(half)
    assert shown.shape == (3, 224, 224)
    assert torch.allclose(shown[:, :, :110], torch.zeros(1))
    assert torch.allclose(shown[:, :, 114:], torch.tensor([1.0, 0.2, 0.0]).reshape(3, 1, 1))
    assert torch.equal(preprocessing.normalized(shown), shown)


def test_files_of_torchvision_that_its_own_loader_adapts_are_loaded(tmp_path, photo):
    densenet = models.densenet121().eval()
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in densenet.state_dict().items()
        if "num_batches_tracked" not in key
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "densenet.pth")
    classifier = load_classifier("densenet121", tmp_path / "densenet.pth")
    assert torch.allclose(classified(classifier, photo), outputs(densenet, photo), atol=1e-5)

    googlenet = models.googlenet(init_weights=False)
    without_heads = {key: value for key, value in googlenet.state_dict().items() if not key.startswith("aux")}
    torch.save(without_heads, tmp_path / "googlenet.pth")
    assert load_classifier("googlenet", tmp_path / "googlenet.pth").model.transform_input


class Malicious:
    def __reduce__(self):
        return exec, ("open('harmed', 'w').close()",)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path):
    harmed = tmp_path / "harmed"
    pickle.loads(pickle.dumps(Malicious()))
    assert harmed.exists()
    harmed.unlink()
    for name, save in (("zip.pt", torch.save), ("old.pt", lambda x, f: torch.save(x, f, pickle_protocol=2))):
        save({"state_dict": Malicious()}, tmp_path / name)
        with pytest.raises(Failure, match="is not a file of tensors alone") as failure:
            load_classifier(NAME, tmp_path / name)
        assert "weights_only" not in str(failure.value)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(Failure, match="is not a file of tensors alone"):
        load_classifier(NAME, tmp_path / "plain.pt")
    assert not harmed.exists()


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
def test_weights_that_are_no_state_dict_are_refused(tmp_path, file):
    path = tmp_path / file
    with pytest.raises(Failure, match="does not exist"):
        load_classifier(NAME, path)
    path.write_text("nothing of the kind")
    with pytest.raises(Failure, match="is not a file of tensors alone"):
        load_classifier(NAME, path)
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(Failure, match="holds no state dict"):
        load_classifier(NAME, tmp_path / "list.pt")


def unreadable(kind, path):
    """A file that is no weights, or an attack."""
    huge = torch.zeros(1).expand(10**12)
    if kind == "pipe":
        return os.mkfifo(path)
    if kind == "device":
        return path.symlink_to("/dev/zero")
    if kind == "folder":
        return path.mkdir()
    if kind.startswith("bomb"):
        torch.save({"a": torch.zeros(100_000)}, path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return None
    contents = {
        "number": {0: torch.zeros(3)},
        "none": {None: torch.zeros(3)},
        "tuple": {(1, 2): torch.zeros(3)},
        "mixed": {"a": torch.zeros(3), 0: torch.zeros(3)},
        "inner": {"state_dict": {0: torch.zeros(3)}},
        "optimizer": TRAINING,
        "several": {"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}},
        "huge": {"classifier.1.bias": huge, "classifier.1.weight": torch.zeros(1, 1, 1, 1).expand(10**12, 512, 1, 1)},
        "huge bias": {"classifier.1.bias": huge},
        "wide": {"classifier.1.bias": torch.zeros(10**6)},
        "no classes": {"classifier.1.bias": torch.zeros(0), "classifier.1.weight": torch.zeros(0, 512, 1, 1)},
        "scalar": {"classifier.1.bias": torch.tensor(1.0)},
        "complex": {"classifier.1.bias": torch.zeros(3, dtype=torch.complex64)},
        "sparse": {"classifier.1.bias": torch.zeros(3).to_sparse()},
        "meta": {"classifier.1.bias": torch.zeros(3, device="meta")},
        "text": {"classifier.1.bias": "weights"},
    }
    return torch.save(contents[kind], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is a pipe or a device, not a file"),
        ("device", "is a pipe or a device, not a file"),
        ("folder", "Is a directory"),
        ("bomb", "is not a file of tensors alone, or is broken"),
        *((kind, "holds no state dict") for kind in ("number", "none", "tuple", "mixed", "inner", "optimizer")),
        *((kind, "holds no state dict") for kind in ("several", "text")),
        *((kind, f"does not fit {NAME}: ") for kind in ("huge", "huge bias", "wide", "no classes", "scalar")),
        *((kind, "is quantised, complex, sparse or empty") for kind in ("complex", "sparse", "meta")),
    ],
)
def test_files_that_are_no_weights_are_refused_in_a_line(no_warnings, tmp_path, kind, message):
    path = tmp_path / "weights.pth"
    unreadable(kind, path)
    with pytest.raises(Failure, match=re.escape(message)) as caught:
        load_classifier(NAME, path)
    assert "\n" not in str(caught.value)


def test_paths_that_are_too_long_are_refused(tmp_path):
    with pytest.raises(Failure, match="File name too long"):
        load_classifier(NAME, tmp_path / ("a" * 300 + ".pth"))


def lying(header, size):
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (10**9).to_bytes(8, "little") + b"{}",
        lying({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8),
        lying({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, 4),
        lying({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, 20),
        lying({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 12]}}, 12),
        lying({"a": {"dtype": "F99", "shape": [3], "data_offsets": [0, 12]}}, 12),
        lying([], 12),
    ],
)
def test_safetensors_that_lie_are_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(Failure, match="is not a file of tensors alone, or is broken"):
        load_classifier(NAME, path)


def test_weights_of_another_type_are_refused(tmp_path, trained):
    state = trained.state_dict()
    first = next(iter(state))
    for dtype in (torch.int8, torch.bool):
        torch.save({**state, first: state[first].to(dtype)}, tmp_path / "weights.pt")
        with pytest.raises(Failure, match=f"does not fit {NAME}: {first} is {dtype}, not torch.float32"):
            load_classifier(NAME, tmp_path / "weights.pt")


def test_a_models_own_names_are_no_wrappers(tmp_path):
    """Of a model within a model; and what lacks a name behind a wrapper is told by its own name."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.model = nn.Linear(2, 3)\n        self.net = nn.Linear(2, 3)\ndef net(): return Net()\n"
    )
    weights = {
        f"{name}.{part}": torch.rand(3, 2)[:, : 2 if part == "weight" else 1].squeeze(-1)
        for name in ("model", "net")
        for part in ("weight", "bias")
    }
    for prefix in ("", "module.", "model."):
        torch.save(named(weights, prefix), tmp_path / "own.pt")
        loaded = load_classifier("own:net", tmp_path / "own.pt").model.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    del weights["net.bias"]
    torch.save(named(weights, "module."), tmp_path / "own.pt")
    with pytest.raises(Failure, match=r"does not fit own:net: it lacks net\.bias\."):
        load_classifier("own:net", tmp_path / "own.pt")


@pytest.mark.parametrize(
    "code", ["import sys\nsys.exit(0)", "def net(): exit()", "def net(): raise SystemExit('done')"]
)
def test_code_that_ends_the_process_is_a_failure(tmp_path, monkeypatch, code):
    monkeypatch.delitem(sys.modules, "ending", raising=False)
    (tmp_path / "ending.py").write_text(code)
    with pytest.raises(Failure, match="raised SystemExit"):
        load_classifier("ending:net")


def test_weights_of_another_model_are_refused_with_what_differs(tmp_path, trained):
    state = trained.state_dict()
    torch.save({**state, "more": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(Failure, match=f"does not fit {NAME}: it has more. Give the model"):
        load_classifier(NAME, tmp_path / "more.pt")
    first = next(iter(state))
    torch.save({key: value for key, value in state.items() if key != first}, tmp_path / "less.pt")
    with pytest.raises(Failure, match=f"it lacks {first}. "):
        load_classifier(NAME, tmp_path / "less.pt")
    torch.save({**state, first: torch.zeros(1, 2)}, tmp_path / "shape.pt")
    with pytest.raises(Failure, match=f"size mismatch for {first}: .*[^.]\\. Give") as failure:
        load_classifier(NAME, tmp_path / "shape.pt")
    assert "\n" not in str(failure.value)
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(Failure, match=r"it lacks .*, .*, .* and 49 more\."):
        load_classifier(NAME, tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "there is no model 'resnet81'; did you mean resnet18"),
        ("fcn_resnet50", "there is no model 'fcn_resnet50'"),
        ("qqqq", "there is no model 'qqqq'. Give"),
        ("absent:net", "there is no module 'absent'"),
        ("own:nett", "own has no function 'nett'; did you mean net"),
        ("own:number", "own has no function 'number'"),
        ("own:none", "returned NoneType, not a torch.nn.Module"),
        (":net", "give package.module:function"),
        ("own:", "give package.module:function"),
    ],
)
def test_unknown_models_are_refused_with_near_names(tmp_path, name, message):
    (tmp_path / "own.py").write_text("number = 1\ndef net(): pass\ndef none(): pass\n")
    with pytest.raises(WrongArgument, match=re.escape(message)):
        load_classifier(name)


def test_a_function_that_fails_is_quoted(tmp_path):
    (tmp_path / "own.py").write_text("def net(): raise KeyError('no such layer')\n")
    with pytest.raises(Failure, match="raised KeyError: 'no such layer'"):
        load_classifier("own:net")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(Failure, match="importing it raised ZeroDivisionError"):
        load_classifier("broken:net")


def test_a_function_makes_the_model_and_a_file_its_weights(tmp_path):
    (tmp_path / "own.py").write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(3, 2, 1))\n")
    weights = {"0.weight": torch.rand(2, 3, 1, 1), "0.bias": torch.rand(2)}
    save_file(weights, tmp_path / "own.safetensors")
    classifier = load_classifier("own:net", tmp_path / "own.safetensors")
    assert isinstance(classifier.model, nn.Sequential)
    assert all(torch.equal(value, weights[key]) for key, value in classifier.model.state_dict().items())
    assert not classifier.model.training
    assert classifier.preprocessing.fit(Image.new("RGB", (50, 20))).shape == (3, 224, 224)
