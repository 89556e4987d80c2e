"""Plugins: what other packages add by entry points."""

import warnings
from importlib.metadata import entry_points
from typing import Any

from captum_unioncam.system.errors import one_line


def load_entry_points(group: str) -> dict[str, Any]:
    """Loads the entry points of installed packages in a group.

    Args:
        group (str): Such as "captum_unioncam.metrics".

    Returns:
        *dict[str, Any]*: By the entry points' names. One that cannot be loaded is left out, with a warning.
    """
    found = {}
    for point in entry_points(group=group):
        try:
            found[point.name] = point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.module
            warnings.warn(
                f"{package}: loading {point.name!r} of {group} ({point.value}) raised {type(error).__name__}: "
                f"{one_line(error).rstrip('.')}; it is left out.",
                stacklevel=2,
            )
    return found
