"""Runs methods on models whose modules write into their inputs."""

import warnings
from typing import Any

from torch import Tensor
from torch.nn import Module

from captum_unioncam.methods.settings import Attribute, Factory, MethodSettings


def without_in_place(factory: Factory) -> Factory:
    """The method, with ``inplace`` switched off in the model's modules while it runs.

    Captum cannot hook such modules, and torchcam and grad-cam keep the layer's output, which they would overwrite.
    """

    def factory_without(model: Module, layer: Module, settings: MethodSettings) -> Attribute:
        method = factory(model, layer, settings)

        def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
            in_place: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False) is True]
            try:
                for module in in_place:
                    module.inplace = False
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Setting backward hooks|Input Tensor 0 did not")
                    return method(inputs, target, baselines)
            finally:
                for module in in_place:
                    module.inplace = True

        return attribute

    factory_without.__doc__ = factory.__doc__
    return factory_without
