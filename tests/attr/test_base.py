"""What every method has from attr/base.py: its signature and docstring, its name, and layers by their names."""

import inspect
import re

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_unioncam import LayerScoreCam, LayerUnionCam
from captum_unioncam.attr.base import CAMS, GradientCam, PerturbationCam
from captum_unioncam.engine.maps import weighted
from tests.attr import OF_ANY_NETWORK, few_passes
from tests.networks import TinyNet, same, tiny_inputs

CLASSES = sorted(set(CAMS.values()), key=lambda cls: cls.__name__)


@pytest.fixture
def nothing_stays_registered(monkeypatch):
    monkeypatch.setattr("captum_unioncam.attr.base.CAMS", dict(CAMS))


def documented(text):
    """The arguments that a docstring has an entry for, by a reading of its own."""
    (arguments,) = re.findall(r"^Args:\n((?:    .*\n|\n)+)", inspect.cleandoc(text) + "\n", flags=re.MULTILINE)
    return re.findall(r"^    (\w+) \(", arguments, flags=re.MULTILINE)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_argument_stands_in_signature_and_docstring_once(cls):
    for function, text in ((cls.__init__, cls.__doc__), (cls.attribute, cls.attribute.__doc__)):
        names = [name for name in inspect.signature(function).parameters if name != "self"]
        assert documented(text) == names
    for heading in ("Returns:", "Raises:", "Examples::"):
        assert f"\n{heading}\n" in inspect.getdoc(cls.attribute)
    assert all(len(line) <= 116 for line in cls.attribute.__doc__.splitlines())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_positional_arguments_are_captums(cls):
    captums = list(inspect.signature(LayerGradCam.attribute).parameters.values())
    ours = list(inspect.signature(cls.attribute).parameters.values())
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    shared = captums if issubclass(cls, GradientCam) else [p for p in captums if p.name != "grad_kwargs"]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in shared]


def test_arguments_of_a_method_are_its_equations_and_have_their_defaults():
    parameters = inspect.signature(LayerUnionCam.attribute).parameters
    assert {name: parameters[name].default for name in ("theta", "channel_weights", "max_channels")} == {
        "theta": 10.0,
        "channel_weights": "score",
        "max_channels": None,
    }
    assert "theta" not in inspect.signature(LayerScoreCam.attribute).parameters
    assert "return_details" not in inspect.signature(LayerScoreCam.attribute).parameters


@pytest.mark.parametrize("cls", CLASSES)
def test_an_argument_that_does_not_exist_is_refused(cls):
    net = TinyNet()
    method = cls(net, net.features)
    for call in (method.attribute, lambda x, _, **more: method.attribute_targets(x, [[0]] * 3, **more)):
        with pytest.raises(TypeError, match="thetha"):
            call(tiny_inputs(), 0, thetha=3)


@pytest.mark.parametrize("cls", OF_ANY_NETWORK)
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: net.forward, nn.DataParallel], ids=["", "method", "dp"])
def test_layers_by_name(cls, wrap):
    net, inputs, few = TinyNet(), tiny_inputs(), few_passes(cls)
    expected = cls(net, [net.features[0], net.features]).attribute(inputs, 1, **few)
    maps = cls(wrap(net), ["features.0", net.features]).attribute(inputs, 1, **few)
    assert all(same(*pair) for pair in zip(maps, expected, strict=True))
    assert same(cls(wrap(net), "features").attribute(inputs, 1, **few), expected[1])


def test_a_layer_by_name_in_a_compiled_model():
    net = TinyNet()
    compiled = torch.compile(net, backend="eager")
    assert LayerScoreCam(compiled, "features").layer is net.features


def test_layers_that_do_not_exist_are_named_with_those_that_are_near():
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^layer: the model has no layer 'feature'; did you mean features or "):
        LayerUnionCam(net, "feature")
    with pytest.raises(ValueError, match=r"^layer: cannot look up 'features', since forward_func is a function"):
        LayerUnionCam(lambda x: net(x), "features")
    with pytest.raises(ValueError, match=r"^layer: got a list of none"):
        LayerUnionCam(net, [])


@pytest.mark.usefixtures("nothing_stays_registered")
def test_a_subclass_is_all_that_a_method_needs():
    class LayerPower(GradientCam):
        """Activations to a power, weighted by mean gradients."""

        name = "power_cam"
        relu = True

        def check(self, power):
            if power < 1:
                raise ValueError(f"power: got {power}; give at least 1.")

        def terms(self, activations, gradients, *, power: int = 2):
            """
            Args:
                power (int): Of the activations, at least 1. Default: 2
            """
            return weighted(gradients.flatten(2).mean(2), activations**power)

    net, inputs = TinyNet(), tiny_inputs()
    from captum_unioncam.attr import base

    assert base.CAMS["power_cam"] is LayerPower
    grad_cam = LayerGradCam(net, net.features).attribute(inputs, 1, relu_attributions=True)
    assert torch.allclose(LayerPower(net, "features").attribute(inputs, 1, power=1), grad_cam, rtol=0, atol=1e-12)
    assert not same(LayerPower(net, "features").attribute(inputs, 1), grad_cam)
    assert documented(LayerPower.attribute.__doc__)[-1] == "power"
    with pytest.raises(ValueError, match=r"^power: got 0"):
        LayerPower(net, net.features).attribute(inputs, 1, power=0)
    with pytest.raises(ValueError, match=r"^name: 'power_cam' is that of"):
        type("Other", (GradientCam,), {"name": "power_cam", "__module__": __name__})


def test_a_class_without_equations_says_what_to_define():
    class Empty(PerturbationCam):
        pass

    net = TinyNet()
    with pytest.raises(NotImplementedError, match="Empty: define weights, terms or cam"):
        Empty(net, net.features).attribute(tiny_inputs(), 1)
