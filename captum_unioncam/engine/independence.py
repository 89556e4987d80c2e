"""Whether a model gives each row of a pass its own result, whatever the others are: tried once for a model."""

import inspect
from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from captum_unioncam.engine._captum import run_forward
from captum_unioncam.engine.confidence import output_tensor
from captum_unioncam.engine.maps import full_precision
from captum_unioncam.engine.model_state import EvaluatedFunction, not_compiled
from captum_unioncam.engine.rows import DependentRows, rows_of
from captum_unioncam.engine.seen import SeenLayer

ROWS = 4
"""Of a trial: two copies of an example at the ends, since recurrent layers pass values on in one direction."""
_SHARE = 0.25
"""Not the mean of the example and a black one, which a mean of rows would leave as it is."""
_OF_OTHERS, _OF_PLACE = 1e-3, 1e-2
"""What may be left: as a share of how much outputs vary among examples, and as a share of the largest output."""
_LEAST_VARIED, _NOISES = 1e-3, 4.0
_OF_DYNAMIC_RANGES = 1e-1
"""In place of the first, where values are quantised in the range of all rows: measured, 0.02 in VGG11's output."""

_independent: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()
"""The functions that have been tried, and for which modules, inputs and arguments."""


def check_independent_rows(
    forward_func: EvaluatedFunction,
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...],
    rows: Sequence[int] = (ROWS,),
) -> None:
    """Raises ``DependentRows`` if what a model gives for a row depends on the other rows, or on its place among them.

    The first example, a quarter as bright, is run amid copies of itself, and with the example as it is and a black one
    between: in the same places of as many rows, where kernels round alike. The outputs may differ by no more than those
    of two equal passes. Nothing is run for a model that has been tried with its present modules and such inputs.

    Args:
        forward_func (EvaluatedFunction): The model; it has been called, so that its modules are known.
        inputs (tuple[Tensor, ...]): Each (N, ...).
        additional_forward_args (tuple): Passed on; tensors of N rows go with the examples.
        rows (Sequence[int]): Numbers of rows to try; the first that the model takes counts. Default: ``(ROWS,)``
    """
    function, key = _key(forward_func, inputs, additional_forward_args)
    try:
        tried = _independent.setdefault(function, set())
    except TypeError:
        # It cannot be hashed or referred to weakly: nothing is remembered.
        tried = set()
    if key in tried:
        return
    for number in rows:
        distances = _distances(forward_func, inputs, additional_forward_args, number) if number > 1 else None
        if distances is not None:
            is_dynamic = any(
                "quantized.dynamic" in type(module).__module__ for module in forward_func.found.modules.values()
            )
            of_others, of_place = distances
            # Rows within a list stay in their places: the checks of the arguments tell of them.
            is_plain = all(x is None or isinstance(x, (Tensor, bool, int, float, str)) for x in additional_forward_args)
            _require_small(of_others, of_place if is_plain else 0.0, _OF_DYNAMIC_RANGES if is_dynamic else _OF_OTHERS)
            tried.add(key)
            return


def _key(
    forward_func: EvaluatedFunction, inputs: tuple[Tensor, ...], additional: tuple[Any, ...]
) -> tuple[Any, Hashable]:
    """The function itself, and what else its rows may depend on."""
    found = forward_func.found.modules.items()
    # What looks at layers is called within a function, and is another in each call.
    modules = frozenset((number, type(module)) for number, module in found if not isinstance(module, SeenLayer))
    kinds = map(_kind, (*inputs, *additional))
    function = forward_func.function
    if inspect.ismethod(function):
        # A method is made anew each time that it is asked for.
        return function.__self__, (function.__func__, modules, *kinds)
    return function, (None, modules, *kinds)


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape[1:], value.dtype, value.device
    return value if isinstance(value, (bool, int, float, str)) else type(value)


def _require_small(of_others: float, of_place: float, most_of_others: float) -> None:
    if of_others > most_of_others:
        raise DependentRows(
            "forward_func: what it gives for an example depends on the other rows of its pass, as by functional "
            "batch_norm with training=True, x - x.mean(0), or attention without batch_first=True; give a model that "
            "treats each row alone."
        )
    if of_place > _OF_PLACE:
        raise DependentRows(
            "forward_func: gives copies of an example different outputs in one pass, as by functional dropout without "
            "training=self.training; give a model that draws no random numbers in evaluation mode."
        )


def _distances(
    forward_func: EvaluatedFunction, inputs: tuple[Tensor, ...], additional: tuple[Any, ...], rows: int
) -> tuple[float, float] | None:
    """How far other rows, and the place, move an example's output; None if the model does not take so many rows."""
    examples = inputs[0].shape[0]

    def outputs(*shares: float) -> Tensor:
        bright = [_bright(x[:1]) for x in inputs]
        given = tuple(torch.cat([_dimmed(x, share) for share in shares]) for x in bright)
        arguments = rows_of(additional, [0] * rows, examples)
        output = output_tensor(run_forward(forward_func, given, None, arguments), rows)
        return full_precision(output) if output.shape[0] == rows else output.new_empty(0)

    ends = [0, rows - 1] if rows > 2 else [0]
    alike, others = [_SHARE] * rows, [_SHARE if row in ends else float(row % 2) for row in range(rows)]
    try:
        with torch.no_grad(), not_compiled():
            copies, amid = outputs(*alike), outputs(*others)
            # What an example's output has in common with any other's, such as the last bias, tells nothing of others.
            largest = torch.maximum(copies.abs(), amid.abs()).nan_to_num(0, 0).amax()
            varied = torch.maximum(amid.nan_to_num(0, 0).diff(dim=0).abs().amax(), _LEAST_VARIED * largest)
            of_others = _largest(copies[ends], amid[ends]) / varied
            of_place = _largest(copies[:-1], copies[1:]) / largest
            noise = _largest(copies, outputs(*alike)) if of_others > _OF_OTHERS or of_place > _OF_PLACE else 0.0
    except Exception:
        # A model may refuse such rows in any way; its own passes tell why.
        return None
    return (
        float(of_others) if of_others * varied > _NOISES * noise else 0.0,
        float(of_place) if of_place * largest > _NOISES * noise else 0.0,
    )


def _bright(x: Tensor) -> Tensor:
    return x if x.any() else torch.ones_like(x)


def _dimmed(x: Tensor, share: float) -> Tensor:
    """So much of the values; whole numbers that are no image, such as lengths, as they are."""
    return x if not x.is_floating_point() and x.dim() < 3 else (x * share).to(x)


def _largest(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    differs = (one != other) & ~(one.isnan() & other.isnan())
    return float((one - other)[differs].abs().nan_to_num(torch.inf).amax()) if differs.any() else 0.0
