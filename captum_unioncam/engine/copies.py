"""Gradients and activations at altered copies of the inputs, taken together copy by copy."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from captum_unioncam.engine._captum import TargetType
from captum_unioncam.engine.capture import LayerCall

Step = Callable[[Any, Tensor, Tensor], Any]
"""What is known of the copies so far, None at first, and a copy's activations and gradients to what is known then."""


class GradientCopies:
    """Passes, backwards too, with copies of a call's inputs: the whole batch at a time, with its targets and arguments.

    Nothing of a copy is kept beside what a ``Step`` makes of it, so memory does not grow with their number. The passes
    are run once, and serve every layer, each of its outputs, and every target.

    Args:
        call (LayerCall): As it is called with the inputs themselves.
        targets (Sequence): Each as Captum's ``target``.
        grad_kwargs (dict or None): Further arguments of ``torch.autograd.grad``.
    """

    def __init__(self, call: LayerCall, targets: Sequence[TargetType], grad_kwargs: dict[str, Any] | None) -> None:
        self.call, self.targets, self.grad_kwargs = call, targets, grad_kwargs
        self._known: dict[tuple[int, int, int], Any] = {}

    def known(self, copies: Iterable[tuple[Tensor, ...]], step: Step) -> dict[tuple[int, int, int], Any]:
        """What is known after all copies, by the numbers of layer, output and target."""
        if not self._known:
            for inputs in copies:
                self._add(inputs, step)
        return self._known

    def _add(self, inputs: tuple[Tensor, ...], step: Step) -> None:
        at_copy = replace(self.call, inputs=inputs, of_maps=[])
        gradients, activations = at_copy.gradients_and_activations(self.targets, self.grad_kwargs)
        for target, of_target in enumerate(gradients):
            for layer, outputs in enumerate(activations):
                for output, a in enumerate(outputs):
                    key = (layer, output, target)
                    self._known[key] = step(self._known.get(key), a, of_target[layer][output])


@dataclass(frozen=True)
class CopyPasses:
    """The passes as seen by one layer output and target: what the equations of a method ask of the engine.

    Args:
        copies (GradientCopies): Runs the passes.
        layer (int): Which of the call's layers.
        output (int): Which of its outputs.
        target (int): Which of the targets.
    """

    copies: GradientCopies
    layer: int
    output: int
    target: int

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs that are copied, each (N, ...)."""
        return self.copies.call.inputs

    def folded(self, copies: Iterable[tuple[Tensor, ...]], step: Step) -> Any:
        """What ``step`` makes of one copy after the other: each a tuple like ``inputs``."""
        return self.copies.known(copies, step)[self.layer, self.output, self.target]
