"""Lets threads that run the same modules take turns."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from torch.nn import Module

_turns: list[Turn] = []
"""Those taken and waited for, in the order in which they were asked for."""


class Turn:
    """A thread's turn to run modules: it waits for the earlier turns of other threads that share one of them.

    A thread that has a turn waits for no other, for two threads could wait for each other.

    Args:
        modules (Iterable[Module] or None): What is run, all submodules included. None: any modules there are.
    """

    def __init__(self, modules: Iterable[Module] | None) -> None:
        self.modules = None if modules is None else {*map(id, modules)}
        self.thread = threading.get_ident()
        self.over = threading.Event()

    def wait(self) -> None:
        """Returns when it is this thread's turn, which lasts until ``end``."""
        # No lock: appending is atomic, and only earlier turns count. Ctrl-C would leave a lock closed.
        _turns.append(self)
        has_one = any(turn.thread == self.thread and turn is not self for turn in tuple(_turns))
        while not has_one and (earlier := self._earlier()):
            earlier[0].over.wait(1)

    def end(self) -> None:
        """Lets the next thread run; may be called again."""
        if self in _turns:
            _turns.remove(self)
        self.over.set()

    def _earlier(self) -> list[Turn]:
        turns = list(_turns)
        return [t for t in turns[: turns.index(self)] if t.thread != self.thread and self._shares(t)]

    def _shares(self, other: Turn) -> bool:
        return self.modules is None or other.modules is None or not self.modules.isdisjoint(other.modules)
