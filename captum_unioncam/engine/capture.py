"""What a layer computed for the inputs, and what the target's gradient there is, in a model left as it was found.

Captum's helpers run the pass, keep what the layers compute on each device and put it together. Of Captum's
``compute_layer_gradients_and_eval``, the last step is replaced: it takes one target a pass, its float16 gradients
underflow, and it fails without a reason where the output does not depend on a layer.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_unflatten

from captum_unioncam.engine._captum import (
    TargetType,
    extract_device_ids,
    forward_layer_distributed_eval,
    gather_distributed_tensors,
    run_forward,
    select_targets,
)
from captum_unioncam.engine.checks import check_finite, inputs_with_mask
from captum_unioncam.engine.gradients import gradients, recurrent_training
from captum_unioncam.engine.layouts.base import ReshapeTransform, unchanged
from captum_unioncam.engine.layouts.found import needs_transform, remembered_transform, token_grid
from captum_unioncam.engine.layouts.torchvision import KnownTransforms
from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS, full_precision
from captum_unioncam.engine.model_state import has_backward_hooks, modules_behind
from captum_unioncam.engine.outputs import Outputs
from captum_unioncam.engine.rows import rows_of
from captum_unioncam.engine.seen import OTHER_LAYER, USUAL_LAYER, LayerError, SeenLayer, watched, without_graph_before
from captum_unioncam.engine.tuning import out_of_memory

OfLayers = list[tuple[Tensor, ...]]
"""Each layer's tensors."""
OnDevices = dict[SeenLayer, dict[torch.device, tuple[Tensor, ...]]]
"""Each layer's tensors on each device."""

_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


@dataclass(frozen=True)
class LayerMaps:
    """What maps were made of.

    Args:
        layer (Module): Whose output or input they are.
        part (int): Which of its tensors.
        value (Tensor): The tensor, (N, ...).
        transform (Callable): The tensor to maps.
        maps (Tensor): (N, K, *spatial).
    """

    layer: Module
    part: int
    value: Tensor
    transform: ReshapeTransform
    maps: Tensor


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
        of_maps (list[LayerMaps]): What the activations were made of, once they are known.
        transforms (list[Callable]): Each layer's output to maps, once the model has run.
    """

    forward_func: Callable[..., Any]
    layers: list[Module]
    inputs: tuple[Tensor, ...]
    additional_forward_args: tuple[Any, ...] | None
    device_ids: list[int] | None
    attribute_to_layer_input: bool
    reshape_transform: ReshapeTransform | None
    outputs: Outputs
    of_maps: list[LayerMaps] = field(default_factory=list)
    transforms: list[ReshapeTransform] = field(default_factory=list)

    def activations(self) -> OfLayers:
        """The outputs (or inputs) of each layer, each (N, K, *spatial), checked, half precision as float32."""
        with torch.no_grad(), self._watched(differentiable=False) as seen:
            made, _ = self._run(seen)
        return self._as_maps(self._gathered(made, seen), "activations")

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
            if "Inference tensors" in str(error):
                raise ValueError(
                    "forward_func: its tensors were made under torch.inference_mode(), which lets no gradient through; "
                    "give copy.deepcopy(model), made outside of it, or take LayerScoreCam, which needs none."
                ) from error
            if "cudnn RNN backward" not in str(error):
                raise
            with recurrent_training(modules_behind(self.forward_func)):
                made, activations = self._differentiated(targets, grad_kwargs or {})
        return [self._as_maps(of_target, "gradients") for of_target in made], self._as_maps(activations, "activations")

    @property
    def dims(self) -> set[int]:
        """The inputs' dimensions."""
        return {x.dim() for x in self.inputs}

    def _watched(self, differentiable: bool) -> AbstractContextManager[Sequence[SeenLayer]]:
        of_input, dims = self.attribute_to_layer_input, self.dims
        return watched([SeenLayer(layer, of_input, differentiable, dims) for layer in self.layers])

    def reached(self, inputs: tuple[Tensor, ...]) -> dict[tuple[Module, int], Tensor]:
        """The layers' tensors for other inputs, by layer and number: of the layers that run before the model raises.

        Args:
            inputs (tuple[Tensor, ...]): Made of the first example, each (R, ...).
        """
        made: OnDevices = {}

        def keep(one: Module, _args: Any, tensors: tuple[Tensor, ...]) -> None:
            # What comes after the layer may write into what it gets.
            made.setdefault(cast(SeenLayer, one), {})[tensors[0].device] = tuple(x.clone() for x in tensors)

        with torch.no_grad(), self._watched(differentiable=False) as seen:
            for one in seen:
                one.register_forward_hook(keep)
            # What ran before the model raises is known.
            with suppress(Exception):
                first = [0] * inputs[0].shape[0]
                additional = rows_of(self.additional_forward_args or (), first, self.inputs[0].shape[0])
                run_forward(self.forward_func, inputs, None, additional)
        ran = [one for one in seen if one in made]
        gathered = self._gathered(made, ran) if ran else []
        return {(one.layer, i): x for one, tensors in zip(ran, gathered, strict=True) for i, x in enumerate(tensors)}

    def _differentiated(
        self, targets: Sequence[TargetType], grad_kwargs: dict[str, Any]
    ) -> tuple[list[OfLayers], OfLayers]:
        # Until the backward pass has run, which runs a checkpointed layer once more.
        with torch.enable_grad(), self._watched(differentiable=True) as seen:
            made, output = self._run_with_graph(seen)
            if len(targets) > 1:
                grad_kwargs = {**grad_kwargs, "retain_graph": True}
            of_targets = [self._gradients(output, target, made, grad_kwargs) for target in targets]
        return [self._gathered(of_target, seen) for of_target in of_targets], self._gathered(made, seen)

    def _gradients(self, output: Tensor, target: TargetType, made: OnDevices, grad_kwargs: dict[str, Any]) -> OnDevices:
        """Those of the target at each tensor of each layer."""
        selected: Tensor = select_targets(output, target)
        assert selected[0].numel() == 1, "Target not provided when necessary, cannot take gradients of several outputs."
        if not selected.requires_grad:
            raise ValueError(
                "forward_func: its output has no gradient, since it detaches it or runs under torch.no_grad(); call "
                "the model's forward, or take LayerScoreCam, which needs none."
            )
        tensors, form = tree_flatten(made)
        found: OnDevices = tree_unflatten(gradients(selected, tensors, grad_kwargs), form)
        for seen, of_layer in found.items():
            if any(gradient is None for gradient in tree_flatten(of_layer)[0]):
                raise LayerError(
                    f"layer: the output does not depend on {self.name(seen.layer)}, or only by detach(); "
                    f"{OTHER_LAYER}, or take LayerScoreCam, which needs no gradient."
                )
        return found

    def _run_with_graph(self, seen: Sequence[SeenLayer]) -> tuple[OnDevices, Tensor]:
        """As ``_run``, with a graph from the first layer on, or of all where that could make a difference."""
        # Of a layer whose input has no gradient, PyTorch runs these hooks in another way.
        if not has_backward_hooks(self.forward_func):
            try:
                with without_graph_before(seen):
                    made, output = self._run(seen)
                    # Off again: the model has set the mode around the layer.
                    as_set = torch.is_grad_enabled()
                    if as_set and output.requires_grad and not has_backward_hooks(self.forward_func):
                        return made, output
            except (RuntimeError, LayerError) as error:
                # Models that differentiate in front of the layer need the whole graph; replicas in threads too,
                # since each thread has its own mode. Other errors are raised again with it.
                if out_of_memory(error):
                    raise
        return self._run(seen)

    def _run(self, seen: Sequence[SeenLayer]) -> tuple[OnDevices, Tensor]:
        """What the layers compute in one pass, and the model's output."""
        for one in seen:
            one.forget()

        @wraps(self.forward_func, updated=())
        def checked(*args: Any) -> Tensor:
            output = self.outputs.tensor(self.forward_func(*args), self.inputs[0].shape[0])
            for one in seen:
                one.check(self.name)
            return output

        made_and_output: tuple[OnDevices, Tensor] = forward_layer_distributed_eval(
            checked,
            # The model may write into its input (an in-place ReLU), and Captum sets requires_grad on a layer's input.
            tuple(x.detach().clone() for x in self.inputs),
            seen,
            additional_forward_args=self.additional_forward_args,
            forward_hook_with_return=True,
            require_layer_grads=seen[0].differentiable,
        )
        return made_and_output

    def _gathered(self, made: OnDevices, seen: Sequence[SeenLayer]) -> OfLayers:
        """The tensors of each layer, from all devices."""
        device_ids = extract_device_ids(self.forward_func, made, self.device_ids)
        gathered = [gather_distributed_tensors(made[one], device_ids) for one in seen]
        return [tuple(x.dequantize() if x.is_quantized else x for x in tensors) for tensors in gathered]

    def name(self, layer: Module) -> str:
        """The layer's name in the model where that is known, and its type."""
        named = (name for root in modules_behind(self.forward_func) for name, m in root.named_modules() if m is layer)
        name = _WRAPPERS.sub("", next(named, ""))
        return f"{name!r} ({type(layer).__name__})" if name else type(layer).__name__

    def _as_maps(self, of_layers: OfLayers, what: str) -> OfLayers:
        transforms = self._known_transforms(of_layers)
        made = [
            tuple(_checked(value, transform(value), what, self.inputs) for value in values)
            for values, transform in zip(of_layers, transforms, strict=True)
        ]
        if what == "activations":
            for layer, transform, values, maps in zip(self.layers, transforms, of_layers, made, strict=True):
                parts = enumerate(zip(values, maps, strict=True))
                self.of_maps.extend(LayerMaps(layer, i, value.detach(), transform, m) for i, (value, m) in parts)
        return made

    def _known_transforms(self, of_layers: OfLayers) -> list[ReshapeTransform]:
        if self.reshape_transform is not None:
            return [self.reshape_transform] * len(self.layers)
        if not self.transforms:
            # Known only after a call: which modules a plain function has called.
            known = KnownTransforms(modules_behind(self.forward_func), self.attribute_to_layer_input)
            self.transforms.extend(
                known[layer] if layer in known else self._found_transform(layer, values)
                for layer, values in zip(self.layers, of_layers, strict=True)
            )
        return self.transforms

    def _found_transform(self, layer: Module, values: tuple[Tensor, ...]) -> ReshapeTransform:
        """What makes maps of the layer's only tensor, where it is tokens or has its channels last."""

        def run(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
            return {f"{number}": x for (one, number), x in self.reached(inputs).items() if one is layer}

        if len(values) != 1 or not needs_transform(values[0], self.inputs):
            return unchanged
        found = remembered_transform(layer, values[0], self.inputs, self.attribute_to_layer_input, run)
        if found is None and values[0].dim() == 3:
            shapes = ", ".join(str(tuple(x.shape)) for x in self.inputs)
            grid, class_tokens = token_grid(values[0], self.inputs) or ((14, 14), 1)
            raise LayerError(
                f"inputs: none of the shapes {shapes} has the 1 spatial dimension of {self.name(layer)}, whose "
                f"{'input' if self.attribute_to_layer_input else 'output'} of shape {tuple(values[0].shape)} has no "
                f"token for each position of the inputs; {OTHER_LAYER}, or give a reshape_transform that "
                f"makes maps of it, such as tokens_to_maps({', '.join(map(str, grid))}, class_tokens={class_tokens})."
            )
        return found or unchanged


def _checked(value: Tensor, maps: Any, what: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """What was made of a layer's ``value``, if it is maps."""
    if not isinstance(maps, Tensor) or not 3 <= maps.dim() <= 2 + MAX_SPATIAL_DIMS:
        if maps is not value:
            made = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"reshape_transform: made {made} of the layer's {what} of shape {tuple(value.shape)}; return "
                "(N, K, *spatial) with one to three spatial dimensions."
            )
        raise LayerError(
            f"layer: its {what} have shape {tuple(value.shape)}, not (N, K, *spatial) with one to three spatial "
            f"dimensions; choose a layer with a spatial output, such as {USUAL_LAYER}."
        )
    examples = inputs[0].shape[0]
    if maps.shape[0] != examples:
        raise LayerError(
            f"layer: its {what} hold {maps.shape[0]} examples where the inputs hold {examples}; choose a layer that "
            f"keeps one row an example, such as {USUAL_LAYER}."
        )
    # Not all methods mask inputs: without this, tokens would pass for the maps of a signal.
    inputs_with_mask(inputs, maps.dim())
    check_finite(maps, f"layer {what}")
    return full_precision(maps.detach())
