"""The one list of metrics: what each is called, how it is computed, what is better, and how it is shown."""

from __future__ import annotations

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
        name (str): In records, tables and ``--metrics``.
        function (Callable or None): Computes it, one value an example; None for what is measured and not computed.
        title (str): Of its mean over many examples.
        larger_is_better (bool): Which direction is better.
        scale (float): The value times this is shown. Default: 1
        form (str): How a number is written. Default: ".3f", three decimals
        description (str): A sentence on what it says of one example, where the title does not say it. Default: none
        needs_objects (bool): Whether it can be computed only where the picture's objects are known. Default: False
        has_curve (bool): Whether ``function`` takes ``return_curve`` and returns a ``Curve`` then. Default: False
        is_yes_or_no (bool): Whether each value is 0 or 1, so that only means say something. Default: False
        defaults (tuple[str, ...]): Arguments of ``function`` that evaluations leave at their defaults. Default: none
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

    @property
    def heading(self) -> str:
        """The title, with an arrow towards what is better."""
        return f"{self.title} {self.arrow}"

    @property
    def arrow(self) -> str:
        """Towards what is better."""
        return "↑" if self.larger_is_better else "↓"

    def text(self, value: float) -> str:
        """One example's value, not scaled, as people read it."""
        if self.is_yes_or_no:
            return f"{value:.0f}"
        # The form goes with the scale.
        return format(value, self.form if self.scale == 1 else ".3f")

    def compute(self, arguments: Mapping[str, Any]) -> Any:
        """Calls the function with those of the arguments that it takes.

        Args:
            arguments (Mapping[str, Any]): Among them forward_func, inputs, attributions, target, baselines, objects,
                steps, return_curve, confidence_fn and internal_batch_size.

        Returns:
            *Tensor* (N,), or with ``has_curve`` and ``return_curve`` a *Curve*.
        """
        assert self.function is not None, f"{self.name} is measured, not computed"
        taken = set(inspect.signature(self.function).parameters) - set(self.defaults)
        return self.function(**{name: value for name, value in arguments.items() if name in taken})


SECONDS = Metric(
    "seconds", None, "seconds", larger_is_better=False, form=".3g", description="The time that the method took."
)
"""Measured by whoever runs a method."""

_metrics: dict[str, Metric] = {}


def metric(name: str, title: str, *, larger_is_better: bool, **how: Any) -> Callable[[FunctionT], FunctionT]:
    """Lists a function among the metrics; a decorator.

    Args:
        name, title, larger_is_better, **how: As :class:`Metric` takes them. The function's arguments are those of
            ``captum_unioncam.metrics.confidence_drop`` that it needs, and ``objects``, bool (N, 1, H, W).

    Raises:
        ValueError: There is a metric of that name already.

    Examples::

        >>> @metric("mean", "mean attribution", larger_is_better=False)
        ... def mean_attribution(attributions):
        ...     return attributions.flatten(1).mean(1)
    """

    def listed(function: FunctionT) -> FunctionT:
        for known in (*_metrics.values(), SECONDS):
            # A cell of a notebook may be run again.
            is_same = _place(known.function) == _place(function) and known.name == name
            if not is_same and (known.name == name or known.title == title):
                raise ValueError(f"name: there is a metric {known.name!r} already, {known.title!r}; give another.")
        _metrics[name] = Metric(name, function, title, larger_is_better, **how)
        return function

    return listed


def _place(function: Callable[..., Any] | None) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", "")


def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of tables: those computed as they were listed, and the seconds.

    Other packages' are among them: those that the entry points of the group "captum_unioncam.metrics" list when they
    are loaded, which is done once.
    """
    _load_plugins()
    return {**_metrics, SECONDS.name: SECONDS}


def find_metrics(names: Iterable[str] | None = None) -> list[Metric]:
    """The metrics of these names that are computed, so without the seconds, in the order of tables.

    Args:
        names (Iterable[str] or None): Default: None, all

    Raises:
        WrongArgument: There is no such metric.
    """
    known = all_metrics()
    wanted = set(known if names is None else names)
    unknown = min(wanted - known.keys(), default=None)
    if unknown is not None:
        raise WrongArgument(
            f"there is no metric {unknown!r}{suggestion(unknown, known)} Give some of {', '.join(known)}."
        )
    return [metric for name, metric in known.items() if name in wanted and metric.function is not None]


@cache
def _load_plugins() -> None:
    """Other packages' decorators list their metrics as they are loaded."""
    load_entry_points("captum_unioncam.metrics")
