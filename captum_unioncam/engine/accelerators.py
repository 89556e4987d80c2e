"""Differences between kinds of devices: memory, dtypes, events and streams, random generators, rows of a pass.

The rule is the same for CUDA, XPU and MPS: what PyTorch's module of the device offers is used, and what it does not
offer is done without. No other module of this package asks which accelerator it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import DataParallel, Module

KINDS = ("cuda", "xpu", "mps")
AUTOCAST = ("cpu", *KINDS)

# At 224 x 224 positions, measured: MobileNetV2 takes 1.2 times as long with 8 rows on a CPU.
ROWS_AT_224 = {"cpu": 4, "cuda": 64}
MOST_FIXED_ROWS = {"cpu": 64, "cuda": 512}
COMPILED_ROWS = {"cpu": 8, "cuda": 64}
OTHER_ROWS_AT_224, OTHER_FIXED_ROWS = 16, 64


def default_device() -> torch.device:
    """The accelerator, if there is one, or else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu" if accelerator is None else accelerator.type)


def module_of(device: torch.device) -> Any:
    """PyTorch's module of an accelerator of this kind, such as ``torch.cuda``; None for other devices."""
    try:
        return None if device.type == "cpu" else torch.get_device_module(device)
    except RuntimeError:
        # The meta device has none, for example.
        return None


def has_streams(device: torch.device) -> bool:
    """Whether work is queued in streams, whose events are waited for and timed.

    Those of MPS are not used: waiting for the time of one that was waited for before could take forever
    (https://github.com/pytorch/pytorch/pull/196395).
    """
    return hasattr(module_of(device), "current_stream")


def is_timed(device: torch.device) -> bool:
    """Whether marks around a pass give its time, and wait for nothing."""
    return device.type == "cpu" or has_streams(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes that passes can have, what PyTorch keeps free for itself included; None where the device cannot tell."""
    module = module_of(device)
    if module is None or not module.is_available():
        return None
    if hasattr(module, "recommended_max_memory"):
        return max(int(module.recommended_max_memory()) - int(module.current_allocated_memory()), 0)
    try:
        free: int = module.mem_get_info(device)[0]
    except (AttributeError, RuntimeError):
        # Some drivers of Intel's GPUs do not know, nor does every accelerator of other makers.
        return None
    return free + int(module.memory_reserved(device)) - int(module.memory_allocated(device))


def release_memory(device: torch.device) -> None:
    """Gives back what PyTorch keeps free for itself, which CUDA's libraries, for one, cannot have."""
    module = module_of(device)
    if hasattr(module, "empty_cache"):
        module.empty_cache()


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 where there is none, as on MPS and some of Intel's GPUs."""
    if device.type == "mps":
        return torch.float32
    has_it = device.type != "xpu" or module_of(device).get_device_properties(device).has_fp64
    return torch.float64 if has_it else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """The tensor in its device's ``wide_dtype``."""
    return tensor.to(wide_dtype(tensor.device))


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The half precision that the device has arithmetic for; None where it would only imitate it, or is not known."""
    module = module_of(device)
    if hasattr(module, "is_bf16_supported"):
        return torch.bfloat16 if module.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type != "cpu":
        return None
    # Of PyTorch before 2.8 nothing is known.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    arithmetic = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
    return torch.bfloat16 if any(capabilities.get(name) for name in arithmetic) else None


@contextmanager
def autocast(device_type: str, dtype: torch.dtype, modules: Iterable[Module]) -> Iterator[None]:
    """Autocast to ``dtype``, also in the threads of a ``DataParallel``: they know whether there is one, but no dtype.

    Args:
        device_type (str): Of the devices where the modules compute.
        dtype (torch.dtype): torch.bfloat16 or torch.float16.
        modules (Iterable[Module]): All that are to be run.
    """

    def in_thread(_module: Module, _args: Any) -> None:
        torch.set_autocast_enabled(device_type, True)
        torch.set_autocast_dtype(device_type, dtype)

    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, DataParallel) and len(module.device_ids) > 1:
                # Replicas have the module's hooks, and are dropped with their threads.
                stack.callback(module.module.register_forward_pre_hook(in_thread).remove)
        stack.enter_context(torch.autocast(device_type, dtype=dtype))
        yield


class Mark:
    """A point in a device's work: an event in its current stream, or where it has none, the time when it is done."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if has_streams(device):
            module = module_of(device)
            self._event = module.Event(enable_timing=True)
            self._event.record(module.current_stream(device))
        else:
            synchronize(device)
        self._time = time.perf_counter()

    def has_happened(self) -> bool:
        """Whether the device has come to it, without waiting."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> None:
        """Returns when the device has come to it."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, start: Mark) -> float:
        """The seconds from an earlier mark of the device, once it has come to this one."""
        if self._event is None or start._event is None:
            return self._time - start._time
        return float(start._event.elapsed_time(self._event)) / 1000


def synchronize(device: torch.device) -> None:
    """Returns when the device has done all its work."""
    module = module_of(device)
    if hasattr(module, "set_device"):
        module.synchronize(device)
    elif module is not None:
        # There is but one, as of MPS.
        module.synchronize()


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes an accelerator the one of code that names no more than its kind, where there may be several."""
    module = module_of(device)
    made: AbstractContextManager[object] = module.device(device) if hasattr(module, "device") else nullcontext()
    return made


def count_of(kind: str) -> int:
    """How many accelerators of this kind there are, if there may be several; 0 for names of anything else."""
    module: Any = torch.get_device_module(kind) if kind in KINDS else None
    return int(module.device_count()) if hasattr(module, "set_device") else 0


def take(kind: str, number: int) -> torch.device:
    """The accelerator of this kind and number, also for code that names no more than the kind."""
    torch.get_device_module(kind).set_device(number)
    return torch.device(kind, number)


def random_states() -> list[tuple[Callable[[Any], Any], Any]]:
    """PyTorch's global generators, of the CPU and of accelerators in use: what sets each, and its state."""
    states: list[tuple[Callable[[Any], Any], Any]] = [(torch.set_rng_state, torch.get_rng_state())]
    for kind in KINDS:
        module: Any = torch.get_device_module(kind)
        if not hasattr(module, "get_rng_state_all"):
            if torch.backends.mps.is_available():
                states.append((module.set_rng_state, module.get_rng_state()))
        elif module.is_initialized():
            states.append((module.set_rng_state_all, module.get_rng_state_all()))
    return states


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Gives PyTorch's global generators their state back afterwards."""
    states = random_states()
    try:
        yield
    finally:
        for set_state, state in states:
            set_state(state)
