"""What a layer computed for the inputs, and what the target's gradient there is, in a model left as it was found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine._captum import TargetType, run_forward, select_targets
from captum_unioncam.engine.checks import check_finite, inputs_with_mask
from captum_unioncam.engine.gradients import gradients, recurrent_training
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.layouts.torchvision import KnownTransforms
from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS, full_precision
from captum_unioncam.engine.model_state import modules_behind
from captum_unioncam.engine.outputs import Outputs
from captum_unioncam.engine.seen import OTHER_LAYER, SeenLayer, watched

OfLayers = list[tuple[Tensor, ...]]
"""Each layer's tensors."""

_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


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

    def activations(self) -> OfLayers:
        """The outputs (or inputs) of each layer, each (N, K, *spatial), checked, half precision as float32."""
        seen = self._seen(differentiable=False)
        with torch.no_grad(), watched(list(seen.values())):
            self._run()
        return self._as_maps([_gathered(self._parts(seen[layer])) for layer in self.layers], "activations")

    def gradients_and_activations(
        self, targets: Sequence[TargetType], grad_kwargs: dict[str, Any] | None
    ) -> tuple[list[OfLayers], OfLayers]:
        """The gradients of each raw target output at each layer, and the activations there, of one forward pass."""
        try:
            made, activations = self._differentiated(targets, grad_kwargs or {})
        except RuntimeError as error:
            if "use_reentrant" in str(error):
                raise ValueError(
                    "forward_func: torch.utils.checkpoint lets no gradient through with use_reentrant=True; give "
                    "use_reentrant=False, or do not checkpoint in evaluation mode."
                ) from error
            if "cudnn RNN backward" not in str(error):
                raise
            with recurrent_training(modules_behind(self.forward_func)):
                made, activations = self._differentiated(targets, grad_kwargs or {})
        return [self._as_maps(of_target, "gradients") for of_target in made], self._as_maps(activations, "activations")

    def _differentiated(
        self, targets: Sequence[TargetType], grad_kwargs: dict[str, Any]
    ) -> tuple[list[OfLayers], OfLayers]:
        seen = self._seen(differentiable=True)
        with torch.enable_grad(), watched(list(seen.values())):
            output = self._run()
            parts = {layer: self._parts(seen[layer]) for layer in seen}
            for one in seen.values():
                # The backward pass runs a checkpointed layer once more.
                one.recording = False
            selected = [_selected(output, target) for target in targets]
            of_targets = []
            for number, of_target in enumerate(selected, 1):
                keep = {"retain_graph": True} if number < len(selected) else {}
                of_targets.append(self._gradients(of_target, parts, {**grad_kwargs, **keep}))
        return (
            [[_gathered(of_target[layer]) for layer in self.layers] for of_target in of_targets],
            [_gathered(parts[layer]) for layer in self.layers],
        )

    def _gradients(
        self, selected: Tensor, parts: dict[Module, list[tuple[Tensor, ...]]], grad_kwargs: dict[str, Any]
    ) -> dict[Module, list[tuple[Tensor, ...]]]:
        """Of one target: those at each layer, on each device, of each tensor."""
        if not selected.requires_grad:
            raise ValueError(
                "forward_func: its output has no gradient, since it detaches it or runs under torch.no_grad(); call "
                "the model's forward, or take LayerScoreCam, which needs none."
            )
        found = iter(gradients(selected, [x for of in parts.values() for part in of for x in part], grad_kwargs))
        made = {layer: [tuple(next(found) for _ in part) for part in of_layer] for layer, of_layer in parts.items()}
        for layer, of_layer in made.items():
            if any(gradient is None for part in of_layer for gradient in part):
                raise ValueError(
                    f"layer: the output does not depend on {self._name(layer)}, or only by detach(); {OTHER_LAYER}, or "
                    "take LayerScoreCam, which needs no gradient."
                )
        return made  # type: ignore[return-value]

    def _run(self) -> Tensor:
        output = run_forward(self.forward_func, _copies(self.inputs), None, self.additional_forward_args)
        return self.outputs.tensor(output, self.inputs[0].shape[0])

    def _seen(self, differentiable: bool) -> dict[Module, SeenLayer]:
        return {layer: SeenLayer(layer, self.attribute_to_layer_input, differentiable) for layer in self.layers}

    def _parts(self, seen: SeenLayer) -> list[tuple[Tensor, ...]]:
        device_ids = self.device_ids or getattr(self.forward_func, "device_ids", None)
        return seen.on_each_device(self._name(seen.layer), device_ids)

    def _name(self, layer: Module) -> str:
        """The layer's name in the model where that is known, and its type."""
        named = (name for root in modules_behind(self.forward_func) for name, m in root.named_modules() if m is layer)
        name = _WRAPPERS.sub("", next(named, ""))
        return f"{name!r} ({type(layer).__name__})" if name else type(layer).__name__

    def _as_maps(self, of_layers: OfLayers, what: str) -> OfLayers:
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


def _selected(output: Tensor, target: TargetType) -> Tensor:
    selected: Tensor = select_targets(output, target)
    assert selected[0].numel() == 1, (
        "Target not provided when necessary, cannot take gradient with respect to multiple outputs."
    )
    return selected


def _gathered(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Each tensor of a layer, from all devices."""
    if len(parts) == 1:
        return parts[0]
    device = parts[0][0].device
    return tuple(torch.cat([tensor.to(device) for tensor in tensors]) for tensors in zip(*parts, strict=True))


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
