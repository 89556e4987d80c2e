"""Several devices on a machine that has none: tensors on the CPU that pretend to be elsewhere.

Where tensors of several devices meet in an operation, PyTorch's ``FakeTensorMode`` gets it first, with fake tensors on
these devices, and says whether CUDA takes it and where the result is. Values and gradients are computed on the CPU
below autograd: fake tensors have no values, which methods ask for, and their gradients fail where a driver is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

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
_INDEXINGS = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_")
_FILLS = ("copy_", "fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", *_INDEXINGS)


class PretendedDevices:
    """Says where tensors are, has operations refused that CUDA would refuse, and counts waits for a device.

    ``synchronisations`` counts the questions for values of a tensor that pretends to be on a device other than the CPU:
    ``item``, ``tolist``, ``nonzero``, masks as indices, copies to the CPU.
    """

    def __init__(self) -> None:
        self.synchronisations = 0
        # The storages are kept, so that no other has the same address.
        self._places: dict[int, tuple[torch.UntypedStorage, torch.device]] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Pretends within its context; nothing is timed on a GPU there, which deterministic algorithms stand for."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            with _OfFunctions(self), _OfOperations(self):
                yield
        finally:
            torch.use_deterministic_algorithms(deterministic)

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
        """``tensor`` and all that shares its storage are on ``device``."""
        self._places[_address(tensor)] = (_storage(tensor), _numbered(device))

    def is_known(self, tensor: Tensor) -> bool:
        """Whether it was said where ``tensor`` is."""
        return _address(tensor) in self._places

    def waits_for(self, tensors: Iterable[Tensor]) -> None:
        """Counts a synchronisation, if there is a device to wait for."""
        self.synchronisations += any(self.device_of(x) != CPU for x in tensors)


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
            self.devices.waits_for(args[:1])
        if func in (Tensor.numpy, Tensor.__array__) and self.devices.device_of(args[0]) != CPU:
            raise TypeError(f"can't convert {self.devices.device_of(args[0])} device type tensor to numpy.")
        target = self._target(func, args, kwargs)
        if target is None:
            return func(*args, **kwargs)
        args, kwargs = tree_map(_on_cpu, args), tree_map(_on_cpu, kwargs)
        moved = args[0].clone() if func is Tensor.cuda else func(*args, **kwargs)
        given = _tensors((args, kwargs))
        return tree_map(lambda x: self._moved(x, target, given) if isinstance(x, Tensor) else x, moved)

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
            if isinstance(device, (torch.device, str, int)):
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        return None

    def _moved(self, made: Tensor, target: torch.device, given: list[Tensor]) -> Tensor:
        """``made``, which a function made of what was ``given``, on the device it was asked for."""
        if any(_address(made) == _address(x) for x in given):
            if self.devices.device_of(made) == _numbered(target):
                return made
            made = made.clone()
        sources = {self.devices.device_of(x) for x in given} - {_numbered(target)}
        self.devices.synchronisations += target == CPU and bool(sources)
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
                self.devices.waits_for(given)
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


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _reads_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation has to know values before it can return."""
    if _name(func) in _INDEXINGS:
        return any(_is_mask(index) for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _on_cpu(argument: Any) -> Any:
    is_device = isinstance(argument, torch.device) or (isinstance(argument, str) and argument.startswith("cuda"))
    return CPU if is_device else argument


def _numbered(device: torch.device) -> torch.device:
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _address(tensor: Tensor) -> int:
    return int(_storage(tensor)._cdata)
