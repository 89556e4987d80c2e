"""Attribution methods by name: found, and called alike."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.base import CAMS, CamAttribution
from captum_unioncam.attr.rise import Rise
from captum_unioncam.engine.checks import check_finite
from captum_unioncam.engine.confidence import OutputFunction, one_tensor
from captum_unioncam.engine.maps import up
from captum_unioncam.engine.model_state import evaluation_mode, left_as_found
from captum_unioncam.methods.adapters.cam import cam
from captum_unioncam.methods.adapters.captum import CAPTUM_METHODS
from captum_unioncam.methods.adapters.grad_cam import GRAD_CAM
from captum_unioncam.methods.adapters.torchcam import TORCHCAM
from captum_unioncam.methods.settings import Explained, Factory, MethodSettings
from captum_unioncam.system.documents import options
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.imports import imported_function, suggestion
from captum_unioncam.system.plugins import load_entry_points


class Method:
    """A method for one model and layer, as :func:`create` makes it.

    Args:
        name (str): As given to ``create``.
        model (torch.nn.Module): Runs in evaluation mode, and is restored afterwards. For other packages' methods, it
            gets a hook that returns one tensor.
        run (Callable): An ``Attribute``; its method ``each``, if any, explains several targets in one sweep.
        output_fn (Callable or None): As ``MethodSettings`` has it. Default: None
    """

    def __init__(self, name: str, model: Module, run: Any, output_fn: OutputFunction | None = None) -> None:
        self.name, self._model, self._run, self._output_fn = name, model, run, output_fn

    @property
    def sweeps(self) -> bool:
        """Whether several targets are explained in one sweep, as by this package's methods."""
        return hasattr(self._run, "each")

    def __call__(self, inputs: Tensor, target: Tensor, baselines: Tensor, *, signed: bool = False) -> Tensor:
        """Maps (N, 1, H, W) of the targets (N,), upsampled bilinearly to the inputs' size; ``signed`` as ``each``."""
        (explained,) = self.each(inputs, target.unsqueeze(1), baselines, signed=signed)
        maps = explained.attributions
        return maps if maps.shape[2:] == inputs.shape[2:] else up(maps, inputs.shape[2:])

    def each(self, inputs: Tensor, targets: Tensor, baselines: Tensor, *, signed: bool = False) -> list[Explained]:
        """Explains several targets of each example.

        Args:
            inputs (Tensor): (N, 3, H, W).
            targets (Tensor): (N, T), int64.
            baselines (Tensor): (1 or N, 3, H, W).
            signed (bool): Keep negative values. Default: False, they are 0

        Returns:
            *list[Explained]*: T of them, with maps (N, 1, h, w) of the method's own resolution.
        """
        inputs, targets, baselines = inputs.detach(), targets.to(inputs.device), baselines.detach()
        with _failing_as(self.name), left_as_found(self._model), evaluation_mode(self._model), gradients_and_seeds():
            if self.sweeps:
                results = self._run.each(inputs.clone(), targets, baselines.clone())
            else:
                # Other packages' methods take a model that returns a tensor. TorchScript takes no hooks.
                if not isinstance(self._model, torch.jit.ScriptModule):
                    self._model.register_forward_hook(partial(one_tensor, self._output_fn), with_kwargs=True)
                results = [Explained(self._run(inputs.clone(), t, baselines.clone())) for t in targets.unbind(1)]
        return [Explained(self._maps(result.attributions, inputs, signed), result.details) for result in results]

    def _maps(self, result: Any, inputs: Tensor, signed: bool) -> Tensor:
        fits = isinstance(result, Tensor) and result.dim() == 4 and len(result) == len(inputs) and result.numel() > 0
        if not fits:
            what = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise Failure(
                f"{self.name}: returned {what} for inputs of shape {tuple(inputs.shape)}; it has to return a tensor of "
                f"shape ({len(inputs)}, C, h, w)."
            )
        attributions = result.detach().to(inputs.device, torch.promote_types(result.dtype, torch.float32))
        check_finite(attributions, self.name)
        maps: Tensor = attributions.sum(1, keepdim=True)
        return maps if signed else maps.relu()


def create(name: str, model: Module, layer: Module, settings: MethodSettings | None = None) -> Method:
    """Makes the method of that name for a model and a layer.

    The method runs the model in evaluation mode, and restores model and inputs, also after an exception. Attributions
    are summed over their channels, clamped to 0 or more, and upsampled bilinearly to the inputs' size. Random numbers,
    of torch and of NumPy, depend on torch's global generator.

    Args:
        name (str): One of ``names()``, "torchcam:NAME", "grad_cam:NAME" (upper case, "-" and "_" do not matter there),
            or "package.module:function", a ``Factory``.
        model (torch.nn.Module): (N, 3, H, W) to (N, classes), or to what holds that (``MethodSettings.output_fn``).
        layer (torch.nn.Module): The layer to explain; methods that explain the input ignore it.
        settings (MethodSettings or None): Default: None, the defaults

    Returns:
        *Method*: A function of inputs (N, 3, H, W), targets (N,) int64 and baselines (1 or N, 3, H, W), the black
        image. It returns maps (N, 1, H, W) that are not negative, at least in float32, on the inputs' device. It raises
        ``ValueError`` if they are not finite, and ``Failure`` if a method of another package raises an error, or
        returns another shape than (N, C, h, w).

    Raises:
        WrongArgument: There is no such method.
        Failure: The method's package is not installed, or the user's factory failed.

    Examples::

        >>> attribute = create("torchcam:LayerCAM", model, model.layer4)
        >>> maps = attribute(images, labels, torch.zeros_like(images[:1]))  # (N, 1, 224, 224)
    """
    factory = factory_of(name)
    settings = settings or MethodSettings()
    with _failing_as(name):
        run = factory(model, layer, settings)
    if not callable(run):
        raise WrongArgument(f"{name}: returned {type(run).__name__}; give a function that returns a function.")
    return Method(name, model, run, settings.output_fn)


def names() -> list[str]:
    """The names of all methods: this package's, Captum's, the registered ones, and those of plugins."""
    return list(_known())


def describe(name: str) -> str:
    """The first line of the method's docstring, "" if it has none.

    Args:
        name (str): One of ``names()``.
    """
    return (inspect.getdoc(factory_of(name)) or "").partition("\n")[0]


def with_defaults(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a CAM's own defaults in place of None, and with the arguments that a variant fixes."""
    method_class = _classes().get(name)
    if method_class is None:
        return dict(settings)
    own = {argument.name: argument.default for argument in options(method_class.attribute)}
    taken = {key: own.get(key) if value is None else value for key, value in settings.items()}
    return {**taken, **method_class.variants.get(name, {})}


def register(name: str, factory: Factory) -> None:
    """Adds your own method under a name for ``create``.

    Args:
        name (str): A new one, without ":".
        factory (Callable): Called with a model, a layer and ``MethodSettings``. Returns a function of inputs
            (N, 3, H, W), targets (N,) and baselines (1 or N, 3, H, W) that returns attributions (N, C, h, w) of any
            C, h and w.

    Raises:
        WrongArgument: The name contains ":" or is taken.

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


PEERS = {"torchcam": TORCHCAM, "grad_cam": GRAD_CAM}
"""Packages of CAM classes, by the prefix of their methods' names."""

PEER_PACKAGES = tuple(peer.distribution for peer in PEERS.values())
"""Their names on PyPI."""

_registered: dict[str, Factory] = {}


@cache
def _plugins() -> dict[str, Factory]:
    """Other packages' methods, which are classes of CAMs or factories."""
    return {name: _as_factory(found) for name, found in load_entry_points("captum_unioncam.methods").items()}


def _as_factory(found: Any) -> Factory:
    is_cam = isinstance(found, type) and issubclass(found, CamAttribution)
    return cam(found, {}) if is_cam else found


def _known() -> dict[str, Factory]:
    """Every method by name."""
    # First, since loading a class of another package adds it and its variants to CAMS.
    plugins = _plugins()
    classes = {name: cam(found, found.variants.get(name, {})) for name, found in _classes().items()}
    others = {name: plugins[name] for name in plugins if name not in classes}
    return {**classes, **CAPTUM_METHODS, **_registered, **others}


def _classes() -> dict[str, type[CamAttribution[Any]] | type[Rise]]:
    """The methods that are classes, of this package and of others."""
    return {**CAMS, Rise.name: Rise}


def factory_of(name: str) -> Factory:
    """The function that makes the method of that name.

    Args:
        name (str): As ``create`` takes it.

    Raises:
        WrongArgument: There is no such method.
        Failure: The package it belongs to is not installed.
    """
    if ":" in name:
        peer = PEERS.get(name.partition(":")[0])
        return peer.factory(name) if peer else imported_function(name, name)
    known = _known()
    if name not in known:
        peers = "".join(f"{peer}:NAME, " for peer in PEERS)
        raise WrongArgument(
            f"there is no method {name!r}{suggestion(name, known)} Give one of {', '.join(known)}, {peers}or "
            "package.module:function."
        )
    return known[name]


def _is_ours(name: str) -> bool:
    """Whether the method is this package's or Captum's."""
    found = _classes().get(name)
    return name in CAPTUM_METHODS or (found is not None and found.__module__.startswith("captum_unioncam."))


@contextmanager
def _failing_as(name: str) -> Iterator[None]:
    """Turns any exception of other packages' methods into a ``Failure``."""
    try:
        yield
    except (Failure, WrongArgument):
        raise
    except Exception as error:
        if _is_ours(name):
            raise
        raise Failure(
            f"{name}: raised {type(error).__name__}: {one_line(error).rstrip('.')}; try another layer or method."
        ) from error


@contextmanager
def gradients_and_seeds() -> Iterator[None]:
    """Enables gradients, and seeds NumPy's global generator, which Captum uses, from torch's. Restores both."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # In a fork, so that the method's own random numbers do not change.
        np.random.seed(int(torch.randint(2**32, ())))
    try:
        with torch.enable_grad():
            yield
    finally:
        np.random.set_state(state)
