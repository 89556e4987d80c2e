"""What layers compute in a pass, seen by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.model_state import not_compiled

OTHER_LAYER = "choose another, such as the one that captum_unioncam.find_spatial_layer finds"
NO_GRADIENT = "choose a layer behind that, call the model's forward, or take LayerScoreCam, which needs no gradient"


class SeenLayer:
    """The tensors that each call of a layer made, or was given.

    What comes after the layer gets a copy: it may write into what it gets.

    Args:
        layer (Module): Has the hook as long as it is ``watched``.
        of_input (bool): Look at its input in place of its output.
        differentiable (bool): Make the tensors some of which gradients can be taken.
    """

    def __init__(self, layer: Module, of_input: bool, differentiable: bool) -> None:
        self.layer, self.of_input, self.differentiable = layer, of_input, differentiable
        self.calls: list[tuple[Tensor, ...]] = []
        self.problem: str | None = None
        self.recording = self.watching = True

    def watch(self) -> Any:
        """Puts the hook on, and returns its handle."""
        if self.of_input:
            return self.layer.register_forward_pre_hook(self._before, with_kwargs=True)
        return self.layer.register_forward_hook(self._after)

    def _before(self, _layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.watching and kwargs and not any(isinstance(value, Tensor) for value in args):
            self.problem = (
                f"is called with keyword arguments alone ({', '.join(kwargs)}), which hooks do not see; explain the "
                "output of the layer in front of it"
            )
        return (self._look(args), kwargs) if self.watching else None

    def _after(self, _layer: Module, _args: Any, output: Any) -> Any:
        return self._look(output) if self.watching else None

    def _look(self, value: Any) -> Any:
        parts = list(value) if isinstance(value, (tuple, list)) else [value]
        tensors = [part for part in parts if self._is_taken(part)]
        if not tensors:
            self.problem = self.problem or f"has {_described(parts)}, and no tensor of real numbers; {OTHER_LAYER}"
        if self.differentiable:
            self._make_differentiable(tensors)
        if self.recording:
            self.calls.append(tuple(x.dequantize() if x.is_quantized else x for x in tensors))
        copies = [part.clone() if self._is_taken(part) else part for part in parts]
        if isinstance(value, (tuple, list)):
            return type(value)._make(copies) if hasattr(value, "_make") else type(value)(copies)
        return copies[0]

    def _is_taken(self, part: Any) -> bool:
        return isinstance(part, Tensor) and (part.is_floating_point() or part.is_quantized)

    def _make_differentiable(self, tensors: Sequence[Tensor]) -> None:
        if not torch.is_grad_enabled():
            self.problem = self.problem or (
                "is run by forward_func under torch.no_grad() (or checkpointed with use_reentrant=True), so no "
                f"gradient of the output reaches it; {NO_GRADIENT}"
            )
        elif any(x.is_quantized for x in tensors):
            self.problem = self.problem or f"is quantised, so no gradient of the output reaches it; {NO_GRADIENT}"
        else:
            for tensor in tensors:
                # Those that do not require a gradient are leaves.
                tensor.requires_grad_()

    def on_each_device(self, name: str, device_ids: Sequence[int] | None) -> list[tuple[Tensor, ...]]:
        """The tensors of the layer's one call, or of the one on each of several devices, in the order of these.

        Args:
            name (str): Of the layer, for errors.
            device_ids (Sequence[int] or None): Of a ``DataParallel`` model.

        Raises:
            ValueError: The layer was not called or called again, or has no tensors of which maps are made.
        """
        if self.problem:
            raise ValueError(f"layer: {name} {self.problem}.")
        if not self.calls:
            raise ValueError(
                f"layer: {name} is not run by forward_func, or is within TorchScript, which hooks do not see; "
                f"{OTHER_LAYER}."
            )
        devices = [tensors[0].device for tensors in self.calls]
        if len(set(devices)) < len(devices):
            raise ValueError(
                f"layer: {name} is called {len(devices)} times in a pass, each time with other maps; {OTHER_LAYER}."
            )
        places = {number: place for place, number in enumerate(device_ids or ())}
        return sorted(self.calls, key=lambda tensors: places.get(tensors[0].device.index, 0))


def _described(parts: Sequence[Any]) -> str:
    return ", ".join(f"{x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in parts) or "nothing"


@contextmanager
def watched(layers: Sequence[SeenLayer]) -> Iterator[None]:
    """Has each layer seen by its hook meanwhile, compiled code run as it was written."""
    handles: list[Any] = []

    def end() -> None:
        for seen in layers:
            seen.watching = False
        for handle in handles:
            handle.remove()

    try:
        try:
            for seen in layers:
                handles.append(seen.watch())
            with not_compiled():
                yield
        finally:
            end()
    finally:
        # Ctrl-C may have come between any two lines of the first time.
        end()
