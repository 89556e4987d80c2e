"""Code blocks of Markdown files, run as a reader would: Python in one namespace, a block's commands in one folder."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights
from torchvision.models.resnet import BasicBlock, ResNet

from captum_unioncam.cli.main import main

_BLOCK = re.compile(r"^(<!-- [a-z ]+ -->\n)?```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        mark (str): Of the comment in front of it, "" where there is none.
        language (str): After the fence.
        text (str): Within.
    """

    mark: str
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    """Those of a Markdown file, in order."""
    return [Block(mark.strip("<!-> \n"), *rest) for mark, *rest in _BLOCK.findall(path.read_text(encoding="utf-8"))]


def commands(path: Path) -> list[list[str]]:
    """The commands of each bash block that has no mark, each with its continued lines."""
    unmarked = [block.text for block in blocks(path) if block.language == "bash" and not block.mark]
    return [text.replace("\\\n", "").splitlines() for text in unmarked]


def run_python(path: Path, namespace: dict) -> None:
    """Runs the file's Python, from top to bottom."""
    for number, block in enumerate(blocks(path)):
        if block.language == "python":
            exec(compile(block.text, f"{path.name} block {number}", "exec"), namespace)


def run_commands(lines: list[str], folder: Path) -> None:
    """Runs ``captum-unioncam`` commands one after the other in the folder, and looks at what each wrote."""
    for line in lines:
        before = _files(folder)
        program, *arguments = shlex.split(line)
        assert (program, main(arguments)) == ("captum-unioncam", 0)
        _WRITTEN[arguments[0]](arguments, _files(folder) - before)


class ThinResNet(ResNet):
    """ResNet with a quarter of the channels in its four layers: a pass costs a tenth."""

    def __init__(self, block, layers, num_classes=1000, **arguments):
        super().__init__(block, layers, num_classes, **arguments)
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 4, *arguments, **options)


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory):
    """A download folder that already holds "torchvision's" ResNet-18: random weights, of a thin one, under the name."""
    folder = tmp_path_factory.mktemp("torch_home")
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(
        ThinResNet(BasicBlock, [2, 2, 2, 2]).state_dict(), checkpoints / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    )
    return folder


@pytest.fixture
def working_folder(tmp_path, torch_home, monkeypatch):
    """A folder with nothing but ``photo.jpg`` to work in, with a thin ResNet-18's weights downloaded."""
    Image.linear_gradient("L").resize((300, 240)).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.setattr("torchvision.models.resnet.ResNet", ThinResNet)
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})
    return tmp_path


def _files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def _explanations(arguments, written):
    formats = [b for a, b in itertools.pairwise(arguments) if a == "--format"] or ["png"]
    assert sorted(path.suffix[1:] for path in written) == sorted(formats * int(_option(arguments, "--top-k", "1")))
    assert {path.parent.name for path in written} == {_option(arguments, "--output", "unioncam")}


def _comparison(_arguments, written):
    assert sorted(path.suffix for path in written) == [".csv", ".html", ".png"]


def _checks(_arguments, written):
    assert sorted(path.suffix for path in written) == [".csv", ".json", ".png"]


def _records(arguments, written):
    (file,) = (path for path in written if path.suffix == ".jsonl")
    wanted = int(_option(arguments, "--limit", None)) * len(_option(arguments, "--methods", None).split(","))
    assert len(file.read_text().splitlines()) == wanted


def _reports(_arguments, written):
    assert {path.suffix for path in written} == {".csv", ".md", ".tex", ".png", ".html"}


def _option(arguments, name, default):
    return arguments[arguments.index(name) + 1] if name in arguments else default


_WRITTEN = {
    "explain": _explanations,
    "compare": _comparison,
    "sanity": _checks,
    "evaluate": _records,
    "report": _reports,
}
