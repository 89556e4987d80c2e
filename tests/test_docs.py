"""The documentation: its code runs, is narrow, and it lists what there is."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import captum_unioncam
from captum_unioncam import demo, evaluation, scorers
from captum_unioncam.evaluation.records import Record
from captum_unioncam.metrics import table
from tests.attr import OWN
from tests.blocks import blocks, commands, run_commands, run_python
from tests.methods.test_methods import GRAD_CAM, TORCHCAM, TORCHCAM_FAILING

pytest_plugins = ("tests.blocks",)

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
COMMANDS = [lines for page in PAGES for lines in commands(page)]
CODE_WIDTH = 88


def by_name(path):
    return path.stem


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_block_is_of_a_kind_that_is_run_or_shown(page):
    assert {block.language for block in blocks(page)} <= {"bash", "python", "source", "text"}
    assert not any(block.mark for block in blocks(page))


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *PAGES], ids=by_name)
def test_code_is_narrow(page):
    """The README's two commands for a fresh machine stay on their lines, for those who copy them by a script."""
    lines = [line for block in blocks(page) if not block.mark for line in block.text.splitlines()]
    assert [line for line in lines if len(line) > CODE_WIDTH] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.language == "python" for block in blocks(page))], ids=by_name
)
@pytest.mark.usefixtures("working_folder")
def test_python_blocks(page):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_python(page, {})
    if page.stem == "troubleshooting":
        said = " ".join(printed.getvalue().split())
        shown = [" ".join(block.text.split()) for block in blocks(page) if block.language == "text"]
        assert shown
        assert [text for text in shown if text not in said] == []


def public_objects():
    """What the API page lists, and the methods that it lists of it, by name."""
    listed = re.findall(r"^::: (\S+)(?:\n +options:\n +members: \[(.*)\])?", (DOCS / "api.md").read_text(), re.M)
    for name, members in listed:
        for full_name in (name, *(f"{name}.{member}" for member in members.split(", ") if member)):
            yield full_name, pkgutil.resolve_name(full_name)


def test_the_page_lists_all_that_is_public():
    listed = {name for name, _ in public_objects()}
    assert [name for name in captum_unioncam.__all__ if f"captum_unioncam.{name}" not in listed] == []


def test_the_page_of_methods_lists_each_with_its_class():
    page = (DOCS / "methods.md").read_text()
    named = {
        name: type_
        for names, type_ in re.findall(r"^\| (`.*?`)<br>.*?`(\w+)`", page, re.M)
        for name in re.findall(r"`(\w+)`", names)
    }
    ours = {name: cls.__name__ for name, cls in OWN.items()} | {"rise": "Rise", "grad_cam": "LayerGradCam"}
    assert named == ours


def test_every_cam_of_torchcam_and_grad_cam_is_said_to_be_here_or_not():
    page = (DOCS / "coming_from.md").read_text()
    of_torchcam, of_grad_cam = page.split("## From torchcam")[1].split("## From grad-cam")
    assert [name for name in (*TORCHCAM, *TORCHCAM_FAILING) if f"`{name}`" not in of_torchcam] == []
    assert [name for name in GRAD_CAM if f"`{name}`" not in of_grad_cam] == []


EXAMPLES = {
    name: code
    for name, found in public_objects()
    if (code := "".join(example.source for example in doctest.DocTestParser().get_examples(found.__doc__ or "")))
}


def networks_of_tasks():
    """Small networks that are called as those of segmentation, detection, classification and CLIP are."""
    layers = OrderedDict(layer3=nn.Conv2d(3, 4, 3, 8, 1), relu=nn.ReLU(), layer4=nn.Conv2d(4, 4, 3, 2, 1))

    class Task(nn.Sequential):
        def __init__(self, outputs, answer):
            super().__init__(
                layers | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(4, outputs)}
            )
            self.backbone = SimpleNamespace(layer4=self.layer4, body=SimpleNamespace(layer4=self.layer4))
            self.answer = answer

        def forward(self, images):
            return self.answer(super().forward(images))

    def places(logits):
        """The class 15 everywhere."""
        return {"out": (logits + 9 * torch.eye(21)[15])[..., None, None].expand(-1, -1, 7, 7)}

    def boxes(logits):
        box = torch.tensor([[8.0, 8.0, 40.0, 48.0]])
        return [{"boxes": box, "scores": one.sigmoid(), "labels": torch.tensor([3])} for one in logits]

    embedder = Task(16, lambda embeddings: SimpleNamespace(pooler_output=embeddings))
    embedder.get_image_features = embedder.forward
    embedder.get_text_features = lambda **tokens: SimpleNamespace(pooler_output=torch.ones(1, 16))
    return {
        "SegmentationTarget": {"model": Task(21, places)},
        "DetectionTarget": {"detector": Task(1, boxes)},
        "PairTarget": {"model": Task(300, lambda logits: logits)},
        "EmbeddingTarget": {"clip": embedder, "tokens": {}, "layer": embedder.layer4},
    }


@pytest.fixture
def example_names(monkeypatch, tmp_path):
    """What the docstrings' examples take for granted: networks with such layers, images, labels and a map."""
    import captum
    from captum.attr import LayerAttribution
    from torchvision.models import SwinTransformer, VisionTransformer, vgg

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})
    monkeypatch.setattr("captum_unioncam.metrics.table._metrics", dict(table._metrics))
    torch.manual_seed(0)
    of_vgg16 = [4, 4, "M", 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M"]
    parts = {"features": vgg.make_layers(of_vgg16), "layer3": nn.Conv2d(4, 4, 1), "layer4": nn.Conv2d(4, 4, 1)}
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8))
    model = nn.Sequential(OrderedDict(parts, head=head)).eval()
    images, labels = torch.rand(4, 3, 112, 112), torch.arange(4)

    def names(example):
        if example.endswith("evaluation.load"):
            (tmp_path / "evaluation" / "records").mkdir(parents=True)
            (tmp_path / "evaluation" / "settings.json").write_text('{"metrics": ["drop"]}')
            record = Record("a.png", 0, "star", "grad_cam", confidence=0.5, values={"drop": 0.25})
            (tmp_path / "evaluation" / "records" / "one.jsonl").write_bytes(record.line())
            return {"load": evaluation.load}
        if example.endswith("channels_last_to_maps"):
            return {"model": SwinTransformer([4, 4], 8, [1, 1], [1, 2], [7, 7], num_classes=3).eval()}
        if example.endswith("tokens_to_maps"):
            return {"model": VisionTransformer(224, 16, 1, 2, 12, 16, num_classes=3).eval()}
        if example.endswith("LayerVitReciproCam.attribute"):
            return {"model": VisionTransformer(112, 16, 2, 2, 12, 16, num_classes=8).eval()}
        if ".targets." in example:
            return networks_of_tasks()[example.rpartition(".")[2]]
        return {"model": model, "layer": model.layer4, "attr": torch.rand(4, 1, 7, 7)}

    package = {name: getattr(captum_unioncam, name) for name in captum_unioncam.__all__}
    names_of_modules = ("metrics", "methods", "demo", "evaluation.sanity", "quantus", "targets")
    modules = [importlib.import_module(f"captum_unioncam.{name}") for name in names_of_modules]
    package |= {name: value for module in modules for name, value in vars(module).items() if name[0] != "_"}
    shared = {"torch": torch, "captum": captum, "LayerAttribution": LayerAttribution, "demo": demo, "scorers": scorers}
    return lambda example: {**package, **shared, "images": images, "labels": labels, **names(example)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name, example_names):
    exec(compile(EXAMPLES[name], name, "exec"), example_names(name))


@pytest.mark.parametrize("lines", COMMANDS, ids=lambda lines: lines[0])
def test_shell_commands(lines, working_folder):
    run_commands(lines, working_folder)


def test_examples_of_docstrings_are_narrow():
    lines = [(name, line) for name, code in EXAMPLES.items() for line in code.splitlines()]
    assert [(name, line) for name, line in lines if len(">>> " + line) > CODE_WIDTH] == []
