"""The one list of metrics: what each is called, how it is computed, what is better, and how it is shown."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Metric:
    """A metric as evaluations compute and show it.

    Args:
        name (str): In records, tables and ``--metrics``.
        function (Callable or None): Computes it, one value an example; None for what is measured and not computed.
        title (str): Shown above its column.
        larger_is_better (bool): Which direction is better.
        scale (float): The value times this is shown. Default: 1
        form (str): How a number is written. Default: ".3f", three decimals
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
    needs_objects: bool = False
    has_curve: bool = False
    is_yes_or_no: bool = False
    defaults: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The title, with an arrow towards what is better."""
        return f"{self.title} {'↑' if self.larger_is_better else '↓'}"

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


SECONDS = Metric("seconds", None, "seconds", larger_is_better=False, form=".3g")
"""How long the attribution took, which whoever runs a method measures."""

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
        if name in _metrics or name == SECONDS.name:
            raise ValueError(f"name: there is a metric {name!r} already; give another name.")
        _metrics[name] = Metric(name, function, title, larger_is_better, **how)
        return function

    return listed


def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of tables: those computed as they were listed, and the seconds."""
    return {**_metrics, SECONDS.name: SECONDS}
