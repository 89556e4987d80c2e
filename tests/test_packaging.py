"""What is handed out, apart from the code: the wheel in an environment without the source tree, versions, imports."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from zipfile import ZipFile

import grimp
import pytest

from captum_unioncam import __version__
from captum_unioncam.cli.main import _EXTRAS

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

# With the names of packages that it may import. Captum loads Matplotlib by itself, and thereby Pillow and NumPy, which
# are out of reach from then on.
LIBRARY_ALONE = """
import sys
from importlib.metadata import packages_distributions
import captum.attr, captum.metrics, torch

others = {*packages_distributions()} - {*sys.argv[1:]}
for name in {*sys.modules, *others}:
    if name.partition(".")[0] in others:
        sys.modules[name] = None
from captum_unioncam import LayerScoreCam, LayerUnionCam, UpsampledAttribution, find_spatial_layer, metrics
import captum_unioncam.testing

model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten(), torch.nn.Linear(8, 3))
images = torch.rand(2, 1, 3, 3)
name, layer = find_spatial_layer(model, images)
assert name == "0"
for method in LayerScoreCam, LayerUnionCam:
    assert method(model, layer).attribute(images, 0).shape == (2, 1, 2, 2)
maps = UpsampledAttribution(LayerUnionCam(model, layer)).attribute(images, target=0)
assert maps.shape == images.shape
for metric in metrics.confidence_drop, metrics.confidence_increase, metrics.insertion, metrics.deletion:
    assert metric(model, images, maps, 0).shape == (2,)
objects = torch.ones(2, 1, 3, 3, dtype=torch.bool)
for metric in metrics.pointing_game, metrics.energy_pointing_game:
    assert metric(maps, objects).shape == (2,)
"""
LIBRARY = "attr", "engine", "metrics", "system", "testing"


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
    assert wheel.stat().st_size < 1.5e6


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 1.5e6


def test_the_source_archive_makes_the_same_wheel(wheel, tmp_path):
    """It holds all that is needed, and no part of the tests."""
    if not builds_wheels():
        pytest.skip("setuptools is older than pyproject.toml asks for")
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    # The copy of the tree that the wheel was built of.
    run(sys.executable, "-c", build, "build_sdist", tmp_path, cwd=wheel.parent / "source")
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    run(sys.executable, "-c", build, "build_wheel", tmp_path, cwd=tmp_path / f"captum_unioncam-{__version__}")
    (again,) = tmp_path.glob("*.whl")
    names = [sorted(ZipFile(path).namelist()) for path in (again, wheel)]
    assert names[0] == names[1]
    assert archive.stat().st_size < 1.5e6
    with tarfile.open(archive) as held:
        assert not any("/tests" in name for name in held.getnames())


def test_the_oldest_versions_that_are_claimed_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    claims = [*project["dependencies"], *extras["cli"], *extras["bench"]]
    claimed = dict(claim.split(">=") for claim in claims if not claim.startswith("captum-unioncam["))
    lines = (ROOT / ".github" / "minimum.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: re.sub(r"(\.0)+$", "", version) for name, version in tested.items()} == claimed


def test_the_command_names_the_extra_of_each_package_that_it_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[>=<]", each)[0] for each in project["optional-dependencies"]["cli"]} - {"typer"}
    assert {"pillow" if package == "PIL" else package for package in _EXTRAS if _EXTRAS[package] == "cli"} == needed


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


def with_what_they_need(*distributions: str) -> set[str]:
    """The distributions and all that they require themselves, extras apart, in lower case and with "-" for "_"."""
    found: set[str] = set()
    unread = list(distributions)
    while unread:
        name = re.sub(r"[-_.]+", "-", unread.pop().lower())
        if name not in found:
            found.add(name)
            with suppress(PackageNotFoundError):
                wanted = [line for line in requires(name) or [] if "extra ==" not in line]
                unread += [re.findall(r"^[\w.-]+", line)[0] for line in wanted]
    return found


def test_the_library_needs_torch_and_captum_alone(installed, tmp_path):
    distributions = with_what_they_need("torch", "captum") - {"matplotlib", "numpy", "pillow"}
    packages = {
        package
        for package, held_by in packages_distributions().items()
        if distributions & {re.sub(r"[-_.]+", "-", name.lower()) for name in held_by}
    }
    assert {"torch", "captum"} <= packages
    run(installed / "python", "-c", LIBRARY_ALONE, "captum_unioncam", *sorted(packages), cwd=tmp_path)


def test_imports_keep_the_rules_of_pyproject():
    run(Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", cwd=ROOT)


def test_no_file_of_the_library_imports_anything_else():
    """Not even where it is called, and whether or not the rules of pyproject.toml name it."""
    graph = grimp.build_graph(
        PACKAGE.name, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    for wing in LIBRARY:
        module = f"{PACKAGE.name}.{wing}"
        for file in {module, *graph.find_descendants(module)}:
            names = {name.partition(".")[0] for name in graph.find_modules_directly_imported_by(file)}
            assert names - sys.stdlib_module_names <= {PACKAGE.name, "captum", "torch"}, file


def test_contributing_lists_and_draws_the_wings_of_pyproject():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    wings = [re.findall(r"\w+", layer) for layer in layers]
    (listing,) = re.findall(r"```\ncaptum_unioncam/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    listed = re.findall(r"^  (\w+)(?:\.py|/) ", listing, flags=re.MULTILINE)
    assert sorted(listed) == sorted(["__init__", *(wing for level in wings for wing in level)])
    level_of = {wing: level for level, wings_there in enumerate(wings) for wing in wings_there}
    levels = [level_of[wing] for wing in listed if wing != "__init__"]
    assert levels == sorted(levels)
    drawn = re.findall(r'font-weight="bold"[^>]*>(\w+)<', (ROOT / "docs" / "wings.svg").read_text())
    assert sorted(["__main__", *drawn]) == sorted(level_of)


def test_the_bug_report_asks_with_a_command_that_runs(tmp_path):
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml").read_text()
    (code,) = re.findall(r'`python -c "(.*?)"`', form, flags=re.DOTALL)
    printed = run(sys.executable, "-c", " ".join(code.split()), cwd=tmp_path)
    assert __version__ in printed
