"""Every code block of the README runs: Python in one namespace from top to bottom, a block's commands in one folder."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"(<!-- [a-z ]+ -->\n)?```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [text.splitlines() for mark, language, text in BLOCKS if language == "bash" and not mark]


def test_every_block_is_of_a_kind_that_is_run():
    kinds = [(mark.strip(), language) for mark, language, _ in BLOCKS]
    assert [kind for kind in kinds if kind[0]] == [("<!-- main command -->", "bash"), ("<!-- test command -->", "bash")]
    assert {language for _, language in kinds} == {"bash", "python"}
    assert all(command.startswith("captum-unioncam ") for commands in COMMANDS for command in commands)


def test_python_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captum_unioncam.methods._registered", {})
    namespace: dict = {}
    for number, (_, language, text) in enumerate(BLOCKS):
        if language == "python":
            exec(compile(text, f"README block {number}", "exec"), namespace)
    assert namespace["attr"].shape == namespace["grad_cam"].shape
    assert namespace["heat"].shape[2:] == namespace["images"].shape[2:]
    assert namespace["infid"].shape == namespace["sensitivity"].shape == (4,)
    assert namespace["drop"].shape == namespace["inserted"].shape == namespace["share"].shape == (4,)
    assert namespace["saliency"].shape == (4, 1, 112, 112)
    assert namespace["boxes"].shape == namespace["masks"].shape
    assert (tmp_path / "union_cam.png").stat().st_size > 10_000


@pytest.fixture(scope="session")
def downloaded_weights(tmp_path_factory):
    """A download folder that already holds "torchvision's" ResNet-18: random weights under the real name."""
    from torchvision.models import ResNet18_Weights, resnet18

    folder = tmp_path_factory.mktemp("torch_home")
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(resnet18().state_dict(), checkpoints / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1])
    return folder


@pytest.mark.parametrize("commands", COMMANDS, ids=lambda commands: commands[0])
def test_shell_commands(commands, tmp_path, downloaded_weights):
    Image.linear_gradient("L").resize((300, 240)).convert("RGB").save(tmp_path / "photo.jpg")
    environment = {**os.environ, "TORCH_HOME": str(downloaded_weights)}
    for command in commands:
        before = files(tmp_path)
        arguments = shlex.split(command)[1:]
        run = [sys.executable, "-c", "import sys; from captum_unioncam.cli import main; sys.exit(main())", *arguments]
        result = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        WRITTEN[arguments[0]](arguments, files(tmp_path) - before)


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def explanations(arguments, written):
    formats = [b for a, b in itertools.pairwise(arguments) if a == "--format"] or ["png"]
    assert sorted(path.suffix[1:] for path in written) == sorted(formats * int(option(arguments, "--top-k", "1")))
    assert {path.parent.name for path in written} == {option(arguments, "--output", "unioncam")}


def comparison(_arguments, written):
    assert sorted(path.suffix for path in written) == [".csv", ".html", ".png"]


def records(arguments, written):
    (file,) = (path for path in written if path.suffix == ".jsonl")
    wanted = int(option(arguments, "--limit", None)) * len(option(arguments, "--methods", None).split(","))
    assert len(file.read_text().splitlines()) == wanted


def reports(_arguments, written):
    assert {path.suffix for path in written} == {".csv", ".md", ".tex", ".png", ".html"}


def option(arguments, name, default):
    return arguments[arguments.index(name) + 1] if name in arguments else default


WRITTEN = {"explain": explanations, "compare": comparison, "evaluate": records, "report": reports}
