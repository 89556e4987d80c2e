"""Models of timm and Hugging Face by name: as those libraries make, preprocess and name them, without a network."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_unioncam import LayerLayerCam, models
from captum_unioncam.models.zoo import load_classifier
from captum_unioncam.system.errors import Failure, WrongArgument

timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")


@pytest.fixture
def photo():
    return Image.effect_mandelbrot((300, 260), (-2, -1.5, 1, 1.5), 50).convert("RGB")


@pytest.fixture
def folder(tmp_path):
    """What Hugging Face's save_pretrained writes of a small ViT of three classes."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=64, patch_size=16,
        id2label={0: "ant", 1: "bee", 2: "cat"},
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_of_timm(tmp_path, photo):
    torch.manual_seed(1)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    subject = models.load("timm:resnet10t", str(tmp_path / "own.safetensors"), device="cpu")
    inputs, _ = subject.input_and_baseline(subject.shown(photo))
    expected = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(photo)[None]
    assert torch.allclose(inputs, expected, rtol=0, atol=1e-6)
    assert torch.allclose(subject.confidences(inputs), model(expected).softmax(1), rtol=0, atol=1e-5)
    assert (subject.layer_name, subject.classes, subject.classifier.class_names) == ("layer4", 3, None)


def test_timms_names_of_classes():
    assert load_classifier("timm:resnet10t", "random").class_name(281) == "tabby, tabby cat"


def test_a_folder_of_hugging_face(folder, photo):
    subject = models.load(f"hf:{folder}", device="cpu")
    inputs, _ = subject.input_and_baseline(subject.shown(photo))
    expected = transformers.AutoImageProcessor.from_pretrained(folder)(photo, return_tensors="pt")["pixel_values"]
    assert torch.allclose(inputs, expected, rtol=0, atol=1e-5)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert torch.allclose(subject.confidences(inputs), model(expected).logits.softmax(1), rtol=0, atol=1e-5)
    assert subject.class_index("bee") == 1
    assert subject.layer_name.endswith("1.layernorm_before")
    assert LayerLayerCam(subject.model, subject.layer).attribute(inputs, 1).shape == (1, 1, 4, 4)


def test_random_weights_are_others_and_the_same_each_time(folder):
    random = [load_classifier(f"hf:{folder}", "random").model.state_dict() for _ in range(2)]
    own = load_classifier(f"hf:{folder}").model.state_dict()
    name = "classifier.weight"
    assert torch.equal(random[0][name], random[1][name])
    assert not torch.equal(random[0][name], own[name])


@pytest.mark.parametrize("name", ["timm:resnet10t", "hf:nobody/has-this-model"])
def test_without_a_network_the_options_that_help_are_named(name, monkeypatch):
    def no_network(*_args, **_options):
        raise OSError("no network here")

    monkeypatch.setattr("timm.create_model", no_network)
    monkeypatch.setattr("transformers.AutoModelForImageClassification.from_pretrained", no_network)
    with pytest.raises(Failure, match=r"no network here.*give a file by weights=FILE, or weights='random'"):
        load_classifier(name)


def test_an_unknown_model_of_timm():
    with pytest.raises(WrongArgument, match=r"timm has no model 'resnet10x'; did you mean"):
        load_classifier("timm:resnet10x", "random")
