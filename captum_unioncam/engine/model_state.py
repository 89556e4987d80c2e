"""A model left as it was found: modes, buffers, hooks, gradients, flags and random numbers; one thread at a time."""

import functools
import inspect
import random
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import _global_backward_hooks, _global_backward_pre_hooks, _global_forward_pre_hooks
from torch.utils.hooks import RemovableHandle

from captum_unioncam.engine.accelerators import AUTOCAST, random_states
from captum_unioncam.engine.turns import Turn

_NONE = type(None)
_NO_TENSORS = {bool, int, float, str, tuple, set, dict, OrderedDict, _NONE}


@contextmanager
def evaluation_mode(
    *functions: Callable[..., Any] | None, output_fn: Callable[[Any], Any] | None = None
) -> Iterator[list[Any]]:
    """Runs the modules behind ``functions`` in evaluation mode, and leaves all as it was found, after Ctrl-C too.

    In training mode, thousands of masked images would go into the running statistics of batch normalisation, and
    an example's map would depend on its batch. Only flags change: ``Module.eval`` may be overridden. Buffers, and
    tensors that modules keep as attributes, are in each pass what they were before the first, and so are the random
    generators. Neither autocast nor inference mode reaches in from outside. Threads that share a module take turns.

    Args:
        functions (Callable or None): Modules, methods of modules, or any functions that call modules. What a plain
            function calls cannot be known beforehand: its modules are switched when it is first called, and no other
            thread has a turn meanwhile.
        output_fn (Callable or None): Called on what they return. Default: None

    Yields:
        *list[Callable or None]*: What to call in place of each.
    """
    given = [function for function in functions if function is not None]
    known = all(_is_known(function) for function in given)
    turn = Turn(modules_within(root for function in given for root in modules_behind(function)) if known else None)
    found = _Found()
    try:
        try:
            turn.wait()
            with _outside_inference_mode():
                found.without_autocast()
                for function in given:
                    for root in modules_behind(function):
                        found.evaluate(root)
                yield [None if f is None else EvaluatedFunction(f, found, output_fn) for f in functions]
        finally:
            found.give_back()
            turn.end()
    finally:
        # Ctrl-C may have come between any two lines of the first time.
        found.give_back()
        turn.end()


def _outside_inference_mode() -> AbstractContextManager[Any]:
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


class _Found:
    """What was found, and is given back."""

    def __init__(self) -> None:
        self.running = True
        self.given_back = False
        self.modules: dict[int, Module] = {}
        self.training: list[Module] = []
        self.tensors: list[_FoundTensors] = []
        self.hooks: list[RemovableHandle] = []
        self.autocast: list[str] = []
        self.random: list[tuple[Callable[[Any], Any], Any]] = []
        self.gradients = torch.is_grad_enabled()

    def without_autocast(self) -> None:
        for device_type in AUTOCAST:
            if torch.is_autocast_enabled(device_type):
                self.autocast.append(device_type)
                torch.set_autocast_enabled(device_type, False)

    def evaluate(self, root: Module) -> None:
        """Switches ``root`` to evaluation mode."""
        within = modules_within([root])
        new = [module for module in within if id(module) not in self.modules]
        self.modules.update((id(module), module) for module in new)
        if places := [place for module in new for place in _tensors_kept_by(module)]:
            self.tensors.append(_FoundTensors(places))
        for module in within:
            # Frozen TorchScript has no flag.
            if getattr(module, "training", False):
                self.training.append(module)
                module.training = False

    def reset_tensors(self, thoroughly: bool = False) -> None:
        for tensors in self.tensors:
            tensors.reset(thoroughly)

    def reset_random_state(self) -> None:
        while self.random:
            set_state, state = self.random[-1]
            set_state(state)
            self.random.pop()

    def give_back(self) -> None:
        """Does what is left to do; may be called again."""
        if self.given_back:
            return
        self.running = False
        for handle in self.hooks:
            handle.remove()
        while self.training:
            self.training[-1].training = True
            self.training.pop()
        self.reset_tensors(thoroughly=True)
        self.reset_random_state()
        while self.autocast:
            torch.set_autocast_enabled(self.autocast[-1], True)
            self.autocast.pop()
        torch.set_grad_enabled(self.gradients)
        self.given_back = True


class _FoundTensors:
    """Tensors that modules keep, or None in their place: the tensors, and what they held.

    Args:
        places (list): Of each, the module's buffers or attributes, the name in these, and whether whatever writes to
            the tensor counts its version up, as writing to ``tensor.data`` does not.
    """

    def __init__(self, places: list[tuple[dict[str, Any], str, bool]]) -> None:
        self.places = places
        self.tensors: list[Tensor | None] = [place[name] for place, name, _ in places]
        with torch.no_grad():
            self.contents = [None if tensor is None else tensor.clone() for tensor in self.tensors]
        self.versions = [*map(_version, self.tensors)]
        self.untraced = not all(traced for _, _, traced in places)

    def reset(self, thoroughly: bool) -> None:
        """Gives back those that were replaced or written to; looks at their values if ``thoroughly``."""
        now = [place.get(name) for place, name, _ in self.places]
        versions = [*map(_version, self.tensors)]
        if all(map(is_, now, self.tensors)) and versions == self.versions and not (thoroughly and self.untraced):
            return
        for i, (place, name, traced) in enumerate(self.places):
            tensor, content = self.tensors[i], self.contents[i]
            if now[i] is not tensor and (tensor is not None or isinstance(now[i], (Tensor, tuple))):
                place[name] = tensor
            if tensor is None or content is None:
                continue
            if versions[i] != self.versions[i] or (thoroughly and not traced and not _same(tensor, content)):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(content)
                self.versions[i] = _version(tensor)


def modules_within(roots: Iterable[Module]) -> dict[Module, None]:
    """What ``modules()`` of the roots gives, in that order, in a third of the time."""
    found: dict[Module, None] = {}
    ahead: list[Module | None] = list(roots)
    ahead.reverse()
    while ahead:
        module = ahead.pop()
        if module is not None and module not in found:
            found[module] = None
            ahead.extend([*module._modules.values()][::-1])
    return found


def _tensors_kept_by(module: Module) -> list[tuple[dict[str, Any], str, bool]]:
    """As ``_FoundTensors`` takes them."""
    attributes = module.__dict__
    buffers = attributes.get("_buffers")
    if not isinstance(buffers, dict):
        # TorchScript keeps them elsewhere.
        buffers = dict(module.named_buffers(recurse=False))
    kinds = [*map(type, attributes.values())]
    # Most modules keep no tensor besides, which is seen fast: ``_is_full_backward_hook`` is their only None.
    others = kinds.count(_NONE) > 1 or not _NO_TENSORS.issuperset(kinds)
    traced = type(module).__module__.startswith("torch.nn.modules.")
    return [
        (place, name, traced)
        for place in ((buffers, attributes) if others else (buffers,))
        for name, value in place.items()
        if isinstance(value, Tensor) or (value is None and name != "_is_full_backward_hook")
    ]


def _version(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.is_inference() else tensor._version


def _same(tensor: Tensor, content: Any) -> bool:
    try:
        return tensor.is_meta or torch.equal(tensor, content)
    except RuntimeError:
        # Some kinds of tensor, such as sparse ones, cannot be compared.
        return True


def _random_state() -> list[tuple[Callable[[Any], Any], Any]]:
    """The random generators that a model may draw from: what sets each, and its state."""
    state = [*random_states(), (random.setstate, random.getstate())]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        state.append((numpy.random.set_state, numpy.random.get_state()))
    return state


class EvaluatedFunction:
    """``function`` in evaluation mode, the modules that its first call runs included.

    Args:
        function (Callable): A module or any function.
        found (_Found): Of which each pass finds buffers and random generators as they were.
        output_fn (Callable or None): Called on what ``function`` returns. Default: None
    """

    def __init__(
        self, function: Callable[..., Any], found: _Found, output_fn: Callable[[Any], Any] | None = None
    ) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.found = found
        self.output_fn = output_fn
        self.modules_called: list[Module] = []
        self.called = _is_known(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.found.reset_tensors()
        self.found.random = _random_state()
        try:
            # No hook later on: it would keep a compiled model within the function from being compiled.
            output = self.function(*args, **kwargs) if self.called else self._first_call(*args, **kwargs)
            return output if self.output_fn is None else self.output_fn(output)
        finally:
            self.found.reset_random_state()

    def __getattr__(self, name: str) -> Any:
        # Those of a DataParallel model, for example.
        return getattr(self.__dict__["function"], name)

    def _first_call(self, *args: Any, **kwargs: Any) -> Any:
        thread = threading.get_ident()

        def before_forward(module: Module, _args: Any) -> None:
            if self.found.running and not self.called and threading.get_ident() == thread:
                self.found.evaluate(module)
                self.modules_called.append(module)

        handle = RemovableHandle(_global_forward_pre_hooks)
        self.found.hooks.append(handle)
        with handle, not_compiled():
            _global_forward_pre_hooks[handle.id] = before_forward
            result = self.function(*args, **kwargs)
        self.called = True
        return result


@contextmanager
def not_compiled() -> Iterator[None]:
    """Whatever was compiled runs as it was written: hooks do not reach into compiled code."""
    # What compiles is loaded as soon as anything is to be compiled.
    set_stance: Any = getattr(torch.compiler, "set_stance", None) if "torch._dynamo" in sys.modules else None
    with set_stance("force_eager") if set_stance else nullcontext():
        yield


def _is_known(function: Any) -> bool:
    """Whether all modules that a function calls are known beforehand."""
    if isinstance(function, EvaluatedFunction):
        return _is_known(function.function)
    return isinstance(function, Module)


def modules_behind(function: Any) -> list[Module]:
    """The module, the module whose method it is, or the modules that a compiled function names.

    Of a function that evaluation mode gave in place of another, those that it has called as well.
    """
    called: list[Module] = []
    compiled = False
    while not isinstance(function, Module) and (inner := _within(function)) is not None:
        attributes = getattr(function, "__dict__", {})
        called += attributes.get("modules_called", [])
        compiled = compiled or "_torchdynamo_orig_callable" in attributes
        function = inner
    if isinstance(function, Module):
        return [function, *called]
    if not compiled or not inspect.isfunction(function):
        return called
    names = inspect.getclosurevars(function)
    named = [value for value in (*names.nonlocals.values(), *names.globals.values()) if isinstance(value, Module)]
    return [*named, *called]


def has_backward_hooks(function: Any) -> bool:
    """Whether a module behind the function, or every module, has a hook that is run in the backward pass."""
    if _global_backward_hooks or _global_backward_pre_hooks:
        return True
    known = isinstance(function, EvaluatedFunction)
    modules = function.found.modules.values() if known else modules_within(modules_behind(function))
    return any(getattr(m, "_backward_hooks", None) or getattr(m, "_backward_pre_hooks", None) for m in modules)


def _within(function: Any) -> Any:
    """What a partial, bound, compiled or decorated function was made of; None for others."""
    if isinstance(function, functools.partial):
        return function.func
    if inspect.ismethod(function):
        return function.__self__ if isinstance(function.__self__, Module) else None
    attributes = getattr(function, "__dict__", {})
    return next((attributes[n] for n in ("_torchdynamo_orig_callable", "__wrapped__") if n in attributes), None)


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

    def give_back() -> None:
        for registry, content in found:
            if registry != content:
                registry.clear()
                registry.update(content)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad

    try:
        try:
            for parameter, _, _ in parameters:
                # backward() would add to the gradient that is there.
                parameter.grad = None
            yield
        finally:
            give_back()
    finally:
        # Ctrl-C may have come between any two lines of the first time.
        give_back()
