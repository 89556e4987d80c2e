"""Whether a model takes rows as the engine gives them: each for itself, in any memory format, with its arguments."""

import builtins
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from captum_unioncam.engine._captum import run_forward
from captum_unioncam.engine.confidence import output_tensor
from captum_unioncam.engine.model_state import EvaluatedFunction, modules_behind, modules_within

# Their layers ask tensors for values alone. Of other classes, the code is looked at.
_LIBRARIES = ("torch", "torchvision", "timm", "math", "typing", "collections", "functools", "captum_unioncam")
_LAYOUT_NAMES = (
    "data_ptr",
    "stride",
    "storage",
    "numpy",
    "__array",
    "as_strided",
    "dlpack",
    "is_contiguous",
    "tobytes",
)
_TOLERANCE = 1e-2  # half precision too; a row that meets another's argument is out by more


class DependentRows(ValueError):
    """What a model gives for a row of a pass depends on the other rows, or on its place among them."""


def takes_any_format(forward_func: Callable[..., Any]) -> bool:
    """Whether images with their channels last in memory are safe: in a module of convolutions in known code.

    A function, or a module whose code asks for addresses or calls what is not PyTorch, may read the memory as it
    pleases, and would take such images for others without an error.
    """
    if isinstance(forward_func, EvaluatedFunction):
        forward_func = forward_func.function
    if not isinstance(forward_func, Module) or isinstance(forward_func, torch.jit.ScriptModule):
        return False
    modules = list(forward_func.modules())
    convolves = any(isinstance(module, torch.nn.Conv2d) for module in modules)
    return convolves and all(_is_plain(kind) for kind in {type(module) for module in modules})


def _is_plain(kind: type) -> bool:
    own = [c for c in kind.__mro__ if c.__module__.split(".")[0] not in (*_LIBRARIES, "builtins", "abc")]
    functions = {name: f for c in own for name, f in vars(c).items() if isinstance(f, FunctionType)}
    return all(_is_plain_function(f, set()) for name, f in functions.items() if name != "__init__")


def _is_plain_function(function: FunctionType, seen: set[CodeType]) -> bool:
    # What is closed over may be anything; super() closes over the class.
    names = {"__class__", *function.__globals__}
    return set(function.__code__.co_freevars) <= names and _is_plain_code(function.__code__, function.__globals__, seen)


def _is_plain_code(code: CodeType, names: dict[str, Any], seen: set[CodeType]) -> bool:
    if code in seen:
        return True
    seen.add(code)
    if any(part in name for name in code.co_names for part in _LAYOUT_NAMES):
        return False
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    used = [names[name] for name in code.co_names if name in names and not hasattr(builtins, name)]
    return all(_is_known(value, seen) for value in used) and all(_is_plain_code(one, names, seen) for one in inner)


def _is_known(value: Any, seen: set[CodeType]) -> bool:
    if isinstance(value, (int, float, str, torch.dtype)) or (isinstance(value, type) and issubclass(value, Module)):
        return True
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    if isinstance(name, str) and name.split(".")[0] in _LIBRARIES:
        return True
    return isinstance(value, FunctionType) and _is_plain_function(value, seen)


def check_model_rows(*functions: Callable[..., Any] | None) -> None:
    """Raises ``ValueError`` for models that the rows of a pass cannot be given to."""
    for module in modules_within(root for function in functions for root in modules_behind(function)):
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise DependentRows(
                f"forward_func: {module} normalises over the batch, in evaluation mode too, so what is found for "
                "an example would depend on the other rows of its pass; give track_running_stats=True, or layers that "
                "normalise each example."
            )


def check_rows_of_arguments(
    forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], additional_forward_args: tuple[Any, ...]
) -> None:
    """Raises ``ValueError`` where an argument happens to have N rows, and the rows do not go with the examples.

    In batches of copies of one example, with its row of the argument, it has to give what it gives in its own batch: so
    do the first and the last. Tensors within lists go with no example, and must not need to.
    """
    examples = inputs[0].shape[0]
    doubtful = [
        number
        for number, x in enumerate(additional_forward_args)
        if has_rows(x, examples) or isinstance(x, (tuple, list, dict))
    ]
    if not doubtful:
        return

    def outputs_of(rows: list[int]) -> Tensor:
        given, additional = (rows_of(values, rows, examples) for values in (inputs, additional_forward_args))
        return output_tensor(run_forward(forward_func, given, None, additional), len(rows))

    whole = outputs_of(list(range(examples)))
    for example in {0, examples - 1}:
        try:
            copies = outputs_of([example] * max(examples, 2))
        except Exception:
            if examples > 1:
                raise
            # Made for one row: the passes will tell.
            return
        if not _are_copies(copies, whole[example : example + 1]):
            numbers = " and ".join(f"number {number}" for number in doubtful)
            raise ValueError(
                f"additional_forward_args: {numbers} may have a row for each of the examples, {examples}, but what "
                "forward_func gives for an example depends on the other rows; share a value among all examples by a "
                "closure, and give what goes with each of them as a tensor of its own, or among the inputs."
            )


def has_rows(value: Any, examples: int) -> bool:
    """Whether an argument has a row for each example."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == examples


def rows_of(values: Sequence[Any], rows: Sequence[int], examples: int) -> tuple[Any, ...]:
    """Arguments for a pass of these rows of the examples; what has not one row for each of them is the same for all."""
    # By index_select, which sparse tensors have.
    return tuple(x.index_select(0, torch.tensor(rows, device=x.device)) if has_rows(x, examples) else x for x in values)


def _are_copies(copies: Tensor, one: Tensor) -> bool:
    if copies.shape[1:] != one.shape[1:] or not one.dim():
        return False
    scale = one.abs().amax().nan_to_num(0.0, 0.0) if one.numel() else 0.0
    near = (copies - one).abs() <= _TOLERANCE * scale
    return bool((near | ~torch.isfinite(one)).all())
