"""Attributions, with the model and the inputs that judge them."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from captum_unioncam.engine._captum import (
    BaselineType,
    TargetType,
    format_additional_forward_args,
    format_baseline,
    format_tensor_into_tuples,
    log_usage,
)
from captum_unioncam.engine.accelerators import AUTOCAST
from captum_unioncam.engine.blur import blurred
from captum_unioncam.engine.checks import (
    check_baselines,
    check_count,
    check_finite,
    check_function,
    check_inputs,
    described,
)
from captum_unioncam.engine.confidence import ConfidenceFunction, OutputFunction
from captum_unioncam.engine.maps import broadcast_over, full_precision, minmax, up
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.perturbations import Chunk, Masks, check_dense, check_maskable, masked_as
from captum_unioncam.engine.scoring import MaskedScorer
from captum_unioncam.engine.sharing import is_shared, kept
from captum_unioncam.engine.tuning import PassTuner
from captum_unioncam.system.documents import parameters, specialised

# RISE's substrate: https://github.com/eclique/RISE, evaluation.py.
_BLUR_PIXELS, _BLUR_SIGMA = 11, 5.0

DEFAULT_STEPS = 100

WHOLE, NOTHING = 1.0, 0.0
"""Masks that show all of an input, and none of it."""

Make = Callable[[Chunk, Tensor, int], Tensor]
"""As ``Masks`` takes it."""


# What was learnt of each function's passes, for as long as the function lives.
_tuners: WeakKeyDictionary[Callable[..., Any], dict[Hashable, PassTuner]] = WeakKeyDictionary()


Attributions = Tensor | tuple[Tensor, ...]

ExplanationFunction = Callable[[Any], Any]
"""Inputs, a tensor or a tuple as they are given, to their ``Attributions``."""


class Curve(NamedTuple):
    """Class confidences as pixels are inserted or deleted, most important first.

    Args:
        area (Tensor): Under the curve, by the trapezoid rule, (N,).
        fractions (Tensor): Of the pixels inserted or deleted, from 0 to 1, (steps + 1,).
        confidences (Tensor): (N, steps + 1).
    """

    area: Tensor
    fractions: Tensor
    confidences: Tensor


class JudgedAttributions:
    r"""Attributions with all that it takes to judge them.

    Args:
        forward_func (Callable): The model, or a function of it, run in evaluation mode.
        inputs (Tensor or tuple[Tensor, ...]): The examples, along dimension 0 of each tensor. Those with as many
            dimensions as the attributions are masked.
        attributions (Tensor or tuple[Tensor, ...]): (N, K, \*spatial), at the inputs' resolution or any other. One for
            all masked inputs, or a tuple of one for each input; only those of masked inputs are used.
        target (int, tuple, Tensor, list or None): The output that was explained, as in Captum. Default: None
        baselines (number, Tensor, tuple or None): Values of masked pixels, as Captum's ``baselines``. Default: None,
            which is 0 (black)
        additional_forward_args (Any): Further arguments of ``forward_func``. Default: None
        confidence_fn (Callable or None): Converts the output of ``forward_func`` to confidences of the same shape that
            are not negative. Default: softmax over dimension 1 for several classes (probabilities that sum to 1 are
            used as they are), the output itself otherwise; an error for other outputs that are already in [0, 1], and
            for a single negative output
        output_fn (Callable or None): Converts what ``forward_func`` returns to the tensor that ``target`` indexes, such
            as ``lambda output: output[0]``. Default: None, the tensor itself; of a tuple, dict or dataclass the tensor
            named "logits" or "out", or else the only one with one row per example
        internal_batch_size (int, "auto" or None): Batch size of the forward passes. Halved automatically when memory
            runs out. "auto" measures the fastest during the passes and keeps it for ``forward_func`` and inputs of this
            shape. Default: None, a fixed rule based on the inputs' size and the device

    Raises:
        ValueError: No input has the attributions' dimensions, an empty batch, attributions that are no real tensors, of
            other examples or not finite, confidences that are negative or not finite, outputs that hold no tensor with
            one row an example, or a batch size below 1.
        AssertionError: A target or baseline that does not fit, as in Captum.
        TypeError: A function that cannot be called.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensor | tuple[Tensor, ...],
        attributions: Attributions,
        target: TargetType = None,
        baselines: BaselineType = None,
        additional_forward_args: Any = None,
        *,
        confidence_fn: ConfidenceFunction | None = None,
        output_fn: OutputFunction | None = None,
        internal_batch_size: int | Literal["auto"] | None = None,
    ) -> None:
        check_function("forward_func", forward_func, optional=False)
        check_function("confidence_fn", confidence_fn)
        check_function("output_fn", output_fn)
        self.forward_func = forward_func
        self.is_tuple = isinstance(inputs, tuple)
        self.inputs = check_inputs(format_tensor_into_tuples(inputs))
        self.target = target
        self.baselines = baselines
        self.additional_forward_args = format_additional_forward_args(additional_forward_args)
        self.confidence_fn = confidence_fn
        self.output_fn = output_fn
        self.internal_batch_size = internal_batch_size
        self.dims, self.attributions = self._at_inputs(attributions)
        check_dense(tuple(self.inputs[i] for i in self.attributions))
        for i in self.attributions:
            check_finite(self.inputs[i], "inputs")

    def _at_inputs(self, attributions: Attributions) -> tuple[int, dict[int, Tensor]]:
        """The dimensions of attributions; and those of each masked input, upsampled to it, of one channel."""
        given = attributions if isinstance(attributions, tuple) else (attributions,)
        for attribution in given:
            check_map("attributions", attribution)
        if len(given) not in (1, len(self.inputs)):
            raise ValueError(f"attributions: got {len(given)} for {len(self.inputs)} inputs; give one for all or each.")
        dims = next((attribution.dim() for attribution in given if attribution.dim() > 2), 0)
        if len(given) == 1:
            given *= len(self.inputs)
        found = {
            i: self._upsampled(attribution, x)
            for i, (x, attribution) in enumerate(zip(self.inputs, given, strict=True))
            if x.dim() == dims
        }
        if not found:
            shapes, wanted = ([tuple(x.shape) for x in values] for values in (given, self.inputs))
            raise ValueError(
                f"attributions: got the shapes {shapes} for inputs of shape {wanted}; give (N, K, *spatial), of any "
                "resolution, with as many dimensions as an input."
            )
        return dims, found

    def _upsampled(self, attribution: Tensor, inputs: Tensor) -> Tensor:
        examples = inputs.shape[0]
        if attribution.dim() != inputs.dim() or attribution.shape[0] != examples:
            raise ValueError(
                f"attributions: got the shape {tuple(attribution.shape)} for an input of shape {tuple(inputs.shape)}; "
                f"give (N, K, *spatial) of its {examples} examples."
            )
        return one_channel(attribution, inputs.shape[2:]).to(inputs.device)

    def blurred(self) -> tuple[Tensor | float, ...]:
        """RISE's substrate for each input that is masked."""
        check_maskable(self.inputs, [i in self.attributions for i in range(len(self.inputs))])
        return tuple(
            blurred(x, _BLUR_PIXELS, _BLUR_SIGMA, "replicate") if i in self.attributions else 0.0
            for i, x in enumerate(self.inputs)
        )

    def masks(self) -> dict[int, Tensor]:
        """``m`` of each input that is masked, (N, 1, *spatial), in [0, 1]; zeros where attributions are constant."""
        return {i: minmax(attribution) for i, attribution in self.attributions.items()}

    def seen(self) -> tuple[Tensor, ...]:
        """The inputs seen through their masks, in front of the baselines."""
        check_baselines(self.baselines, self.inputs)
        baselines, masks = format_baseline(self.baselines, self.inputs), self.masks()
        return tuple(
            masked_as(x, masks[i], x, torch.as_tensor(b, dtype=x.dtype, device=x.device)) if i in masks else x
            for i, (x, b) in enumerate(zip(self.inputs, baselines, strict=True))
        )

    def explained(self, explanation_func: ExplanationFunction | None, inputs: tuple[Tensor, ...]) -> dict[int, Tensor]:
        """The attributions of other inputs like these, as ``attributions`` has those of these."""
        if explanation_func is None:
            raise ValueError(
                "explanation_func: got None; give a function of inputs to the attributions that judged method and "
                "target have for them, such as lambda inputs: method.attribute(inputs, target)."
            )
        check_function("explanation_func", explanation_func, optional=False)
        with evaluation_mode(self.forward_func), torch.enable_grad():
            made = explanation_func(inputs if self.is_tuple else inputs[0])
        return self._at_inputs(made)[1]

    def explained_as_seen(self, explanation_func: ExplanationFunction | None) -> dict[int, Tensor]:
        """The attributions of the inputs as they are ``seen``; within ``shared_passes`` explained once."""
        seen = self.seen()
        return kept(lambda: ("explained", explanation_func, seen), lambda: self.explained(explanation_func, seen))

    def whole_and_seen(self) -> tuple[Tensor, Tensor]:
        """``y`` and ``o``, each (N,)."""
        masks = self.masks()

        def make(chunk: Chunk, inputs: Tensor, i: int) -> Tensor:
            examples, numbers = (index.to(inputs.device) for index in (chunk.examples, chunk.numbers))
            return torch.where(broadcast_over(numbers == 0, inputs), 1.0, masks[i][examples])

        confidences = kept(
            lambda: ("whole and seen", self.key(), self.baselines, tuple(masks.values())),
            lambda: self.confidences(make, 2, self.baselines, {0: WHOLE}),
        )
        negative = (confidences < 0).any(1).nonzero().flatten().tolist()
        if negative:
            raise ValueError(
                f"confidence_fn: gave negative confidences for the examples {negative}, so that no share "
                "of them can drop; give one of no negative values, such as torch.sigmoid."
            )
        return confidences[:, 0], confidences[:, 1]

    def curve(self, baselines: BaselineType, steps: int, shown: Callable[[Tensor, Tensor], Tensor]) -> Curve:
        """The curve of inputs whose pixels show where ``shown(rank, pixels of the step)``, torch.lt or torch.ge."""
        self._check_steps(steps)
        ranks = {i: ranked(attribution) for i, attribution in self.attributions.items()}

        counts = {
            i: torch.linspace(0, rank[0].numel(), steps + 1, dtype=torch.float64).round().to(rank)
            for i, rank in ranks.items()
        }

        def make(chunk: Chunk, inputs: Tensor, i: int) -> Tensor:
            examples, step = (index.to(inputs.device) for index in (chunk.examples, chunk.numbers))
            return shown(ranks[i][examples], broadcast_over(counts[i][step], inputs)).to(inputs.dtype)

        # Where all or nothing is shown, before the first step or after the last.
        first, last = (WHOLE, NOTHING) if shown is torch.ge else (NOTHING, WHOLE)
        confidences = self.confidences(make, steps + 1, baselines, {0: first, steps: last})
        pixels = next(iter(counts.values()))
        fractions = pixels.to(confidences) / pixels[-1]
        return Curve(torch.trapezoid(confidences, fractions, dim=1), fractions, confidences)

    def _check_steps(self, steps: int) -> None:
        check_count("steps", steps)
        pixels = max(self.inputs[i].shape[2:].numel() for i in self.attributions)
        if steps > max(pixels, DEFAULT_STEPS):
            raise ValueError(
                f"steps: got {steps}; there are {pixels} pixels, and a step has one or more: give at most as many."
            )

    def confidences(self, make: Make, count: int, baselines: BaselineType, uniform: Mapping[int, float]) -> Tensor:
        """Of ``count`` masks for each example, (N, count); the ``uniform`` ones are 1 or 0 everywhere.

        Within ``shared_passes``, those are computed once.
        """
        if not is_shared():
            return self.run(Masks(self.dims, make), count, baselines)
        others = torch.tensor([number for number in range(count) if number not in uniform])

        def make_others(chunk: Chunk, inputs: Tensor, i: int) -> Tensor:
            numbers = others.to(chunk.numbers.device)[chunk.numbers]
            return make(replace(chunk, numbers=numbers), inputs, i)

        columns = list(self.run(Masks(self.dims, make_others), len(others), baselines).unbind(1))
        for number, value in sorted(uniform.items()):
            columns.insert(number, self.of_uniform(value, None if value == WHOLE else baselines))
        return torch.stack(columns, 1)

    def of_uniform(self, value: float, baselines: BaselineType) -> Tensor:
        return kept(
            lambda: ("uniform", self.key(), baselines, value),
            lambda: self.run(Masks(self.dims, partial(_uniform, value)), 1, baselines).squeeze(1),
        )

    def key(self) -> tuple[Any, ...]:
        """What confidences depend on, besides masks and baselines."""
        functions = self.forward_func, self.output_fn, self.confidence_fn
        return *functions, self.inputs, self.additional_forward_args, self.target, self.internal_batch_size

    def run(self, masks: Masks, count: int, baselines: BaselineType) -> Tensor:
        """The class confidences of what ``count`` masks for each example show, (N, count)."""
        with evaluation_mode(self.forward_func, output_fn=self.output_fn) as (forward_func,):
            scorer = MaskedScorer(
                forward_func,
                self.inputs,
                baselines,
                [self.target],
                self.additional_forward_args,
                confidence_fn=self.confidence_fn,
                internal_batch_size=self.internal_batch_size,
                tuners=_tuners_of(self.forward_func),
            )
            return scorer.masked_scores(masks, count)[0]


def judged_with(*shared: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As ``judged``, for a function that hands on what it is given to others, whose arguments these are."""
    names = [parameter.name for parameter in parameters(JudgedAttributions)]

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(given: dict[str, Any]) -> Any:
            own = {name: given.pop(name) for name in list(given) if name not in names}
            return function(JudgedAttributions(**given), **own)

        return published(JudgedAttributions, call, *shared, function)

    return decorated


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps out autocast, inference mode and gradients around a metric; also a decorator of one."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device_type in AUTOCAST:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.no_grad())
        yield


def published(template: Callable[..., Any], call: Callable[[dict[str, Any]], Any], *parts: Any) -> Callable[..., Any]:
    """A metric, named as the last of ``parts``, that takes a template's arguments and theirs, and does ``call``."""
    public = specialised(template, undisturbed()(call), parts, [template, *parts])
    named = parts[-1]
    public.__module__, public.__name__, public.__qualname__ = named.__module__, named.__name__, named.__name__
    metric: Callable[..., Any] = log_usage(part_of_slo=True)(public)
    return metric


judged = judged_with()
"""Makes a function of ``JudgedAttributions`` one of their arguments, called as ``captum.metrics`` are; a decorator.

The function's keyword-only arguments come last, and its docstring is completed by the shared arguments'.
"""


def _tuners_of(forward_func: Callable[..., Any]) -> dict[Hashable, PassTuner]:
    try:
        return _tuners.setdefault(forward_func, {})
    except TypeError:
        # It cannot be hashed or referred to weakly: nothing is remembered.
        return {}


def check_map(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless ``value`` is a tensor of real numbers, at least one."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {described(value)}; give a tensor, such as torch.from_numpy makes of an array.")
    if value.layout != torch.strided:
        raise ValueError(f"{name}: got {value.layout}; give a dense tensor, such as its to_dense().")
    if value.numel() == 0 or value.is_complex() or value.is_meta:
        raise ValueError(f"{name}: got {described(value)} on {value.device}; give real values, at least one.")


def one_channel(attributions: Tensor, size: torch.Size) -> Tensor:
    """The sum of the channels at ``size``, (N, 1, *spatial)."""
    check_finite(attributions, "attributions")
    attributions = attributions if attributions.is_floating_point() else attributions.float()
    summed = full_precision(attributions.detach()).sum(1, keepdim=True)
    return summed if summed.shape[2:] == size else up(summed, size)


def in_rows(maps: Mapping[int, Tensor]) -> Tensor:
    """All places of an example's maps, on the device and in the dtype of the first: (N, places)."""
    rows = [each.flatten(1) for each in maps.values()]
    return torch.cat([row.to(rows[0]) for row in rows], 1)


def ranked(attributions: Tensor) -> Tensor:
    """Each pixel's place among its example's, 0 for the largest; of equal ones the first comes first."""
    order = attributions.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).reshape(attributions.shape)


def _uniform(value: float, chunk: Chunk, inputs: Tensor, _i: int) -> Tensor:
    """Masks that are the same everywhere."""
    return inputs.new_full((len(chunk.example_numbers), 1, *inputs.shape[2:]), value)
