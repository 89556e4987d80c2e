"""Attribution methods by name, all called alike: this package's, Captum's, torchcam's, grad-cam's and the user's own.

Example::

    >>> from captum_unioncam import methods
    >>> attribute = methods.create("union_cam", model, model.layer4)
    >>> maps = attribute(images, labels, torch.zeros_like(images[:1]))  # (N, 1, H, W)
    >>> methods.register("mine", lambda model, layer, settings: lambda images, labels, baselines: images.abs())

A name is one of ``names()``, ``torchcam:NAME`` or ``grad_cam:NAME`` for a CAM class of those packages, or
``package.module:function`` for a factory of the user's.
"""

from __future__ import annotations

import importlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from captum.attr import (
    Deconvolution,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    LayerGradientXActivation,
    Occlusion,
    Saliency,
)
from torch import Tensor
from torch.nn import Linear, Module

from captum_unioncam.denoised_grad_cam import LayerDenoisedGradCam
from captum_unioncam.errors import Failure, WrongArgument, one_line
from captum_unioncam.layer_evaluation import check_finite, evaluation_mode
from captum_unioncam.maps import up
from captum_unioncam.masked_scoring import ConfidenceFunction
from captum_unioncam.models import imported_function, suggestion
from captum_unioncam.score_cam import LayerScoreCam
from captum_unioncam.union_cam import LayerUnionCam


@dataclass(frozen=True)
class MethodSettings:
    """What methods can be told; each takes what it knows, and ignores the rest.

    Args:
        theta, max_channels, score_dtype: As ``LayerUnionCam.attribute`` takes them; for this package's methods alone.
        internal_batch_size (int or None): Rows in a forward pass of the methods that run many. Default: None, the
            method's own
        confidence_fn (Callable or None): As ``LayerUnionCam`` takes it; for this package's methods alone.
    """

    theta: float = 10.0
    max_channels: int | None = None
    internal_batch_size: int | None = None
    score_dtype: torch.dtype | None = None
    confidence_fn: ConfidenceFunction | None = None


Attribute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Inputs (N, 3, H, W), targets (N,) and baselines (1 or N, 3, H, W) to attributions (N, C, h, w)."""

Factory = Callable[[Module, Module, MethodSettings], Attribute]
"""A model, the layer to explain and the settings to a method for them."""

# Rows in a pass of Captum's methods that run many, unless the settings say otherwise.
_PASS_ROWS = 32


def create(name: str, model: Module, layer: Module, settings: MethodSettings | None = None) -> Attribute:
    """Makes the method of that name for a model and a layer.

    The method runs the model in evaluation mode, and leaves model and inputs as it found them, after an exception too.
    Its attributions are summed over their channels, their negative part, which speaks against the class, is cut, and
    they are upsampled bilinearly to the inputs' size. What is random, by torch or by numpy, follows torch's global
    generator.

    Args:
        name (str): One of ``names()``, "torchcam:NAME", "grad_cam:NAME" (upper case, "-" and "_" do not matter there),
            or "package.module:function", a ``Factory``.
        model (torch.nn.Module): (N, 3, H, W) to (N, classes).
        layer (torch.nn.Module): The layer of it to explain; methods that explain the input itself ignore it.
        settings (MethodSettings or None): Default: None, the defaults

    Returns:
        *Callable*: Of inputs (N, 3, H, W), targets (N,) int64 and baselines (1 or N, 3, H, W), what the model takes
        for black; returns maps (N, 1, H, W), not negative, in float32 at least, on the inputs' device. It raises
        ``ValueError`` where they are not finite, and ``Failure`` where a method that is neither this package's nor
        Captum's raises anything, or returns another shape than (N, C, h, w).

    Raises:
        WrongArgument: There is no such method.
        Failure: The package it belongs to is not installed, or the user's factory failed.

    Examples::

        >>> attribute = create("torchcam:LayerCAM", model, model.layer4)
        >>> maps = attribute(images, labels, torch.zeros_like(images[:1]))  # (N, 1, 224, 224)
    """
    factory = _factory(name)
    settings = settings or MethodSettings()
    method = (
        factory(model, layer, settings) if name in _BUILT_IN else _from_outside(name, factory, model, layer, settings)
    )

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        with _left_as_found(model), evaluation_mode(model), _numpy_follows_torch(), torch.enable_grad():
            result = method(inputs.detach().clone(), target.to(inputs.device), baselines.detach().clone())
        _check_shape(name, result, inputs)
        result = result.detach().to(inputs.device, torch.promote_types(result.dtype, torch.float32))
        check_finite(result, name)
        maps = result.sum(1, keepdim=True).relu()
        return maps if maps.shape[2:] == inputs.shape[2:] else up(maps, inputs.shape[2:])

    return attribute


def names() -> list[str]:
    """The names of the built-in methods and of the registered ones."""
    return [*_BUILT_IN, *_registered]


def register(name: str, factory: Factory) -> None:
    """Gives a method of the user's own a name, which ``create`` then knows.

    Args:
        name (str): A new one, without ":".
        factory (Callable): Called with a model, a layer and ``MethodSettings``. Returns a function of inputs
            (N, 3, H, W), targets (N,) and baselines (1 or N, 3, H, W) that returns attributions (N, C, h, w) of any
            C, h and w.

    Raises:
        WrongArgument: The name holds ":" or is taken.

    Examples::

        >>> def center(model, layer, settings):
        ...     return lambda inputs, target, baselines: inputs[:, :, 50:-50, 50:-50].abs()
        >>> register("center", center)
    """
    if ":" in name:
        raise WrongArgument(f"the name {name!r} holds ':', which stands for packages' methods; give one without.")
    if name in names():
        raise WrongArgument(f"there is a method {name!r} already; give another name.")
    _registered[name] = factory


def _union_cam(model: Module, layer: Module, settings: MethodSettings, channel_weights: str = "score") -> Attribute:
    method = LayerUnionCam(model, layer, confidence_fn=settings.confidence_fn)
    arguments = {"channel_weights": channel_weights, "theta": settings.theta, **_of_region(settings)}
    return lambda inputs, target, baselines: method.attribute(inputs, target, baselines=baselines, **arguments)


def _score_cam(model: Module, layer: Module, settings: MethodSettings) -> Attribute:
    method = LayerScoreCam(model, layer, confidence_fn=settings.confidence_fn)
    arguments = _of_region(settings)
    return lambda inputs, target, baselines: method.attribute(inputs, target, baselines=baselines, **arguments)


def _of_region(settings: MethodSettings) -> dict[str, Any]:
    """The arguments of ``attribute`` that the region map takes."""
    names = ("max_channels", "internal_batch_size", "score_dtype")
    return {name: getattr(settings, name) for name in names}


def _denoised_grad_cam(model: Module, layer: Module, settings: MethodSettings) -> Attribute:
    method = LayerDenoisedGradCam(model, layer)
    return lambda inputs, target, _baselines: method.attribute(inputs, target, theta=settings.theta)


def _of_layer(attribution: Any, **arguments: Any) -> Factory:
    """Captum's attribution of a model and a layer."""

    def factory(model: Module, layer: Module, _settings: MethodSettings) -> Attribute:
        method = attribution(model, layer)
        return lambda inputs, target, _baselines: method.attribute(inputs, target, **arguments)

    return factory


def _of_input(attribution: Any) -> Factory:
    """Captum's attribution of a model alone."""

    def factory(model: Module, _layer: Module, _settings: MethodSettings) -> Attribute:
        method = attribution(model)
        return lambda inputs, target, _baselines: method.attribute(inputs.requires_grad_(), target)

    return factory


def _integrated_gradients(model: Module, _layer: Module, settings: MethodSettings) -> Attribute:
    method = IntegratedGradients(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        # Captum would run all steps of all examples in one pass.
        rows = max(settings.internal_batch_size or _PASS_ROWS, len(inputs))
        attributions: Tensor = method.attribute(inputs, baselines, target, internal_batch_size=rows)
        return attributions

    return attribute


def _gradient_shap(model: Module, _layer: Module, _settings: MethodSettings) -> Attribute:
    method = GradientShap(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        # One by one, since Captum draws an example's baselines from those of all examples.
        each = zip(*(torch.split(rows, 1) for rows in (inputs, baselines.expand_as(inputs), target)), strict=True)
        return torch.cat([method.attribute(example, baseline, target=index) for example, baseline, index in each])

    return attribute


def _occlusion(model: Module, _layer: Module, settings: MethodSettings) -> Attribute:
    method = Occlusion(model)

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        patch = tuple(max(1, round(side / 7)) for side in inputs.shape[2:])
        attributions: Tensor = method.attribute(
            inputs,
            sliding_window_shapes=(inputs.shape[1], *patch),
            strides=(inputs.shape[1], *(max(1, side // 2) for side in patch)),
            baselines=baselines,
            target=target,
            perturbations_per_eval=max(1, (settings.internal_batch_size or _PASS_ROWS) // len(inputs)),
        )
        return attributions

    return attribute


def _without_in_place(factory: Factory) -> Factory:
    """The method, run on a model none of whose modules writes into its input, as ReLUs with ``inplace`` do.

    Captum cannot hook those, and what torchcam and grad-cam keep of a layer's output would be overwritten.
    """

    def factory_without(model: Module, layer: Module, settings: MethodSettings) -> Attribute:
        method = factory(model, layer, settings)

        def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
            in_place: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False) is True]
            try:
                for module in in_place:
                    module.inplace = False
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Setting backward hooks|Input Tensor 0 did not")
                    return method(inputs, target, baselines)
            finally:
                for module in in_place:
                    module.inplace = True

        return attribute

    return factory_without


_BUILT_IN: dict[str, Factory] = {
    "union_cam": _union_cam,
    "union_cam_softmax": partial(_union_cam, channel_weights="softmax"),
    "denoised_grad_cam": _denoised_grad_cam,
    "score_cam": _score_cam,
    "grad_cam": _of_layer(LayerGradCam, relu_attributions=True),
    "layer_grad_x_activation": _of_layer(LayerGradientXActivation),
    "guided_grad_cam": _without_in_place(_of_layer(GuidedGradCam, interpolate_mode="bilinear")),
    "guided_backprop": _without_in_place(_of_input(GuidedBackprop)),
    "deconvolution": _without_in_place(_of_input(Deconvolution)),
    "saliency": _of_input(Saliency),
    "input_x_gradient": _of_input(InputXGradient),
    "integrated_gradients": _integrated_gradients,
    "gradient_shap": _gradient_shap,
    "occlusion": _occlusion,
}
_registered: dict[str, Factory] = {}


def _torchcam(cam_class: Any, model: Module, layer: Module, settings: MethodSettings) -> Attribute:
    linear = [module for module in model.modules() if isinstance(module, Linear)]
    # CAM's weights are those of the only fully connected layer; torchcam finds it as well, and logs so for each call.
    arguments = {"fc_layer": linear[0]} if cam_class.__name__ == "CAM" and len(linear) == 1 else {}

    def attribute(inputs: Tensor, target: Tensor, _baselines: Tensor) -> Tensor:
        cam = cam_class(model, layer, **arguments)
        if settings.internal_batch_size is not None:
            cam.bs = settings.internal_batch_size
        maps = []
        for example, index in zip(torch.split(inputs, 1), target.tolist(), strict=True):
            scores = model(example.requires_grad_())
            maps += cam(index, scores, normalized=False)
        return torch.stack(maps)

    return attribute


def _grad_cam(cam_class: Any, model: Module, layer: Module, settings: MethodSettings) -> Attribute:
    # FullGrad takes every layer with a bias, and prints a warning when given one.
    layers = [] if cam_class.__name__ == "FullGrad" else [layer]

    def attribute(inputs: Tensor, target: Tensor, _baselines: Tensor) -> Tensor:
        cam = cam_class(model, layers)
        if settings.internal_batch_size is not None:
            cam.batch_size = settings.internal_batch_size
        each = zip(torch.split(inputs, 1), target.tolist(), strict=True)
        try:
            # Score-CAM and Ablation-CAM draw a progress bar for each example.
            with redirect_stderr(io.StringIO()):
                maps = [cam(example.requires_grad_(), **_grad_cam_target(cam_class, index)) for example, index in each]
        finally:
            if hasattr(cam, "activations_and_grads"):
                # Shapley-CAM's gradients are views, at which its destructor fails.
                cam.activations_and_grads.gradients = []
        return torch.from_numpy(np.stack(maps))

    return attribute


def _grad_cam_target(cam_class: Any, index: int) -> dict[str, Any]:
    if cam_class.__name__ == "FinerCAM":
        # Given targets, it compares the class with no others.
        return {"target_idx": index}
    # A target picks the score from an output with or without a batch dimension.
    return {"targets": [itemgetter((..., index))]}


@dataclass(frozen=True)
class _Peer:
    """A package of CAM classes, each made of a model and a layer, and run example by example.

    One example at a time, since some hold a mask or a masked input for every channel of the whole batch at once. The
    hooks that they leave on the model are taken off by ``_left_as_found``.
    """

    distribution: str
    module: str
    layer_argument: str
    method: Callable[[Any, Module, Module, MethodSettings], Attribute]

    def factory(self, name: str) -> Factory:
        try:
            public = vars(importlib.import_module(self.module))
        except ImportError as error:
            raise Failure(
                f"{name}: cannot import {self.module} ({one_line(error)}); pip install {self.distribution}."
            ) from error
        prefix, _, wanted = name.partition(":")
        cam_classes = {key: value for key, value in public.items() if self._is_cam(value)}
        for key, cam_class in cam_classes.items():
            if _folded(key) == _folded(wanted):
                return _without_in_place(partial(self.method, cam_class))
        raise WrongArgument(f"{prefix} has no method {wanted!r}{suggestion(wanted, cam_classes)}")

    def _is_cam(self, value: Any) -> bool:
        if not isinstance(value, type):
            return False
        try:
            inspect.signature(value).bind(None, **{self.layer_argument: None})
        except TypeError:
            return False
        return True


_PEERS = {
    "torchcam": _Peer("torchcam", "torchcam.methods", "target_layer", _torchcam),
    "grad_cam": _Peer("grad-cam", "pytorch_grad_cam", "target_layers", _grad_cam),
}


def _folded(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")


def _factory(name: str) -> Factory:
    if ":" in name:
        peer = _PEERS.get(name.partition(":")[0])
        return peer.factory(name) if peer else imported_function(name, name)
    factory = _BUILT_IN.get(name) or _registered.get(name)
    if factory is None:
        raise WrongArgument(
            f"there is no method {name!r}{suggestion(name, names())} Give one of {', '.join(names())}, torchcam:NAME, "
            "grad_cam:NAME, or package.module:function."
        )
    return factory


def _from_outside(name: str, factory: Factory, model: Module, layer: Module, settings: MethodSettings) -> Attribute:
    """The factory's method, with whatever is raised by either as a ``Failure``."""
    with _failing_as(name):
        method = factory(model, layer, settings)
    if not callable(method):
        raise WrongArgument(f"{name}: returned {type(method).__name__}; give a function that returns a function.")

    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        with _failing_as(name):
            return method(inputs, target, baselines)

    return attribute


@contextmanager
def _failing_as(name: str) -> Iterator[None]:
    try:
        yield
    except (Failure, WrongArgument):
        raise
    except Exception as error:
        raise Failure(
            f"{name}: raised {type(error).__name__}: {one_line(error).rstrip('.')}; try another layer or method."
        ) from error


def _check_shape(name: str, result: Any, inputs: Tensor) -> None:
    fits = isinstance(result, Tensor) and result.dim() == 4 and len(result) == len(inputs) and result.numel() > 0
    if not fits:
        what = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise Failure(
            f"{name}: returned {what} for inputs of shape {tuple(inputs.shape)}; it has to return a tensor of shape "
            f"({len(inputs)}, C, h, w)."
        )


@contextmanager
def _left_as_found(model: Module) -> Iterator[None]:
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


@contextmanager
def _numpy_follows_torch() -> Iterator[None]:
    """Seeds NumPy's global generator, which Captum and others draw from, by torch's, and gives its state back."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # Not drawn from torch's own sequence, which the method continues.
        np.random.seed(int(torch.randint(2**32, ())))
    try:
        yield
    finally:
        np.random.set_state(state)
