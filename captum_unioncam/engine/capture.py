"""What a layer computed for the inputs, and what the target's gradient there is, in a model left as it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine._captum import TargetType, compute_layer_gradients_and_eval, forward_layer_eval
from captum_unioncam.engine.checks import check_finite, inputs_with_mask
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.layouts.torchvision import KnownTransforms
from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS, full_precision
from captum_unioncam.engine.model_state import modules_behind


def layer_activations(
    forward_func: Callable[..., Any],
    layer: Module | list[Module],
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...] | None,
    device_ids: list[int] | None,
    attribute_to_layer_input: bool,
    reshape_transform: ReshapeTransform | None,
) -> list[tuple[Tensor, ...]]:
    """The outputs (or inputs) of each layer, each (N, K, *spatial), checked, half precision as float32."""
    layers = _as_list(layer)
    activations = forward_layer_eval(
        forward_func,
        _copies(inputs),
        layers,
        additional_forward_args,
        device_ids=device_ids,
        attribute_to_layer_input=attribute_to_layer_input,
    )
    # Known now: which modules a plain function has called.
    transforms = _transforms(forward_func, layers, attribute_to_layer_input, reshape_transform)
    return _as_maps(activations, transforms, "activations", inputs)


def layer_gradients_and_activations(
    forward_func: Callable[..., Any],
    layer: Module | list[Module],
    inputs: tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: tuple[Any, ...] | None,
    device_ids: list[int] | None,
    attribute_to_layer_input: bool,
    grad_kwargs: dict[str, Any] | None,
    reshape_transform: ReshapeTransform | None,
) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """The gradients of the raw target output at each layer, and the activations there, as ``layer_activations``."""
    layers = _as_list(layer)
    gradients, activations = compute_layer_gradients_and_eval(
        forward_func,
        layers,
        _copies(inputs),
        target,
        additional_forward_args,
        device_ids=device_ids,
        attribute_to_layer_input=attribute_to_layer_input,
        grad_kwargs=grad_kwargs,
    )
    transforms = _transforms(forward_func, layers, attribute_to_layer_input, reshape_transform)
    return (
        _as_maps(gradients, transforms, "gradients", inputs),
        _as_maps(activations, transforms, "activations", inputs),
    )


def _as_list(layer: Module | list[Module]) -> list[Module]:
    layers = [layer] if isinstance(layer, Module) else list(layer)
    if not layers:
        raise ValueError("layer: got a list of none; give at least one layer.")
    return layers


def _transforms(
    forward_func: Callable[..., Any],
    layers: list[Module],
    attribute_to_layer_input: bool,
    reshape_transform: ReshapeTransform | None,
) -> list[ReshapeTransform]:
    if reshape_transform is not None:
        return [reshape_transform] * len(layers)
    known = KnownTransforms(modules_behind(forward_func), attribute_to_layer_input)
    return [known[layer] for layer in layers]


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # The model may write into its input (an in-place ReLU), and Captum sets requires_grad on a layer's input: neither
    # may reach the caller's tensors, nor the masked passes that follow.
    return tuple(x.detach().clone() for x in inputs)


def _as_maps(
    of_layers: list[tuple[Tensor, ...]], transforms: list[ReshapeTransform], what: str, inputs: tuple[Tensor, ...]
) -> list[tuple[Tensor, ...]]:
    return [
        tuple(_checked(value, transform(value), what, inputs) for value in values)
        for values, transform in zip(of_layers, transforms, strict=True)
    ]


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
    # Of the three methods, only two mask inputs: without this, tokens would pass for the maps of a signal.
    inputs_with_mask(inputs, maps.dim())
    check_finite(maps, f"layer {what}")
    return full_precision(maps.detach())
