"""Methods run on one image: their attributions, what the metrics say of them, and the time they took."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.accelerators import Mark, kept_random_states, release_memory
from captum_unioncam.engine.confidence import output_tensor
from captum_unioncam.engine.randomization import CASCADING, randomized_copies
from captum_unioncam.engine.sharing import SharedPasses, shared_passes
from captum_unioncam.engine.tuning import fixed_rows, out_of_memory
from captum_unioncam.evaluation.transfers import to_host
from captum_unioncam.methods.registry import Method, create
from captum_unioncam.methods.settings import Explained, MethodSettings
from captum_unioncam.metrics.attributions import DEFAULT_STEPS, one_channel
from captum_unioncam.metrics.table import SECONDS, Metric, find_metrics
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import Failure, WrongArgument, without_name

RANDOM_LOGIT = "random_logit"
"""The metric that needs another class."""


@dataclass(frozen=True)
class Judgement:
    """One method's result for one class.

    Args:
        map (Tensor): (1, 1, h, w), at the method's own resolution, not negative.
        attribution (Tensor): The map at the model's input size, (1, 1, H, W).
        confidence (float): The model's confidence in the class, for the whole image.
        values (dict[str, float]): The value of each metric that could be computed, and the "seconds".
        curves (dict[str, list[float]]): The curve of each metric that has one: confidences at equal steps.
        details (Any): Intermediate results, such as ``UnionCamDetails``. Default: None, the method has none
    """

    map: Tensor
    attribution: Tensor
    confidence: float
    values: dict[str, float]
    curves: dict[str, list[float]]
    details: Any = None


@dataclass(frozen=True)
class _OfMethod:
    """What became of one method for some classes of an image.

    Args:
        method (str): Its name.
        targets (tuple[int, ...]): The classes.
        error (Exception or None): What the method raised. Default: None
    """

    method: str
    targets: tuple[int, ...]
    error: Exception | None = field(default=None, kw_only=True)

    @property
    def is_shortage(self) -> bool:
        """Whether memory ran out."""
        return is_shortage(self.error)


@dataclass(frozen=True)
class Outcome(_OfMethod):
    """One method's results for some classes of an image, or its error.

    Args:
        judgements (list[Judgement]): One for each class; none if the method failed.
    """

    judgements: list[Judgement] = field(default_factory=list)

    @property
    def problem(self) -> str | None:
        """The error in a line, without the method's name in front."""
        return None if self.error is None else without_name(self.error, self.method)


@dataclass(frozen=True)
class Pending:
    """One method's result for one class, whose numbers a GPU may still be computing.

    Args:
        map, attribution, details: As in :class:`Judgement`.
        confidence (Tensor): As there, on its way to the host, as are the next two.
        values, curves (dict[str, Tensor]): As there, without the "seconds".
        start, end (Mark): Around what the method did for so many classes:
        classes (int): Their number.
        saved (float): Seconds that it would have taken longer alone.
        arrived (Mark): Where the numbers are on the host.
    """

    map: Tensor
    attribution: Tensor
    details: Any
    confidence: Tensor
    values: dict[str, Tensor]
    curves: dict[str, Tensor]
    start: Mark
    end: Mark
    classes: int
    saved: float
    arrived: Mark

    def judgement(self) -> Judgement:
        """Waits for the numbers.

        Raises:
            ValueError: One is not finite.
        """
        self.arrived.wait()
        values = {name: _finite(name, value.item()) for name, value in self.values.items()}
        values[SECONDS.name] = (self.end.seconds_since(self.start) + self.saved) / self.classes
        confidence = _finite("confidence", self.confidence.item())
        curves = {name: curve.tolist() for name, curve in self.curves.items()}
        return Judgement(self.map, self.attribution, confidence, values, curves, self.details)


@dataclass(frozen=True)
class Started(_OfMethod):
    """One method's results for some classes of an image, which a GPU may still be computing, or its error.

    Args:
        pending (list[Pending]): One for each class; none if the method failed.
    """

    pending: list[Pending] = field(default_factory=list)

    def outcome(self) -> Outcome:
        """Waits for the results."""
        # Returned outside the handler, which would keep the method's tensors alive.
        outcome = Outcome(self.method, self.targets, error=self.error)
        try:
            outcome = replace(outcome, judgements=[one.judgement() for one in self.pending])
        except Exception as error:
            # A GPU reports errors late: this method alone failed.
            outcome = replace(outcome, error=error)
        return outcome


class Judge:
    """Judges methods on a model. Where memory runs out, a method is tried again in smaller passes.

    Args:
        subject (ExplainedModel): The model and the layer to explain.
        method_names (Iterable[str]): As ``captum_unioncam.methods`` knows them.
        settings (MethodSettings): The methods' settings; metrics use the ``internal_batch_size`` too.
        steps (int): Steps of the metrics' curves. Default: 100
        seed (int): Seed of methods and metrics that draw random numbers. Default: 0
        metrics (Iterable[str] or None): Names of the metrics to compute. Default: None, all but those that are computed
            only on request

    Attributes:
        subject (ExplainedModel): As given.
        method_names (list[str]): The methods, in the given order.
        metrics (list[Metric]): The metrics, in the order of tables.

    Raises:
        WrongArgument: There is no such method or metric, or more steps than pixels.
        Failure: A method's package is not installed, or the method does not take the model.
    """

    def __init__(
        self,
        subject: ExplainedModel,
        method_names: Iterable[str],
        settings: MethodSettings,
        steps: int = 100,
        seed: int = 0,
        metrics: Iterable[str] | None = None,
    ) -> None:
        self.subject = subject
        self.metrics: list[Metric] = find_metrics(metrics)
        self._seed = seed
        if steps > max(subject.pixels, DEFAULT_STEPS) and any(metric.has_curve for metric in self.metrics):
            raise WrongArgument(
                f"steps={steps}: there are {subject.pixels} pixels, and a step has one or more; give at most as many."
            )
        self._settings = replace(settings, confidence_fn=subject.confidence_fn)
        if any(metric.name == RANDOM_LOGIT for metric in self.metrics) and subject.classes < 2:
            raise WrongArgument(f"metrics: {RANDOM_LOGIT} needs another class, and the model has one; leave it out.")
        # A model with other parameters and its layer, made when a metric asks for it.
        self._randomized: tuple[Module, Module] | None = None
        # In a pass of the methods for which memory ran out.
        self._rows: dict[str, int] = {}
        self._methods = {name: self._created(name) for name in method_names}
        self.method_names = list(self._methods)
        self._arguments = {
            "forward_func": subject.model,
            "steps": steps,
            "return_curve": True,
            "confidence_fn": subject.confidence_fn,
        }
        # No warm-up is needed where only maps are computed, and no seconds are shown.
        self._is_warm = metrics is not None and not list(metrics)

    def confidences(self, shown: Tensor) -> Tensor:
        """The model's confidence in each class, (classes,), for an image as the model sees it."""
        inputs, _ = self.subject.input_and_baseline(shown)
        return self.subject.confidences(inputs)[0]

    def run(
        self,
        pairs: Iterable[tuple[str, Sequence[int]]],
        shown: Tensor,
        objects: Mapping[int, Tensor | None] | None = None,
        name: str = "",
        confidences: Tensor | None = None,
    ) -> Iterator[Outcome]:
        """Judges methods on an image, one after the other, also after one that raises.

        Args:
            pairs (Iterable): Pairs of a method, one of ``method_names``, and the classes that it explains. If it
                explains them in one sweep, its seconds are divided among them.
            shown (Tensor): The image as the model sees it, (3, H, W), in [0, 1].
            objects (Mapping[int, Tensor or None] or None): The mask of each class's objects, bool, (H, W). Default:
                None, unknown
            name (str): The image's. Random numbers depend only on it, the class, the method and the metric. Default:
                ""
            confidences (Tensor or None): The model's confidence in each class, (classes,). Default: None, computed

        Returns:
            *Iterator[Outcome]*: One for each pair.
        """
        seen = {target: mask for target, mask in (objects or {}).items() if mask is not None and mask.any()}
        for started in self.started(pairs, shown, seen, name, confidences):
            yield started.outcome()

    def started(
        self,
        pairs: Iterable[tuple[str, Sequence[int]]],
        shown: Tensor,
        objects: Mapping[int, Tensor] | None = None,
        name: str = "",
        confidences: Tensor | None = None,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> Iterator[Started]:
        """As :meth:`run`, without waiting for what a GPU still computes when a method has returned.

        Args:
            pairs, shown, name, confidences: As :meth:`run` takes them.
            objects (Mapping[int, Tensor] or None): As there, but none that shows nothing. Default: None
            given (tuple[Tensor, Tensor] or None): ``input_and_baseline`` of the image. Default: None, computed

        Returns:
            *Iterator[Started]*: One for each pair.
        """
        shared = shared_passes()
        for method, targets in pairs:
            of_picture = method, targets, shown, objects or {}, name, confidences, given
            started = self._tried(*of_picture, shared)
            fewer = self._fewer_rows(method)
            while started.is_shortage and (rows := next(fewer, 0)):
                release(started.error)
                # It may hold much, and results of passes of other sizes are not read.
                shared = shared_passes()
                release_memory(self.subject.device)
                started = self._tried(*of_picture, shared, rows)
            yield started

    def _tried(self, method: str, targets: Sequence[int], *how: Any) -> Started:
        # Returned outside the handler, which would keep the method's tensors alive.
        started = Started(method, tuple(targets))
        try:
            started = replace(started, pending=self._pending(method, targets, *how))
        except Exception as error:
            # A method may raise anything; the others go on.
            started = replace(started, error=error)
        return started

    def _fewer_rows(self, method: str) -> Iterator[int]:
        """Half of the rows in a pass, half of these, and so on to one; of one, one, since memory was freed."""
        rows = self._rows.get(method) or self._settings.internal_batch_size
        rows = rows or fixed_rows(self.subject.device, self.subject.pixels)
        if rows == 1:
            yield 1
        while rows > 1:
            rows //= 2
            yield rows

    def _pending(
        self,
        method: str,
        targets: Sequence[int],
        shown: Tensor,
        objects: Mapping[int, Tensor],
        name: str,
        confidences: Tensor | None,
        given: tuple[Tensor, Tensor] | None,
        shared: SharedPasses,
        rows: int | None = None,
    ) -> list[Pending]:
        """The judgements' numbers, on their way to the host; ``rows`` is what passes have from now on."""
        if rows is not None:
            self._rows[method] = rows
            self._methods[method] = self._created(method)
        inputs, black = given or self.subject.input_and_baseline(shown)
        if confidences is None:
            confidences = self.subject.confidences(inputs)[0]
        device = self.subject.device
        with kept_random_states(), shared:
            self._warm_up(inputs)
            start, saved = Mark(device), shared.saved
            explained = self._explained(method, targets, inputs, black, name)
            attributions = [one_channel(each.attributions, inputs.shape[2:]) for each in explained]
            # With what was saved, what the method would have taken alone.
            end, saved = Mark(device), shared.saved - saved
            numbers = []
            for target, attribution in zip(targets, attributions, strict=True):
                of_target = {"inputs": inputs, "attributions": attribution, "target": target, "baselines": black}
                of_target |= self._explanation_funcs(method, target, black, name)
                if target in objects:
                    of_target["objects"] = objects[target][None, None]
                numbers.append((to_host(confidences[target]), *self._measured(of_target, (name, target, method))))
        arrived = Mark(device)
        return [
            Pending(each.attributions, attribution, each.details, *of_class, start, end, len(targets), saved, arrived)
            for each, attribution, of_class in zip(explained, attributions, numbers, strict=True)
        ]

    def _explained(
        self, method: str, targets: Sequence[int], inputs: Tensor, black: Tensor, name: str
    ) -> list[Explained]:
        """Explains the targets in one sweep, or one after the other, each with its seed."""
        run = self._methods[method]
        together = run.sweeps and method not in self._rows
        sweeps = [list(targets)] if together else [[target] for target in targets]
        explained = []
        for of_sweep in sweeps:
            torch.manual_seed(_seed(self._seed, name, of_sweep[0], method))
            explained += run.each(inputs, torch.tensor([of_sweep], device=inputs.device), black)
        return explained

    def _explanation_funcs(
        self, method: str, target: int, black: Tensor, name: str
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """For metrics: inputs to the method's attributions, each time with the same seed.

        "explanation_func" explains the target, "randomized_func" does so on a copy of the model whose layers are all
        reinitialised, and "other_class_func" explains another class, the same for all methods.
        """
        judged = self._methods[method]

        def explained(run: Method, of: int, inputs: Tensor) -> Tensor:
            torch.manual_seed(_seed(self._seed, name, target, method))
            return run.each(inputs, torch.tensor([[of]], device=inputs.device), black)[0].attributions

        def of_other_inputs(inputs: Tensor) -> Tensor:
            # What it keeps of these inputs, no other method asks for.
            with shared_passes():
                return explained(judged, target, inputs)

        drawn = _seed(self._seed, name, target, RANDOM_LOGIT) % max(self.subject.classes - 1, 1)
        other = (target + 1 + drawn) % self.subject.classes
        return {
            "explanation_func": of_other_inputs,
            "randomized_func": lambda inputs: explained(self._on_randomized(method, inputs), target, inputs),
            "other_class_func": lambda inputs: explained(judged, other, inputs),
        }

    def _on_randomized(self, method: str, inputs: Tensor) -> Method:
        """The method on a copy of the model whose layers are all reinitialised, the same copy each time."""
        if self._randomized is None:
            whole = self.subject.model, self.subject.layer, inputs
            ((_, model, layer),) = randomized_copies(*whole, CASCADING, max_layers=1, seed=self._seed)
            self._randomized = model, layer
        return self._created(method, self._randomized)

    def _measured(
        self, of_target: Mapping[str, Any], of: tuple[str, int, str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values and curves by metric, on their way to the host."""
        rows = self._rows.get(of[-1], self._settings.internal_batch_size)
        arguments = {**self._arguments, **of_target, "internal_batch_size": rows}
        values, curves = {}, {}
        for metric in self.metrics:
            if metric.needs_objects and "objects" not in arguments:
                continue
            torch.manual_seed(_seed(self._seed, *of, metric.name))
            result = metric.compute(arguments)
            if metric.has_curve:
                curves[metric.name] = to_host(result.confidences[0])
                result = result.area
            values[metric.name] = to_host(result)
        return values, curves

    def _created(self, method: str, where: tuple[Module, Module] | None = None) -> Method:
        """The method, with as many rows in a pass as memory has been found to have room for."""
        rows = self._rows.get(method, self._settings.internal_batch_size)
        settings = replace(self._settings, internal_batch_size=rows)
        model, layer = where or (self.subject.model, self.subject.layer)
        return create(method, model, layer, settings)

    def _warm_up(self, inputs: Tensor) -> None:
        """Runs the model once, so that the first method's seconds do not include one-time preparations."""
        if not self._is_warm:
            with torch.enable_grad():
                inputs = inputs.clone().requires_grad_()
                # A copy, since the model may write into its input, and a leaf may not be written to.
                output = output_tensor(self.subject.model(inputs.clone()), len(inputs))
                if output.requires_grad:
                    torch.autograd.grad(output.sum(), inputs, allow_unused=True)
            self._is_warm = True


def release(error: BaseException | None) -> None:
    """Drops the error's tracebacks, whose frames hold the tensors of a pass."""
    for each in _chain(error):
        each.__traceback__ = None


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error, its causes and its contexts."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each not in found:
            found.append(each)
            waiting += [each.__cause__, each.__context__]
    return found


def is_shortage(error: BaseException | None) -> bool:
    """Whether memory ran out, which led to the error."""
    return any(
        isinstance(each, MemoryError | torch.OutOfMemoryError)
        or (isinstance(each, RuntimeError) and not isinstance(each, Failure) and out_of_memory(each))
        for each in _chain(error)
    )


def _finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{what}: is {value}; try another model, layer or method.")
    return value


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
