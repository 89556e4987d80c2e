"""A new method is one file, and so is a new metric: written into a copy of the package, with no other file touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

METHOD = '''"""Gradient times activation, of positive gradients."""

from __future__ import annotations

from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT


class LayerFreshCam(GradientCam[LayerT]):
    """A fresh CAM: positive gradients times activations."""

    name = "fresh_cam"
    relu = True

    def terms(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.relu() * activations
'''

METRIC = '''"""How much of the map is empty."""

from __future__ import annotations

from torch import Tensor

from captum_unioncam.metrics.table import metric


@metric("fresh", "freshness", larger_is_better=True, description="The share of the map that is 0.")
def freshness(attributions: Tensor) -> Tensor:
    """The share of each attribution that is 0, (N,)."""
    return (attributions == 0).flatten(1).double().mean(1)
'''

EVALUATE = "evaluate demo --limit 2 --methods fresh_cam,grad_cam --steps 2 --workers 0 --out evaluation"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of package and tests with the two files."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("captum_unioncam", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "captum_unioncam" / "attr" / "fresh_cam.py").write_text(METHOD)
    (folder / "captum_unioncam" / "metrics" / "fresh.py").write_text(METRIC)
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(folder: Path, text: str) -> str:
    return run(folder, "-m", "captum_unioncam", *text.split())


def test_both_are_listed(copied):
    assert "fresh_cam" in command(copied, "methods")
    assert "fresh" in command(copied, "metrics")


def test_the_method_is_explained(copied):
    assert "star" in command(copied, "explain --method fresh_cam --format json --out explained")
    (record,) = (copied / "explained").iterdir()
    assert json.loads(record.read_text())["settings"]["method"] == "fresh_cam"


def test_both_are_compared(copied):
    printed = command(copied, "compare --methods fresh_cam,grad_cam --steps 2 --out compared")
    assert "freshness" in printed or "fresh" in printed
    (table,) = (copied / "compared").glob("*.csv")
    header, first, *_ = table.read_text().splitlines()
    value = dict(zip(header.split(","), first.split(","), strict=True))
    assert value["method"] == "fresh_cam"
    assert 0 <= float(value["fresh"]) <= 1


def test_both_are_evaluated_and_reported(copied):
    command(copied, EVALUATE)
    assert "freshness" in command(copied, "report evaluation")
    page = (copied / "evaluation" / "report" / "report.html").read_text()
    assert "freshness" in page
    assert "fresh_cam" in page


@pytest.mark.parametrize(
    ("suite", "name"), [("attr/test_contract.py", "fresh_cam"), ("metrics/test_table.py", "fresh")]
)
def test_the_generic_suites_find_them(copied, suite, name):
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-k", f"{name}", f"tests/{suite}"]
    printed = run(copied, "-m", "pytest", *options)
    assert int(printed.strip().splitlines()[-1].split()[0]) >= (20 if name == "fresh_cam" else 3)
