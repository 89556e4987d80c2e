"""What is handed out, apart from the code: the wheel in an environment without the source tree, versions, imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import pytest

from captum_unioncam import __version__

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "captum_unioncam"
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")

OTHER_COMMANDS = """
import sys
from pathlib import Path
import captum_unioncam
from captum_unioncam.cli.main import main

assert Path(captum_unioncam.__file__).is_relative_to(sys.prefix), captum_unioncam.__file__
quick = ["--methods", "union_cam,grad_cam", "--steps", "2"]
assert main(["compare", *quick]) == 0
assert main(["evaluate", "demo", "--limit", "2", "--workers", "0", *quick]) == 0
assert main(["report"]) == 0
"""

# Captum itself imports Matplotlib, and thereby Pillow and NumPy.
LIBRARY_ALONE = """
import sys
import captum.attr, torch

others = "PIL", "gradio", "jinja2", "matplotlib", "numpy", "pandas", "safetensors", "torchvision", "typer"
for name in {*sys.modules, *others}:
    if name.partition(".")[0] in others:
        sys.modules[name] = None
from captum_unioncam import LayerUnionCam

model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten(), torch.nn.Linear(8, 3))
assert LayerUnionCam(model, model[0]).attribute(torch.rand(1, 1, 3, 3), 0).shape == (1, 1, 2, 2)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints, in an environment that lets no other code in."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built in a copy of the tree, since a build leaves its own files there."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCES)
    # An environment of its own for the build would be downloaded.
    isolation = ["--no-build-isolation"] if builds_wheels() else []
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", folder]
    run(*pip, folder / "source", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def builds_wheels() -> bool:
    """Whether the setuptools installed here is one that pyproject.toml asks for."""
    (wanted,) = re.findall(r'requires = \["setuptools>=(\d+)"\]', (ROOT / "pyproject.toml").read_text())
    try:
        return int(version("setuptools").partition(".")[0]) >= int(wanted)
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs' folder of a fresh environment that holds the wheel, and borrows what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but .pth files on it are not read: an editable install there stays unseen.
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    run(*pip, "--ignore-installed", wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    sources = {name for name in files if "__pycache__" not in name}
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    described = f"captum_unioncam-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(described)} == sources
    assert f"{described}licenses/LICENSE" in names


def test_the_wheel_needs_torch_and_captum_alone(wheel):
    with ZipFile(wheel) as archive:
        metadata = archive.read(f"captum_unioncam-{__version__}.dist-info/METADATA").decode()
    needed = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, flags=re.MULTILINE)
    assert set(needed) == {"captum", "torch"}


def test_the_version_is_that_of_the_module(installed, tmp_path):
    ask = "from importlib.metadata import version; print(version('captum-unioncam'))"
    assert run(installed / "python", "-c", ask, cwd=tmp_path).strip() == __version__
    # The citation is of whichever version is installed.
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)


def test_the_installed_command_explains_a_picture(installed, tmp_path):
    run(installed / "captum-unioncam", "explain", cwd=tmp_path)
    (panel,) = (tmp_path / "unioncam").iterdir()
    assert panel.read_bytes().startswith(b"\x89PNG")


def test_the_installed_package_compares_evaluates_and_reports(installed, tmp_path):
    run(installed / "python", "-c", OTHER_COMMANDS, cwd=tmp_path)
    assert {path.suffix for path in (tmp_path / "comparison").iterdir()} == {".png", ".csv", ".html"}
    assert "</html>" in (tmp_path / "evaluation" / "report" / "report.html").read_text()


def test_the_library_needs_torch_and_captum_alone(tmp_path):
    run(sys.executable, "-c", LIBRARY_ALONE, cwd=tmp_path)


def imported(path: Path) -> Iterator[str]:
    """The names that a file imports as it is loaded itself; ``a.b`` for ``from a import b``."""
    unread: list[ast.AST] = [ast.parse(path.read_text())]
    while unread:
        node = unread.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.FunctionDef) and not is_passed_over(node):
            unread += ast.iter_child_nodes(node)


def is_passed_over(node: ast.AST) -> bool:
    """Whether it is a block for type checkers, or for the file as a program."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def test_imports_run_upwards_in_the_list_of_contributing():
    (listing,) = re.findall(r"```\ncaptum_unioncam/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    listed = re.findall(r"^  (\w+)(?:\.py|/) ", listing, flags=re.MULTILINE)
    module_of = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert sorted(listed) == sorted(set(module_of.values()))
    for path, module in module_of.items():
        allowed = listed[: listed.index(module) + 1]
        for name in imported(path):
            package, _, rest = name.partition(".")
            assert package, f"{path}: the relative import {name} is not followed by this test"
            if package == PACKAGE.name:
                wanted = rest.partition(".")[0]
                # What is no module comes from the package itself.
                assert (wanted if wanted in listed else "__init__") in allowed, f"{path} imports {name}"
