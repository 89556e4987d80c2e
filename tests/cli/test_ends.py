"""How the command ends: interrupted at any import, with nowhere to print, by a user's exit(), by names too long."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captum_unioncam import demo
from captum_unioncam.cli.main import main
from captum_unioncam.system.files import FreeNames
from tests.cli.test_cli import one_error, output_files, picture, run

OWN_MODULES = {
    "ending": """
import sys
from torch import nn

class Ends(nn.Sequential):
    def forward(self, x):
        sys.exit(0)

def in_forward(): return Ends(nn.Conv2d(3, 4, 32))
def at_once(): sys.exit(0)
def in_method(model, layer, settings): return lambda inputs, target, baselines: sys.exit("done")
""",
    "script": "exit()",
}
INTERRUPT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

# Ignored where the tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["captum-unioncam", *{arguments!r}]
from captum_unioncam.cli.main import main
sys.exit(main())
"""
COMMAND = [sys.executable, "-m", "captum_unioncam"]
# Photos have a model of their own, which is downloaded.
DEMO = ["--model", "demo"]
EVALUATE = ["evaluate", "--methods", "grad_cam", "--limit", "1", "--steps", "2", "--workers", "0", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


@pytest.mark.parametrize(
    "name", ["typer", "captum_unioncam.cli.options", "captum_unioncam.system.errors", "numpy", "torch", "torch.nn",
             "captum_unioncam.models.zoo", "PIL.Image"],
)  # fmt: skip
def test_an_interrupt_while_something_is_imported_is_130_and_no_traceback(name):
    code = INTERRUPT.format(name=name, arguments=["explain", "--device", "cpu"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["methods"], ["explain"], EVALUATE])
def test_a_full_disk_behind_stdout_is_told_in_a_line(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert one_error(done.stderr.splitlines()).startswith("Error: cannot print: No space left on device; ")


@pytest.mark.parametrize("arguments", [["methods"], ["explain", "--help"]])
def test_a_pipe_that_nobody_reads_is_told_in_a_line(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 1
    assert one_error(done.stderr.splitlines()).startswith("Error: cannot print: Broken pipe; ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "--model", "builtins:exit"],
        ["explain", "--model", "script:make"],
        ["explain", "--model", "ending:at_once"],
        ["explain", "--model", "ending:in_forward"],
        ["explain", "--method", "ending:in_method"],
        [*EVALUATE, "--methods", "ending:in_method"],
    ],
)
def test_code_that_ends_the_process_is_a_failure_and_no_success(capsys, arguments):
    code, _, errors = run(capsys, *arguments)
    assert code == 1
    assert "exit(" in one_error(errors[-1:]) or "SystemExit" in errors[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "--target=--5"], "--target --5: there are the classes 0 to 7."),
        (["compare", "--target", "9" * 5000], ": there are the classes 0 to 7."),
        (["compare", "--methods", "grad_cam", "--steps", "1000000000"], "--steps 1000000000: there are 12544 pixels"),
        ([*EVALUATE, "--steps", "12545"], "--steps 12545: there are 12544 pixels"),
        (["explain", "--device", "hpu"], "--device hpu: is not there"),
        (["evaluate", "a" * 300], "does not exist; give demo"),
        (["evaluate", "--classes", "a" * 300], "File name too long"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(capsys, arguments, message):
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert message in one_error(errors)


@pytest.mark.parametrize("arguments", [["--output"], ["--weights"], [], ["--out"]])
def test_names_that_are_too_long_are_told_in_a_line(capsys, arguments):
    code, _, errors = run(capsys, "explain", *arguments, "a" * 300)
    assert code == 1
    assert "File name too long" in one_error(errors)


@pytest.mark.parametrize("stem", ["a" * 250, "ä" * 120, "\u2606" * 80])
def test_files_about_pictures_of_long_names_have_names_that_fit(capsys, tmp_path, stem):
    code, _, errors = run(capsys, "explain", picture(tmp_path / f"{stem}.png"), *DEMO, "--method", "grad_cam")
    assert (code, errors) == (0, [])
    (name,) = output_files()
    assert name.startswith(stem[:40])
    assert len(os.fsencode(name)) <= 255


def test_names_that_are_cut_stay_different(tmp_path):
    first, second = (
        FreeNames(tmp_path).write("a" * 240 + end, ["\u2606ä" * 60, "ä" * 60], {"png": b""})[0] for end in "bc"
    )
    assert first != second
    assert all(len(os.fsencode(path.name)) <= 255 for path in (first, second))


def test_a_pipe_is_explained(tmp_path):
    """As explain <(...) gives it."""
    reader, writer = os.pipe()
    os.write(writer, (Path(demo.__file__).parent / "picture.png").read_bytes())
    os.close(writer)
    assert main(["explain", f"/dev/fd/{reader}", *DEMO, "--method", "grad_cam"]) == 0
    os.close(reader)
    assert output_files() == [f"{reader}-star-grad_cam.png".replace("_", "-")]


def test_pipes_as_weights_and_pictures_are_told_in_a_line(capsys, tmp_path):
    for name in ("weights", "weights.safetensors"):
        os.mkfifo(name)
        code, _, errors = run(capsys, "explain", "--weights", name)
        assert code == 1
        assert f"--weights {name}: is a pipe or a device" in one_error(errors)
