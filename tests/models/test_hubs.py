"""Models of timm and Hugging Face by name: as those libraries make, preprocess and name them, without a network."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_unioncam import LayerLayerCam, models
from captum_unioncam.cli import options
from captum_unioncam.models.zoo import download_of, load_classifier
from captum_unioncam.report import notebooks
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


def test_a_model_that_takes_blue_first_shows_the_image_in_its_own_colours(folder):
    transformers.MobileViTImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(folder)
    subject = models.load(f"hf:{folder}", device="cpu")
    red = Image.new("RGB", (90, 80), (200, 10, 40))
    shown = subject.shown(red)
    assert torch.allclose(shown[:, 0, 0] * 255, torch.tensor([200.0, 10.0, 40.0]), rtol=0, atol=0.01)
    inputs, black = subject.input_and_baseline(shown)
    expected = transformers.AutoImageProcessor.from_pretrained(folder)(red, return_tensors="pt")["pixel_values"]
    assert torch.allclose(inputs, torch.as_tensor(expected), rtol=0, atol=1e-6)
    assert not black.any()
    assert subject.classifier.preprocessing.box_seen(red.size) is not None


def test_a_file_of_hugging_face_weights_in_the_names_of_the_hub(folder, photo):
    named = load_classifier(f"hf:{folder}", folder / "model.safetensors").model.state_dict()
    expected = transformers.AutoModelForImageClassification.from_pretrained(folder).state_dict()
    assert named.keys() == expected.keys()
    assert all(torch.equal(named[key], value) for key, value in expected.items())
    other = {key: value[:1] if key == "classifier.bias" else value for key, value in expected.items()}
    save_file(other, folder / "other.safetensors")
    with pytest.raises(Failure, match=r"does not fit hf:.*classifier\.bias"):
        load_classifier(f"hf:{folder}", folder / "other.safetensors")


def test_random_weights_are_others_and_the_same_each_time(folder):
    random = [load_classifier(f"hf:{folder}", "random").model.state_dict() for _ in range(2)]
    own = load_classifier(f"hf:{folder}").model.state_dict()
    name = "classifier.weight"
    assert torch.equal(random[0][name], random[1][name])
    assert not torch.equal(random[0][name], own[name])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("timm:resnet10t", "give a file by weights=FILE, or weights='random'"),
        ("hf:nobody/has-this-model", "give name='hf:FOLDER', a folder with config.json"),
    ],
)
def test_without_a_network_the_options_that_help_are_named(name, advice, monkeypatch):
    def no_network(*_args, **_options):
        raise OSError("no network here")

    monkeypatch.setattr("timm.create_model", no_network)
    monkeypatch.setattr("transformers.AutoModelForImageClassification.from_pretrained", no_network)
    with pytest.raises(Failure, match=f"no network here.*{advice}"):
        load_classifier(name)


def test_a_folder_with_the_configuration_alone(folder, tmp_path_factory):
    """What the failure without a network advises."""
    alone = tmp_path_factory.mktemp("alone")
    (alone / "config.json").write_text((folder / "config.json").read_text())
    assert load_classifier(f"hf:{alone}", "random").class_names == ("ant", "bee", "cat")
    with pytest.raises(Failure, match=r"give name='hf:FOLDER', a folder with config\.json and model\.safetensors"):
        load_classifier(f"hf:{alone}")


def test_what_will_be_downloaded_from_the_hubs_is_said(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, repository in (("hf:nobody/has-this", "nobody/has-this"), ("timm:resnet10t", "timm/resnet10t.c3_in1k")):
        said = download_of(name)
        assert said == f"{name}'s weights from Hugging Face's hub ({repository}) to {tmp_path / 'hub'}"
        stored = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        for part, text in (("refs/main", "1"), ("snapshots/1/model.safetensors", "")):
            (stored / part).parent.mkdir(parents=True)
            (stored / part).write_text(text)
        assert download_of(name) is None
    assert download_of(f"hf:{folder}") is None


@pytest.mark.parametrize("name", ["timm:qwen3_vit_88m_enc", "timm:vit_small_patch14_dinov2"])
def test_a_model_of_timm_without_classes(name):
    with pytest.raises(Failure, match=rf"^name='{name}': has no classes; give a classifier"):
        load_classifier(name, "random")


def test_all_models_are_named_wherever_some_are():
    with pytest.raises(WrongArgument) as error:
        load_classifier("nonesuch")
    documented = (Path(__file__).parents[2] / "docs" / "command.md").read_text().partition("## Models")[2]
    helps = [get_args(option)[1].help for option in (options.ModelOption, options.PhotoModelOption)]
    texts = [str(error.value), documented.partition("\n## ")[0], *helps]
    for text in (*texts, models.load.__doc__, load_classifier.__doc__, notebooks.explain.__doc__):
        for name in ("demo", "torchvision", "timm:NAME", "hf:NAME", "efficientnet_lite0", "package.module:function"):
            assert name in text


def test_an_unknown_model_of_timm():
    with pytest.raises(WrongArgument, match=r"timm has no model 'resnet10x'; did you mean"):
        load_classifier("timm:resnet10x", "random")
    with pytest.raises(WrongArgument, match=r"timm has no weights of the tag in 'resnet10t.c4_in1k'; give .*c3_in1k"):
        load_classifier("timm:resnet10t.c4_in1k", "random")
