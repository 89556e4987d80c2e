"""Finding the layer to explain."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.utils._pytree import tree_flatten

from captum_unioncam.engine.accelerators import widened
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.layouts.found import found_transforms, is_tokens, needs_transform, token_grid
from captum_unioncam.engine.layouts.torchvision import KnownTransforms, last_token_layers
from captum_unioncam.engine.layouts.with_maps import WithMaps
from captum_unioncam.engine.model_state import evaluation_mode, modules_behind
from captum_unioncam.engine.seen import LayerError
from captum_unioncam.system.imports import suggestion

Layer = Module | str
"""A layer, or its dotted name in the model."""

# DataParallel and torch.compile put the model into a module of theirs.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def find_spatial_layer(model: Module, inputs: Tensor | tuple[Tensor, ...]) -> tuple[str, Module]:
    """Finds the last layer with a spatial output, the usual one to explain, by running the model a few times.

    A spatial output has as many spatial dimensions as an input, and more than one position. Its size must grow with the
    input's, or a change of one half of the input must change mainly that half of it, and the model's output must depend
    on it. Layers that are called several times in a pass are skipped. Tokens and channels-last outputs are recognised.
    For transformers with a class token, the layer is the one whose tokens enter the last attention, because after it
    only the class token counts. If nested modules end with the same output, the outermost is returned.

    Args:
        model (torch.nn.Module): Runs in evaluation mode, and is restored afterwards.
        inputs (Tensor or tuple[Tensor, ...]): One or more examples, (N, C, *spatial).

    Returns:
        *tuple[str, Module]*: The layer's dotted name in the model, and the layer.

    Raises:
        ValueError: No layer has a spatial output on which the model's output depends, or the model is in TorchScript.

    Examples::

        >>> name, layer = find_spatial_layer(model, images)
        >>> attr = LayerUnionCam(model, layer).attribute(images, target=3)
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    last = last_token_layers(model)
    found = [
        (name, one.layer)
        for name, one in _layers_with_maps(model, inputs).items()
        if last.get(one.layer) is one.layer or (one.layer not in last and one.is_usual())
    ]
    if not found:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"model: for inputs of shape {shapes} no layer has an output of shape (N, K, *spatial) with more than one "
            "position; name the layer to explain, with a reshape_transform where its output is tokens or has its "
            f"channels last{_example(model, inputs)}, or give larger inputs."
        )
    return found[-1]


def _example(model: Module, inputs: tuple[Tensor, ...]) -> str:
    """The last layer whose output has a shape of tokens or of channels that are last, and what makes maps of it."""
    with evaluation_mode(model) as (forward,):
        inputs, outputs, _ = _run(forward, model, inputs)
    likely = [(name, x) for name, x in outputs.items() if needs_transform(x, inputs)]
    if not likely:
        return ""
    name, output = likely[-1]
    transform, grid = "channels_last_to_maps", token_grid(output, inputs)
    if grid is not None:
        transform = f"tokens_to_maps({', '.join(map(str, grid[0]))}, class_tokens={grid[1]})"
    return f" (such as {name!r}, whose output has shape {tuple(output.shape)}, with reshape_transform={transform})"


def spatial_layers(model: Module, inputs: Tensor) -> dict[str, Module]:
    """All layers that can be explained, by running the model a few times: those with a spatial output, and tokens.

    Args:
        model (torch.nn.Module): Left as it was found; runs in evaluation mode.
        inputs (Tensor): An example or more, (N, C, *spatial).

    Returns:
        *dict[str, Module]*: By dotted name, in the order in which they run.
    """
    return {name: found.layer for name, found in _layers_with_maps(model, (inputs,)).items()}


def layer_transforms(model: Module, inputs: Tensor) -> dict[Module, ReshapeTransform]:
    """What makes maps of the outputs of the layers that ``spatial_layers`` gives, by layer."""
    return {found.layer: found.transform for found in _layers_with_maps(model, (inputs,)).values()}


def layer_names(model: Module) -> dict[str, Module]:
    """The layers by all their dotted names: a layer that a model holds twice has two."""
    return {name: module for name, module in model.named_modules(remove_duplicate=False) if name}


@dataclass(frozen=True)
class _FoundLayer:
    """A layer whose output has a layout of maps.

    Args:
        layer (Module): The layer.
        transform (Callable): Its output to maps.
        gradient (Tensor or None): Of the model's outputs at the layer's; None if that is not known.
    """

    layer: Module
    transform: ReshapeTransform
    gradient: Tensor | None

    def is_usual(self) -> bool:
        """Whether the layer is one to explain by default.

        Behind a transformer's last attention, the class token alone may count. Within attention, linear layers make
        queries, keys and values of what is explained.
        """
        if self.gradient is None or self.transform(self.gradient) is self.gradient:
            return True
        places = self.transform(self.gradient).ne(0).any(1)
        # A new network's head may be zero, and then nothing has a gradient.
        counts = bool(widened(places).mean() > 0.5) or not self.gradient.any()
        return counts and not isinstance(self.layer, Linear)


def _layers_with_maps(model: Module, inputs: tuple[Tensor, ...]) -> dict[str, _FoundLayer]:
    """The layers whose output has a layout of maps and counts, in the order in which they run."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model: is TorchScript, whose layers hooks do not see; give what was scripted or traced.")
    modules = dict(model.named_modules())
    known = KnownTransforms([model])
    dims = {x.dim() for x in inputs if x.dim() > 2}
    with evaluation_mode(model) as (forward,):
        inputs, outputs, gradients = _run(forward, model, inputs)
        wanted = {
            name: output
            for name, output in outputs.items()
            if known.has_space(modules[name], output, dims)
            or (modules[name] not in known and is_tokens(output, inputs))
        }
        transforms = {
            name: known[modules[name]] for name, output in wanted.items() if known[modules[name]](output) is not output
        }

        def run(others: tuple[Tensor, ...]) -> dict[str, Tensor]:
            with torch.no_grad():
                # A model may raise anything; what ran before is known.
                return _outputs(forward, model, others, wanted, Exception)[0]

        unknown = {name: output for name, output in wanted.items() if name not in transforms}
        transforms |= found_transforms(run, inputs, unknown)
    return {
        name: _FoundLayer(modules[name], transforms[name], gradients.get(name))
        for name, output in wanted.items()
        if name in transforms and transforms[name](output).shape[2:].numel() > 1
    }


def _run(
    forward: Callable[..., Any], model: Module, inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor], dict[str, Tensor]]:
    """The inputs that the model takes, and what ``_outputs_that_count`` gives for them.

    Some models need two examples: an only one is given twice.
    """
    try:
        return inputs, *_outputs_that_count(forward, model, inputs)
    except Exception:
        # A model that needs a second row may raise anything.
        if any(x.shape[:1] != (1,) for x in inputs):
            raise
        twice = tuple(torch.cat([x, x]) for x in inputs)
        return twice, *_outputs_that_count(forward, model, twice)


def _outputs_that_count(
    forward: Callable[..., Any], model: Module, inputs: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The layers' output tensors, but those on which the model's output does not depend, and the gradients there.

    Without gradients, where they cannot be had: then all outputs count.
    """
    # What requires a gradient itself, no model may write into.
    copies = tuple(x.detach().clone().requires_grad_(x.is_floating_point()).clone() for x in inputs)
    with torch.enable_grad():
        outputs, result = _outputs(forward, model, copies, dict(model.named_modules()))
        ends = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor) and x.requires_grad]
        given = {name: output for name, output in outputs.items() if output.requires_grad}
        if not ends or not given:
            return outputs, {}
        try:
            total = torch.stack([widened(end.abs().sum()) for end in ends]).sum()
            made = torch.autograd.grad(total, list(given.values()), allow_unused=True)
        except RuntimeError:
            # A layer's output was written into as a part of another tensor, or there is no backward pass.
            return outputs, {}
    gradients = dict(zip(given, made, strict=True))
    counting = {name: output for name, output in outputs.items() if gradients.get(name, output) is not None}
    return counting, {name: gradient for name, gradient in gradients.items() if gradient is not None}


def _outputs(
    forward: Callable[..., Any],
    model: Module,
    inputs: tuple[Tensor, ...],
    names: Iterable[str],
    *ignored: type[Exception],
) -> tuple[dict[str, Tensor], Any]:
    """The output tensors of the layers that run once, in the order in which they run, and the model's.

    Args:
        *ignored (type[Exception]): What the model may raise: then there are the outputs before.
    """
    found: dict[str, Tensor] = {}
    calls: set[tuple[str, torch.device | None]] = set()

    def look(name: str, _module: Module, _args: Any, output: Any) -> None:
        # A DataParallel model calls a layer once on each device.
        call = (name, getattr(output, "device", None))
        if call in calls:
            found.pop(name, None)
        elif isinstance(output, Tensor):
            found[name] = output
        calls.add(call)

    modules = {name: module for name, module in model.named_modules() if name}
    # What was put around a layer is not in the model as its user knows it.
    within = tuple(f"{name}." for name, module in modules.items() if isinstance(module, WithMaps))
    wanted = set(names)
    result = None
    with suppress(*ignored), ExitStack() as hooks:
        for name, module in modules.items():
            if name in wanted and not name.startswith(within):
                hooks.enter_context(module.register_forward_hook(partial(look, name)))
        result = forward(*(x.detach().clone() if not x.requires_grad else x for x in inputs))
    return found, result


def named_layers(
    layer: Layer | Sequence[Layer], forward_func: Callable[..., Any], argument: str = "layer"
) -> Module | list[Module]:
    """The layers, those given by name looked up in the model.

    Args:
        layer (torch.nn.Module, str or list): One or several.
        forward_func (Callable): The model, or a function that is known to belong to one, such as its method.
        argument (str): What the layer is called. Default: "layer"

    Raises:
        ValueError: No layer, or none of that name.
    """
    if isinstance(layer, (Module, str)):
        return _named_layer(layer, forward_func, argument)
    if not layer:
        raise ValueError("layer: got a list of none; give at least one layer.")
    return [_named_layer(one, forward_func, argument) for one in layer]


def _named_layer(layer: Layer, forward_func: Callable[..., Any], argument: str) -> Module:
    if isinstance(layer, Module):
        return layer
    roots = modules_behind(forward_func)
    named: dict[str, Module] = {
        _WRAPPERS.sub("", name): module for root in roots for name, module in layer_names(root).items()
    }
    if not roots:
        raise ValueError(
            f"{argument}: cannot look up {layer!r}, since forward_func is a function; give the module itself."
        )
    if layer not in named:
        raise ValueError(f"{argument}: the model has no layer {layer!r}{suggestion(layer, named)}")
    return named[layer]


@contextmanager
def other_layer_named(forward_func: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Has errors about a layer name the usual one of the model, where it is found with the same inputs."""
    try:
        yield
    except LayerError as error:
        name = _usual_name(forward_func, inputs)
        if name:
            error.suggest(name)
        raise


def _usual_name(forward_func: Callable[..., Any], inputs: tuple[Tensor, ...]) -> str | None:
    roots = modules_behind(forward_func)
    # Another function of the model may not run all its layers.
    if not roots or forward_func not in (roots[0], roots[0].forward):
        return None
    try:
        return _WRAPPERS.sub("", find_spatial_layer(roots[0], tuple(x[:2] for x in inputs))[0])
    except Exception:
        # There is none, or the model takes further arguments.
        return None
