"""The engine: masks to class confidences, in batches. Nothing else in the package runs masked forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._captum import (
    BaselineType,
    NullProgress,
    TargetType,
    format_baseline,
    progress,
    run_forward,
    select_targets,
    validate_input,
    validate_target,
)
from captum_unioncam.layer_evaluation import check_finite
from captum_unioncam.maps import blend, full_precision, minmax, up

ConfidenceFunction = Callable[[Tensor], Tensor]


def class_confidence(output: Tensor) -> Tensor:
    """Softmax over dimension 1 where ``output`` has several classes there, and ``output`` itself otherwise.

    Args:
        output (Tensor): What ``forward_func`` returned: (N, C, ...), (N, 1) or (N,).

    Returns:
        *Tensor* of the shape of ``output``.
    """
    return output.softmax(1) if output.dim() >= 2 and output.shape[1] > 1 else output


class MaskedScorer:
    """Scores masked copies of one batch of inputs; the rows of all its examples share one queue.

    A map of shape ``spatial`` at layer resolution becomes the mask ``minmax(up(map))``, goes on every input that has
    as many spatial dimensions, and the model's answer for the target becomes the score. Masks are made a chunk of
    rows at a time, so memory does not grow with the number of channels.

    Args:
        forward_func (Callable): The model, already in evaluation mode.
        inputs (tuple[Tensor, ...]): Each (N, ...).
        baselines (number, Tensor, tuple or None): What masked-out places show, as Captum's ``baselines``.
        target (int, tuple, Tensor, list or None): As Captum's ``target``.
        additional_forward_args (tuple or None): Passed through; tensors with one row an example go with their example.
        confidence_fn (Callable or None): Output to confidences, of the same shape. Default: ``class_confidence``
        score_func (Callable or None): Run in place of ``forward_func`` for channel scores, always with a full chunk of
            rows, since a compiled model is compiled again for another number. Default: None
        internal_batch_size (int or None): Rows in a forward pass. Default: None, chosen by device
        score_dtype (torch.dtype or None): Autocast channel scores to this. Default: None, the model's own precision
        progress_name (str or None): Shows a progress bar of this name over channel scores. Default: None

    Raises:
        ValueError: ``internal_batch_size`` below 1, or a ``score_dtype`` that autocast does not know.
        AssertionError: Baselines or targets do not fit the inputs, as in Captum.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        baselines: BaselineType,
        target: TargetType,
        additional_forward_args: tuple[Any, ...] | None,
        *,
        confidence_fn: ConfidenceFunction | None = None,
        score_func: Callable[..., Any] | None = None,
        internal_batch_size: int | None = None,
        score_dtype: torch.dtype | None = None,
        progress_name: str | None = None,
    ) -> None:
        check_positive("internal_batch_size", internal_batch_size)
        if score_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"score_dtype: got {score_dtype}; give torch.bfloat16, torch.float16, or None for the model's own."
            )
        formatted = format_baseline(baselines, inputs)
        validate_input(inputs, formatted)
        validate_target(inputs[0].shape[0], target)
        self.forward_func = forward_func
        self.inputs = tuple(x.detach() for x in inputs)
        self.baselines = tuple(
            b.detach().to(x) if isinstance(b, Tensor) else b for b, x in zip(formatted, inputs, strict=True)
        )
        self.target = _as_rows(target)
        self.additional_forward_args = additional_forward_args or ()
        self.confidence_fn = confidence_fn or class_confidence
        self.score_func = score_func
        self.batch_size = internal_batch_size or (16 if inputs[0].device.type == "cpu" else 128)
        self.score_dtype = score_dtype
        self.progress_name = progress_name

    def confidences(self, maps: Tensor) -> Tensor:
        """Class confidence of each input under each of its maps, in the model's own precision.

        Args:
            maps (Tensor): (N, M, *spatial), at layer resolution. A constant map shows the baseline alone.

        Returns:
            *Tensor* (N, M).

        Raises:
            ValueError: No input has the maps' number of spatial dimensions, or a confidence is not finite.
        """
        everywhere = torch.ones(maps.shape[:2], dtype=torch.bool, device=maps.device)
        return self._scores(maps, everywhere, self.forward_func, self.confidence_fn)

    def channel_scores(self, activations: Tensor, scored: Tensor, *, raw: bool = False) -> Tensor:
        """Score of each input under each of its channels.

        Args:
            activations (Tensor): (N, K, *spatial).
            scored (Tensor): (N, K), bool: the channels to score.
            raw (bool): The raw target output in place of its confidence. Default: False

        Returns:
            *Tensor* (N, K), 0 where not scored.

        Raises:
            ValueError: As ``confidences``.
        """
        forward_func = self.score_func or self.forward_func
        if self.score_dtype is not None:
            forward_func = _autocast(forward_func, self.inputs[0].device.type, self.score_dtype)
        return self._scores(
            activations,
            scored,
            forward_func,
            _identity if raw else self.confidence_fn,
            full_chunks=self.score_func is not None,
            progress_name=self.progress_name,
        )

    def _scores(
        self,
        maps: Tensor,
        scored: Tensor,
        forward_func: Callable[..., Any],
        output_fn: ConfidenceFunction,
        *,
        full_chunks: bool = False,
        progress_name: str | None = None,
    ) -> Tensor:
        masked = self._inputs_to_mask(maps.dim())
        examples, channels = scored.nonzero(as_tuple=True)
        rows = examples.shape[0]
        scores = maps.new_zeros(maps.shape[:2])
        bar: Any = progress(desc=progress_name, total=rows) if progress_name else NullProgress()
        with torch.no_grad(), bar:
            start = 0
            while start < rows:
                chunk = slice(start, start + self.batch_size)
                of, at = examples[chunk], channels[chunk]
                count = of.shape[0]
                if full_chunks and count < self.batch_size:
                    of, at = (_padded(index, self.batch_size) for index in (of, at))
                try:
                    result = self._run(maps[of, at].unsqueeze(1), of, masked, forward_func, output_fn)
                except RuntimeError as error:
                    if not _out_of_memory(error) or self.batch_size == 1:
                        raise
                    self.batch_size = (self.batch_size + 1) // 2
                    continue
                scores[examples[chunk], channels[chunk]] = result[:count].to(scores)
                start += count
                bar.update(count)
        check_finite(scores, "confidences")
        return scores

    def _run(
        self,
        maps: Tensor,
        examples: Tensor,
        masked: list[bool],
        forward_func: Callable[..., Any],
        output_fn: ConfidenceFunction,
    ) -> Tensor:
        """Runs one chunk: maps (R, 1, *spatial) for the inputs of ``examples`` (R,), to scores (R,)."""
        inputs = tuple(
            self._masked_input(i, maps, examples) if masked[i] else self._of(x, examples)
            for i, x in enumerate(self.inputs)
        )
        additional = tuple(self._of(arg, examples) for arg in self.additional_forward_args)
        output = full_precision(run_forward(forward_func, inputs, None, additional))
        target = self._of(self.target, examples)
        if isinstance(target, Tensor):
            target = target.to(output.device)
        scores: Tensor = select_targets(output_fn(output), target)
        assert scores.numel() == examples.shape[0], (
            "Target not provided when necessary, cannot score multiple outputs: the scored output has shape "
            f"{tuple(scores.shape)} for {examples.shape[0]} rows."
        )
        return scores.reshape(-1)

    def _inputs_to_mask(self, map_dims: int) -> list[bool]:
        masked = [x.dim() == map_dims for x in self.inputs]
        if not any(masked):
            shapes = ", ".join(str(tuple(x.shape)) for x in self.inputs)
            raise ValueError(
                f"inputs: none of the shapes {shapes} has the {map_dims - 2} spatial dimensions of the layer's output, "
                "so no mask fits; give an input of shape (N, C, *spatial), or another layer."
            )
        return masked

    def _masked_input(self, i: int, maps: Tensor, examples: Tensor) -> Tensor:
        inputs, baseline = self.inputs[i], self.baselines[i]
        mask = minmax(up(maps.to(inputs.device), inputs.shape[2:]))
        return blend(mask, self._of(inputs, examples), self._of(baseline, examples)).to(inputs)

    def _of(self, values: Any, examples: Tensor) -> Any:
        """The rows of ``values`` that belong to ``examples``; what has not one row an example is the same for all."""
        if isinstance(values, Tensor) and values.dim() and values.shape[0] == self.inputs[0].shape[0]:
            return values.index_select(0, examples.to(values.device))
        if isinstance(values, list) and values is self.target:
            return [values[i] for i in examples.tolist()]
        return values


def _as_rows(target: TargetType) -> TargetType:
    """Targets of one row an example as a tensor, so that the rows of a chunk are taken on the device."""
    if isinstance(target, Tensor) and target.numel() == 1:
        return int(target.item())
    if isinstance(target, list) and all(isinstance(index, int) for index in target):
        return torch.tensor(target)
    return target


def check_positive(name: str, value: int | None) -> None:
    """Raises ``ValueError`` unless ``value`` is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}: got {value!r}; give a whole number of at least 1, or None.")


def _autocast(forward_func: Callable[..., Any], device_type: str, dtype: torch.dtype) -> Callable[..., Any]:
    def forward(*args: Any) -> Any:
        with torch.autocast(device_type, dtype=dtype):
            return forward_func(*args)

    return forward


def _identity(output: Tensor) -> Tensor:
    return output


def _padded(index: Tensor, length: int) -> Tensor:
    return torch.cat([index, index[-1:].expand(length - index.shape[0])])


def _out_of_memory(error: RuntimeError) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
