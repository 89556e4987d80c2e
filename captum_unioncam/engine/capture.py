"""What a layer computed for the inputs, and what the target's gradient there is, in a model left as it was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine._captum import TargetType, compute_layer_gradients_and_eval, forward_layer_eval
from captum_unioncam.engine.checks import check_finite, inputs_with_mask
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.layouts.torchvision import KnownTransforms
from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS, full_precision
from captum_unioncam.engine.model_state import modules_behind
from captum_unioncam.engine.outputs import Outputs, TensorOutput


@dataclass(frozen=True)
class LayerCall:
    """Layers of a model, and what the model is called with.

    Args:
        forward_func (Callable): The model, already in evaluation mode.
        layers (list[Module]): At least one.
        inputs (tuple[Tensor, ...]): Each (N, ...).
        additional_forward_args (tuple or None): Passed on.
        device_ids (list[int] or None): The devices of a ``DataParallel`` model that ``forward_func`` wraps.
        attribute_to_layer_input (bool): Look at the layers' inputs in place of their outputs.
        reshape_transform (Callable or None): A layer's output to maps. None: the one that is known for the layer.
        outputs (Outputs): What the model's outputs have to be like.
    """

    forward_func: Callable[..., Any]
    layers: list[Module]
    inputs: tuple[Tensor, ...]
    additional_forward_args: tuple[Any, ...] | None
    device_ids: list[int] | None
    attribute_to_layer_input: bool
    reshape_transform: ReshapeTransform | None
    outputs: Outputs

    def activations(self) -> list[tuple[Tensor, ...]]:
        """The outputs (or inputs) of each layer, each (N, K, *spatial), checked, half precision as float32."""
        activations = forward_layer_eval(
            TensorOutput(self.forward_func, self.outputs, self.inputs[0].shape[0]),
            _copies(self.inputs),
            self.layers,
            self.additional_forward_args,
            device_ids=self.device_ids,
            attribute_to_layer_input=self.attribute_to_layer_input,
        )
        return self._as_maps(activations, "activations")

    def gradients_and_activations(
        self, target: TargetType, grad_kwargs: dict[str, Any] | None
    ) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
        """The gradients of the raw target output at each layer, and the activations there."""
        gradients, activations = compute_layer_gradients_and_eval(
            TensorOutput(self.forward_func, self.outputs, self.inputs[0].shape[0]),
            self.layers,
            _copies(self.inputs),
            target,
            self.additional_forward_args,
            device_ids=self.device_ids,
            attribute_to_layer_input=self.attribute_to_layer_input,
            grad_kwargs=grad_kwargs,
        )
        return self._as_maps(gradients, "gradients"), self._as_maps(activations, "activations")

    def _as_maps(self, of_layers: list[tuple[Tensor, ...]], what: str) -> list[tuple[Tensor, ...]]:
        return [
            tuple(_checked(value, transform(value), what, self.inputs) for value in values)
            for values, transform in zip(of_layers, self._transforms(), strict=True)
        ]

    def _transforms(self) -> list[ReshapeTransform]:
        if self.reshape_transform is not None:
            return [self.reshape_transform] * len(self.layers)
        # Known only after a call: which modules a plain function has called.
        known = KnownTransforms(modules_behind(self.forward_func), self.attribute_to_layer_input)
        return [known[layer] for layer in self.layers]


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # The model may write into its input (an in-place ReLU), and Captum sets requires_grad on a layer's input: neither
    # may reach the caller's tensors, nor the masked passes that follow.
    return tuple(x.detach().clone() for x in inputs)


def _checked(value: Tensor, maps: Any, what: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """What was made of a layer's ``value``, if it is maps."""
    if not isinstance(maps, Tensor) or not 3 <= maps.dim() <= 2 + MAX_SPATIAL_DIMS:
        if maps is not value:
            made = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"reshape_transform: made {made} of the layer's {what} of shape {tuple(value.shape)}; return "
                "(N, K, *spatial) with one to three spatial dimensions."
            )
        raise ValueError(
            f"layer: its {what} have shape {tuple(value.shape)}, not (N, K, *spatial) with one to three spatial "
            "dimensions; choose a layer with space, such as the last convolution "
            "(captum_unioncam.find_spatial_layer finds one)."
        )
    examples = inputs[0].shape[0]
    if maps.shape[0] != examples:
        raise ValueError(
            f"layer: its {what} hold {maps.shape[0]} examples where the inputs hold {examples}; choose a layer that "
            "keeps one row an example."
        )
    # Not all methods mask inputs: without this, tokens would pass for the maps of a signal.
    inputs_with_mask(inputs, maps.dim())
    check_finite(maps, f"layer {what}")
    return full_precision(maps.detach())
