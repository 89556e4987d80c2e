"""A new method is one file, and so is a new metric: CONTRIBUTING's, written into a copy of the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METHOD, METRIC = "grad_times_activation", "concentration"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of package and tests with the recipes' files, no other file of the package touched."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("captum_unioncam", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    method, test_of_method, metric, loop_of_metric = blocks
    (folder / "captum_unioncam" / "attr" / f"{METHOD}.py").write_text(method)
    (folder / "tests" / "attr" / f"test_{METHOD}.py").write_text(test_of_method)
    (folder / "captum_unioncam" / "metrics" / f"{METRIC}.py").write_text(metric)
    with (folder / "tests" / "metrics" / "reference.py").open("a") as file:
        file.write(f"\n\n{loop_of_metric}")
    return folder


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(folder: Path, text: str) -> str:
    return run(folder, "-m", "captum_unioncam", *text.split())


def test_both_are_listed(copied):
    assert re.search(rf"^{METHOD}\b", command(copied, "methods"), flags=re.MULTILINE)
    assert re.search(rf"^{METRIC}\b", command(copied, "metrics"), flags=re.MULTILINE)


def test_the_method_is_explained(copied):
    assert "star" in command(copied, f"explain --method {METHOD} --format json --out explained")
    (record,) = (copied / "explained").iterdir()
    assert json.loads(record.read_text())["settings"]["method"] == METHOD


def test_both_are_compared(copied):
    assert METRIC in command(copied, f"compare --methods {METHOD},grad_cam --steps 2 --out compared")
    (table,) = (copied / "compared").glob("*.csv")
    header, first, *_ = table.read_text().splitlines()
    value = dict(zip(header.split(","), first.split(","), strict=True))
    assert value["method"] == METHOD
    assert 0 < float(value[METRIC]) <= 1


def test_both_are_evaluated_and_reported(copied):
    methods = f"--methods {METHOD},grad_cam"
    command(copied, f"evaluate demo --limit 2 {methods} --steps 2 --workers 0 --out evaluation")
    assert METRIC in command(copied, "report evaluation")
    page = (copied / "evaluation" / "report" / "report.html").read_text()
    assert METRIC in page
    assert METHOD in page


@pytest.mark.parametrize(
    ("suite", "name", "at_least"), [("attr/test_contract.py", METHOD, 20), ("metrics/test_table.py", METRIC, 3)]
)
def test_the_generic_suites_find_them(copied, suite, name, at_least):
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-k", name, f"tests/{suite}"]
    last_line = run(copied, "-m", "pytest", *options).strip().splitlines()[-1]
    assert int(re.findall(r"(\d+) passed", last_line)[0]) >= at_least
