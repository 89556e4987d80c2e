"""Captum's own methods by name."""

from typing import Any

import torch
from captum.attr import (
    Deconvolution,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    LayerGradientXActivation,
    Occlusion,
    Saliency,
)
from torch import Tensor
from torch.nn import Module

from captum_unioncam.methods.adapters.in_place import without_in_place
from captum_unioncam.methods.settings import Attribute, Factory, MethodSettings

# Batch size of Captum's methods that run many passes, where the settings have none.
_PASS_ROWS = 32


def _of_layer(attribution: Any, **arguments: Any) -> Factory:
    """Captum's attribution of a model and a layer."""

    def factory(model: Module, layer: Module, _settings: MethodSettings) -> Attribute:
        method = attribution(model, layer)
        return lambda inputs, target, _baselines: method.attribute(inputs, target, **arguments)

    factory.__doc__ = f"Captum's {attribution.__name__}."
    return factory


def _of_input(attribution: Any) -> Factory:
    """Captum's attribution of a model alone."""

    def factory(model: Module, _layer: Module, _settings: MethodSettings) -> Attribute:
        method = attribution(model)
        return lambda inputs, target, _baselines: method.attribute(inputs.requires_grad_(), target)

    factory.__doc__ = f"Captum's {attribution.__name__}."
    return factory


def _integrated_gradients(model: Module, _layer: Module, settings: MethodSettings) -> Attribute:
    """Captum's IntegratedGradients."""
    method = IntegratedGradients(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        # Captum would run all steps of all examples in one pass.
        rows = max(settings.internal_batch_size or _PASS_ROWS, len(inputs))
        attributions: Tensor = method.attribute(inputs, baselines, target, internal_batch_size=rows)
        return attributions

    return attribute


def _gradient_shap(model: Module, _layer: Module, _settings: MethodSettings) -> Attribute:
    """Captum's GradientShap."""
    method = GradientShap(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        # One example at a time: Captum draws an example's baselines from those of the whole batch.
        each = zip(*(torch.split(rows, 1) for rows in (inputs, baselines.expand_as(inputs), target)), strict=True)
        return torch.cat([method.attribute(example, baseline, target=index) for example, baseline, index in each])

    return attribute


def _occlusion(model: Module, _layer: Module, settings: MethodSettings) -> Attribute:
    """Captum's Occlusion, by patches of a seventh of the image's sides."""
    method = Occlusion(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        patch = tuple(max(1, round(side / 7)) for side in inputs.shape[2:])
        attributions: Tensor = method.attribute(
            inputs,
            sliding_window_shapes=(inputs.shape[1], *patch),
            strides=(inputs.shape[1], *(max(1, side // 2) for side in patch)),
            baselines=baselines,
            target=target,
            perturbations_per_eval=max(1, (settings.internal_batch_size or _PASS_ROWS) // len(inputs)),
        )
        return attributions

    return attribute


CAPTUM_METHODS: dict[str, Factory] = {
    "grad_cam": _of_layer(LayerGradCam, relu_attributions=True),
    "layer_grad_x_activation": _of_layer(LayerGradientXActivation),
    "guided_grad_cam": without_in_place(_of_layer(GuidedGradCam, interpolate_mode="bilinear")),
    "guided_backprop": without_in_place(_of_input(GuidedBackprop)),
    "deconvolution": without_in_place(_of_input(Deconvolution)),
    "saliency": _of_input(Saliency),
    "input_x_gradient": _of_input(InputXGradient),
    "integrated_gradients": _integrated_gradients,
    "gradient_shap": _gradient_shap,
    "occlusion": _occlusion,
}
