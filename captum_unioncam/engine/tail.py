"""Replaces a layer's output, row by row, and runs only the part of the model behind the layer."""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map

from captum_unioncam.engine._captum import NullProgress, TargetType, progress
from captum_unioncam.engine.capture import LayerCall, LayerMaps
from captum_unioncam.engine.confidence import ConfidenceFunction, DefaultConfidence, confidences_by
from captum_unioncam.engine.maps import full_precision
from captum_unioncam.engine.model_state import EvaluatedFunction
from captum_unioncam.engine.perturbations import Chunk, Placed
from captum_unioncam.engine.rows import takes_any_format
from captum_unioncam.engine.scoring import AUTO, MaskedScorer
from captum_unioncam.engine.seen import LayerHook, looked_at, parts_of, watched, with_parts
from captum_unioncam.engine.traced import TracedTail, UntraceableError
from captum_unioncam.engine.tuning import PassTuner, fixed_rows

_WRONG_GRAPH = (UntraceableError, RuntimeError, TypeError, ValueError, AttributeError, IndexError)
"""What a graph that is not quite the model's raises."""

Replace = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The activations of some rows' examples, (R, K, *spatial), or (1, K, *spatial) where they are all of one; the rows'
examples (R,); and their numbers (R,); to what replaces the activations, (R, K, *spatial), a new tensor."""


@dataclass(frozen=True)
class Tail:
    """How rows are run: what comes behind the layer, or, where ``function`` is None, the whole model with a hook.

    Args:
        maps (LayerMaps): What is replaced.
        is_view (bool): Maps are written into the layer's tensor; they do not take its place.
        function (Callable or None): Of the layer's tensor, and of ``around``, to the model's output.
        around (list): The values that reach around the layer, and whether each has one row an example.
        formats (tuple[bool, ...]): As ``PassTuner`` takes them.
    """

    maps: LayerMaps
    is_view: bool
    function: EvaluatedFunction | None
    around: list[tuple[Any, bool]]
    formats: tuple[bool, ...]


class TailScorer(MaskedScorer):
    """Scores rows that differ from the examples in a layer's output, or its input, for one or more targets.

    Rows are run in batches: their replacements are made as they are needed, so that memory does not grow with their
    number. Where the model can be traced, only what comes behind the layer is run, and what reaches around the layer is
    computed once and repeated. The traced tail has to give the model's own outputs for the activations as they are, in
    another order and number; otherwise, and for functions that are no modules, the whole model is run with a hook.

    Args:
        call (LayerCall): Has seen the activations.
        targets (Sequence): T targets, each as Captum's ``target``.
        **options: ``confidence_fn``, ``internal_batch_size``, ``progress_name`` and ``tuners``, as in ``MaskedScorer``.
    """

    def __init__(self, call: LayerCall, targets: Sequence[TargetType], **options: Any) -> None:
        given = call.forward_func, call.inputs, None, targets, call.additional_forward_args
        super().__init__(*given, outputs=call.outputs, **options)
        self.call = call
        self._tails: dict[int, Tail] = {}

    def scores(
        self,
        activations: Tensor,
        replace: Replace,
        scored: Tensor,
        targets: Sequence[Any] | None = None,
        *,
        raw: bool = False,
    ) -> Tensor:
        """The score of each row.

        Args:
            activations (Tensor): Of the call, (N, K, *spatial).
            replace (Callable): What replaces them in the rows of a pass.
            scored (Tensor): Which numbers each example has a row for, (N, M), bool.
            targets (Sequence or None): Some of ``self.targets``. Default: None, all
            raw (bool): The raw target output in place of its confidence. Default: False

        Returns:
            *Tensor* (T, N, M), in the activations' precision; 0 where not scored.

        Raises:
            ValueError: A confidence that is not finite; a ``reshape_transform`` whose maps are no view.
        """
        tail = self._tail(activations)
        wanted = self.targets if targets is None else targets
        confidence_fn = None if raw else self._decided()
        placed = Placed(activations)

        def run(chunk: Chunk, channels_last: bool) -> Tensor:
            run_rows = self._of_model if tail.function is None else self._of_tail
            output = run_rows(tail, _replaced(tail, placed, replace, chunk), chunk, channels_last)
            output = output if confidence_fn is None else confidences_by(confidence_fn, output)
            return torch.stack([self._select(output, target, chunk) for target in wanted])

        bar = progress(desc=self.progress_name, total=int(scored.sum())) if self.progress_name else NullProgress()
        with bar:
            return self._scores(run, scored, wanted, self.forward_func, self._tuner_of(tail), bar).to(activations)

    def runs_alone(self, activations: Tensor) -> bool:
        """Whether only what comes behind the layer is run."""
        return self._tail(activations).function is not None

    def _decided(self) -> ConfidenceFunction:
        """What makes confidences, decided on what the model says of the examples as they are."""
        if isinstance(self.confidence_fn, DefaultConfidence) and self._outputs.first is not None:
            self.confidence_fn.decide(
                full_precision(self._outputs.first),
                self.inputs,
                lambda *x: self._output(self.forward_func, x, self.additional_forward_args),
            )
        return self.confidence_fn

    def _tail(self, activations: Tensor) -> Tail:
        if id(activations) not in self._tails:
            (maps,) = (one for one in self.call.of_maps if one.maps is activations)
            self._tails[id(activations)] = self._traced(maps) or self._hooked(maps)
        return self._tails[id(activations)]

    def _hooked(self, maps: LayerMaps) -> Tail:
        pictures = any(x.dim() == 4 for x in self.inputs) and takes_any_format(self.forward_func)
        return Tail(maps, _is_view(maps), None, [], (True, False) if pictures else (False,))

    def _traced(self, maps: LayerMaps) -> Tail | None:
        """The tail alone, if it gives the model's own outputs."""
        model = _plain_module(self.forward_func)
        if model is None or not isinstance(self.forward_func, EvaluatedFunction):
            return None
        arguments = (*self.inputs, *self.additional_forward_args)
        has_rows = [self._has_a_row_each(x) for x in arguments]
        try:
            graph = TracedTail(model, maps.layer, self.call.attribute_to_layer_input, maps.part, arguments, has_rows)
            given = [x.clone() for x, rows in zip(arguments, has_rows, strict=True) if rows]
            found = self.forward_func.found
            # Each pass finds buffers and random generators as they were.
            around = EvaluatedFunction(lambda *x: graph.values_around(x, self.inputs[0].shape[0]), found)(*given)
        except _WRONG_GRAPH:
            return None
        last = maps.value.dim() == 4 and graph.convolves and takes_any_format(self.forward_func)
        formats = (True, False) if last else (False,)
        function = EvaluatedFunction(graph, found, self.forward_func.output_fn)
        tail = Tail(maps, _is_view(maps), function, around, formats)
        return tail if self._reproduces(tail) else None

    def _reproduces(self, tail: Tail) -> bool:
        """Whether the tail gives what the model gave, for rows in another order and of another number."""
        expected, examples = self._outputs.first, self.inputs[0].shape[0]
        rows = [*reversed(range(examples)), 0]
        placed = Placed(torch.tensor(rows, device=tail.maps.value.device))
        chunk = Chunk(placed.tensor, placed.tensor, rows, lambda device: (placed.on(device), placed.on(device)))
        try:
            made = self._of_tail(tail, tail.maps.value[placed.tensor], chunk)
        except _WRONG_GRAPH:
            return False
        if expected is None or made.shape[1:] != expected.shape[1:]:
            return False
        expected = expected[placed.on(expected.device)].to(made)
        tolerance = max(torch.finfo(dtype).eps for dtype in (tail.maps.value.dtype, made.dtype)) ** 0.5
        return bool(((made - expected).abs() <= tolerance * expected.abs().amax()).all())

    def _tuner_of(self, tail: Tail) -> PassTuner:
        value = tail.maps.value
        sizes = [tail.maps.maps.shape[2:]] if tail.function else [x.shape[2:] for x in self.inputs]
        device = value.device if tail.function else self.inputs[0].device
        key = (value.shape[1:], value.dtype, device, tuple(sizes), tail.formats, self.internal_batch_size)
        if key not in self.tuners:
            given, positions = self.internal_batch_size, max(size.numel() for size in sizes)
            rows = fixed_rows(device, positions) if given is None or isinstance(given, str) else int(given)
            self.tuners[key] = PassTuner(device, rows, tail.formats, learns=given == AUTO)
        return self.tuners[key]

    def _of_tail(self, tail: Tail, replaced: Tensor, chunk: Chunk, channels_last: bool = False) -> Tensor:
        around = tuple(
            tree_map(lambda x: self._rows_of(x, chunk), value) if has_rows else value for value, has_rows in tail.around
        )
        return self._output(tail.function, (_in_format(replaced, channels_last),), around)  # type: ignore[arg-type]

    def _of_model(self, tail: Tail, replaced: Tensor, chunk: Chunk, channels_last: bool) -> Tensor:
        inputs = tuple(_in_format(self._rows_of(x, chunk), channels_last) for x in self.inputs)
        additional = tuple(self._rows_of(argument, chunk) for argument in self.additional_forward_args)
        call = self.call
        with watched([_Replacing(tail.maps, call.attribute_to_layer_input, replaced, call.dims)]):
            return self._output(self.forward_func, inputs, additional)


def _replaced(tail: Tail, activations: Placed, replace: Replace, chunk: Chunk) -> Tensor:
    """What takes the place of the layer's tensor in the chunk's rows."""
    value = tail.maps.value
    examples, numbers = chunk.on(value.device)
    first, last = chunk.example_numbers[0], chunk.example_numbers[-1]
    of_examples = activations.on(value.device)
    own = of_examples[first : first + 1] if first == last else of_examples[examples]
    made = replace(own, examples, numbers).to(value.dtype)
    if not tail.is_view:
        return made
    rows = value[examples]
    tail.maps.transform(rows).copy_(made)
    return rows


class _Replacing(LayerHook):
    """Puts ``replaced`` in place of one of the tensors that a layer makes or is given."""

    def __init__(self, maps: LayerMaps, of_input: bool, replaced: Tensor, dims: Collection[int]) -> None:
        self.layer, self.of_input = maps.layer, of_input
        self.maps, self.replaced, self.dims = maps, replaced, dims

    def look(self, value: Any) -> Any:
        parts = parts_of(value)
        place = looked_at(parts, self.dims)[self.maps.part]
        if parts[place].is_quantized:
            raise ValueError("layer: is quantised, so nothing can be put in its place; choose another.")
        if parts[place].shape != self.replaced.shape:
            raise ValueError(
                f"forward_func: its layer has the shape {tuple(parts[place].shape)} in a pass of "
                f"{self.replaced.shape[0]} rows, and had {tuple(self.maps.value.shape[1:])} an example; give a model "
                "whose rows are independent, and for a DataParallel on several devices the module within it."
            )
        parts[place] = self.replaced.to(parts[place])
        return with_parts(value, parts)


def _plain_module(function: Any) -> Module | None:
    """The module that a function in evaluation mode is, a compiled one as it was written."""
    module = function.function if isinstance(function, EvaluatedFunction) else function
    module = getattr(module, "_orig_mod", module)
    other = isinstance(module, (torch.jit.ScriptModule, torch.nn.DataParallel))
    return module if isinstance(module, Module) and not other else None


def _is_view(maps: LayerMaps) -> bool:
    """Whether maps are a view of the layer's tensor, and not that tensor: then they are written into it."""
    probe = torch.zeros_like(maps.value[:1])
    view = maps.transform(probe)
    if view is probe:
        return False
    view.fill_(1)
    if not probe.any():
        raise ValueError(
            "reshape_transform: makes a copy, so nothing can be put in the place of the layer's output; return a view, "
            "without contiguous() or reshape."
        )
    return True


def _in_format(values: Any, channels_last: bool) -> Any:
    """Images in the memory format of a pass, other tensors as they are."""
    if not isinstance(values, Tensor) or values.dim() != 4:
        return values
    return values.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@dataclass(frozen=True)
class TailPasses:
    """The passes as seen by one target: what the equations of a method ask of the engine.

    Args:
        scorer (TailScorer): Runs the passes.
        target (int): Which of its targets.
        shared (dict): The scores of the rows that are the same for every target.
        rows (dict): How many rows the target has used, (N,), by the activations.
    """

    scorer: TailScorer
    target: int
    shared: dict[Hashable, Tensor]
    rows: dict[int, Tensor] = field(default_factory=dict)

    def scores(self, activations: Tensor, name: str, replace: Replace, scored: Tensor, *, raw: bool = False) -> Tensor:
        """The score of each row, (N, M), of rows that do not depend on the target: run once for every target.

        Args:
            name (str): Tells the method's rows apart.
            activations, replace, scored, raw: As ``TailScorer.scores`` takes them.
        """
        self._count(activations, scored)
        key = (id(activations), name, raw)
        if key not in self.shared:
            self.shared[key] = self.scorer.scores(activations, replace, scored, raw=raw)
        return self.shared[key][self.target]

    def own_scores(self, activations: Tensor, replace: Replace, scored: Tensor, *, raw: bool = False) -> Tensor:
        """The score of each row, (N, M), of rows that are this target's alone."""
        self._count(activations, scored)
        target = [self.scorer.targets[self.target]]
        return self.scorer.scores(activations, replace, scored, target, raw=raw)[0]

    def _count(self, activations: Tensor, scored: Tensor) -> None:
        self.rows[id(activations)] = self.rows.get(id(activations), 0) + scored.sum(1)

    def details(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the tail is run alone, and how many rows were run, for each example; both (N,)."""
        passes = self.rows[id(activations)]
        return torch.full_like(passes, self.scorer.runs_alone(activations), dtype=torch.bool), passes


def every(activations: Tensor, count: int) -> Tensor:
    """``scored`` of ``count`` rows for each example, (N, count)."""
    return torch.ones((activations.shape[0], count), dtype=torch.bool, device=activations.device)
