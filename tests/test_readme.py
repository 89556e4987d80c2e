"""Every code block of the README runs: Python in one namespace from top to bottom, shell commands one by one."""

import itertools
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"(<!-- [a-z ]+ -->\n)?```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for mark, language, text in BLOCKS if language == "bash" and not mark for line in text.splitlines()]


def test_every_block_is_of_a_kind_that_is_run():
    kinds = [(mark.strip(), language) for mark, language, _ in BLOCKS]
    assert [kind for kind in kinds if kind[0]] == [("<!-- main command -->", "bash"), ("<!-- test command -->", "bash")]
    assert {language for _, language in kinds} == {"bash", "python"}
    assert all(command.startswith("captum-unioncam ") for command in COMMANDS)


def test_python_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, (_, language, text) in enumerate(BLOCKS):
        if language == "python":
            exec(compile(text, f"README block {number}", "exec"), namespace)
    assert namespace["attr"].shape == namespace["grad_cam"].shape
    assert namespace["heat"].shape[2:] == namespace["images"].shape[2:]
    assert namespace["infid"].shape == namespace["sensitivity"].shape == (4,)
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


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_commands(command, tmp_path, downloaded_weights):
    import subprocess

    Image.linear_gradient("L").resize((300, 240)).convert("RGB").save(tmp_path / "photo.jpg")
    arguments = shlex.split(command)[1:]
    environment = {**os.environ, "TORCH_HOME": str(downloaded_weights)}
    run = [sys.executable, "-c", "from captum_unioncam.cli import main; main()", *arguments]
    result = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    output = tmp_path / (arguments[arguments.index("--output") + 1] if "--output" in arguments else "unioncam")
    written = sorted(output.iterdir())
    formats = [b for a, b in itertools.pairwise(arguments) if a == "--format"] or ["png"]
    classes = int(arguments[arguments.index("--top-k") + 1]) if "--top-k" in arguments else 1
    assert sorted(path.suffix[1:] for path in written) == sorted(formats * classes)
