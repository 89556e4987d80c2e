"""The demo model and generator: accuracy, size, and maps that find the object better than Grad-CAM's."""

from pathlib import Path

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam

from captum_unioncam import LayerUnionCam, demo

FRESH = 20_241_121  # a seed that training does not use


@pytest.fixture(scope="module")
def model():
    return demo.load_model()


def test_weights_are_small_and_load_in_evaluation_mode(model):
    (weights,) = Path(demo.__file__).parent.glob("*.safetensors")
    assert weights.stat().st_size <= 1_000_000
    assert not any(module.training for module in model.modules())


def test_accuracy_on_fresh_pictures(model):
    images, labels, _ = demo.generate(200, seed=FRESH)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
    assert accuracy >= 0.95


def test_pictures_depend_on_seed_and_index_alone():
    images, labels, masks = demo.generate(6, seed=3)
    fewer = demo.generate(4, seed=3)
    assert torch.equal(images[:4], fewer[0])
    assert torch.equal(labels[:4], fewer[1])
    assert torch.equal(masks[:4], fewer[2])
    assert not torch.equal(demo.generate(4, seed=4)[0], fewer[0])


def test_pictures_are_what_they_are_said_to_be():
    images, labels, masks = demo.generate(64, seed=FRESH)
    size = images.shape[-1]
    assert images.shape == (64, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert masks.shape == (64, 1, size, size)
    assert masks.dtype == torch.bool
    covered = masks.flatten(1).double().mean(1)
    assert covered.min() > 0.01
    assert covered.max() < 0.5
    assert set(labels.tolist()) == set(range(len(demo.CLASS_NAMES)))


def test_the_embedded_picture_is_classified_with_confidence(model):
    from torchvision.transforms.functional import pil_to_tensor

    picture = pil_to_tensor(demo.load_picture()).unsqueeze(0) / 255
    assert picture.shape[1:] == demo.generate(1, seed=0)[0].shape[1:]
    assert model(picture).softmax(1).max() > 0.9


def test_theta_matters_in_it(model):
    images, labels, _ = demo.generate(4, seed=FRESH)
    layer = model.get_submodule(demo.EXPLAINED_LAYER)
    maps = [
        LayerUnionCam(model, layer).attribute(images, labels, theta=theta, return_details=True)[1].denoised_map
        for theta in (0.0, 60.0)
    ]
    assert (maps[0] - maps[1]).abs().max() > 0.01


@pytest.fixture(scope="module")
def localisation(model):
    """Share of 32 fresh images whose maximum lies on the object, and share of the map's sum there, by method."""
    images, labels, masks = demo.generate(32, seed=FRESH)
    layer = model.get_submodule(demo.EXPLAINED_LAYER)
    result = {}
    for method in (LayerUnionCam, LayerGradCam):
        attr = method(model, layer).attribute(images, labels, relu_attributions=True)
        heat = LayerAttribution.interpolate(attr, images.shape[2:], "bilinear").detach().flatten(1)
        on_object = masks.flatten(1)
        pointing = on_object.gather(1, heat.argmax(1, keepdim=True)).double().mean().item()
        energy = ((heat * on_object).sum(1) / heat.sum(1).clamp(min=1e-12)).mean().item()
        result[method] = {"pointing": pointing, "energy": energy}
    return result


@pytest.mark.parametrize("game", ["pointing", "energy"])
def test_union_cam_finds_the_object_at_least_as_well_as_grad_cam(localisation, game):
    assert localisation[LayerUnionCam][game] >= localisation[LayerGradCam][game]
    assert localisation[LayerUnionCam][game] > 0.4
