"""What a layer computed for the inputs, and what the target's gradient there is, in a model left as it was found."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
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
        return function if known else _switching(function, switch)

    try:
        yield [in_evaluation_mode(function) for function in functions]
    finally:
        for module in switched:
            module.training = True


def _uncompiled(function: Any) -> Any:
    """The function that ``torch.compile`` was given, or the function itself."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def _modules_behind(function: Any) -> list[Module]:
    """The module, the module whose method it is, or the modules that a compiled function names."""
    if isinstance(function, Module):
        return [function]
    original = _uncompiled(function)
    owner = getattr(original, "__self__", None)
    if isinstance(owner, Module):
        return [owner]
    if original is function or not inspect.isfunction(original):
        return []
    names = inspect.getclosurevars(original)
    return [value for value in (*names.nonlocals.values(), *names.globals.values()) if isinstance(value, Module)]


def _switching(function: Callable[..., Any], switch: Callable[[Module], None]) -> Callable[..., Any]:
    """``function``, with ``switch`` called on each module that its first call runs, in the thread of that call."""
    seen = False

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if seen:
            # No hook any more: it would keep a compiled model within the function from being compiled.
            return function(*args, **kwargs)
        thread = threading.get_ident()

        def before_forward(module: Module, _args: Any) -> None:
            if not torch.compiler.is_compiling() and threading.get_ident() == thread:
                switch(module)

        hook = register_module_forward_pre_hook(before_forward)
        try:
            result = function(*args, **kwargs)
        finally:
            hook.remove()
        seen = True
        return result

    return call


def check_inputs(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, if there is an example among them."""
    if not inputs or inputs[0].dim() == 0 or inputs[0].shape[0] == 0:
        shapes = [tuple(x.shape) for x in inputs]
        raise ValueError(f"inputs: no example in the shapes {shapes}; give at least one.")
    return inputs


def format_attributions(attributions: Sequence[Tensor], relu_attributions: bool) -> Tensor | tuple[Tensor, ...]:
    """One tensor for a layer of one output, a tuple for several, as ``LayerGradCam`` returns them."""
    if relu_attributions:
        attributions = [attribution.relu() for attribution in attributions]
    formatted: Tensor | tuple[Tensor, ...] = format_output(len(attributions) > 1, tuple(attributions))
    return formatted


def layer_activations(
    forward_func: Callable[..., Any],
    layer: Module,
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...] | None,
    device_ids: list[int] | None,
    attribute_to_layer_input: bool,
) -> tuple[Tensor, ...]:
    """The layer's outputs (or inputs), each (N, K, *spatial), checked, half precision as float32."""
    activations = forward_layer_eval(
        forward_func,
        _copies(inputs),
        layer,
        additional_forward_args,
        device_ids=device_ids,
        attribute_to_layer_input=attribute_to_layer_input,
    )
    return _checked(activations, "activations", inputs[0].shape[0])


def layer_gradients_and_activations(
    forward_func: Callable[..., Any],
    layer: Module,
    inputs: tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: tuple[Any, ...] | None,
    device_ids: list[int] | None,
    attribute_to_layer_input: bool,
    grad_kwargs: dict[str, Any] | None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The gradients of the raw target output at the layer, and the activations there, as ``layer_activations``."""
    gradients, activations = compute_layer_gradients_and_eval(
        forward_func,
        layer,
        _copies(inputs),
        target,
        additional_forward_args,
        device_ids=device_ids,
        attribute_to_layer_input=attribute_to_layer_input,
        grad_kwargs=grad_kwargs,
    )
    examples = inputs[0].shape[0]
    return _checked(gradients, "gradients", examples), _checked(activations, "activations", examples)


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # The model may write into its input (an in-place ReLU), and Captum sets requires_grad on a layer's input: neither
    # may reach the caller's tensors, nor the masked passes that follow.
    return tuple(x.detach().clone() for x in inputs)


def _checked(values: tuple[Tensor, ...], what: str, examples: int) -> tuple[Tensor, ...]:
    for value in values:
        if not 3 <= value.dim() <= 2 + MAX_SPATIAL_DIMS:
            raise ValueError(
                f"layer: its {what} have shape {tuple(value.shape)}, not (N, K, *spatial) with one to three spatial "
                "dimensions; choose a layer with space, such as the last convolution "
                "(captum_unioncam.find_spatial_layer finds one)."
            )
        if value.shape[0] != examples:
            raise ValueError(
                f"layer: its {what} hold {value.shape[0]} examples where the inputs hold {examples}; choose a layer "
                "that keeps one row an example."
            )
        check_finite(value, f"layer {what}")
    return tuple(full_precision(value.detach()) for value in values)


def check_finite(values: Tensor, what: str) -> None:
    """Raises ``ValueError`` naming the examples (dimension 0) that hold a NaN or an infinity."""
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        examples = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{what}: not finite for the examples {examples}; check their inputs for NaN and the model for overflow "
            "(float16 overflows above 65504: bfloat16 or float32 do not)."
        )
