"""Simulated accelerators: tensors on the CPU that act as if they were on another device.

Where tensors of several devices meet in an operation, PyTorch's ``FakeTensorMode`` gets it first, with fake tensors on
these devices, and says whether CUDA takes it and where the result is. Values and gradients are computed on the CPU
below autograd: fake tensors have no values, which methods ask for, and their gradients fail where a driver is missing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
KINDS = ("cuda", "xpu", "mps")
COUNT, MEMORY = 2, 2**34
"""How many accelerators of a kind there are, and how many bytes each has free."""

_INDEXINGS = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_")
_COPIES = (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as, torch.tensor, torch.as_tensor, torch.asarray)
_FILLS = ("copy_", "fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", *_INDEXINGS)


class PretendedDevices:
    """Says where tensors are, has operations refused that the device would refuse, and counts waits for a device.

    Devices are "cuda", "xpu" and "mps", the last without float64. Autocast has its effect, and PyTorch's module of each
    kind has events, streams and memory.

    Attributes:
        waits (Counter[str]): What the host was blocked by, and how often: by operations on tensors that pretend to be
            elsewhere than on the CPU, which ask for values (``item``, ``nonzero``, masks as indices) or copy from the
            CPU or to it, unless with ``non_blocking``.
        modules (dict[str, Any]): What stands in for ``torch.cuda`` and the other kinds' modules.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.modules: dict[str, Any] = {
            "cuda": _module_with_streams(self),
            "xpu": _module_with_streams(self),
            "mps": _module_without_streams(self),
        }
        # The storages are kept, so that no other has the same address.
        self._places: dict[int, tuple[torch.UntypedStorage, torch.device]] = {}

    @property
    def synchronisations(self) -> int:
        """How often the host was blocked."""
        return self.waits.total()

    def synchronize(self, device: object = None) -> None:
        """Waits for a device, as PyTorch's modules do."""
        self.waits["synchronize"] += 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """Pretends within its context, in the thread that enters it and in those of ``in_parallel``."""
        module_of = torch.get_device_module

        def pretended(device: Any = None) -> Any:
            return self.modules.get(torch.device(device).type if device else "") or module_of(device)

        with ExitStack() as stack:
            # Optimisers ask the driver if there is one.
            stack.enter_context(patch("torch.accelerator.is_available", return_value=torch.accelerator.is_available()))
            stack.enter_context(patch("torch.get_device_module", pretended))
            # Without a driver, autocast would switch itself off.
            stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
            stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True))
            stack.enter_context(self._in_thread())
            yield

    @contextmanager
    def _in_thread(self) -> Iterator[None]:
        with _OfFunctions(self), _OfOperations(self):
            yield

    def device_of(self, tensor: Tensor) -> torch.device:
        """Where ``tensor`` is said to be; the CPU if nothing was said."""
        _, device = self._places.get(_address(tensor), (None, CPU))
        return device

    def put(self, tensor: Tensor, device: torch.device | str) -> Tensor:
        """A copy of ``tensor`` that is said to be on ``device``."""
        copied = tensor.detach().clone()
        self.say(copied, torch.device(device))
        return copied

    def place(self, model: nn.Module, device: torch.device | str) -> None:
        """Says that the parameters and buffers of ``model`` are on ``device``."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.say(tensor, torch.device(device))

    def say(self, tensor: Tensor, device: torch.device) -> None:
        """``tensor`` and all that shares its storage are on ``device``.

        Raises:
            TypeError: A float64 tensor on MPS.
        """
        if device.type == "mps" and tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype: the MPS framework doesn't support float64.")
        self._places[_address(tensor)] = (_storage(tensor), _numbered(device))

    def is_known(self, tensor: Tensor) -> bool:
        """Whether it was said where ``tensor`` is."""
        return _address(tensor) in self._places

    def waits_for(self, tensors: Iterable[Tensor], what: str) -> None:
        """Counts a wait, if there is a device to wait for."""
        if any(self.device_of(x) != CPU for x in tensors):
            self.waits[what] += 1


def in_parallel(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """What functions return, each called in a thread of its own, as ``DataParallel`` calls the replicas of a model.

    They get whether there are gradients and autocast, but not to which dtype, and the devices that are pretended.
    """
    if len(functions) == 1:
        return [functions[0]()]
    modes: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    pretended = [mode.devices for mode in modes if isinstance(mode, _OfFunctions)]
    with_gradients, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cuda")
    all_are_there = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        # Or a thread that is done early would take two.
        all_are_there.wait()
        devices = pretended[-1]._in_thread() if pretended else nullcontext()
        with devices, torch.set_grad_enabled(with_gradients), torch.autocast("cuda", enabled=autocast):
            return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


class _Event:
    """An event of a stream that has done what was asked of it when it is asked for the second time."""

    def __init__(self, devices: PretendedDevices, enable_timing: bool = False) -> None:
        self.devices, self.enable_timing = devices, enable_timing
        self.recorded: float | None = None
        self.has_happened = False

    def record(self, stream: object = None) -> None:
        self.recorded = time.perf_counter()

    def query(self) -> bool:
        has_happened, self.has_happened = self.has_happened, True
        return has_happened

    def synchronize(self) -> None:
        self.devices.synchronize()
        self.has_happened = True

    def elapsed_time(self, end: _Event) -> float:
        if not (self.enable_timing and end.enable_timing and end.has_happened) or None in (self.recorded, end.recorded):
            raise RuntimeError("Both events have to be recorded, with enable_timing=True, and to have happened.")
        return 1000 * (end.recorded - self.recorded)  # type: ignore[operator]


def _module_without_streams(devices: PretendedDevices) -> SimpleNamespace:
    """As of MPS, which is a single device."""
    return SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        synchronize=devices.synchronize,
        empty_cache=lambda: None,
        recommended_max_memory=lambda: MEMORY,
        current_allocated_memory=lambda: 0,
        get_rng_state=list,
        set_rng_state=lambda state: None,
    )


def _module_with_streams(devices: PretendedDevices) -> SimpleNamespace:
    """As of CUDA and XPU, which may be several devices."""
    return SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: COUNT,
        set_device=lambda number: None,
        device=nullcontext,
        synchronize=devices.synchronize,
        current_stream=lambda device=None: None,
        Event=partial(_Event, devices),
        mem_get_info=lambda device=None: (MEMORY, MEMORY),
        memory_reserved=lambda device=None: 0,
        memory_allocated=lambda device=None: 0,
        empty_cache=lambda: None,
        is_bf16_supported=lambda including_emulation=True: True,
        get_rng_state_all=list,
        set_rng_state_all=lambda states: None,
    )


class _OfFunctions(TorchFunctionMode):
    """Answers what devices tensors are on, and carries out moves."""

    def __init__(self, devices: PretendedDevices) -> None:
        super().__init__()
        self.devices = devices

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return self.devices.device_of(args[0])
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return self.devices.device_of(args[0]).type == "cuda"
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            self.devices.waits_for(args[:1], func.__name__)
        if func is Tensor.new_tensor:
            self.devices.waits_for(args[:1], "copy from the CPU")
        if func in (Tensor.numpy, Tensor.__array__) and self.devices.device_of(args[0]) != CPU:
            raise TypeError(f"can't convert {self.devices.device_of(args[0])} device type tensor to numpy.")
        target = self._target(func, args, kwargs)
        if target is None:
            with self._autocast((args, kwargs)):
                return func(*args, **kwargs)
        args, kwargs = tuple(map(_on_cpu, args)), {name: _on_cpu(value) for name, value in kwargs.items()}
        moved = args[0].clone() if func is Tensor.cuda else func(*args, **kwargs)
        given = _tensors((args, kwargs))
        if func in _COPIES and not kwargs.get("non_blocking"):
            self._count_copy(_numbered(target), given[:1])
        return self._moved(moved, target, given) if isinstance(moved, Tensor) else moved

    def _autocast(self, given: Any) -> AbstractContextManager[object]:
        """The CPU's autocast in place of that of the device, for what is on one."""
        kind = next((kind for kind in KINDS if torch.is_autocast_enabled(kind)), None)
        if kind is None or not any(self.devices.device_of(x).type == kind for x in _tensors(given)):
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.get_autocast_dtype(kind))

    def _count_copy(self, target: torch.device, given: list[Tensor]) -> None:
        """Copies from pageable memory wait for the device too; those between devices do not."""
        source = self.devices.device_of(given[0]) if given else CPU
        if source != target and CPU in (source, target):
            self.devices.waits["copy to the CPU" if target == CPU else "copy from the CPU"] += 1

    def _target(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
        """The device that a function is asked for."""
        if func is Tensor.cpu:
            return CPU
        asked: list[Any] = [kwargs.get("device")]
        if func is Tensor.cuda:
            asked = [*args[1:2], *asked, "cuda"]
        elif func in (Tensor.to, Tensor.type_as):
            asked = [*args[1:2], *asked, kwargs.get("other"), kwargs.get("tensor")]
        for device in asked:
            if isinstance(device, Tensor):
                return self.devices.device_of(device)
            if isinstance(device, (torch.device, str)) or (isinstance(device, int) and not isinstance(device, bool)):
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        return None

    def _moved(self, made: Tensor, target: torch.device, given: list[Tensor]) -> Tensor:
        """``made``, which a function made of what was ``given``, on the device it was asked for."""
        if any(_address(made) == _address(x) for x in given):
            if self.devices.device_of(made) == _numbered(target):
                return made
            made = made.clone()
        sources = {self.devices.device_of(x) for x in given} - {_numbered(target)}
        self.devices.say(made, target)
        if made.grad_fn is not None and sources:
            source = sources.pop()

            def bring_back(gradients: tuple[Tensor | None, ...], _of_made: Any) -> tuple[Tensor | None, ...]:
                return tuple(x if x is None else self._moved(x, source, [x]) for x in gradients)

            made.grad_fn.register_hook(bring_back)
        return made


class _OfOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Says where the results of operations are, those on tensors of several devices by ``FakeTensorMode``."""

    def __init__(self, devices: PretendedDevices) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.devices = devices
        self.judge = FakeTensorMode(allow_fallback_kernels=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        with torch._C.DisableTorchFunction():
            places = {self.devices.device_of(x) for x in given}
            device = self._judged(func, args, kwargs) if len(places) > 1 else next(iter(places), CPU)
            if _reads_values(func, args) or (device == CPU and _name(func) == "copy_"):
                self.devices.waits_for(given, _name(func))
            if len(places) > 1 and any(self.devices.device_of(x) == CPU for x in _copied_over(func, args)):
                self.devices.waits["copy from the CPU"] += device != CPU
            made = func(*args, **kwargs)
            for tensor in _tensors(made):
                if device != CPU and not self.devices.is_known(tensor):
                    self.devices.say(tensor, device)
        return made

    def _judged(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
        """Where the result is of an operation on tensors of several devices.

        Raises:
            RuntimeError: PyTorch's own, if CUDA would not take them.
        """
        self._check_laxer_rules(func, args, _tensors((args, kwargs)))
        if _reads_values(func, args) and _name(func) in _INDEXINGS:
            positions = [
                part for index in args[1] for part in (index.nonzero().unbind(1) if _is_mask(index) else [index])
            ]
            args = (args[0], positions, *args[2:])
        fakes, named = tree_map(self._fake, (args, kwargs))
        try:
            made = func(*fakes, **named)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
            # It cannot be run without values; this is the rule for operations that have none of their own.
            device, _ = FakeTensor._find_common_device(func, tree_leaves((fakes, named)))
            return device
        return next((x.device for x in _tensors(made)), CPU)

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return FakeTensor(self.judge, torch.empty_like(value, device="meta"), self.devices.device_of(value))

    def _check_laxer_rules(self, func: Any, args: tuple[Any, ...], given: list[Tensor]) -> None:
        """Fake tensors may be indexed by those of another GPU, and meet a number of the CPU in any operation."""
        if _name(func) in _INDEXINGS:
            home = self.devices.device_of(args[0])
            if any(self.devices.device_of(x) not in (CPU, home) for x in _tensors(args[1])):
                raise RuntimeError(
                    f"indices should be either on cpu or on the same device as the indexed tensor ({home})"
                )
        elif torch.Tag.pointwise not in func.tags and _name(func) not in _FILLS:
            numbers = [x for x in given if x.dim() == 0 and self.devices.device_of(x) == CPU]
            if numbers:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found a number on cpu in {func}."
                )


@cache
def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _reads_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation has to know values before it can return."""
    if _name(func) in _INDEXINGS:
        return any(_is_mask(index) for index in args[1])
    return _depends_on_values(func)


@cache
def _depends_on_values(func: Any) -> bool:
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _copied_over(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """What an operation copies to its device first, where it lies on the CPU: indices, and the source of a copy."""
    given = args[1] if _name(func) in _INDEXINGS else args[1:2] if _name(func) == "copy_" else ()
    return [x for x in _tensors(given) if x.dim()]


def _tensors(tree: Any) -> list[Tensor]:
    # PyTorch's trees take several times as long.
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [x for part in parts for x in _tensors(part)]


def _on_cpu(argument: Any) -> Any:
    is_device = isinstance(argument, torch.device) or (isinstance(argument, str) and argument.startswith(KINDS))
    return CPU if is_device else argument


def _numbered(device: torch.device) -> torch.device:
    return torch.device(device.type, 0) if device.type in KINDS and device.index is None else device


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _address(tensor: Tensor) -> int:
    return int(_storage(tensor)._cdata)
