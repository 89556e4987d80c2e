"""Data sets of labelled images, for evaluating attribution methods: listed when opened, read one image at a time.

One file for each layout; ``open.py`` detects it. Imports demo and system.
"""

from typing import TYPE_CHECKING

from captum_unioncam.system.imports import lazy_names

if TYPE_CHECKING:
    from captum_unioncam.datasets.pictures import open_picture
else:
    __getattr__ = lazy_names(__name__, {"open_picture": "pictures"})

__all__ = ["open_picture"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
