"""A real ImageNet classifier on real photos, where the environment variable IMAGENET_SAMPLE names their folder."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam

from captum_unioncam import LayerUnionCam
from captum_unioncam.engine.maps import blend, minmax, up

FOLDER = os.environ.get("IMAGENET_SAMPLE")
pytestmark = pytest.mark.skipif(not FOLDER, reason="IMAGENET_SAMPLE does not name the folder of the sample")


@pytest.fixture(scope="module")
def sample():
    spec = importlib.util.spec_from_file_location("imagenet_sample", Path(FOLDER) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def average_drop(model, images, labels, attributions):
    def confidence(x):
        return model(x).softmax(1).gather(1, labels[:, None]).squeeze(1)

    whole = confidence(images)
    seen = confidence(blend(minmax(up(attributions, images.shape[2:])), images, 0))
    return ((whole - seen).clamp(min=0) / whole).mean().item() * 100


def test_average_drop_is_below_grad_cams_and_not_above_score_cams(sample):
    model = sample.load_model()
    layer = model[1].features[18]
    images, labels, _ = sample.load_samples(8)
    grad_cam = LayerGradCam(model, layer).attribute(images, labels, relu_attributions=True).detach()
    union_cam, details = LayerUnionCam(model, layer).attribute(images, labels, return_details=True, max_channels=64)
    score_cam = details.region_map  # LayerScoreCam's, without running its passes again
    maps = {"grad_cam": grad_cam, "score_cam": score_cam, "union_cam": union_cam}
    drop = {name: average_drop(model, images, labels, attr) for name, attr in maps.items()}
    assert drop["union_cam"] < drop["grad_cam"]
    assert drop["union_cam"] <= drop["score_cam"]
