"""What a layer computed for the inputs, and what the target's gradient there is, in a model left as it was found."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook

from captum_unioncam._captum import (
    TargetType,
    compute_layer_gradients_and_eval,
    format_output,
    forward_layer_eval,
)
from captum_unioncam.layouts import KnownTransforms, ReshapeTransform
from captum_unioncam.maps import MAX_SPATIAL_DIMS, full_precision


@contextmanager
def evaluation_mode(*functions: Callable[..., Any] | None) -> Iterator[list[Any]]:
    """Runs the modules behind ``functions`` in evaluation mode, and gives each its own mode back.

    In training mode, thousands of masked images would go into the running statistics of batch normalisation, and
    an example's map would depend on its batch. Only flags change: ``Module.eval`` may be overridden.

    Args:
        functions (Callable or None): Modules, methods of modules, or any functions that call modules. What a plain
            function calls cannot be known beforehand: its modules are switched when it is first called.

    Yields:
        *list[Callable or None]*: What to call in place of each.
    """
    switched: list[Module] = []

    def switch(root: Module) -> None:
        for module in root.modules():
            # Frozen TorchScript has no flag.
            if getattr(module, "training", False):
                module.training = False
                switched.append(module)

    def in_evaluation_mode(function: Any) -> Any:
        for module in _modules_behind(function):
            switch(module)
        known = function is None or isinstance(function, Module) or _uncompiled(function) is not function
        return function if known else _SwitchingFunction(function, switch)

    try:
        yield [in_evaluation_mode(function) for function in functions]
    finally:
        for module in switched:
            module.training = True


def _uncompiled(function: Any) -> Any:
    """The function that ``torch.compile`` was given, or the function itself."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def _modules_behind(function: Any) -> list[Module]:
    """The module, the module whose method it is, or the modules that a compiled function names.

    Of a function that evaluation mode gave in place of a plain one, those that it has called as well.
    """
    if isinstance(function, Module):
        return [function]
    if isinstance(function, _SwitchingFunction):
        return [*_modules_behind(function.function), *function.modules_called]
    original = _uncompiled(function)
    owner = getattr(original, "__self__", None)
    if isinstance(owner, Module):
        return [owner]
    if original is function or not inspect.isfunction(original):
        return []
    names = inspect.getclosurevars(original)
    return [value for value in (*names.nonlocals.values(), *names.globals.values()) if isinstance(value, Module)]


class _SwitchingFunction:
    """``function``, with ``switch`` called on each module that its first call runs, in the thread of that call."""

    def __init__(self, function: Callable[..., Any], switch: Callable[[Module], None]) -> None:
        update_wrapper(self, function)
        self.function = function
        self.switch = switch
        self.modules_called: list[Module] = []
        self.called = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.called:
            # No hook any more: it would keep a compiled model within the function from being compiled.
            return self.function(*args, **kwargs)
        thread = threading.get_ident()

        def before_forward(module: Module, _args: Any) -> None:
            if not torch.compiler.is_compiling() and threading.get_ident() == thread:
                self.switch(module)
                self.modules_called.append(module)

        hook = register_module_forward_pre_hook(before_forward)
        try:
            result = self.function(*args, **kwargs)
        finally:
            hook.remove()
        self.called = True
        return result


def check_inputs(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, if there is an example among them."""
    if not inputs or inputs[0].dim() == 0 or inputs[0].shape[0] == 0:
        shapes = [tuple(x.shape) for x in inputs]
        raise ValueError(f"inputs: no example in the shapes {shapes}; give at least one.")
    return inputs


def format_attributions(
    layer: Module | list[Module], attributions: Sequence[Sequence[Tensor]], relu_attributions: bool
) -> Any:
    """The attributions of each layer and its outputs as Captum returns them.

    One tensor for a layer of one output, and a tuple for several; a list of those for a list of layers.
    """
    if relu_attributions:
        attributions = [[attribution.relu() for attribution in of_layer] for of_layer in attributions]
    return for_layers(layer, [format_output(len(of_layer) > 1, tuple(of_layer)) for of_layer in attributions])


def for_layers(layer: Module | list[Module], results: list[Any]) -> Any:
    """The results of the layers, a list for a list of them, and the only one for a layer alone."""
    return results[0] if isinstance(layer, Module) else results


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
    known = KnownTransforms(_modules_behind(forward_func), attribute_to_layer_input)
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


def inputs_with_mask(inputs: tuple[Tensor, ...], map_dims: int) -> list[bool]:
    """Which inputs take the mask that a map of so many dimensions makes; ``ValueError`` if none does."""
    masked = [x.dim() == map_dims for x in inputs]
    if not any(masked):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"inputs: none of the shapes {shapes} has the {map_dims - 2} spatial dimensions of the layer's output, "
            "so no mask fits; give an input of shape (N, C, *spatial), another layer, or, for tokens, a "
            "reshape_transform."
        )
    return masked


def check_finite(values: Tensor, what: str) -> None:
    """Raises ``ValueError`` naming the examples (dimension 0) that hold a NaN or an infinity."""
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        examples = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{what}: not finite for the examples {examples}; check their inputs for NaN and the model for overflow "
            "(float16 overflows above 65504: bfloat16 or float32 do not)."
        )
