"""Methods from other packages, by subclassing and by entry points, and what the registry says of each."""

import subprocess
import sys

import pytest
import torch

from captum_unioncam import methods
from captum_unioncam.attr.base import CAMS, GradientCam
from captum_unioncam.system.errors import Failure
from tests.networks import TinyNet, tiny_inputs

PLUGIN = {
    "plugged.py": """
from captum_unioncam.attr.base import GradientCam

class LayerPluggedCam(GradientCam):
    '''A plugged CAM.'''

    name = "plugged_cam"
    variants = {"plugged_square": {"power": 2}}

    def terms(self, activations, gradients, *, theta: float = 50.0, power: int = 1):
        assert theta == 50.0
        return gradients * activations**power

def absolute(model, layer, settings):
    '''Inputs without their sign.'''
    return lambda inputs, target, baselines: inputs.abs()
""",
    "plugged-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n",
    "plugged-1.0.dist-info/entry_points.txt": """
[captum_unioncam.methods]
plugged_cam = plugged:LayerPluggedCam
absolute = plugged:absolute
broken = no_such_module:method
""",
}

USE = """
import warnings
import torch
from torch import nn
from captum_unioncam import methods

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    square = methods.describe("plugged_square")
    names = methods.names()
assert square == "A plugged CAM. With power=2.", square
assert {"plugged_cam", "plugged_square", "absolute", "union_cam"} <= set(names) and "broken" not in names, names
(warning,) = [str(w.message) for w in caught if "captum_unioncam.methods" in str(w.message)]
assert warning.startswith("plugged: loading 'broken' of captum_unioncam.methods (no_such_module:method)"), warning
assert methods.describe("plugged_cam") == "A plugged CAM."
assert methods.describe("absolute") == "Inputs without their sign."
model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
images = torch.rand(2, 3, 8, 8)
for name in ("plugged_cam", "plugged_square", "absolute"):
    maps = methods.create(name, model, model[1])(images, torch.tensor([0, 1]), images[:1] * 0)
    assert maps.shape == (2, 1, 8, 8) and maps.max() > 0, name
"""


def test_installed_packages_add_methods_by_entry_points(tmp_path):
    for name, content in PLUGIN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def own_cams(monkeypatch):
    monkeypatch.setattr("captum_unioncam.attr.base.CAMS", cams := dict(CAMS))
    monkeypatch.setattr("captum_unioncam.methods.registry.CAMS", cams)


@pytest.mark.usefixtures("own_cams")
def test_what_others_cams_raise_is_a_failure_and_what_ours_raise_is_not():
    class LayerFailing(GradientCam):
        name = "failing"

        def terms(self, activations, gradients):
            raise KeyError("nothing here")

    net, inputs = TinyNet(), tiny_inputs()
    net.float()
    with pytest.raises(Failure, match=r"^failing: raised KeyError: 'nothing here'"):
        methods.create("failing", net, net.features)(inputs.float(), torch.tensor([0, 1, 2]), inputs[:1].float())
    union_cam = methods.create("union_cam", net, net.features, methods.MethodSettings(theta=200))
    with pytest.raises(ValueError, match=r"^theta: got 200"):
        union_cam(inputs, torch.tensor([0, 1, 2]), inputs[:1])


@pytest.mark.parametrize("name", methods.names())
def test_every_method_says_what_it_is_in_a_line(name):
    assert len(methods.describe(name)) > 10
    assert methods.describe(name).endswith(".")


def test_a_variant_is_its_class_with_arguments():
    assert "channel_weights='softmax'" in methods.describe("union_cam_softmax")
    net, inputs, target = TinyNet(), tiny_inputs(), torch.tensor([0, 1, 2])
    black = torch.zeros_like(inputs[:1])
    by_name = methods.create("union_cam_softmax", net, net.features)(inputs, target, black)
    settings = methods.MethodSettings(channel_weights="softmax")
    by_setting = methods.create("union_cam", net, net.features, settings)(inputs, target, black)
    assert torch.allclose(by_name, by_setting, rtol=0, atol=1e-12)
    plain = methods.create("union_cam", net, net.features)(inputs, target, black)
    assert not torch.allclose(by_name, plain)
