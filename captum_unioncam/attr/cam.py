"""The original CAM: channels weighted as the model's last linear layer weights their means."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv1d, Conv2d, Conv3d, Linear, Module

from captum_unioncam.attr.base import CamAttribution, Captured, LayerT
from captum_unioncam.attr.find_layer import named_layers
from captum_unioncam.engine._captum import TargetType, select_targets
from captum_unioncam.engine.capture import LayerCall
from captum_unioncam.engine.checks import described
from captum_unioncam.engine.confidence import OutputFunction
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.model_state import modules_behind
from captum_unioncam.engine.outputs import Outputs


class LayerLinearCam(CamAttribution[LayerT]):
    r"""
    The original CAM: each channel weighted by the class's row of the model's last linear layer.

    With :math:`A` the layer's output and :math:`w^c` the row of class :math:`c` in the weights of the linear layer,

    .. math::
        L = \sum_k w^c_k \, A_k

    (Zhou et al., *Learning Deep Features for Discriminative Localization*, CVPR 2016,
    https://arxiv.org/abs/1512.04150, and the authors' code). There is no bias and no ReLU: negative values are evidence
    against the class. ``relu_attributions=True`` sets them to 0.

    Correct only if the layer is followed by global average pooling and the linear layer, with at most a ReLU before the
    pooling: ``layer4`` of a ResNet, ``features`` of a DenseNet or a MobileNetV2. For these models, it equals Grad-CAM's
    map without ReLU, times the number of positions. The number of channels is checked; the layers between are not.

    Passes per image: 1 forward, 0 backward. Use it for such models if gradients are not available.

    Args:
        fc (torch.nn.Module, str or None): The linear layer, or 1x1 convolution, that computes the model's outputs from
            the pooled channels; a dotted name is looked up in the model. Default: None, the model's only ``Linear``, or
            its only 1x1 convolution if it has no ``Linear``
    """

    name = "cam"

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: LayerT,
        device_ids: list[int] | None = None,
        *,
        fc: Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
        output_fn: OutputFunction | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, reshape_transform=reshape_transform, output_fn=output_fn)
        if fc is not None and not isinstance(fc, (Module, str)):
            raise TypeError(f"fc: got {described(fc)}; give a linear layer, its dotted name, or None.")
        self.fc: Any = None if fc is None else named_layers(fc, forward_func, "fc")

    def check(self) -> None:
        # Of a plain function, the modules are known once it has run.
        if self.fc is not None or modules_behind(self.forward_func):
            linear_weights(self.fc, self.forward_func)

    def weights(self, activations: Tensor, class_weights: Tensor) -> Tensor:
        """
        Raises:
            ValueError: No linear layer, several linear layers and no ``fc``, or a layer whose inputs are not the
                channels or whose outputs are not the model's.

        Examples::

            >>> cam = LayerLinearCam(model, model.layer4)
            >>> attr = cam.attribute(images, target=3)  # (N, 1, 7, 7)
        """
        if class_weights.shape[1] != activations.shape[1]:
            raise ValueError(
                f"fc: takes {class_weights.shape[1]} values where the layer has {activations.shape[1]} channels; "
                "explain the layer in front of the global average pooling, or take LayerXGradCam, which needs none."
            )
        return class_weights.to(activations)

    def _captured(self, call: LayerCall, targets: Sequence[TargetType]) -> Captured:
        activations, _ = super()._captured(call, targets)
        weights = linear_weights(self.fc, call.forward_func)
        rows = [weights[class_numbers(len(weights), target, call.outputs).to(weights.device)] for target in targets]
        return activations, lambda _layer, _output, target: {"class_weights": rows[target]}


def linear_weights(fc: Any, forward_func: Callable[..., Any]) -> Tensor:
    """The weights (C, K) of the linear layer or 1x1 convolution ``fc``, or of the model's only one."""
    if fc is None:
        fc = _only_linear_layer(modules_behind(forward_func))
    if not _is_linear(fc) and not _is_pointwise(fc):
        raise ValueError(f"fc: got {type(fc).__name__}; give a linear layer or a 1x1 convolution.")
    weights: Tensor = fc.weight.detach()
    return weights.flatten(1)


def class_numbers(classes: int, target: TargetType, outputs: Outputs) -> Tensor:
    """The class of each example, (N,), int64: the first index of its target."""
    form = outputs.form or torch.Size()
    if classes != (form[0] if form else 1):
        raise ValueError(
            f"fc: has {classes} classes where the model's outputs have shape (N, {', '.join(map(str, form))}); give "
            "the linear layer that makes the outputs."
        )
    numbers = torch.arange(classes, device=target.device if isinstance(target, Tensor) else None)
    numbers = numbers.reshape(1, -1, *[1] * (len(form) - 1)) if form else numbers
    chosen: Tensor = select_targets(numbers.expand(outputs.examples, *form), target)
    return chosen.reshape(outputs.examples)


def _only_linear_layer(roots: list[Module]) -> Any:
    for is_wanted in (_is_linear, _is_pointwise):
        found = {m: name for root in roots for name, m in root.named_modules() if is_wanted(m)}
        if len(found) == 1:
            return next(iter(found))
        if found:
            names = ", ".join(map(repr, list(found.values())[-2:]))
            raise ValueError(f"fc: got none, and the model has {len(found)}, the last {names}; give the one to take.")
    raise ValueError("fc: got none, and the model has no linear layer and no 1x1 convolution; give the one to take.")


def _is_linear(module: Module) -> bool:
    return isinstance(module, Linear)


def _is_pointwise(module: Any) -> bool:
    if not isinstance(module, (Conv1d, Conv2d, Conv3d)):
        return False
    return set(module.kernel_size) == {1} and module.groups == 1
