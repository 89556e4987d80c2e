"""Every code block of the README runs: Python in one namespace from top to bottom, a block's commands in one folder."""

from pathlib import Path

import pytest
import torch

from tests.blocks import blocks, commands, run_commands, run_python

pytest_plugins = ("tests.blocks",)

README = Path(__file__).parent.parent / "README.md"


def test_every_block_is_of_a_kind_that_is_run():
    kinds = [(block.mark, block.language) for block in blocks(README)]
    assert [kind for kind in kinds if kind[0]] == [("main command", "bash"), ("test command", "bash")]
    assert {language for _, language in kinds} == {"bash", "python", "text"}


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    first = next(block.text for block in blocks(README) if block.language == "python")
    assert len([line for line in first.splitlines() if line]) <= 9


def test_python_blocks(working_folder, capsys):
    namespace: dict = {}
    run_python(README, namespace)
    assert namespace["attr"].shape == (1, 1, 7, 7)
    # The black image is what the model sees of a black image.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (-mean / std).reshape(1, 3, 1, 1).expand(1, 3, 224, 224)
    torch.testing.assert_close(namespace["black"], expected)
    torch.testing.assert_close(namespace["seen"], (namespace["image"] - expected)[0] * std.reshape(3, 1, 1))
    assert (working_folder / "union_cam.pdf").read_bytes().startswith(b"%PDF")
    assert namespace["explanation"].class_index == namespace["target"].item()
    assert namespace["explanation"].class_name in capsys.readouterr().out


@pytest.mark.parametrize("lines", commands(README), ids=lambda lines: lines[0])
def test_shell_commands(lines, working_folder):
    run_commands(lines, working_folder)
