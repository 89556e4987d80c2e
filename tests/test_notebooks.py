"""The tutorials run, what their text says of the numbers holds, and their outputs are as committed, in kind."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from ipykernel import kernelspec
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"

# Run as a last cell, with all that the notebook has defined.
CLAIMS = {
    "first_union_cam": """
assert confidences.max(1).values.min() > 0.99
assert grad_cam.min() < 0 and union_cam.min() == 0 and union_cam.max() == 1
assert not details.union_selected[5] and details.region_beta[5] - details.denoised_beta[5] > 0.05
assert both[:, 0].max() == both[:, 1].max() == 1 and confidences[5].min() < 1e-6
assert all(union < grad for grad, union in zip(sensitivity["LayerGradCam"], sensitivity["LayerUnionCam"]))
table = pd.DataFrame(means).T
assert (table["increase ↑"] == 0).all()
assert table.loc["noise", "insertion ↑"] > 0.9 and table["insertion ↑"].idxmax() == "saliency"
assert table["insertion from black ↑"].idxmin() == table["drop ↓"].idxmax() == "noise"
assert table["drop ↓"].drop("noise").idxmax() == "saliency"
assert difference.max() > difference.sum() / 3 and difference.min() < 0.005
assert 2 < difference.mean() / difference.std() * len(difference) ** 0.5 < 3
assert of_theta[50]["largest change of a map"] < 0.02 < of_theta[90]["largest change of a map"]
assert max(abs(of["drop ↓"] - means["union_cam"]["drop ↓"]) for of in of_theta.values()) < 0.005
assert of_limit[32]["least correlation with the full map"] > 0.99
""",
    "evaluating_a_model": """
boxes_seen = []
for name in set(data_set.names) - {"JPEGImages/000003.jpg"}:
    boxes_seen += [subject.classifier.preprocessing.objects_seen(m) for m in data_set.sample(name).objects.values()]
assert summary.failed == 4 and [group.images for group in summary.failures] == [["JPEGImages/000003.jpg"]]
assert summary.judged == dict.fromkeys(["grad_cam", "noise", "saliency", "union_cam"], 19)
assert records[records.error.isna()].image.nunique() == 14
share = np.mean([seen.float().mean() for seen in boxes_seen])
assert abs(records[records.method == "noise"].energy.mean() - share) < 0.01
of_method = records.groupby("method")
assert of_method.increase.mean().max() - of_method.increase.mean()["noise"] < 0.1
assert of_method["drop"].mean().idxmax() == of_method.insertion.mean().idxmin() == "noise"
assert (records[records.increase == 1].confidence < 0.99).all()
assert (tables["drop: union_cam -"].high < 0).all()
assert (tables["deletion: union_cam -"].low < 0).all() and (tables["deletion: union_cam -"].high > 0).all()
assert [round(float(summary.curves["insertion"]["union_cam"][end]), 2) for end in (0, -1)] == [0.45, 0.66]
assert records.groupby("image").filter(lambda of: of.target.nunique() == 1).confidence.min() > 0.9
assert round(worst.confidence, 2) == 0 and worst.values["pointing"] == 1 and max(worst.curves["deletion"]) > 0.3
seen_as = subject.confidences(subject.input_and_baseline(photo)[0]).argmax()
assert (worst.target_name, demo.CLASS_NAMES[seen_as]) == ("crescent", "cross")
assert of_picture.set_index("method").pointing["grad_cam"] == 1 and of_picture.insertion.max() < 0.05
""",
    "quantus": """
assert maps.shape == (4, 1, 112, 112) and len(chosen) >= 6
assert np.allclose(means.loc[["noise", "edges"], "RandomLogit ↓"], 1)
assert means["RandomLogit ↓"].drop(["noise", "edges"]).max() < 0.9
assert means.loc["noise", "MaxSensitivity ↓"] == 0 and means["MaxSensitivity ↓"].drop("noise").min() > 0.1
assert np.allclose(table["edges"], 1) and (table.loc["features.0"].drop("edges") < 0.9).all()
assert constant["grad_cam"] > 0 and constant["saliency"] == constant["edges"] == 0
assert (compared.quantus_sparseness > 0).all()
""",
}


def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture
def this_interpreter(tmp_path, monkeypatch):
    """Makes the kernel "python3" this Python: the user's own of that name may be another."""
    kernelspec.install(kernel_name="python3", prefix=str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    # Threads of several test processes, or of whatever else runs, would wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_runs_and_its_claims_hold(name, this_interpreter, tmp_path):
    notebook = committed(name)
    claims = f"import sys\nassert sys.executable == {sys.executable!r}\n{CLAIMS[name]}"
    notebook.cells.append(nbformat.v4.new_code_cell(claims))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    assert not list(folder.iterdir())
    shown = [kinds(cell) for cell in committed(name).cells]
    assert [kinds(cell) for cell in notebook.cells[:-1]] == shown


@pytest.mark.parametrize("name", CLAIMS)
def test_committed_outputs_are_of_one_clean_run(name):
    notebook = committed(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    texts = [cell.source for cell in notebook.cells] + [text for output in outputs for text in texts_of(output)]
    assert not [text for text in texts if re.search(r"(?:^|[\s'\"(])(?:/|[A-Z]:\\)\w+[/\\]|Warning", text)]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000


def kinds(cell):
    """What a cell shows, in kind. Warnings are left out: which packages give them depends on the installation."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    return {kind for output in outputs for kind in output.get("data", [output.get("name")])}


def texts_of(output):
    if output.output_type == "stream":
        return [output.text]
    return [text for kind, text in output.data.items() if kind.startswith("text/")]
