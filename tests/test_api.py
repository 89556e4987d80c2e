"""What others build on: public names and the command's options. The lists here change only on purpose."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from typer.main import get_command

import captum_unioncam
from captum_unioncam.cli.main import app

HOMES = {
    "LayerAblationCam": "attr.ablation_cam",
    "LayerAblationCamPlusPlus": "attr.ablation_cam_plus_plus",
    "LayerAugmentedGradCam": "attr.augmented_grad_cam",
    "LayerDenoisedGradCam": "attr.denoised_grad_cam",
    "LayerEigenCam": "attr.eigen_cam",
    "LayerFDCam": "attr.fd_cam",
    "LayerFeatureCam": "attr.feature_cam",
    "LayerFimfScoreCam": "attr.fimf_score_cam",
    "LayerGradCamPlusPlus": "attr.grad_cam_plus_plus",
    "LayerGradPlusPlusScoreCam": "attr.grad_plus_plus_score_cam",
    "LayerGroupCam": "attr.group_cam",
    "LayerHiResCam": "attr.hires_cam",
    "LayerISCam": "attr.is_cam",
    "LayerIntegratedGradCam": "attr.integrated_grad_cam",
    "LayerLayerCam": "attr.layer_cam",
    "LayerLinearCam": "attr.cam",
    "LayerReciproCam": "attr.recipro_cam",
    "LayerSSCam": "attr.ss_cam",
    "LayerScoreCam": "attr.score_cam",
    "LayerSmoothGradCamPlusPlus": "attr.smooth_grad_cam_plus_plus",
    "LayerUnionCam": "attr.union_cam",
    "LayerVitReciproCam": "attr.vit_recipro_cam",
    "LayerXGradCam": "attr.x_grad_cam",
    "Rise": "attr.rise",
    "TailDetails": "attr.base",
    "UnionCamDetails": "attr.union_cam",
    "UpsampledAttribution": "attr.upsampled",
    "channels_last_to_maps": "engine.layouts.base",
    "explain": "report.notebooks",
    "find_spatial_layer": "attr.find_layer",
    "fuse": "attr.fuse",
    "shared_passes": "engine.sharing",
    "show": "report.notebooks",
    "tokens_to_maps": "engine.layouts.base",
}

NAMES = {
    "captum_unioncam": [*HOMES],
    "captum_unioncam.metrics": [
        "Curve",
        "adcc",
        "box_ious",
        "box_masks",
        "coherency",
        "complexity",
        "confidence_drop",
        "confidence_gain",
        "confidence_increase",
        "deletion",
        "energy_pointing_game",
        "infidelity",
        "insertion",
        "localization_accuracy",
        "localization_iou",
        "pixel_average_precision",
        "pointing_game",
        "relevance_mass",
        "relevance_rank",
        "road",
        "road_least_relevant_first",
        "road_most_relevant_first",
        "sensitivity_max",
        "sparseness",
    ],
    "captum_unioncam.methods": ["MethodSettings", "create", "describe", "names", "register"],
    "captum_unioncam.models": ["ExplainedModel", "load"],
    "captum_unioncam.datasets": ["open_picture"],
    "captum_unioncam.report": ["HeatMap", "Look", "panel"],
    "captum_unioncam.targets": ["DetectionTarget", "EmbeddingTarget", "PairTarget", "SegmentationTarget"],
    "captum_unioncam.scorers": ["onnx", "openvino"],
    "captum_unioncam.quantus": ["ConstantMapWarning", "explain_func", "metric"],
    "captum_unioncam.evaluation": ["load"],
    "captum_unioncam.evaluation.sanity": ["Similarity", "model_randomization", "random_logit", "similarity_table"],
    "captum_unioncam.demo": [
        "CLASS_NAMES",
        "EXPLAINED_LAYER",
        "DemoNet",
        "generate",
        "load_model",
        "load_picture",
        "write_image_folder",
        "write_voc",
    ],
}

MODEL = "--model --weights --device"
OWN = "--class-names --input-size --crop --mean --std"
EXPLAINED = (
    f"{MODEL} {OWN} --layer --preprocess --confidence --output-fn --theta --max-channels --channel-selection --dtype "
    "--batch-size"
)
LOOK = "--colormap --opacity --dpi --open --quiet -q --threads"
OPTIONS = {
    "": "--version --install-completion --show-completion",
    "explain": f"{EXPLAINED} --method --target --top-k --channel-weights --quality --output --out -o --format --size "
    f"--overlay-only {LOOK}",
    "methods": "",
    "metrics": "",
    "compare": f"{EXPLAINED} --target --methods --metrics --steps --curves --seed --output --out -o {LOOK}",
    "evaluate": f"{EXPLAINED} --methods --metrics --steps --seed --output --out --classes --limit --protocol --workers "
    "--subset --retry-failures --accept-other-versions",
    "sanity": f"{EXPLAINED} --target --methods --order --max-layers --seed --output --out -o",
    "report": "--against --by-class --format",
    "app": f"{MODEL} --host --port --open --quality",
}
ARGUMENTS = {"explain": "images", "compare": "images", "sanity": "image", "evaluate": "data", "report": "folder"}

HELP = "from captum_unioncam.cli.main import main\nassert main(['--help']) == main(['compare', '--help']) == 0"
SLOW = "PIL", "captum", "jinja2", "matplotlib", "numpy", "pandas", "scipy", "torch", "torchvision"
OTHERS = "PIL", "gradio", "jinja2", "matplotlib", "pandas", "safetensors", "scipy", "torchvision", "typer"


def loaded_by(code: str, *packages: str) -> list[str]:
    """Those of the packages that code has loaded by its end, in a process of its own."""
    ask = f"{code}\nimport sys\nprint(*(name for name in {packages!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("module", NAMES)
def test_the_public_names(module):
    imported = importlib.import_module(module)
    assert sorted(imported.__all__) == sorted(NAMES[module])
    assert set(NAMES[module]) <= set(dir(imported))
    for name in NAMES[module]:
        assert getattr(imported, name) is not None


def test_the_package_hands_on_what_its_wings_hold():
    for name, home in HOMES.items():
        wing = importlib.import_module(f"captum_unioncam.{home}")
        assert getattr(captum_unioncam, name) is getattr(wing, name)


def test_all_names_come_with_a_star():
    names: dict[str, object] = {}
    exec("from captum_unioncam import *", names)
    assert set(NAMES["captum_unioncam"]) <= set(names)


def test_a_misspelled_name_is_no_attribute():
    with pytest.raises(AttributeError, match=r"'captum_unioncam' has no attribute 'LayerUnionCAM'"):
        getattr(captum_unioncam, "LayerUnionCAM")  # noqa: B009
    with pytest.raises(ImportError, match="LayerUnionCAM"):
        exec("from captum_unioncam import LayerUnionCAM")


def test_the_commands_options():
    group = get_command(app)
    commands = {"": group, **group.commands}
    options = {
        name: sorted(
            option for parameter in command.params if parameter.param_type_name == "option" for option in parameter.opts
        )
        for name, command in commands.items()
    }
    assert options == {name: sorted(names.split()) for name, names in OPTIONS.items()}
    arguments = {
        name: [parameter.name for parameter in command.params if parameter.param_type_name == "argument"]
        for name, command in commands.items()
    }
    assert {name: " ".join(names) for name, names in arguments.items() if names} == ARGUMENTS


@pytest.mark.parametrize("code", ["import captum_unioncam", "import captum_unioncam.cli.main", HELP])
def test_nothing_slow_is_loaded_before_it_is_used(code):
    assert loaded_by(code, *SLOW) == []


def test_the_library_loads_nothing_of_the_command():
    # What Captum itself loads is no matter of ours.
    before = loaded_by("import captum.attr", *OTHERS)
    assert loaded_by("from captum_unioncam import LayerUnionCam", *OTHERS) == before
