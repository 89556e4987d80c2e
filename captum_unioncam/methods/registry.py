"""Attribution methods by name: found, and called alike."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.base import CAMS, CamAttribution
from captum_unioncam.attr.rise import Rise
from captum_unioncam.engine.checks import check_finite
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
    """A method by name for one model and layer, as :func:`create` makes it; called as ``Attribute`` says.

    Args:
        name (str): As given to ``create``.
        model (torch.nn.Module): Runs in evaluation mode meanwhile, and is left as it was found.
        run (Callable): The method, which may have ``each`` as well.
    """

    def __init__(self, name: str, model: Module, run: Any) -> None:
        self.name, self._model, self._run = name, model, run

    @property
    def sweeps(self) -> bool:
        """Whether several targets are explained in one sweep, as by this package's CAMs, which draw nothing."""
        return hasattr(self._run, "each")

    def __call__(self, inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        """Maps (N, 1, H, W) of the targets (N,), upsampled bilinearly to the inputs' size."""
        (explained,) = self.each(inputs, target.unsqueeze(1), baselines)
        maps = explained.attributions
        return maps if maps.shape[2:] == inputs.shape[2:] else up(maps, inputs.shape[2:])

    def each(self, inputs: Tensor, targets: Tensor, baselines: Tensor) -> list[Explained]:
        """What the method says of several targets of each example; this package's CAMs do so in one sweep.

        Args:
            inputs (Tensor): (N, 3, H, W).
            targets (Tensor): (N, T), int64.
            baselines (Tensor): (1 or N, 3, H, W).

        Returns:
            *list[Explained]*: T of them, with maps (N, 1, h, w) of the method's own resolution, not negative.
        """
        inputs, targets, baselines = inputs.detach(), targets.to(inputs.device), baselines.detach()
        with (
            _failing_as(self.name),
            left_as_found(self._model),
            evaluation_mode(self._model),
            _gradients_and_seeds(),
        ):
            if self.sweeps:
                results = self._run.each(inputs.clone(), targets, baselines.clone())
            else:
                results = [Explained(self._run(inputs.clone(), t, baselines.clone())) for t in targets.unbind(1)]
        return [Explained(self._maps(result.attributions, inputs), result.details) for result in results]

    def _maps(self, attributions: Any, inputs: Tensor) -> Tensor:
        _check_shape(self.name, attributions, inputs)
        attributions = attributions.detach().to(inputs.device, torch.promote_types(attributions.dtype, torch.float32))
        check_finite(attributions, self.name)
        maps: Tensor = attributions.sum(1, keepdim=True).relu()
        return maps


def create(name: str, model: Module, layer: Module, settings: MethodSettings | None = None) -> Method:
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
        *Method*: A function of inputs (N, 3, H, W), targets (N,) int64 and baselines (1 or N, 3, H, W), what the model
        takes for black; returns maps (N, 1, H, W), not negative, in float32 at least, on the inputs' device. It raises
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
    with _failing_as(name):
        run = factory(model, layer, settings)
    if not callable(run):
        raise WrongArgument(f"{name}: returned {type(run).__name__}; give a function that returns a function.")
    return Method(name, model, run)


def names() -> list[str]:
    """The names of this package's methods and Captum's, of the registered ones, and of other packages'."""
    return list(_known())


def describe(name: str) -> str:
    """What a method is, in a line: the first of its docstring, "" where it has none.

    Args:
        name (str): One of ``names()``.
    """
    return (inspect.getdoc(_factory(name)) or "").partition("\n")[0]


def with_defaults(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the method takes them: a CAM's own defaults for those that are None, and what a variant fixes."""
    if name not in CAMS:
        return dict(settings)
    own = {argument.name: argument.default for argument in options(CAMS[name].attribute)}
    taken = {key: own.get(key) if value is None else value for key, value in settings.items()}
    return {**taken, **CAMS[name].variants.get(name, {})}


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


PEERS = {"torchcam": TORCHCAM, "grad_cam": GRAD_CAM}
"""Packages of CAM classes, by what stands in front of the colon."""

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
    # First: a class of another package is listed, with its variants, as it is loaded.
    plugins = _plugins()
    cams = {name: cam(cam_class, cam_class.variants.get(name, {})) for name, cam_class in CAMS.items()}
    return {
        **cams,
        Rise.name: cam(Rise, {}),
        **CAPTUM_METHODS,
        **_registered,
        **{name: plugins[name] for name in plugins if name not in cams},
    }


def _factory(name: str) -> Factory:
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
    return name in (*CAPTUM_METHODS, Rise.name) or (
        name in CAMS and CAMS[name].__module__.startswith("captum_unioncam.")
    )


@contextmanager
def _failing_as(name: str) -> Iterator[None]:
    """Whatever others' methods raise is a ``Failure``; this package's and Captum's raise what they raise."""
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


def _check_shape(name: str, result: Any, inputs: Tensor) -> None:
    fits = isinstance(result, Tensor) and result.dim() == 4 and len(result) == len(inputs) and result.numel() > 0
    if not fits:
        what = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise Failure(
            f"{name}: returned {what} for inputs of shape {tuple(inputs.shape)}; it has to return a tensor of shape "
            f"({len(inputs)}, C, h, w)."
        )


@contextmanager
def _gradients_and_seeds() -> Iterator[None]:
    """Enables gradients, and seeds NumPy's global generator, which Captum draws from, by torch's; restores both."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # Not drawn from torch's own sequence, which the method continues.
        np.random.seed(int(torch.randint(2**32, ())))
    try:
        with torch.enable_grad():
            yield
    finally:
        np.random.set_state(state)
