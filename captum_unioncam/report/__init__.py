"""Shows results: statistics, tables, plots, panels and pages. Imports evaluation and what is below it."""

from typing import TYPE_CHECKING

from captum_unioncam.system.imports import lazy_names

if TYPE_CHECKING:
    from captum_unioncam.report.images import Look
    from captum_unioncam.report.panels import HeatMap, panel
else:
    __getattr__ = lazy_names(__name__, {"HeatMap": "panels", "Look": "images", "panel": "panels"})

__all__ = ["HeatMap", "Look", "panel"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
