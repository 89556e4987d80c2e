from inspect import signature
from typing import Any

from captum_unioncam.attr.base import CAMS

OWN = {name: cls for name, cls in CAMS.items() if cls.__module__.startswith("captum_unioncam.attr.")}
"""This package's methods by name, variants included; other tests register methods of their own."""

METHODS = tuple(dict.fromkeys(OWN.values()))

OF_ANY_NETWORK = tuple(cls for cls in METHODS if cls.name not in ("cam", "augmented_grad_cam"))
"""Not CAM, which asks for global average pooling and one linear layer, and not Augmented Grad-CAM, for 2-D alone."""


def few_passes(method: Any) -> dict[str, int]:
    """Arguments of ``attribute`` with which no method takes dozens of passes."""
    known = signature(method.attribute).parameters
    return {name: 2 for name in ("n_augmentations", "n_samples", "n_steps") if name in known}
