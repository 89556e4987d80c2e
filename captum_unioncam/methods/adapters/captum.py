"""Captum's own methods by name."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import GradientShap, IntegratedGradients, Occlusion
from torch import Tensor
from torch.nn import Module

from captum_unioncam.methods.settings import Attribute, Factory, MethodSettings

# Rows in a pass of Captum's methods that run many, unless the settings say otherwise.
_PASS_ROWS = 32


def of_layer(attribution: Any, **arguments: Any) -> Factory:
    """Captum's attribution of a model and a layer."""

    def factory(model: Module, layer: Module, _settings: MethodSettings) -> Attribute:
        method = attribution(model, layer)
        return lambda inputs, target, _baselines: method.attribute(inputs, target, **arguments)

    return factory


def of_input(attribution: Any) -> Factory:
    """Captum's attribution of a model alone."""

    def factory(model: Module, _layer: Module, _settings: MethodSettings) -> Attribute:
        method = attribution(model)
        return lambda inputs, target, _baselines: method.attribute(inputs.requires_grad_(), target)

    return factory


def integrated_gradients(model: Module, _layer: Module, settings: MethodSettings) -> Attribute:
    method = IntegratedGradients(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        # Captum would run all steps of all examples in one pass.
        rows = max(settings.internal_batch_size or _PASS_ROWS, len(inputs))
        attributions: Tensor = method.attribute(inputs, baselines, target, internal_batch_size=rows)
        return attributions

    return attribute


def gradient_shap(model: Module, _layer: Module, _settings: MethodSettings) -> Attribute:
    method = GradientShap(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        # One by one, since Captum draws an example's baselines from those of all examples.
        each = zip(*(torch.split(rows, 1) for rows in (inputs, baselines.expand_as(inputs), target)), strict=True)
        return torch.cat([method.attribute(example, baseline, target=index) for example, baseline, index in each])

    return attribute


def occlusion(model: Module, _layer: Module, settings: MethodSettings) -> Attribute:
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
