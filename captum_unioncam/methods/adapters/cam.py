"""This package's own methods, built from the signatures of their constructors and of ``attribute``."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.base import CamAttribution
from captum_unioncam.attr.rise import Rise
from captum_unioncam.methods.settings import Explained, Factory, MethodSettings
from captum_unioncam.system.documents import sections


class CamMethod:
    """A method with its arguments. Explains several targets of each example in one sweep.

    Args:
        cam_class (type): A ``CamAttribution``, or ``Rise``, which takes no layer.
        fixed (Mapping): Arguments of its ``attribute`` that no settings change.
        model, layer, settings: As a ``Factory`` takes them.
    """

    def __init__(
        self,
        cam_class: type[CamAttribution[Any]] | type[Rise],
        fixed: Mapping[str, Any],
        model: Module,
        layer: Module,
        settings: MethodSettings,
    ) -> None:
        given = vars(settings)
        where = (model,) if cam_class is Rise else (model, layer)
        self.cam = cam_class(*where, **_taken_by(cam_class, given))
        self._given, self._fixed = given, fixed

    def __call__(self, inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        return self.each(inputs, target.unsqueeze(1), baselines)[0].attributions

    def each(self, inputs: Tensor, targets: Tensor, baselines: Tensor) -> list[Explained]:
        """Explains the targets (N, T), with details if the method has any."""
        given = {**self._given, "baselines": None if self.cam.has_own_baselines else baselines}
        arguments = {**_taken_by(self.cam.attribute, given), **self._fixed}
        if not self.cam.gives_details:
            stacked: Tensor = self.cam.attribute_targets(inputs, targets, **arguments)
            return [Explained(attributions) for attributions in stacked.unbind(1)]
        stacked, details = self.cam.attribute_targets(inputs, targets, return_details=True, **arguments)
        return [Explained(attributions, details.of_target(t)) for t, attributions in enumerate(stacked.unbind(1))]


def _taken_by(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the function has as parameters, without those that are None."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in parameters and value is not None}


def cam(cam_class: type[CamAttribution[Any]] | type[Rise], fixed: Mapping[str, Any]) -> Factory:
    """The factory of a CAM class. Settings do not change the arguments of ``attribute`` in ``fixed``."""
    factory = partial(CamMethod, cam_class, fixed)
    with_arguments = "".join(f" With {argument}={value!r}." for argument, value in fixed.items())
    factory.__doc__ = sections(cam_class.__doc__)[""].partition("\n")[0] + with_arguments
    return factory
