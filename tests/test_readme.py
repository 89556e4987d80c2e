"""Every code block of the README runs: Python in one namespace from top to bottom, a block's commands in one folder."""

from pathlib import Path

import pytest

from tests.blocks import blocks, commands, run_commands, run_python

pytest_plugins = ("tests.blocks",)

README = Path(__file__).parent.parent / "README.md"


def test_every_block_is_of_a_kind_that_is_run():
    kinds = [(block.mark, block.language) for block in blocks(README)]
    assert [kind for kind in kinds if kind[0]] == [("main command", "bash"), ("test command", "bash")]
    assert {language for _, language in kinds} == {"bash", "python"}


def test_python_blocks(working_folder):
    namespace: dict = {}
    run_python(README, namespace)
    assert namespace["attr"].shape == namespace["grad_cam"].shape
    assert namespace["heat"].shape[2:] == namespace["images"].shape[2:]
    assert namespace["infid"].shape == namespace["sensitivity"].shape == (4,)
    assert namespace["drop"].shape == namespace["inserted"].shape == namespace["share"].shape == (4,)
    assert namespace["saliency"].shape == (4, 1, 112, 112)
    assert namespace["boxes"].shape == namespace["masks"].shape
    assert (working_folder / "union_cam.png").stat().st_size > 10_000


@pytest.mark.parametrize("lines", commands(README), ids=lambda lines: lines[0])
def test_shell_commands(lines, working_folder):
    run_commands(lines, working_folder)
