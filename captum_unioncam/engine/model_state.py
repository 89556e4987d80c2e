"""A model left as it was found: modes, hooks, gradients and flags."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook


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
        for module in modules_behind(function):
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


def modules_behind(function: Any) -> list[Module]:
    """The module, the module whose method it is, or the modules that a compiled function names.

    Of a function that evaluation mode gave in place of a plain one, those that it has called as well.
    """
    if isinstance(function, Module):
        return [function]
    if isinstance(function, _SwitchingFunction):
        return [*modules_behind(function.function), *function.modules_called]
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


@contextmanager
def left_as_found(model: Module) -> Iterator[None]:
    """Gives the modules their hooks and submodules back, and the parameters their gradients and flags.

    The other packages call ``backward()``, keep their hooks on, and stop half-way when something raises.
    """
    registries = [name for name, value in vars(Module()).items() if isinstance(value, dict)]
    found = [
        (registry, dict(registry))
        for module in model.modules()
        for registry in (getattr(module, name, None) for name in registries)
        if isinstance(registry, dict)
    ]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in parameters:
            # backward() would add to the gradient that is there.
            parameter.grad = None
        yield
    finally:
        for registry, content in found:
            registry.clear()
            registry.update(content)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
