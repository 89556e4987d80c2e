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
def recipes():
    """CONTRIBUTING's method, its test, metric, and its plain loop."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def copied(tmp_path_factory, recipes):
    """A copy of package and tests with the method's and the metric's file, and no other touched."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("captum_unioncam", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    method, _, metric, _ = recipes
    (folder / "captum_unioncam" / "attr" / f"{METHOD}.py").write_text(method)
    (folder / "captum_unioncam" / "metrics" / f"{METRIC}.py").write_text(metric)
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


def passed(folder: Path, suite: str, name: str) -> int:
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-k", name, f"tests/{suite}"]
    last_line = run(folder, "-m", "pytest", *options).strip().splitlines()[-1]
    return int(re.findall(r"(\d+) passed", last_line)[0])


def test_the_generic_suites_find_them_and_compare_them_with_their_loops(copied, recipes):
    assert passed(copied, "attr/test_contract.py", METHOD) >= 30
    assert passed(copied, "metrics/test_table.py", METRIC) >= 3
    _, test_of_method, _, loop_of_metric = recipes
    own_test = copied / "tests" / "attr" / f"test_{METHOD}.py"
    loops = copied / "tests" / "metrics" / "reference.py"
    own_test.write_text(test_of_method)
    loops.write_text(f"{loops.read_text()}\n\n{loop_of_metric}")
    assert passed(copied, "attr/test_contract.py", f"{METHOD} or every_method") >= 31
    assert passed(copied, "metrics/test_table.py", f"{METRIC} or every_metric") >= 5
