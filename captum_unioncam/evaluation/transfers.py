"""Copies images to a GPU ahead of their turn, and results back behind the computation.

Copies go from and to pinned memory, those to the GPU in a stream of their own, and events say when they are done: the
host waits for none of them when it starts it. On devices without streams nothing is queued.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from captum_unioncam.engine.accelerators import has_streams, module_of

ResultT = TypeVar("ResultT")

IMAGES_AHEAD = 2
"""How many images are copied to a GPU before their turn."""

RESULTS_BEHIND = 16
"""How many results of a method for an image a GPU may still owe."""


def queued(started: Iterable[Callable[[], ResultT]], depth: int) -> Iterator[ResultT]:
    """What functions return, in order, each called when so many others have been made after it."""
    waiting: deque[Callable[[], ResultT]] = deque()
    for one in started:
        waiting.append(one)
        if len(waiting) > depth:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU, to be read after a later ``Mark`` was waited for; PyTorch puts it into pinned memory."""
    # On other devices such a copy would not be ordered by an event.
    return tensor.detach().to("cpu", non_blocking=has_streams(tensor.device))


class Uploads:
    """Copies tensors to a GPU beside its computation.

    Args:
        device (torch.device): The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module = module_of(device)
        self._stream = self._module.Stream(device)

    def start(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Starts the copies of tensors on the CPU; the function that is returned gives them to the current stream."""
        with self._module.stream(self._stream):
            copies = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
            copied = self._stream.record_event()

        def given() -> list[Tensor]:
            # The stream waits, not the host.
            current = self._module.current_stream(self.device)
            current.wait_event(copied)
            for copy in copies:
                # Their memory belongs to the other stream, which may not use it again before this one is done.
                copy.record_stream(current)
            return copies

        return given
