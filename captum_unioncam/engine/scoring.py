"""The engine: masks to class confidences, in batches. Nothing else in the package runs masked forward passes."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.engine._captum import (
    BaselineType,
    NullProgress,
    TargetType,
    format_baseline,
    progress,
    run_forward,
    select_targets,
)
from captum_unioncam.engine.accelerators import COMPILED_ROWS, autocast
from captum_unioncam.engine.checks import check_baselines, check_finite, check_positive, inputs_with_mask
from captum_unioncam.engine.confidence import ConfidenceFunction, DefaultConfidence, confidences_by
from captum_unioncam.engine.independence import ROWS, check_independent_rows
from captum_unioncam.engine.maps import full_precision
from captum_unioncam.engine.model_state import EvaluatedFunction, modules_behind, modules_within
from captum_unioncam.engine.outputs import Outputs
from captum_unioncam.engine.perturbations import (
    UNCHANGED,
    Change,
    Chunk,
    Masks,
    Placed,
    Queue,
    check_dense,
    check_maskable,
)
from captum_unioncam.engine.representatives import REPRESENTATIVES, channel_representatives, scored_channels
from captum_unioncam.engine.rows import check_model_rows, check_rows_of_arguments, has_rows, takes_any_format
from captum_unioncam.engine.sharing import is_shared, kept
from captum_unioncam.engine.tuning import PassTuner, fixed_rows

AUTO = "auto"


class MaskedScorer:
    """Scores masked copies of one batch of inputs for one or more targets; all examples share one queue of rows.

    A mask, such as ``minmax(up(map))`` of a map at layer resolution, goes on every input that has as many spatial
    dimensions, and the model's answer for the target becomes the score. Masks are made a chunk of rows at a time, so
    memory does not grow with the number of channels.

    Args:
        forward_func (Callable): The model, already in evaluation mode.
        inputs (tuple[Tensor, ...]): Each (N, ...).
        baselines (number, Tensor, tuple or None): What masked-out places show, as Captum's ``baselines``.
        targets (Sequence): T targets, each as Captum's ``target``.
        additional_forward_args (tuple or None): Passed through; tensors with one row an example go with their example.
        confidence_fn (Callable or None): Output to confidences, of the same shape. Default: ``DefaultConfidence``
        score_func (Callable or None): Run in place of ``forward_func`` for channel scores, always with a full chunk of
            rows, since a compiled model is compiled again for another number. Default: None
        internal_batch_size (int, "auto" or None): Rows in a forward pass; "auto" learns them. Default: None, by the
            fixed rule of ``fixed_rows``
        score_dtype (torch.dtype or None): Autocast channel scores to this. Default: None, the model's own precision
        progress_name (str or None): Shows a progress bar of this name over channel scores. Default: None
        tuners (dict or None): What earlier calls learnt of the passes, and this one adds to. Default: None, nothing
        outputs (Outputs or None): What earlier passes of ``forward_func`` say of its outputs. Default: None, nothing

    Raises:
        ValueError: ``internal_batch_size`` below 1, a ``score_dtype`` that autocast does not know, inputs without
            values or rows, a model that normalises over the batch.
        AssertionError: Baselines or targets do not fit the inputs, as in Captum.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        baselines: BaselineType,
        targets: Sequence[TargetType],
        additional_forward_args: tuple[Any, ...] | None,
        *,
        confidence_fn: ConfidenceFunction | None = None,
        score_func: Callable[..., Any] | None = None,
        internal_batch_size: int | str | None = None,
        score_dtype: torch.dtype | None = None,
        progress_name: str | None = None,
        tuners: dict[Hashable, PassTuner] | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        check_batch_size(internal_batch_size)
        if score_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"score_dtype: got {score_dtype}; give torch.bfloat16, torch.float16, or None for the model's own."
            )
        check_dense(inputs)
        check_model_rows(forward_func, score_func)
        check_baselines(baselines, inputs)
        formatted = format_baseline(baselines, inputs)
        self._outputs = Outputs(targets, inputs[0].shape[0]) if outputs is None else outputs
        self.forward_func = forward_func
        self.inputs = tuple(x.detach() for x in inputs)
        self.baselines = tuple(
            torch.as_tensor(b, dtype=x.dtype, device=x.device).detach() for b, x in zip(formatted, inputs, strict=True)
        )
        self.targets = [_placed(target, inputs[0].device) for target in targets]
        self.additional_forward_args = additional_forward_args or ()
        self.confidence_fn = DefaultConfidence() if confidence_fn is None else confidence_fn
        self.score_func = score_func
        self.internal_batch_size = internal_batch_size
        self.score_dtype = score_dtype
        self.progress_name = progress_name
        self.tuners = {} if tuners is None else tuners
        self._rows_checked = False
        self.sweeps: dict[Hashable, tuple[Tensor, Tensor, Tensor]] = {}
        """What ``TargetPasses`` keep of the sweeps over channels, which serve every target."""

    def confidences(self, maps: Tensor, target: int = 0) -> Tensor:
        """Class confidence of each input under each of its maps, in the model's own precision.

        Args:
            maps (Tensor): (N, M, *spatial), at layer resolution. A constant map shows the baseline alone.
            target (int): Which of the targets. Default: 0, the first

        Returns:
            *Tensor* (N, M).

        Raises:
            ValueError: No input has the maps' number of spatial dimensions, or a confidence is not finite.
        """
        targets = [self.targets[target]]
        return self.masked_scores(Masks.of_maps(maps), maps.shape[1], targets)[0].to(maps)

    def masked_scores(self, masks: Masks, count: int, targets: Sequence[Any] | None = None) -> Tensor:
        """As ``confidences``, for any masks: ``count`` for each example.

        Args:
            masks (Masks): Makes those of a chunk.
            count (int): M, masks for each example.
            targets (Sequence or None): Some of ``self.targets``. Default: None, all

        Returns:
            *Tensor* (T, N, M), on the first input's device.

        Raises:
            ValueError: As ``confidences``.
        """
        inputs = self.inputs[0]
        targets = self.targets if targets is None else targets
        everywhere = torch.ones((inputs.shape[0], count), dtype=torch.bool, device=inputs.device)
        tuner = self._tuner(self.forward_func, masks.dims, None)
        run = partial(self._run, masks, targets, self.forward_func, False)
        return self._scores(run, everywhere, targets, self.forward_func, tuner, NullProgress())

    def sweep(self, activations: Tensor, scored: Tensor, raw: bool = False, change: Change = UNCHANGED) -> Tensor:
        """Score of each input under each of its channels, for every target.

        Args:
            activations (Tensor): (N, K, *spatial).
            scored (Tensor): Which channels are run, (N, K), bool.
            raw (bool): The raw target output in place of its confidence. Default: False
            change (Change): What becomes of the masks, or of what they show. Default: ``UNCHANGED``

        Returns:
            *Tensor* (T, N, K), 0 for channels that are not scored.

        Raises:
            ValueError: As ``confidences``.
        """
        # Not "or": a compiled module raises when asked for its truth.
        forward_func = self.forward_func if self.score_func is None else self.score_func
        tuner = self._tuner(forward_func, activations.dim(), self.score_dtype)
        bar = progress(desc=self.progress_name, total=int(scored.sum())) if self.progress_name else NullProgress()
        with self._autocast(forward_func), bar:
            masks = Masks.of_maps(activations, change)

            def scores_of(targets: Sequence[Any]) -> Tensor:
                run = partial(self._run, masks, targets, forward_func, raw)
                return self._scores(run, scored, targets, forward_func, tuner, bar)

            form = self._outputs.form or ()
            if change is UNCHANGED and is_shared() and len(form) == 1:
                outputs = kept(
                    lambda: (*self._key(forward_func), self.score_dtype, activations, scored),
                    lambda: scores_of(range(form[0])),
                )
                scores = self._read(outputs, masks, scored, forward_func, raw)
            else:
                scores = scores_of(self.targets)
            return scores.to(activations)

    def _key(self, forward_func: Callable[..., Any]) -> tuple[Any, ...]:
        """What the outputs of masked inputs depend on, besides the masks."""
        given = self.inputs, self.baselines, tuple(self.additional_forward_args), self.internal_batch_size
        return "passes", forward_func, *given

    def _read(
        self, outputs: Tensor, masks: Masks, scored: Tensor, forward_func: Callable[..., Any], raw: bool
    ) -> Tensor:
        """The scores (T, N, M) of outputs for every class, (classes, N, M)."""
        queue = Queue(scored)
        rows = len(queue.example_numbers)
        scores = outputs.new_zeros((len(self.targets), *scored.shape))
        if rows:
            read = outputs[:, queue.examples, queue.numbers].T
            if not raw:
                first = queue.chunk(0, 1, 1)
                read = self._confidences(read, forward_func, *self._rows(masks, first, channels_last=False))
            chunk = queue.chunk(0, rows, rows)
            values = torch.stack([self._select(read, target, chunk) for target in self.targets])
            scores[:, queue.examples, queue.numbers] = values
        check_finite(scores.transpose(0, 1), "confidences")
        return scores

    def _autocast(self, forward_func: Callable[..., Any]) -> AbstractContextManager[None]:
        """Autocast where the model's parameters are, since it may move its inputs there itself."""
        if self.score_dtype is None:
            return nullcontext()
        modules = modules_within(modules_behind(forward_func) or modules_behind(self.forward_func))
        parameters = (parameter for module in modules for parameter in module.parameters())
        device = next((parameter.device for parameter in parameters), self.inputs[0].device)
        return autocast(device.type, self.score_dtype, modules)

    def _tuner(self, forward_func: Callable[..., Any], map_dims: int, dtype: torch.dtype | None) -> PassTuner:
        """What is known of the passes of this function for inputs of this kind."""
        masked = inputs_with_mask(self.inputs, map_dims)
        check_maskable(self.inputs, masked)
        kind = tuple((x.shape[1:], x.dtype, x.device) for x in self.inputs), tuple(masked)
        key = (kind, dtype, forward_func is self.score_func, self.internal_batch_size)
        if key not in self.tuners:
            device, given = self.inputs[0].device, self.internal_batch_size
            rows = fixed_rows(device, max(x.shape[2:].numel() for x in self.inputs if x.dim() == map_dims))
            compiled = forward_func is self.score_func
            if compiled:
                # For one size and layout: both stay as they are.
                rows = COMPILED_ROWS.get(device.type, rows)
            if given is not None and not isinstance(given, str):
                rows = int(given)
            formats = (True, False) if map_dims == 4 and not compiled and takes_any_format(forward_func) else (False,)
            learns = given == AUTO and not compiled
            self.tuners[key] = PassTuner(device, rows, formats, learns=learns, constant=compiled)
        return self.tuners[key]

    def _scores(
        self,
        run: Callable[[Chunk, bool], Tensor],
        scored: Tensor,
        targets: Sequence[Any],
        forward_func: Callable[..., Any],
        tuner: PassTuner,
        bar: Any,
    ) -> Tensor:
        """The queue: one row for each mask that is ``scored`` (N, M); scores (T, N, M).

        Args:
            run (Callable): The rows of a pass, and whether images have their channels last in memory, to the scores of
                the targets (T, R).
            scored (Tensor): bool.
            targets (Sequence): Some of ``self.targets``; or the range of all classes, whose scores need not be finite.
            forward_func (Callable): The model that is run.
            tuner (PassTuner): Chooses the passes.
            bar (Any): A progress bar.
        """
        queue = Queue(scored)
        results: list[Tensor] = []
        start = 0
        with torch.no_grad():
            if not self._rows_checked:
                check_rows_of_arguments(forward_func, self.inputs, self.additional_forward_args)
                self._rows_checked = True
            while start < len(queue.example_numbers):
                setting = tuner.next()
                count = min(setting.rows, len(queue.example_numbers) - start)
                chunk = queue.chunk(start, count, tuner.rows_for(setting, count))
                rows = len(chunk.example_numbers)
                result = None
                try:
                    with tuner.timed(setting, rows):
                        result = run(chunk, setting.channels_last)
                except Exception as error:
                    # Another form of pass has no other classes.
                    if self._outputs.misses_target or not tuner.recovers(setting, error, rows, self.inputs[0].shape[0]):
                        raise
                if result is None:
                    # Not within the handler: there, the error's traceback holds all that the pass has made.
                    tuner.release()
                    continue
                if not results and isinstance(forward_func, EvaluatedFunction):
                    # Compiled for one number of rows, it is compiled again for another.
                    tries = (rows,) if tuner.constant else (ROWS, rows)
                    check_independent_rows(forward_func, self.inputs, self.additional_forward_args, tries)
                results.append(result[:, :count])
                start += count
                bar.update(count)
        scores = torch.zeros((len(targets), *scored.shape), device=scored.device)
        if results:
            values = torch.cat(results, 1)
            scores = scores.to(values.dtype)
            scores[:, queue.examples, queue.numbers] = values.to(scores.device)
        if not isinstance(targets, range):
            check_finite(scores.transpose(0, 1), "confidences")
        return scores

    def _run(
        self,
        masks: Masks,
        targets: Sequence[Any],
        forward_func: Callable[..., Any],
        raw: bool,
        chunk: Chunk,
        channels_last: bool,
    ) -> Tensor:
        """Runs one forward pass, to scores (T, R); for the range of all classes, to the raw outputs."""
        inputs, additional = self._rows(masks, chunk, channels_last)
        output = self._output(forward_func, inputs, additional)
        if isinstance(targets, range):
            return output.T
        if not raw:
            output = self._confidences(output, forward_func, inputs, additional)
        return torch.stack([self._select(output, target, chunk) for target in targets])

    def _rows(self, masks: Masks, chunk: Chunk, channels_last: bool) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """The masked inputs of a chunk, and its further arguments."""
        inputs = tuple(
            self._masked_input(i, masks, chunk, channels_last) if masked else self._rows_of(x, chunk)
            for i, (x, masked) in enumerate(zip(self.inputs, inputs_with_mask(self.inputs, masks.dims), strict=True))
        )
        return inputs, tuple(self._rows_of(arg, chunk) for arg in self.additional_forward_args)

    def _confidences(
        self, output: Tensor, forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], additional: tuple[Any, ...]
    ) -> Tensor:
        """The confidences of outputs, some of them those of ``inputs``."""
        if isinstance(self.confidence_fn, DefaultConfidence):
            self.confidence_fn.decide(output, inputs, lambda *x: self._output(forward_func, x, additional))
        return confidences_by(self.confidence_fn, output)

    def _output(
        self, forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], additional: tuple[Any, ...]
    ) -> Tensor:
        """What a pass returns, one row for each of the inputs', half precision as float32."""
        name = "score_func" if forward_func is self.score_func else "forward_func"
        rows = inputs[0].shape[0]
        output = self._outputs.tensor(run_forward(forward_func, inputs, None, additional), rows, name)
        return full_precision(output)

    def _select(self, output: Tensor, target: Any, chunk: Chunk) -> Tensor:
        if isinstance(target, Placed):
            # Of N rows, or one for all.
            values = target.on(output.device)
            target = values[chunk.on(output.device)[0]] if self._has_a_row_each(values) else values
        if isinstance(target, list):
            target = [target[example] for example in chunk.example_numbers]
        if isinstance(target, Tensor) and output.dim() == 2:
            # As Captum does for more than one row; for one, it would ask the device which target it is.
            return output.gather(1, target.to(output.device).reshape(-1, 1)).squeeze(1)
        scores: Tensor = select_targets(output, target)
        assert scores.numel() == len(chunk.example_numbers), (
            "Target not provided when necessary, cannot score multiple outputs: the scored output has shape "
            f"{tuple(scores.shape)} for {len(chunk.example_numbers)} rows."
        )
        return scores.reshape(-1)

    def _masked_input(self, i: int, masks: Masks, chunk: Chunk, channels_last: bool) -> Tensor:
        inputs, baselines = self.inputs[i], self.baselines[i]
        rows, behind = (self._rows_of(values, chunk, share=True) for values in (inputs, baselines))
        masked = masks.shown(chunk, inputs, i, rows, behind)
        memory_format = torch.channels_last if channels_last and masked.dim() == 4 else torch.contiguous_format
        return masked.contiguous(memory_format=memory_format)

    def _has_a_row_each(self, values: Any) -> bool:
        return has_rows(values, self.inputs[0].shape[0])

    def _rows_of(self, values: Any, chunk: Chunk, share: bool = False) -> Any:
        """The rows of ``values`` that belong to the chunk; what has not one row an example is the same for all.

        With ``share``, a chunk of one example gets one row, to be broadcast.
        """
        if not self._has_a_row_each(values):
            return values
        first, last = chunk.example_numbers[0], chunk.example_numbers[-1]
        if share and first == last:
            return values[first : first + 1]
        return values.index_select(0, chunk.on(values.device)[0])


@dataclass(frozen=True)
class TargetPasses:
    """The masked passes as seen by one target: what the equations of a method ask of the engine.

    Args:
        scorer (MaskedScorer): Runs the passes.
        target (int): Which of its targets.
    """

    scorer: MaskedScorer
    target: int

    def confidences(self, maps: Tensor) -> Tensor:
        """Class confidence of each input under each of its maps (N, M, *spatial), in the model's precision: (N, M)."""
        return self.scorer.confidences(maps, self.target)

    def channel_scores(
        self,
        activations: Tensor,
        max_channels: int | None = None,
        channel_selection: str = REPRESENTATIVES,
        *,
        raw: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Score of each input under each of its channels: one sweep serves every target, and is kept.

        Args:
            activations (Tensor): (N, K, *spatial).
            max_channels (int or None): Run at most so many passes an example. Default: None, one a live channel
            channel_selection (str): How they are chosen, as :func:`channel_representatives` does.
                Default: "representatives"
            raw (bool): The raw target output in place of its confidence. Default: False

        Returns:
            *tuple[Tensor, Tensor]*: Scores (N, K), each channel's own or its representative's, 0 where it has none;
            and the channel that was scored in its place, -1 for none, (N, K), int64.

        Raises:
            ValueError: As ``MaskedScorer.confidences``.
        """
        return self._kept(
            raw,
            activations,
            max_channels,
            channel_selection,
            lambda scored: self.scorer.sweep(activations, scored, raw),
        )

    def mean_channel_scores(
        self,
        kept_as: Hashable,
        activations: Tensor,
        changes: Callable[[], Iterable[Change]],
        max_channels: int | None = None,
        channel_selection: str = REPRESENTATIVES,
    ) -> Tensor:
        """Mean of ``channel_scores`` over changes of what the channels show: a sweep each, which serves every target.

        Args:
            kept_as (Hashable): What the changes are, besides the next three arguments.
            activations, max_channels, channel_selection: As for ``channel_scores``.
            changes (Callable): Gives the changes, at least one, each when the sweep of the one before is done.

        Returns:
            *Tensor* (N, K), each channel's own mean or its representative's, 0 where it has none.
        """

        def mean(scored: Tensor) -> Tensor:
            total, count = torch.zeros(()), 0
            for change in changes():
                total, count = total + self.scorer.sweep(activations, scored, change=change), count + 1
            return total / count

        return self._kept(kept_as, activations, max_channels, channel_selection, mean)[0]

    def _kept(
        self,
        kept_as: Hashable,
        activations: Tensor,
        max_channels: int | None,
        channel_selection: str,
        sweep: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """As ``channel_scores``: what ``sweep`` makes of the channels to score."""
        key = (id(activations), max_channels, channel_selection, kept_as)
        if key not in self.scorer.sweeps:
            representatives = channel_representatives(activations, max_channels, channel_selection)
            own = sweep(scored_channels(representatives))
            scores = own.take_along_dim(representatives.clamp(min=0).unsqueeze(0), 2)
            # The activations are kept as well, so that no others get their number.
            self.scorer.sweeps[key] = activations, scores.masked_fill(representatives < 0, 0), representatives
        _, scores, representatives = self.scorer.sweeps[key]
        return scores[self.target], representatives

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Each (N, ...)."""
        return self.scorer.inputs


def _placed(target: TargetType, device: torch.device) -> Any:
    """Targets of one row an example as a tensor on the device, where the rows of a chunk are taken from it."""
    if isinstance(target, Tensor):
        return int(target.item()) if target.numel() == 1 else Placed(target.to(device))
    if isinstance(target, list) and all(isinstance(index, int) for index in target):
        return Placed(torch.tensor(target, device=device))
    return target


def check_batch_size(value: int | str | None) -> None:
    """Raises ``ValueError`` unless ``internal_batch_size`` is None, "auto" or a whole number of at least 1."""
    if isinstance(value, str):
        if value != AUTO:
            raise ValueError(f'internal_batch_size: got {value!r}; give a whole number of at least 1, "auto", or None.')
    else:
        check_positive("internal_batch_size", value)
