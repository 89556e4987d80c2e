"""Methods run on one picture: their attributions, what the metrics say of them, and the time they took."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.engine.confidence import output_tensor
from captum_unioncam.engine.sharing import SharedPasses, shared_passes
from captum_unioncam.engine.tuning import out_of_memory
from captum_unioncam.methods.registry import create
from captum_unioncam.methods.settings import Explained, MethodSettings
from captum_unioncam.metrics.attributions import DEFAULT_STEPS, one_channel
from captum_unioncam.metrics.table import SECONDS, Metric, find_metrics
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import Failure, WrongArgument, one_line

Objects = Mapping[int, Tensor | None]
"""The mask of each class's objects, bool, (H, W), or None where it is unknown."""


@dataclass(frozen=True)
class Judgement:
    """One method's result for one class.

    Args:
        map (Tensor): (1, 1, h, w), at the method's own resolution, not negative.
        attribution (Tensor): The map at the model's input size, (1, 1, H, W).
        confidence (float): The model's confidence in the class, for the whole picture.
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
class Outcome:
    """One method's results for some classes of a picture, or its error.

    Args:
        method (str): Its name.
        targets (tuple[int, ...]): The classes.
        judgements (list[Judgement]): One for each class; none if the method failed.
        error (Exception or None): What the method raised. Default: None
    """

    method: str
    targets: tuple[int, ...]
    judgements: list[Judgement] = field(default_factory=list)
    error: Exception | None = None

    @property
    def problem(self) -> str | None:
        """The error in a line, without the method's name in front."""
        if self.error is None:
            return None
        message = one_line(self.error).removeprefix(f"{self.method}: ")
        return message if isinstance(self.error, Failure) else f"{type(self.error).__name__}: {message}"

    @property
    def is_shortage(self) -> bool:
        """Whether memory ran out."""
        return self.error is not None and any(map(_is_shortage, _chain(self.error)))


class Judge:
    """Judges methods on a model.

    Args:
        subject (ExplainedModel): The model and the layer to explain.
        method_names (Iterable[str]): As ``captum_unioncam.methods`` knows them.
        settings (MethodSettings): The methods' settings; metrics use the ``internal_batch_size`` too.
        steps (int): Steps of the metrics' curves. Default: 100
        seed (int): Seed of methods and metrics that draw random numbers. Default: 0
        metrics (Iterable[str] or None): Names of the metrics to compute. Default: None, all

    Attributes:
        subject (ExplainedModel): As given.
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
        settings = replace(settings, confidence_fn=subject.confidence_fn)
        self._methods = {name: create(name, subject.model, subject.layer, settings) for name in method_names}
        self._arguments = {
            "forward_func": subject.model,
            "steps": steps,
            "return_curve": True,
            "confidence_fn": subject.confidence_fn,
            "internal_batch_size": settings.internal_batch_size,
        }
        # No warm-up is needed where only maps are computed, and no seconds are shown.
        self._is_warm = metrics is not None and not list(metrics)

    @property
    def method_names(self) -> list[str]:
        """The methods, in the given order."""
        return list(self._methods)

    def confidences(self, shown: Tensor) -> Tensor:
        """The model's confidence in each class, (classes,), for a picture as the model sees it."""
        inputs, _ = self.subject.input_and_baseline(shown)
        return self.subject.confidences(inputs)[0]

    def run(
        self,
        pairs: Iterable[tuple[str, Sequence[int]]],
        shown: Tensor,
        objects: Objects | None = None,
        name: str = "",
        confidences: Tensor | None = None,
    ) -> Iterator[Outcome]:
        """Judges methods on a picture, one after the other, also after one that raises.

        Args:
            pairs (Iterable): Pairs of a method, one of ``method_names``, and the classes that it explains.
            shown, objects, name, confidences: As :meth:`judge` takes them.

        Returns:
            *Iterator[Outcome]*: One for each pair.
        """
        shared = shared_passes()
        for method, targets in pairs:
            # Yielded outside the handler, which would keep the method's tensors alive.
            outcome = Outcome(method, tuple(targets))
            try:
                judgements = self.judge(method, shown, targets, objects, name, confidences, shared)
                outcome = replace(outcome, judgements=judgements)
            except Exception as error:
                outcome = replace(outcome, error=error)
            yield outcome

    def judge(
        self,
        method: str,
        shown: Tensor,
        targets: Sequence[int],
        objects: Objects | None = None,
        name: str = "",
        confidences: Tensor | None = None,
        shared: SharedPasses | None = None,
    ) -> list[Judgement]:
        """Explains classes of a picture with a method, and judges its attributions.

        Args:
            method (str): One of ``method_names``.
            shown (Tensor): The picture as the model sees it, (3, H, W), in [0, 1].
            targets (Sequence[int]): The classes. If the method explains them in one sweep, its seconds are divided
                among them.
            objects (Mapping[int, Tensor or None] or None): The mask of each class's objects, bool, (H, W). Default:
                None, unknown
            name (str): The picture's. Random numbers depend only on it, the class, the method and the metric. Default:
                ""
            confidences (Tensor or None): The model's confidence in each class, (classes,). Default: None, computed
            shared (SharedPasses or None): Results of earlier methods' passes on the picture. Default: None, none

        Returns:
            *list[Judgement]*: One for each class.

        Raises:
            ValueError: A number is not finite.
        """
        inputs, black = self.subject.input_and_baseline(shown)
        if confidences is None:
            confidences = self.subject.confidences(inputs)[0]
        with torch.random.fork_rng(_seeded_devices()), shared or shared_passes() as shared:
            self._warm_up(inputs)
            start = self._now() + shared.saved
            explained = self._explained(method, targets, inputs, black, name)
            attributions = [one_channel(each.attributions, inputs.shape[2:]) for each in explained]
            # What the method would have taken alone.
            seconds = (self._now() + shared.saved - start) / len(targets)
            judgements = []
            for target, each, attribution in zip(targets, explained, attributions, strict=True):
                mask = (objects or {}).get(target)
                given = {"inputs": inputs, "attributions": attribution, "target": target, "baselines": black}
                if mask is not None and mask.any():
                    given["objects"] = mask[None, None]
                values, curves = self._measured({**self._arguments, **given}, (name, target, method))
                values[SECONDS.name] = seconds
                confidence = _finite("confidence", confidences[target].item())
                judgements.append(Judgement(each.attributions, attribution, confidence, values, curves, each.details))
        return judgements

    def _explained(
        self, method: str, targets: Sequence[int], inputs: Tensor, black: Tensor, name: str
    ) -> list[Explained]:
        """Explains the targets in one sweep, or one after the other, each with its seed."""
        run = self._methods[method]
        sweeps = [list(targets)] if run.sweeps else [[target] for target in targets]
        explained = []
        for of_sweep in sweeps:
            torch.manual_seed(_seed(self._seed, name, of_sweep[0], method))
            explained += run.each(inputs, torch.tensor([of_sweep], device=inputs.device), black)
        return explained

    def _measured(
        self, arguments: Mapping[str, Any], of: tuple[str, int, str]
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Values and curves by metric."""
        values, curves = {}, {}
        for metric in self.metrics:
            if metric.needs_objects and "objects" not in arguments:
                continue
            torch.manual_seed(_seed(self._seed, *of, metric.name))
            result = metric.compute(arguments)
            if metric.has_curve:
                curves[metric.name] = result.confidences[0].tolist()
                result = result.area
            values[metric.name] = _finite(metric.name, result.item())
        return values, curves

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

    def _now(self) -> float:
        """Seconds, after the device has finished."""
        if self.subject.device.type == "cuda":
            torch.cuda.synchronize(self.subject.device)
        return time.perf_counter()


def _seeded_devices() -> list[int]:
    """The GPUs that torch.manual_seed seeds: all, once one is in use."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if in_use else []


def release(error: BaseException) -> None:
    """Drops the error's tracebacks, whose frames hold the tensors of a pass."""
    for each in _chain(error):
        each.__traceback__ = None


def _chain(error: BaseException) -> list[BaseException]:
    """The error, its causes and its contexts."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each not in found:
            found.append(each)
            waiting += [each.__cause__, each.__context__]
    return found


def _is_shortage(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and not isinstance(error, Failure) and out_of_memory(error)
    )


def _finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{what}: is {value}; try another model, layer or method.")
    return value


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
