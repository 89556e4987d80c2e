"""The table of metrics: names, functions, which direction is better, and format."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from captum_unioncam.system.errors import WrongArgument
from captum_unioncam.system.imports import suggestion
from captum_unioncam.system.plugins import load_entry_points

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Metric:
    """A metric as evaluations compute and show it.

    Args:
        name (str): Its name in records, tables and ``--metrics``.
        function (Callable or None): Computes it, one value an example. None for the seconds, which are measured.
        title (str): Title of its mean over many examples.
        larger_is_better (bool): Which direction is better.
        scale (float): Factor of values when shown. Default: 1
        form (str): Format of numbers. Default: ".3f", three decimals
        description (str): A sentence on its meaning for one example. Default: none, the title is enough
        needs_objects (bool): Whether it needs the masks of the image's objects. Default: False
        has_curve (bool): Whether ``function`` takes ``return_curve`` and returns a ``Curve`` then. Default: False
        is_yes_or_no (bool): Whether each value is 0 or 1. Default: False
        defaults (tuple[str, ...]): Arguments of ``function`` that evaluations leave at their defaults. Default: none
        on_request (bool): Whether evaluations compute it only where it is named. Default: False
    """

    name: str
    function: Callable[..., Any] | None
    title: str
    larger_is_better: bool
    scale: float = 1.0
    form: str = ".3f"
    description: str = ""
    needs_objects: bool = False
    has_curve: bool = False
    is_yes_or_no: bool = False
    defaults: tuple[str, ...] = ()
    on_request: bool = False

    @property
    def heading(self) -> str:
        """The title with the arrow."""
        return f"{self.title} {self.arrow}"

    @property
    def arrow(self) -> str:
        """The direction that is better."""
        return "↑" if self.larger_is_better else "↓"

    def text(self, value: float) -> str:
        """One example's value, not scaled, as people read it."""
        if self.is_yes_or_no:
            return f"{value:.0f}"
        # The form goes with the scale.
        return format(value, self.form if self.scale == 1 else ".3f")

    def compute(self, arguments: Mapping[str, Any]) -> Any:
        """Calls the function with the arguments that it takes.

        Args:
            arguments (Mapping[str, Any]): They include forward_func, inputs, attributions, target, baselines, objects,
                steps, return_curve, confidence_fn, internal_batch_size, and functions of inputs to the method's
                attributions: explanation_func for the same target, randomized_func for it on a copy of the model whose
                layers are reinitialised, and other_class_func for another target.

        Returns:
            *Tensor* (N,), or with ``has_curve`` and ``return_curve`` a *Curve*.
        """
        assert self.function is not None, f"{self.name} is measured, not computed"
        taken = set(inspect.signature(self.function).parameters) - set(self.defaults)
        return self.function(**{name: value for name, value in arguments.items() if name in taken})


SECONDS = Metric(
    "seconds", None, "seconds", larger_is_better=False, form=".3g", description="The time that the method took."
)
"""The seconds that a method took, measured by the ``Judge``."""

# What ``metric`` gets for a share that is shown as a percentage.
PERCENT: dict[str, Any] = {"scale": 100, "form": ".1f"}

_metrics: dict[str, Metric] = {}


def metric(name: str, title: str, *, larger_is_better: bool, **how: Any) -> Callable[[FunctionT], FunctionT]:
    """A decorator that adds a function to the table of metrics.

    Args:
        name, title, larger_is_better, **how: As :class:`Metric` takes them. The function's arguments are those of
            ``captum_unioncam.metrics.confidence_drop`` that it needs, ``objects``, bool (N, 1, H, W), and
            ``explanation_func``, as ``captum_unioncam.metrics.coherency`` takes it.

    Raises:
        ValueError: There is a metric of that name already.

    Examples::

        >>> @metric("mean", "mean attribution", larger_is_better=False)
        ... def mean_attribution(attributions):
        ...     return attributions.flatten(1).mean(1)
    """

    def listed(function: FunctionT) -> FunctionT:
        for known in (*_metrics.values(), SECONDS):
            # A notebook's cell may be run again.
            is_same = _place(known.function) == _place(function) and known.name == name
            if not is_same and (known.name == name or known.title == title):
                raise ValueError(f"name: there is a metric {known.name!r} already, {known.title!r}; give another.")
        _metrics[name] = Metric(name, function, title, larger_is_better, **how)
        return function

    return listed


def _place(function: Callable[..., Any] | None) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", "")


def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of tables: the computed ones, then the seconds.

    Includes those of plugins, the entry points of the group "captum_unioncam.metrics", which are loaded once.
    """
    _load_plugins()
    return {**_metrics, SECONDS.name: SECONDS}


def find_metrics(names: Iterable[str] | None = None) -> list[Metric]:
    """The computed metrics of these names, in the order of tables.

    Args:
        names (Iterable[str] or None): Default: None, all but those that are computed only on request

    Raises:
        WrongArgument: There is no such metric.
    """
    known = all_metrics()
    wanted = {name for name, metric in known.items() if not metric.on_request} if names is None else set(names)
    unknown = min(wanted - known.keys(), default=None)
    if unknown is not None:
        raise WrongArgument(
            f"there is no metric {unknown!r}{suggestion(unknown, known)} Give some of {', '.join(known)}."
        )
    return [metric for name, metric in known.items() if name in wanted and metric.function is not None]


@cache
def _load_plugins() -> None:
    """Loads plugins, whose decorators add their metrics."""
    load_entry_points("captum_unioncam.metrics")
