"""The model to explain: its layer by any of its names, its confidences, its classes, its device."""

import pytest
import torch
from torch import nn
from torchvision import models

from captum_unioncam import LayerHiResCam, LayerUnionCam, metrics, tokens_to_maps
from captum_unioncam.methods import create
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import Failure, WrongArgument

OWN_MODULES = {
    "own_subject": """
import torch
from torch import nn

def net(*last, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes), *last
    )

def plain(): return net()
def sigmoid(): return net(nn.Sigmoid())
def hardsigmoid(): return net(nn.Hardsigmoid())
def clamped(): return net(nn.Hardtanh(0, 1))
def tanh(): return net(nn.Tanh())
def softmax(): return net(nn.Softmax(1))
def one(): return net(classes=1)
def one_sigmoid(): return net(nn.Sigmoid(), classes=1)
def none(): return net(classes=0)

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = net()
        self.features = nn.Sequential(*list(self.backbone.children())[:2])
        self.fc = self.backbone[-1]
    def forward(self, x): return self.fc(self.features(x).mean((2, 3)))
def twice(): return Twice()

class FromTanh(nn.Module):
    def forward(self, x): return (x.tanh() + 1) / 2
def from_tanh(): return net(FromTanh())

class InDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x): return {"logits": self.net(x), "loss": None}
def in_dict(): return InDict()

class Two(InDict):
    def forward(self, x):
        output = self.net(x)
        return {"mean": output, "spread": -2 * output}
def two(): return Two()
def spread(output): return output["spread"]
def other(output): return output["other"]

class Mixed(nn.Module):
    # Each token is of all places.
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.tokens, self.head = nn.Linear(48, 17 * 8), nn.Identity(), nn.Linear(8, 3)
    def forward(self, x):
        tokens = self.mix(x[..., ::56, ::56].flatten(1)).unflatten(1, (17, 8))
        return self.head(self.tokens(tokens).mean(1))
def mixed(): return Mixed()
def both(output): return output
"""
}
pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def subject(function, **options):
    return ExplainedModel(f"own_subject:{function}", device="cpu", **options)


BOUNDED = ["sigmoid", "hardsigmoid", "clamped", "from_tanh"]


@pytest.mark.parametrize("function", BOUNDED)
def test_outputs_that_are_confidences_already_are_told(function):
    with pytest.raises(
        WrongArgument, match=r"its outputs lie in \[0, 1\].* confidences already; give confidence='none'"
    ):
        subject(function)
    one = subject(function, confidence="none")
    assert torch.equal(one.confidences(one._black), one.model(one._black))


@pytest.mark.parametrize("confidence", ["softmax", "none"])
def test_probabilities_are_taken_as_they_are(confidence):
    one = subject("softmax", confidence=confidence)
    assert one.confidence == "none"
    assert torch.equal(one.confidences(one._black), one.model(one._black))


@pytest.mark.parametrize("function", ["plain", "one_sigmoid", "softmax", "tanh", *BOUNDED])
def test_library_metrics_and_command_make_the_same_confidences(function):
    """Each refuses the same models by default, and where none does, all make the same of them."""
    picture = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    options = {"confidence": "none"} if function in BOUNDED else {}
    one = subject(function, **options)
    maps = torch.rand(1, 1, 14, 14, generator=torch.Generator().manual_seed(1))

    def of_library(**given):
        details = LayerUnionCam(one.model, one.layer, **given).attribute(picture, 0, return_details=True)[1]
        return details.baseline_confidence.item()

    def of_metric(**given):
        curve = metrics.deletion(one.model, picture, maps, 0, steps=1, return_curve=True, **given)
        return curve.confidences[0, -1].item()

    if options:
        with pytest.raises(WrongArgument, match="give confidence="):
            subject(function)
        for call in (of_library, of_metric):
            with pytest.raises(ValueError, match=r"^confidence_fn: got none"):
                call()
    given = {"confidence_fn": one.confidence_fn} if options else {}
    expected = one.confidences(torch.zeros_like(picture))[0, 0].item()
    assert of_library(**given) == pytest.approx(expected, abs=1e-6)
    assert of_metric(**given) == pytest.approx(expected, abs=1e-6)


def test_a_single_logit_is_no_confidence():
    with pytest.raises(WrongArgument, match=r"its one output may be negative.* give confidence='sigmoid'"):
        subject("one")
    one = subject("one", confidence="sigmoid")
    assert torch.equal(one.confidences(one._black), one.model(one._black).sigmoid())
    assert subject("one_sigmoid").classes == 1


def test_a_model_without_classes_is_refused():
    with pytest.raises(Failure, match="tells no classes apart"):
        subject("none")


def test_the_output_may_be_within_a_dict():
    one = subject("in_dict")
    assert torch.equal(one.confidences(one._black), one.model.net(one._black).softmax(1))


@pytest.mark.parametrize("output_fn", ["own_subject:spread", lambda output: output["spread"]])
def test_output_fn_picks_the_tensor_for_every_packages_methods(output_fn):
    one, black = subject("two", output_fn=output_fn), torch.zeros(1, dtype=torch.int64)
    expected = subject("plain")
    picture = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(one.confidences(picture), (-2 * expected.model(picture)).softmax(1))
    for name in ("layer_cam", "grad_cam", "saliency", "torchcam:GradCAM", "grad_cam:GradCAM"):
        maps = create(name, one.model, one.layer)(picture, black, torch.zeros_like(picture))
        negated = torch.nn.Sequential(expected.model, Scaled(-2))
        assert torch.allclose(maps, create(name, negated, expected.layer)(picture, black, torch.zeros_like(picture)))
        assert maps.std() > 0
    assert one.layer_name == "net.1"


def test_outputs_that_do_not_tell_name_output_fn():
    held = r"returned dict \(mean: \(1, 4\), spread: \(1, 4\)\) for 1 rows; give output_fn='package.module:function'"
    for options in ({}, {"output_fn": "own_subject:both"}):
        with pytest.raises(Failure, match=rf"^name='own_subject:two': {held}"):
            subject("two", **options)
    with pytest.raises(WrongArgument, match=r"^output_fn='own_subject:other': raised KeyError .* dict: 'other'"):
        subject("two", output_fn="own_subject:other")
    with pytest.raises(WrongArgument, match=r"^output_fn='own_subject:spred': .*did you mean spread"):
        subject("two", output_fn="own_subject:spred")


@pytest.mark.parametrize("name", ["backbone.0", "features.0"])
def test_a_layer_has_all_of_its_names(name):
    one = subject("twice", layer=name)
    assert one.layer_name == name
    assert one.layer is one.model.backbone[0]


def test_a_layer_of_tokens_that_has_two_names_is_replaced_under_both():
    torch.manual_seed(0)
    vit = models.VisionTransformer(image_size=224, patch_size=56, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8,
                                   num_classes=3).eval()  # fmt: skip
    vit.again = vit.encoder
    one = subject("plain")
    one.model = vit
    for name in ("again.layers.encoder_layer_0.ln_1", "encoder.layers.encoder_layer_0.ln_1"):
        one.set_layer(name)
        with torch.no_grad():
            seen = []
            handle = one.layer.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output))
            one.model(torch.rand(1, 3, 224, 224))
            handle.remove()
        assert [tuple(maps.shape) for maps in seen] == [(1, 8, 4, 4)]
    one.set_layer("conv_proj")
    assert vit.again.layers.encoder_layer_0.ln_1 is vit.encoder.layers.encoder_layer_0.ln_1
    assert isinstance(vit.encoder.layers.encoder_layer_0.ln_1, nn.LayerNorm)


@pytest.mark.parametrize("wrong", ["nowhere", "4", "features.nowhere"])
def test_a_wrong_layer_leaves_the_one_before(wrong):
    one = subject("plain", layer="0")
    layer, names = one.layer, [name for name, _ in one.model.named_modules()]
    with pytest.raises(WrongArgument, match="layer"):
        one.set_layer(wrong)
    assert (one.layer_name, one.layer_found) == ("0", False)
    assert one.layer is layer
    assert [name for name, _ in one.model.named_modules()] == names


def test_a_wrong_layer_leaves_what_was_put_behind_the_one_before():
    torch.manual_seed(0)
    one = subject("plain")
    one.model = models.VisionTransformer(image_size=224, patch_size=56, num_layers=1, num_heads=2, hidden_dim=8,
                                         mlp_dim=8, num_classes=3).eval()  # fmt: skip
    one.set_layer("encoder.layers.encoder_layer_0.ln_1")
    layer, modules = one.layer, list(one.model.modules())
    assert layer in modules
    with pytest.raises(WrongArgument, match="has no layer"):
        one.set_layer("nowhere")
    assert one.layer is layer
    assert list(one.model.modules()) == modules


@pytest.mark.parametrize("target", ["-1", "--5", "4", "9" * 5000, "-", "--", "1.5", "+1"])
def test_targets_that_are_none_are_told(target):
    with pytest.raises(WrongArgument, match="target"):
        subject("plain").class_index(target)


def test_targets_are_numbers():
    assert [subject("plain").class_index(text) for text in ("0", "3", "003")] == [0, 3, 3]


@pytest.mark.parametrize(
    "name", ["hpu", "privateuseone", "mkldnn", "abacus", "cuda:99", "meta", "xla", "vulkan", "fpga", "", "cuda:x", "-1"]
)
def test_devices_that_are_not_there_are_told(name, recwarn):
    with pytest.raises(WrongArgument, match=r"device=.*: is not there; give cpu"):
        ExplainedModel(device=name)
    assert list(recwarn) == []


def test_a_confidence_that_there_is_not_is_told():
    with pytest.raises(WrongArgument, match=r"^confidence: got 'soft'; give one of softmax, sigmoid, none, auto\.$"):
        ExplainedModel(confidence="soft")


class Twice(torch.nn.Module):
    """Calls its convolution twice."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x)).flatten(2).mean(2)


def twice():
    return Twice().eval()


def test_a_layer_that_is_called_twice_is_refused():
    with pytest.raises(WrongArgument, match=r"^layer='conv': is called 2 times in a pass"):
        ExplainedModel("tests.models.test_subject:twice", layer="conv", device="cpu")


def test_a_layout_that_is_not_found_is_given():
    with pytest.raises(WrongArgument, match=r"such as 'tokens', .*Give layer=NAME, or models.load these two in Python"):
        ExplainedModel("own_subject:mixed", device="cpu")
    with pytest.raises(WrongArgument, match=r"^layer='tokens': has \(1, 17, 8\) .* models.load also takes"):
        ExplainedModel("own_subject:mixed", layer="tokens", device="cpu")
    with pytest.raises(WrongArgument, match=r"^reshape_transform: made shape \(1, 8, 17\) of \(1, 17, 8\); return"):
        ExplainedModel("own_subject:mixed", layer="tokens", device="cpu", reshape_transform=lambda output: output.mT)
    to_maps = tokens_to_maps(4, 4)
    subject = ExplainedModel("own_subject:mixed", layer="tokens", device="cpu", reshape_transform=to_maps)
    inputs = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    attr = LayerHiResCam(subject.model, subject.layer).attribute(inputs, 1)
    weight = subject.model.head.weight[1] / 17
    tokens = subject.model.mix(inputs[..., ::56, ::56].flatten(1)).unflatten(1, (17, 8))[0]
    expected = [
        max(0, sum(a * b for a, b in zip(token, weight.tolist(), strict=True))) for token in tokens[1:].tolist()
    ]
    assert attr.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert max(expected) > 0


def test_a_refused_layer_has_another_named():
    with pytest.raises(WrongArgument, match=r"^layer='3': has \(1, 6\) as output; .*, such as '1'"):
        ExplainedModel("own_subject:plain", layer="3", device="cpu")
