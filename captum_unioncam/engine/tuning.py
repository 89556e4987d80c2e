"""How masked forward passes are run: rows in a pass and memory format, learnt from the passes that are run anyway."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch

TRIALS = 2  # the first pass of a kind pays for kernels that are chosen and memory that is found
RETRIALS, PASSES_PER_RETRIAL = 4, 50  # later and rarely, since something else may have kept the machine busy
RECENT = 5  # the allocator's heap may make a setting slow for good that was fast at first
WORTHWHILE = 1.03
FIRST_ROWS = {"cpu": 4, "cuda": 64}
MOST_ROWS = 1024
# On a CPU more rows than the caches of its cores hold are never worth their memory, and timings too noisy to tell.
MOST_ROWS_PER_THREAD = 8


@dataclass(frozen=True)
class PassSetting:
    """A forward pass of ``rows`` masked inputs, 4-D ones in channels-last memory format or not."""

    rows: int
    channels_last: bool


class PassTuner:
    """Chooses the setting of each pass for one model, device and input shape, and remembers what was fastest.

    The memory formats are tried first, then twice the rows as long as that gives more rows a second, or half the rows;
    of a setting's recent passes the median counts.
    A pass is timed where it is run: on a GPU by events that are read once they have happened, so nothing waits.

    Args:
        device (torch.device): Where the passes run. Neither CPU nor CUDA, or under
            ``torch.use_deterministic_algorithms``: nothing is timed, and nothing learnt.
        rows (int or None): Rows in a pass; None to learn.
        formats (tuple[bool, ...]): Whether channels-last is to be tried, in the order of trial.
    """

    def __init__(self, device: torch.device, rows: int | None, formats: tuple[bool, ...]) -> None:
        self.device = device
        self.learns_rows = rows is None
        self.rows = rows or FIRST_ROWS.get(device.type, 16)
        per_device = MOST_ROWS_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else MOST_ROWS
        self.most_rows = max(self.rows, min(per_device, MOST_ROWS))
        self.formats = self.all_formats = formats
        self.started: Counter[PassSetting] = Counter()
        self.seconds: defaultdict[PassSetting, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self.pending: list[tuple[PassSetting, Any, Any]] = []

    @property
    def learns(self) -> bool:
        """Whether passes are timed: another batch size or memory format rounds differently."""
        return self.device.type in FIRST_ROWS and not torch.are_deterministic_algorithms_enabled()

    def next(self) -> PassSetting:
        """The setting of the next pass: one to be tried, or the fastest known."""
        self._read_events()
        rows, channels_last = min(self.rows, self.most_rows), self.formats[0]
        if not self.learns:
            return PassSetting(rows, channels_last)
        for other in self.formats:
            setting = PassSetting(rows, other)
            if self._untried(setting):
                return setting
            if self._faster(setting, PassSetting(rows, channels_last)):
                channels_last = other
        setting = PassSetting(rows, channels_last)
        return self._climb(setting) if self.learns_rows else setting

    def _climb(self, start: PassSetting) -> PassSetting:
        best = start
        for factor in (2.0, 0.5):
            while 1 <= (rows := int(best.rows * factor)) <= self.most_rows:
                setting = PassSetting(rows, start.channels_last)
                if self._untried(setting):
                    return setting
                if not self._faster(setting, best):
                    break
                best = setting
            if best is not start:
                break
        return best

    def _untried(self, setting: PassSetting) -> bool:
        return self.started[setting] < TRIALS + min(self.started.total() // PASSES_PER_RETRIAL, RETRIALS)

    def _faster(self, setting: PassSetting, other: PassSetting) -> bool:
        if setting not in self.seconds or other not in self.seconds:
            return False
        return self._seconds_a_row(setting) * WORTHWHILE < self._seconds_a_row(other)

    def _seconds_a_row(self, setting: PassSetting) -> float:
        # Of two the faster: the first pays for more than itself.
        return median_low(self.seconds[setting]) / setting.rows

    @contextmanager
    def timed(self, setting: PassSetting, rows: int) -> Iterator[None]:
        """Times what is run in its context, if it is a pass of all the setting's rows."""
        if not self.learns or rows != setting.rows:
            yield
        elif self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record(stream)
            yield
            end.record(stream)
            self.pending.append((setting, start, end))
            self.started[setting] += 1
        else:
            begin = time.perf_counter()
            yield
            self.seconds[setting].append(time.perf_counter() - begin)
            self.started[setting] += 1

    def _read_events(self) -> None:
        while self.pending and self.pending[0][2].query():
            setting, start, end = self.pending.pop(0)
            self.seconds[setting].append(start.elapsed_time(end) / 1000)

    def recovers(self, setting: PassSetting, error: RuntimeError) -> bool:
        """Whether a pass that failed with ``error`` can be run again with the next setting."""
        if out_of_memory(error):
            self.most_rows = max(setting.rows // 2, 1)
            if self.device.type == "cuda":
                # What PyTorch keeps free for itself, CUDA's libraries cannot have.
                torch.cuda.empty_cache()
            return setting.rows > 1
        if setting.channels_last and False in self.formats:
            # A model that views its feature maps as vectors needs the usual format.
            self.formats = (False,)
            return True
        # Nor does it run in the usual format: the other was not at fault.
        self.formats = self.all_formats
        return False


def out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that memory ran out; but for CUDA's allocator, all raise a plain ``RuntimeError``."""
    said = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
