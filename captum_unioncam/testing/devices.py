"""Several devices on a machine that has none: tensors on the CPU that pretend to be elsewhere.

``torch._subclasses.FakeTensorMode`` knows no values, which methods ask for, and its gradients fail where PyTorch was
built for CUDA and finds no driver. Here a tensor is where its storage is said to be, and everything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
_INDEXINGS = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index", "aten::_index_put_impl_")


class DeviceMismatch(RuntimeError):
    """Tensors of several devices met in an operation that takes those of one."""


class PretendedDevices:
    """Says where tensors are, refuses operations that CUDA would refuse, and counts waits for a device.

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
        self._places[_address(tensor)] = (_storage(tensor), device)

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
        if func is Tensor.cuda:
            return torch.device("cuda", 0)
        if func in (Tensor.to, Tensor.type_as):
            others = [*args[1:2], *(kwargs[name] for name in ("other", "tensor", "device") if name in kwargs)]
            for other in others:
                if isinstance(other, Tensor):
                    return self.devices.device_of(other)
                if isinstance(other, (torch.device, str)):
                    return torch.device(other)
        device = kwargs.get("device")
        return None if device is None else torch.device(device)

    def _moved(self, made: Tensor, target: torch.device, given: list[Tensor]) -> Tensor:
        """``made``, which a function made of what was ``given``, on the device it was asked for."""
        if any(_address(made) == _address(x) for x in given):
            here = self.devices.device_of(made)
            if here == target:
                return made
            made = made.clone()
        self.devices.synchronisations += target == CPU and any(self.devices.device_of(x) != CPU for x in given)
        self.devices.say(made, target)
        return made


class _OfOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of several devices, and says where their results are."""

    def __init__(self, devices: PretendedDevices) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.devices = devices

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        name = func._schema.name
        if name == "aten::copy_":
            device = self.devices.device_of(args[0])
            if device == CPU:
                self.devices.waits_for(args[1:2])
        else:
            device = self._common(func, _tensors((args[:1], args[2:])) if name in _INDEXINGS else given)
        if _reads_values(func, name, args):
            self.devices.waits_for(given)
        made = func(*args, **kwargs)
        for tensor in _tensors(made):
            if device != CPU and not self.devices.is_known(tensor):
                self.devices.say(tensor, device)
        return made

    def _common(self, func: Any, given: list[Tensor]) -> torch.device:
        """The device of the tensors; pointwise, CUDA takes numbers from the CPU too."""
        pointwise = torch.Tag.pointwise in func.tags
        places = {self.devices.device_of(x): x for x in given}
        if pointwise and len(places) > 1 and all(x.dim() == 0 for x in given if self.devices.device_of(x) == CPU):
            places.pop(CPU, None)
        if len(places) > 1:
            found = ", ".join(sorted(map(str, places)))
            raise DeviceMismatch(f"Expected all tensors to be on the same device, but found {found} in {func}.")
        return next(iter(places), CPU)


def _reads_values(func: Any, name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation has to know values before it can return."""
    if name in _INDEXINGS:
        return any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1:2]))
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _on_cpu(argument: Any) -> Any:
    is_device = isinstance(argument, torch.device) or (isinstance(argument, str) and argument.startswith("cuda"))
    return CPU if is_device else argument


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _address(tensor: Tensor) -> int:
    return int(_storage(tensor)._cdata)
