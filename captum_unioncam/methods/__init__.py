"""Attribution methods by name, with one interface: this package's, Captum's, torchcam's, grad-cam's and your own.

Example::

    >>> from captum_unioncam import methods
    >>> attribute = methods.create("union_cam", model, model.layer4)
    >>> maps = attribute(images, labels, torch.zeros_like(images[:1]))  # (N, 1, H, W)
    >>> def mine(model, layer, settings):
    ...     return lambda images, labels, baselines: images.abs()
    >>> methods.register("mine", mine)

A name is one of ``names()``, ``torchcam:NAME`` or ``grad_cam:NAME`` for a CAM class of those packages, or
``package.module:function`` for a factory of your own.

``registry.py`` finds them; ``adapters`` has a file for each package. Imports attr and what is below it.
"""

from captum_unioncam.methods.registry import create, describe, names, register
from captum_unioncam.methods.settings import MethodSettings

__all__ = ["MethodSettings", "create", "describe", "names", "register"]
