"""What the benchmarks take from the records: their tables are the README's."""

import json
import re
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from benchmarks import faithfulness, machine, speed
from benchmarks.ablation import THETAS, Variants, theta_variants, variants
from benchmarks.faithfulness import Experiment, differences, main, summary_of, tables
from captum_unioncam import LayerUnionCam, demo, methods
from captum_unioncam.evaluation.records import read_records
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.system.errors import Failure, WrongArgument
from tests.networks import PooledNet, TinyNet, tiny_inputs

NAMES = ["grad_cam", "saliency"]
OWN_MODULES = {
    "own_network": """
import torch
from captum_unioncam import demo

def load():
    return torch.nn.Sequential(torch.nn.AvgPool2d(2), demo.load_model())
"""
}
pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})


@pytest.fixture
def voc(tmp_path):
    """Six images, two of them of two classes; one annotation is broken."""
    demo.write_voc(tmp_path / "data", 6, seed=3)
    (tmp_path / "data" / "VOCdevkit" / "VOC2007" / "Annotations" / "000004.xml").write_text("<annotation>")
    (tmp_path / "classes.json").write_text(json.dumps({name: i for i, name in enumerate(demo.CLASS_NAMES)}))
    return Experiment(
        "voc", "VOC", "own_network:load", str(tmp_path / "data"), "1.features.15", tmp_path / "classes.json"
    )


def test_every_record_counts_whatever_the_number_of_an_images_classes(voc, tmp_path):
    summary, layer = summary_of(voc, NAMES, 2, "cpu", tmp_path / "run")
    assert (layer, summary.images, summary.records, summary.failed) == ("1.features.15", 6, 14, 2)
    text = tables(summary)
    for title in ("Average drop and increase", "Insertion and deletion", "Pointing games"):
        assert f"### {title}" in text
    assert text.count("| `grad_cam` |") == text.count("| `saliency` |") == 3


def test_of_an_unfinished_run_what_all_methods_are_done_with_counts(voc, tmp_path):
    folder = tmp_path / "run"
    summary_of(voc, ["grad_cam"], 2, "cpu", folder)
    with pytest.raises(Failure, match="holds no image that all methods are done with"):
        summary_of(voc, NAMES, 2, "cpu", folder, finish=False)
    summary_of(voc, NAMES, 2, "cpu", folder)
    (first, second) = (folder / "records").iterdir()
    of_saliency = next(path for path in (first, second) if b"saliency" in path.read_bytes())
    lines = of_saliency.read_text().splitlines(keepends=True)
    of_saliency.write_text("".join(lines[:-3]))
    left = {json.loads(line)["image"] for line in lines[:-3]}
    summary, _ = summary_of(voc, NAMES, 2, "cpu", folder, finish=False)
    assert summary.images == len(left) < 6
    assert summary.records + summary.failed == 2 * (len(lines) - 3)
    assert len(list(read_records(folder))) == 16 - 3


def test_differences_are_of_pairs_of_maps_and_from_union_cam(voc, tmp_path):
    few = replace(voc, metrics=["drop"], settings=methods.MethodSettings(max_channels=4))
    summary, _ = summary_of(few, ["union_cam", "grad_cam"], 2, "cpu", tmp_path / "run")
    assert differences(summary_of(few, ["grad_cam"], 2, "cpu", tmp_path / "run")[0]) == ""
    drops = {record.key: record.values["drop"] for record in read_records(tmp_path / "run") if not record.error}
    pairs = [
        (image, 100 * (drop - drops[image, target, "union_cam"]))
        for (image, target, method), drop in drops.items()
        if method == "grad_cam"
    ]
    mean = sum(difference for _, difference in pairs) / len(pairs)
    images = {image for image, _ in pairs}
    won = [sum(difference for of, difference in pairs if of == image) < 0 for image in images]
    assert 0 < len(images) < len(pairs)
    (row,) = (line for line in differences(summary).splitlines() if line.startswith("| `grad_cam` | "))
    text = row.split("|")[2].strip(" *")
    assert text.startswith(f"{mean:+.1f} [")
    assert text.endswith(f"] {sum(won) / len(won):.0%}")
    assert "| `union_cam` |" not in differences(summary)


def test_all_stands_for_every_metric(voc, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(faithfulness, "experiments", lambda _limit: [voc])
    monkeypatch.setattr(faithfulness, "summary_of", lambda experiment, *_: given.append(experiment.metrics) or 1 / 0)
    for metrics in ("all", "drop,increase", ""):
        with pytest.raises(ZeroDivisionError):
            main(names="grad_cam", metrics=metrics)
    assert given == [list(all_metrics()), ["drop", "increase"], None]


def test_two_data_sets_of_other_classes_are_refused(tmp_path):
    with pytest.raises(WrongArgument, match="give one at a time"):
        main(imagenet=tmp_path, voc=tmp_path)


@pytest.mark.parametrize(("network", "has_no_effect"), [(PooledNet, True), (TinyNet, False)])
def test_theta_has_an_effect_where_gradients_differ_over_space(network, has_no_effect):
    found, net, images = variants(), network(seed=3), tiny_inputs(seed=5)
    names = [f"denoised, theta {theta}" for theta in THETAS]
    assert found.groups["Theta, denoised alone"] == names
    maps = [
        methods.create(name, net, net.features)(images, torch.tensor([3, 0, 2]), torch.zeros_like(images[:1]))
        for name in names
    ]
    assert all(torch.equal(maps[0], other) for other in maps) == has_no_effect
    assert isinstance(found, Variants)


@pytest.mark.parametrize("weights", ["score", "softmax"])
def test_selections_are_made_of_one_call_as_two_calls_make_them(weights):
    theta_variants()
    net, images, target = TinyNet(seed=3), tiny_inputs(examples=6, seed=5), torch.tensor([3, 0, 2, 1, 0, 3])
    cam, differs = LayerUnionCam(net, net.features), False
    for theta in (0, 90):
        maps = {}
        for selection in ("paper", "best"):
            made = methods.create(f"{weights}, {selection}, theta {theta}", net, net.features)
            maps[selection] = made(images, target, torch.zeros_like(images[:1]))
            given = {"theta": float(theta), "channel_weights": weights, "selection": selection}
            expected = torch.nn.functional.interpolate(
                cam.attribute(images, target, **given), images.shape[2:], mode="bilinear"
            )
            torch.testing.assert_close(maps[selection], expected, rtol=0, atol=1e-12)
        differs |= not torch.equal(*maps.values())
    assert differs


HERE = Path(machine.__file__).parent
README = (HERE / "README.md").read_text()


def test_every_result_is_named_in_the_readme_which_names_no_other():
    names = re.findall(r"`([\w*.-]+\.(?:md|png))`", README)
    results = {path.name for path in (HERE / "results").iterdir()}
    assert {name for name in results if not any(fnmatch(name, pattern) for pattern in names)} == set()
    assert {name for name in names if "*" not in name and name not in results} == set()


def test_every_command_of_the_readme_exists_with_its_options():
    commands = re.findall(r"python (?:-m )?benchmarks[./](\w+)([^`\n]*)", README)
    assert len(commands) > 12
    for module, rest in commands:
        source = (HERE / f"{module}.py").read_text()
        assert '__name__ == "__main__"' in source
        for option in re.findall(r"--([\w-]+)", rest):
            parameter = f"\n    {option.replace('-', '_')}: "
            assert parameter in source or f'"--{option}"' in source, (module, option)


def embedded(name, device):
    """A subject of the speed benchmark that takes no minutes."""
    photos, targets, _ = demo.generate(2, seed=1)
    model = demo.load_model()
    return speed.Subject(name, model, model.get_submodule(demo.EXPLAINED_LAYER), photos, targets)


def test_speed_writes_the_table_that_it_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "subject", embedded)
    monkeypatch.setattr(speed, "memory_of_eight_in_a_process_of_its_own", lambda name, device: 3e6)
    monkeypatch.setattr(speed, "SIZES_ON_CPU", (2, 4))
    variants = [speed.Variant("all channels"), speed.Variant("eight channels", {"max_channels": 8})]
    monkeypatch.setattr(speed, "VARIANTS_ON_CPU", variants)
    speed.main(models=["embedded"], repeats=1, output="speed.md")
    text = (tmp_path / "speed.md").read_text()
    for part in ("## embedded", "python -m benchmarks.speed", f"PyTorch {torch.__version__}", "photos is +3 MB"):
        assert part in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "\n".join(lines) in capsys.readouterr().out
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    peers = ["grad-cam's Score-CAM, float32", "torchcam's Score-CAM, float32", "LayerGradCam, float32"]
    assert columns["method"] == ["all channels", "eight channels", *peers]
    of = embedded("", "cpu")
    _, details = LayerUnionCam(of.model, of.layer).attribute(of.photos, of.targets, return_details=True)
    assert columns["passes an image"] == [f"{details.forward_passes.double().mean():.0f}", "12", "", "", ""]
    full, fewer, *others = columns["correlation with float32"]
    assert full == "1.0000"
    assert 0.5 < float(fewer) < 1
    assert others == ["", "", ""]
    assert all(float(over.split()[0]) > 0 for over in columns["time over floor"][:2])
    # The faster peer is the measure of all.
    assert max(float(faster.split()[0]) for faster in columns["times faster than the faster peer"][2:4]) == 1


def test_times_are_shown_by_the_median_with_the_least_and_the_most():
    assert speed.shown([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert speed.faster([1.0, 2.0, 4.0], [10.0, 20.0, 30.0]) == "10.0 (2.5 to 30.0)"


def test_the_floor_is_bare_passes_of_a_third_of_the_rows():
    passes = []
    floor = speed.Floor(lambda batch: passes.append(batch.shape), torch.zeros(1, 3, 8, 8), (4,), compiled=False)
    passes.clear()
    assert floor.seconds(22) > 0
    assert passes == [(4, 3, 8, 8)] * 2
