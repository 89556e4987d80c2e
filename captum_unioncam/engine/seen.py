"""Layers as Captum's helpers see them, and errors for layers that cannot be explained."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS
from captum_unioncam.engine.model_state import not_compiled

USUAL_LAYER = "the one that captum_unioncam.find_spatial_layer finds"
OTHER_LAYER = f"choose another, such as {USUAL_LAYER}"
NO_GRADIENT = "choose a layer behind that, call the model's forward, or take LayerScoreCam, which needs no gradient"


HookT = TypeVar("HookT", bound="LayerHook")


class LayerError(ValueError):
    """A layer that cannot be explained, of a model where another may be."""

    def suggest(self, name: str) -> None:
        """Has the message name that layer as another."""
        self.args = (str(self).replace(USUAL_LAYER, repr(name)),)


class LayerHook:
    """Looks at what a layer makes, or is given, and may put something else in its place; as long as it is ``watched``.

    Attributes:
        layer (Module): Has the hook.
        of_input (bool): Look at its input in place of its output.
        watching (bool): Whether to look.
    """

    layer: Module
    of_input: bool
    watching = True

    def watch(self) -> Any:
        """Puts the hook on, and returns its handle."""
        if self.of_input:
            return self.layer.register_forward_pre_hook(self._before, with_kwargs=True)
        return self.layer.register_forward_hook(lambda _layer, _args, output: self._seen(output))

    def look(self, value: Any) -> Any:
        """What takes the place of the value."""
        raise NotImplementedError

    def _before(self, _layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._seen(args), kwargs

    def _seen(self, value: Any) -> Any:
        return self.look(value) if self.watching else value


class SeenLayer(LayerHook, Module):
    """Stands in for a layer in Captum's helpers, which take all that a module returns for tensors.

    A hook of the layer calls it with the tensors in the layer's output or input that are ``looked_at``, and passes on
    the copies that Captum returns: what comes after the layer may write into what it gets.

    Args:
        layer (Module): Has the hook as long as it is ``watched``.
        of_input (bool): Look at its input in place of its output.
        differentiable (bool): Gradients of the tensors will be taken.
        dims (Collection[int]): The inputs' dimensions.
    """

    def __init__(self, layer: Module, of_input: bool, differentiable: bool, dims: Collection[int]) -> None:
        super().__init__()
        self.layer, self.of_input, self.differentiable, self.dims = layer, of_input, differentiable, dims
        self.before_first: list[SeenLayer] = []
        """All layers, in a pass without a graph that has reached none of them yet."""
        self.forget()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self._forward_hooks or not self.differentiable:
            return tensors
        # Captum's hook did this. It is gone when the backward pass runs a checkpointed layer once more.
        return tuple(tensor.requires_grad_().clone() for tensor in tensors)

    def forget(self) -> None:
        """Has seen no pass yet."""
        self.devices: list[torch.device] = []
        self.problem: str | None = None

    def _before(self, _layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs and not any(isinstance(value, Tensor) for value in args):
            self.problem = (
                f"is called with keyword arguments alone ({', '.join(kwargs)}), which hooks do not see; explain the "
                "output of the layer in front of it"
            )
        return super()._before(_layer, args, kwargs)

    def look(self, value: Any) -> Any:
        if self.before_first:
            self.before_first.clear()
            torch.set_grad_enabled(True)
        parts = parts_of(value)
        taken = looked_at(parts, self.dims)
        tensors = [parts[i] for i in taken]
        self.problem = self.problem or self._problem(parts, tensors)
        if self.problem:
            return value
        self.devices.append(tensors[0].device)
        for i, copy in zip(taken, self(*tensors), strict=True):
            parts[i] = copy
        return with_parts(value, parts)

    def _problem(self, parts: Sequence[Any], tensors: Sequence[Tensor]) -> str | None:
        if not tensors:
            described = ", ".join(str(x.dtype) if isinstance(x, Tensor) else type(x).__name__ for x in parts)
            return f"has {described or 'nothing'}, and no tensor of real numbers; {OTHER_LAYER}"
        if self.differentiable and not torch.is_grad_enabled():
            return (
                "is run by forward_func under torch.no_grad() (or checkpointed with use_reentrant=True), so no "
                f"gradient of the output reaches it; {NO_GRADIENT}"
            )
        if self.differentiable and any(x.is_quantized for x in tensors):
            return f"is quantised, so no gradient of the output reaches it; {NO_GRADIENT}"
        return None

    def check(self, name: Callable[[Module], str]) -> None:
        """Raises ``LayerError``, with the layer's name, where Captum would fail or take the last of several calls."""
        problem, calls = self.problem, len(self.devices)
        if not problem and not calls and isinstance(self.layer, torch.jit.ScriptModule):
            problem = "is TorchScript, which hooks do not see; explain the model that was scripted or traced"
        if not problem and not calls:
            problem = f"is not run by forward_func, or is within TorchScript, which hooks do not see; {OTHER_LAYER}"
        # A DataParallel model calls it once on each device.
        if not problem and len(set(self.devices)) < calls:
            problem = f"is called {calls} times in a pass, each time with other maps; {OTHER_LAYER}"
        if problem:
            raise LayerError(f"layer: {name(self.layer)} {problem}.")


def parts_of(value: Any) -> list[Any]:
    """The values that a layer makes or is given."""
    return list(value) if isinstance(value, (tuple, list)) else [value]


def with_parts(value: Any, parts: list[Any]) -> Any:
    """The same with other parts."""
    if not isinstance(value, (tuple, list)):
        return parts[0]
    return type(value)._make(parts) if hasattr(value, "_make") else type(value)(parts)


def looked_at(parts: Sequence[Any], dims: Collection[int]) -> list[int]:
    """Which of the values that a layer makes, or is given: of its tensors of real numbers those that may be maps.

    These are the ones of as many dimensions as an input; else, for tokens, those of any dimensions that maps may have;
    else all. The weights of attention, (..., T, T) behind tokens (N, T, K), are left out.

    Args:
        parts (Sequence): The values.
        dims (Collection[int]): The inputs' dimensions.
    """
    real = [i for i, x in enumerate(parts) if isinstance(x, Tensor) and (x.is_floating_point() or x.is_quantized)]
    tokens = [(i, parts[i].shape[1]) for i in real if parts[i].dim() == 3]
    heads = {i for i in real for j, number in tokens if j < i and parts[i].shape[-2:] == (number, number)}
    spatial = [i for i in real if 3 <= parts[i].dim() <= 2 + MAX_SPATIAL_DIMS and i not in heads]
    return [i for i in spatial if parts[i].dim() in dims] or spatial or real


@contextmanager
def watched(hooks: Sequence[HookT]) -> Iterator[Sequence[HookT]]:
    """The hooks are on their layers meanwhile, compiled code run as it was written."""
    handles: list[Any] = []

    def end() -> None:
        for hook in hooks:
            hook.watching = False
        for handle in handles:
            handle.remove()

    try:
        try:
            for hook in hooks:
                # On what torch.jit.script made, no hook can be put.
                if not isinstance(hook.layer, torch.jit.RecursiveScriptModule):  # type: ignore[attr-defined]
                    handles.append(hook.watch())
            with not_compiled():
                yield hooks
        finally:
            end()
    finally:
        # Ctrl-C may have come between any two lines of the first time.
        end()


@contextmanager
def without_graph_before(seen: Sequence[SeenLayer]) -> Iterator[None]:
    """Has a pass record no graph before it reaches the first of the layers, which gradients there do not need."""
    waiting = [*seen]
    try:
        for one in seen:
            one.before_first = waiting
        torch.set_grad_enabled(False)
        yield
    finally:
        torch.set_grad_enabled(True)
        waiting.clear()
