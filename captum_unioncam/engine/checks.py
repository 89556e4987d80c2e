"""Checks of arguments that several methods share; each error names the argument and what would do."""

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS

_INDEX_DTYPES = (torch.int32, torch.int64)
_MOST = 2**31


def described(value: Any) -> str:
    """A value in a message: a tensor's or array's type and shape, and other values as they are written."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """The inputs, if they are a tuple of tensors of the same examples, at least one."""
    if not isinstance(inputs, tuple) or not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError(f"inputs: got {described(inputs)}; give a tensor, or a tuple of tensors.")
    shapes = [tuple(x.shape) for x in inputs]
    if not inputs or any(x.dim() == 0 or x.numel() == 0 for x in inputs):
        raise ValueError(f"inputs: no example in the shapes {shapes}; give at least one.")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"inputs: got the shapes {shapes}; give each a row for each of the same examples.")
    if any(x.is_meta for x in inputs):
        raise ValueError("inputs: are on the device meta, where nothing has a value; give them on another.")
    return inputs


def inputs_with_mask(inputs: tuple[Tensor, ...], map_dims: int) -> list[bool]:
    """Which inputs take the mask that a map of so many dimensions makes; ``ValueError`` if none does."""
    masked = [x.dim() == map_dims for x in inputs]
    if not any(masked):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"inputs: none of the shapes {shapes} has the {map_dims - 2} spatial dimensions of the layer's output, "
            "so no mask fits; give an input of shape (N, C, *spatial), another layer, or, for tokens, a "
            "reshape_transform."
        )
    return masked


def check_finite(values: Tensor, what: str) -> None:
    """Raises ``ValueError`` naming the examples (dimension 0) that hold a NaN or an infinity."""
    finite = torch.isfinite(values).reshape(values.shape[0], -1).all(1)
    if not finite.all():
        examples = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"{what}: not finite for the examples {examples}; check their inputs for NaN and the model for overflow "
            "(float16 overflows above 65504: bfloat16 or float32 do not)."
        )


def check_positive(name: str, value: int | None) -> None:
    """Raises ``ValueError`` unless ``value`` is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name}: got {described(value)}; give a whole number of at least 1, or None.")
    if value is not None and value >= _MOST:
        raise ValueError(f"{name}: got {described(value)}; give a whole number below 2^31.")


def check_count(name: str, value: int) -> None:
    """Raises ``ValueError`` unless ``value`` is a whole number of at least 1."""
    if value is None:
        raise ValueError(f"{name}: got None; give a whole number of at least 1.")
    check_positive(name, value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of the ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {described(value)}; give one of {', '.join(map(repr, choices))}.")


def check_generator(generator: Any) -> None:
    """Raises ``TypeError`` unless ``generator`` is a ``torch.Generator`` or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {described(generator)}; give a torch.Generator, or None.")


def check_number(name: str, value: Any, least: float, most: float, what: str) -> None:
    """Raises ``ValueError`` unless ``value`` is a real number from ``least`` to ``most``; ``what`` would do."""
    # Not as a float, since a whole number may be larger than any.
    number: Any = value
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= number <= most:
        raise ValueError(f"{name}: got {described(value)}; give {what}.")


def check_numbers(name: str, values: Sequence[Any], least: float, most: float, what: str) -> None:
    """As ``check_number``, for each of several, at least one."""
    if not len(values):
        raise ValueError(f"{name}: got none; give {what}.")
    for value in values:
        check_number(name, value, least, most, what)


def check_size(name: str, value: Any, dims: int | None = None) -> tuple[int, ...]:
    """The spatial size, if it is one to three, or ``dims``, whole numbers of at least 1; ``ValueError`` otherwise."""
    size = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    whole = all(isinstance(length, Integral) and not isinstance(length, bool) and int(length) >= 1 for length in size)
    if not whole or not (len(size) == dims if dims else 1 <= len(size) <= MAX_SPATIAL_DIMS):
        wanted = f"{dims} whole numbers" if dims else f"one to {MAX_SPATIAL_DIMS} whole numbers"
        raise ValueError(f"{name}: got {described(value)}; give {wanted} of at least 1.")
    return tuple(int(length) for length in size)


def check_flag(name: str, value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` is True or False, Python's or NumPy's, or 1 or 0."""
    if type(value).__name__ not in ("bool", "bool_") and not (isinstance(value, int) and value in (0, 1)):
        raise TypeError(f"{name}: got {described(value)}; give True or False.")


def check_grad_kwargs(value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` holds arguments of ``torch.autograd.grad`` by name, or is None."""
    if value is None:
        return
    known = list(signature(torch.autograd.grad).parameters)[2:]
    if not (isinstance(value, Mapping) and all(name in known for name in value)):
        raise TypeError(
            f"grad_kwargs: got {described(value)}; give a dict of arguments of torch.autograd.grad, some of "
            f"{', '.join(known)}, or None."
        )


def check_layer(layer: Any) -> None:
    """Raises ``TypeError`` unless ``layer`` is a module, a name, or a list of those."""
    for one in layer if isinstance(layer, (list, tuple)) else [layer]:
        if not isinstance(one, (Module, str)):
            raise TypeError(f"layer: got {described(layer)}; give a module, its dotted name, or a list of those.")


def check_function(name: str, value: Any, *, optional: bool = True) -> None:
    """Raises ``TypeError`` unless ``value`` can be called, or may be None and is."""
    if not callable(value) and not (optional and value is None):
        raise TypeError(f"{name}: got {described(value)}; give a function{', or None' if optional else ''}.")


def check_baselines(baselines: Any, inputs: tuple[Tensor, ...]) -> None:
    """Raises ``ValueError`` or, as Captum does, ``AssertionError`` for baselines that do not fit the inputs."""
    if baselines is None:
        return
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    if len(given) != len(inputs):
        raise AssertionError(f"baselines: got {len(given)} for {len(inputs)} inputs; give one for each, or None.")
    for baseline, x in zip(given, inputs, strict=True):
        if isinstance(baseline, Tensor):
            _check_baseline(baseline, x)
        elif isinstance(baseline, bool) or not isinstance(baseline, (int, float)):
            raise AssertionError(f"baselines: got {described(baseline)}; give a number, a tensor, or a tuple of those.")
        elif not math.isfinite(baseline):
            raise ValueError(f"baselines: got {baseline}; give a finite number.")


def _check_baseline(baseline: Tensor, inputs: Tensor) -> None:
    rows = baseline.dim() == 0 or baseline.shape[0] in (1, inputs.shape[0])
    broadcast = baseline.dim() in (0, inputs.dim()) and all(
        one in (1, other) for one, other in zip(baseline.shape[1:], inputs.shape[1:], strict=baseline.dim() > 0)
    )
    if not rows or not broadcast:
        raise AssertionError(
            f"baselines: got the shape {tuple(baseline.shape)} for an input of shape {tuple(inputs.shape)}; give that "
            "of the input, or of one example."
        )
    if baseline.is_meta or baseline.is_complex() or baseline.layout != torch.strided:
        raise ValueError(
            f"baselines: got {described(baseline)} on {baseline.device}; give real values, in a dense tensor."
        )
    if not torch.isfinite(baseline).all():
        raise ValueError("baselines: are not finite; give finite values.")


def check_target(target: Any, examples: int, form: Sequence[int] | None = None, argument: str = "target") -> None:
    """Raises ``AssertionError`` for a target that does not choose one number of each example's output.

    Args:
        target (Any): As Captum's ``target``.
        examples (int): N.
        form (Sequence[int] or None): The shape of an example's output. Default: None, not known yet
        argument (str): What the target is called. Default: "target"
    """

    def wrong(why: str) -> AssertionError:
        shape = "" if form is None else f" for outputs of shape {(examples, *form)}"
        return AssertionError(f"{argument}: got {described(target)}{shape}; {why}.")

    if target is None:
        if form is not None and math.prod(form) != 1:
            raise wrong("a target is necessary to choose one number of each example")
        return
    if isinstance(target, Tensor):
        if target.dtype not in _INDEX_DTYPES or target.is_meta:
            raise wrong("give int64 indices")
        if target.numel() != 1 and tuple(target.shape) != (examples,):
            raise wrong(f"give one index, or one for each of the {examples} examples")
        target = int(target) if target.numel() == 1 else target.tolist()
    each = target if isinstance(target, list) else [target]
    if isinstance(target, list) and len(target) != examples:
        raise wrong(f"give one for each of the {examples} examples")
    paths = [one if isinstance(one, tuple) else (one,) for one in each]
    if any(isinstance(i, bool) or not isinstance(i, (int, slice)) for path in paths for i in path) or any(
        isinstance(one, slice) for one in each
    ):
        raise wrong("give an index, a tuple of indices, or one of those for each example")
    if len({isinstance(one, tuple) for one in each}) > 1:
        raise wrong("give indices, or tuples of indices")
    listed = isinstance(target, list) and not isinstance(each[0], tuple)
    if any(isinstance(i, int) and ((i < 0 and listed) or abs(i) >= 2**31) for path in paths for i in path):
        raise wrong("give indices from 0 on")
    if form is not None and not all(_chooses_one(path, form) for path in paths):
        raise wrong(f"give {'an index' if len(form) == 1 else f'a tuple of {len(form)} indices'} of the output's shape")


def _chooses_one(path: tuple[Any, ...], form: Sequence[int]) -> bool:
    if len(path) > len(form) or math.prod(form[len(path) :]) != 1:
        return False
    return all(isinstance(i, slice) or -size <= i < size for i, size in zip(path, form, strict=False))
