"""Results of forward passes that several methods and metrics share within ``shared_passes``."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import MethodType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from captum_unioncam.engine.accelerators import synchronize
from captum_unioncam.engine.model_state import EvaluatedFunction

ResultT = TypeVar("ResultT")

_active: ContextVar[SharedPasses | None] = ContextVar("shared_passes", default=None)


class SharedPasses:
    """The results, as a context that may be entered again. It applies to the thread that enters it.

    Attributes:
        saved (float): Seconds that what was found here had taken to compute.
    """

    def __init__(self) -> None:
        self.saved = 0.0
        self._kept: list[tuple[Any, Any, float]] = []
        self._tokens: list[Token[SharedPasses | None]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_active.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _active.reset(self._tokens.pop())

    def kept(self, key: tuple[Any, ...], compute: Callable[[], ResultT]) -> ResultT:
        """What ``compute`` returns, or has returned for an equal key before."""
        for known, result, seconds in self._kept:
            if _same(known, key):
                self.saved += seconds
                found: ResultT = result
                return found
        start = time.perf_counter()
        computed = compute()
        if isinstance(computed, Tensor):
            synchronize(computed.device)
        self._kept.append((key, computed, time.perf_counter() - start))
        return computed


def shared_passes() -> SharedPasses:
    """
    Runs the masked passes of the channels of an image once for all methods, classes and channel weightings.

    Within the context, methods that weigh channels by scores (``LayerUnionCam``, ``LayerScoreCam``,
    ``LayerGradPlusPlusScoreCam``, ...) read them from the raw outputs of the first one. Metrics compute the confidence
    of the image, and of the baseline, once. Maps are the same as without the context. For each example and layer it
    keeps (channels, classes) numbers until it is left.

    Passes are shared for the same function, layer output, inputs, baselines and batch size. Tensors are compared by
    value. **Do not change the model within the context.** It applies to the thread that enters it.

    Examples::

        >>> with shared_passes():
        ...     united = LayerUnionCam(model, layer).attribute(images, target=labels)
        ...     # Runs no further pass for the channels.
        ...     region = LayerScoreCam(model, layer).attribute(images, target=3)
    """
    return SharedPasses()


def kept(key: Callable[[], tuple[Any, ...]], compute: Callable[[], ResultT]) -> ResultT:
    """What ``compute`` returns; within ``shared_passes``, what it has returned for an equal key before."""
    shared = _active.get()
    return compute() if shared is None else shared.kept(key(), compute)


def is_shared() -> bool:
    """Whether results are kept."""
    return _active.get() is not None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, EvaluatedFunction) and isinstance(other, EvaluatedFunction):
        return _same((one.function, one.output_fn), (other.function, other.output_fn))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.dtype == other.dtype and one.device == other.device and one.shape == other.shape
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, (tuple, list)) and type(one) is type(other):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (int, float, str, bool, torch.dtype, MethodType, type(None))):
        return type(one) is type(other) and bool(one == other)
    return one is other
