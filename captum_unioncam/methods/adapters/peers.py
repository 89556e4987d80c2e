"""The shared part of the adapters to torchcam and grad-cam, packages of CAM classes."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.nn import Module

from captum_unioncam.methods.adapters.in_place import without_in_place
from captum_unioncam.methods.settings import Attribute, Factory, MethodSettings
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.imports import suggestion


@dataclass(frozen=True)
class Peer:
    """A package of CAM classes, whose constructors take a model and a layer.

    They are run one example at a time, since some hold a mask or a masked input for every channel of the whole batch.
    ``left_as_found`` removes the hooks that they leave on the model.
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
                return without_in_place(partial(self.method, cam_class))
        raise WrongArgument(f"{prefix} has no method {wanted!r}{suggestion(wanted, cam_classes)}")

    def _is_cam(self, value: Any) -> bool:
        try:
            inspect.signature(value).bind(None, **{self.layer_argument: None})
        except (TypeError, ValueError):
            # It takes other arguments, or its arguments are not known.
            return False
        return isinstance(value, type)


def _folded(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
