"""The cases of Captum's own generated tests, which it ships from 0.9 on."""

import copy
from enum import Enum

import pytest
import torch
from captum.attr import LayerGradCam
from captum.attr._models.base import _set_deep_layer_value
from torch import nn

from captum_unioncam import LayerUnionCam
from tests.attr import OF_ANY_NETWORK, few_passes

pytest.importorskip("captum.testing")
from captum.testing.attr.helpers.gen_test_utils import get_target_layer, parse_test_config
from captum.testing.attr.helpers.test_config import config

GRAD_CAM_ENTRIES = [entry for entry in config if LayerGradCam in entry["algorithms"]]


def has_space(attribution):
    return all(a.dim() > 2 for a in (attribution if isinstance(attribution, tuple) else (attribution,)))


def shapes(attribution):
    return [a.shape for a in attribution] if isinstance(attribution, tuple) else attribution.shape


@pytest.mark.parametrize("entry", GRAD_CAM_ENTRIES, ids=lambda entry: entry["name"])
def test_captums_generated_tests(entry):
    _, model, args, layer, noise_tunnel, _ = parse_test_config(copy.deepcopy(entry))
    assert not noise_tunnel
    layer = get_target_layer(model, layer)
    expected = LayerGradCam(model, layer).attribute(**copy.deepcopy(args))
    if has_space(expected):
        attr = LayerUnionCam(model, layer).attribute(**args)
        assert shapes(attr) == shapes(expected)
        assert torch.isfinite(attr).all()
    else:
        with pytest.raises(ValueError, match=r"layer: its \w+ have shape .* not \(N, K, \*spatial\)"):
            LayerUnionCam(model, layer).attribute(**args)


def test_captums_configuration_still_lists_layers_with_and_without_space():
    spaces = []
    for entry in GRAD_CAM_ENTRIES:
        _, model, args, layer, _, _ = parse_test_config(copy.deepcopy(entry))
        spaces.append(has_space(LayerGradCam(model, get_target_layer(model, layer)).attribute(**args)))
    assert spaces.count(True) >= 1
    assert spaces.count(False) >= 6


class HookRemovalMode(Enum):
    """Captum's three: a plain run, a target that does not exist, and a module that raises."""

    NORMAL = 1
    INCORRECT_TARGET = 2
    INVALID_MODULE = 3


class ErrorModule(nn.Module):
    def forward(self, *args, **kwargs):
        raise AssertionError("Raising error on execution")


@pytest.mark.parametrize("mode", HookRemovalMode)
@pytest.mark.parametrize("entry", GRAD_CAM_ENTRIES, ids=lambda entry: entry["name"])
@pytest.mark.parametrize("method", OF_ANY_NETWORK)
def test_no_hook_is_left_behind(method, entry, mode):
    _, model, args, layer_name, _, _ = parse_test_config(copy.deepcopy(entry))
    space = has_space(LayerGradCam(model, get_target_layer(model, layer_name)).attribute(**copy.deepcopy(args)))
    errors = () if space else (ValueError,)
    if mode is HookRemovalMode.INCORRECT_TARGET:
        args["target"] = (9999,) * 20
        errors += (AssertionError,)
    if mode is HookRemovalMode.INVALID_MODULE:
        _set_deep_layer_value(model, layer_name, ErrorModule())
        errors = (AssertionError,)
    attribution = method(model, get_target_layer(model, layer_name))
    args |= few_passes(method)
    if errors:
        with pytest.raises(errors):
            attribution.attribute(**args)
    else:
        attribution.attribute(**args)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not module._forward_pre_hooks
