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
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COMMANDS = f"""
methods
metrics
explain --method {METHOD} --format json --out explained
compare --methods {METHOD},grad_cam --steps 2 --out compared
evaluate demo --limit 2 --methods {METHOD},grad_cam --steps 2 --workers 0 --out evaluation
report evaluation
"""
RUN = """
import sys
from captum_unioncam.cli.main import main

for line in sys.argv[1].strip().splitlines():
    print("$", line)
    assert main(line.split()) == 0, line
"""


@pytest.fixture(scope="module")
def printed(copied):
    """What each command prints, all of one process: to import what they need takes longer than they do."""
    parts = re.split(r"^\$ (\w+).*\n", run(copied, "-c", RUN, COMMANDS), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_both_are_listed(printed):
    assert re.search(rf"^{METHOD}\b", printed["methods"], flags=re.MULTILINE)
    assert re.search(rf"^{METRIC}\b", printed["metrics"], flags=re.MULTILINE)


def test_the_method_is_explained(copied, printed):
    assert "star" in printed["explain"]
    (record,) = (copied / "explained").iterdir()
    assert json.loads(record.read_text())["settings"]["method"] == METHOD


def test_both_are_compared(copied, printed):
    assert METRIC in printed["compare"]
    (table,) = (copied / "compared").glob("*.csv")
    header, first, *_ = table.read_text().splitlines()
    value = dict(zip(header.split(","), first.split(","), strict=True))
    assert value["method"] == METHOD
    assert 0 < float(value[METRIC]) <= 1


def test_both_are_evaluated_and_reported(copied, printed):
    assert METRIC in printed["report"]
    page = (copied / "evaluation" / "report" / "report.html").read_text()
    assert METRIC in page
    assert METHOD in page


SUITES = """
import sys
from pathlib import Path
import pytest

options = ["-q", "-p", "no:cacheprovider", "-o", "addopts="]
suites = ["tests/attr/test_contract.py", "tests/metrics/test_table.py"]
for names in sys.argv[1:]:
    assert pytest.main([*options, "-k", names, *suites]) == 0
    for path in Path("tests").rglob("*.later"):
        path.replace(path.with_suffix(""))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
"""


def test_the_generic_suites_find_them_and_compare_them_with_their_loops(copied, recipes):
    _, test_of_method, _, loop_of_metric = recipes
    loops = copied / "tests" / "metrics" / "reference.py"
    (copied / "tests" / "attr" / f"test_{METHOD}.py.later").write_text(test_of_method)
    loops.with_suffix(".py.later").write_text(f"{loops.read_text()}\n\n{loop_of_metric}")
    both = f"{METHOD} or {METRIC}"
    printed = run(copied, "-c", SUITES, both, f"{both} or every_method or every_metric")
    without_own_tests, passed = map(int, re.findall(r"(\d+) passed", printed))
    assert without_own_tests >= 33
    # The metric's loop, and that every method and metric has a reference.
    assert passed == without_own_tests + 3
