"""How masked forward passes are run: rows in a pass and memory format, by a fixed rule or learnt from the passes."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median_low

import torch

from captum_unioncam.engine.accelerators import (
    MOST_FIXED_ROWS,
    OTHER_FIXED_ROWS,
    OTHER_ROWS_AT_224,
    ROWS_AT_224,
    Mark,
    free_memory,
    is_timed,
    release_memory,
)

TRIALS = 2  # the first pass of a kind pays for kernels that are chosen and memory that is found
RETRIALS, PASSES_PER_RETRIAL = 4, 50  # later and rarely, since something else may have kept the machine busy
RECENT = 5  # the allocator's heap may make a setting slow for good that was fast at first
WORTHWHILE = 1.03
MOST_ROWS = 1024
# On a CPU more rows than the caches of its cores hold are never worth their memory, and timings too noisy to tell.
MOST_ROWS_PER_THREAD = 8
# Of inputs and outputs of a layer at the inputs' size: three times 64 channels in float32, more than VGG16 takes.
BYTES_A_POSITION = 3 * 64 * 4
FEWEST_ROWS = 2
PASSES_BEFORE_MORE = 16  # that go well after memory ran out; twice as many each time that more did not fit


def fixed_rows(device: torch.device, positions: int) -> int:
    """Rows in a pass of inputs of so many positions: a power of two, of device type, size, and a GPU's free memory."""
    positions = max(positions, 1)
    rows = ROWS_AT_224.get(device.type, OTHER_ROWS_AT_224) * 224 * 224 // positions
    rows = min(rows, MOST_FIXED_ROWS.get(device.type, OTHER_FIXED_ROWS))
    free = free_memory(device)
    if free is not None:
        rows = min(rows, free // (BYTES_A_POSITION * positions))
    return max(1 << max(rows.bit_length() - 1, 0), FEWEST_ROWS)


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep what a pass frees for the next one: returning it costs MobileNetV2 a fourth of its time.

    glibc sets its thresholds by the largest block that was freed, up to 32 MB. The block here is never written to, so
    it takes no memory. It has no effect where the user has set the thresholds, or with another malloc.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")


@dataclass(frozen=True)
class PassSetting:
    """A forward pass of ``rows`` masked inputs, 4-D ones in channels-last memory format or not."""

    rows: int
    channels_last: bool


class PassTuner:
    """Chooses the setting of each pass for one model, device and input shape, and mends what passes fail of.

    It is the first setting always, or with ``learns`` the fastest. Then the memory formats are tried first, then twice
    the rows as long as that gives more rows a second, or half the rows; of a setting's recent passes the median counts.
    A pass is timed where it is run: on a GPU by events that are read once they have happened, so nothing waits.

    Where memory runs out, rows are halved, and doubled again after a while without a shortage. Where a model does not
    take the form of a pass that has not yet gone well, the next is in a plainer one: in the usual memory format, with
    all the setting's rows where it had fewer, with as many rows as the caller has examples.

    Args:
        device (torch.device): Where the passes run.
        rows (int): Rows in a pass, or in the first.
        formats (tuple[bool, ...]): Whether channels-last is to be used, in the order of trial.
        learns (bool): Learn the fastest. Where passes cannot be timed, or under ``torch.use_deterministic_algorithms``:
            nothing is learnt. Default: False
        constant (bool): Every pass has all the setting's rows. Default: False
    """

    def __init__(
        self,
        device: torch.device,
        rows: int,
        formats: tuple[bool, ...] = (False,),
        *,
        learns: bool = False,
        constant: bool = False,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self._given = rows, formats, learns, constant
        self._start()
        self.passes_before_more = PASSES_BEFORE_MORE
        self.gone_well = 0  # since memory ran out
        self.grew = False  # since then
        self.proven: set[tuple[int, bool]] = set()
        self.started: Counter[PassSetting] = Counter()
        self.seconds: defaultdict[PassSetting, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self.pending: list[tuple[PassSetting, Mark, Mark]] = []

    def _start(self) -> None:
        """As nothing were known."""
        self.rows, self.formats, self.to_learn, self.constant = self._given
        per_device = MOST_ROWS_PER_THREAD * torch.get_num_threads() if self.device.type == "cpu" else MOST_ROWS
        self.limit = max(self.rows, min(per_device, MOST_ROWS)) if self.to_learn else self.rows
        self.most_rows = self.limit
        self.fewest_rows = FEWEST_ROWS  # models that squeeze() take the only row for none

    @property
    def learns(self) -> bool:
        """Whether passes are timed: another batch size or memory format rounds differently."""
        return self.to_learn and is_timed(self.device) and not torch.are_deterministic_algorithms_enabled()

    def next(self) -> PassSetting:
        """The setting of the next pass: one to be tried, or the fastest known."""
        self._read_times()
        rows, channels_last = min(self.rows, self.most_rows), self.formats[0]
        if not self.learns:
            return PassSetting(rows, channels_last)
        for other in self.formats:
            setting = PassSetting(rows, other)
            if self._untried(setting):
                return setting
            if self._faster(setting, PassSetting(rows, channels_last)):
                channels_last = other
        return self._climb(PassSetting(rows, channels_last))

    def _climb(self, start: PassSetting) -> PassSetting:
        best = start
        for factor in (2.0, 0.5):
            while self.fewest_rows <= (rows := int(best.rows * factor)) <= self.most_rows:
                setting = PassSetting(rows, start.channels_last)
                if self._untried(setting):
                    return setting
                if not self._faster(setting, best):
                    break
                best = setting
            if best is not start:
                break
        return best

    def rows_for(self, setting: PassSetting, count: int) -> int:
        """The rows of a pass that scores ``count``: the others are copies."""
        return setting.rows if self.constant else max(count, self.fewest_rows)

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
        """Runs a pass of so many rows in its context, and times it if they are all the setting's."""
        if not self.learns or rows != setting.rows:
            yield
        else:
            start = Mark(self.device)
            yield
            self.pending.append((setting, start, Mark(self.device)))
            self.started[setting] += 1
        self._went_well(setting, rows)

    def _went_well(self, setting: PassSetting, rows: int) -> None:
        self.proven.add((rows, setting.channels_last))
        self.gone_well += 1
        if self.most_rows < self.limit and self.gone_well >= self.passes_before_more:
            self.most_rows = min(2 * self.most_rows, self.limit)
            self.gone_well, self.grew = 0, True

    def _read_times(self) -> None:
        while self.pending and self.pending[0][2].has_happened():
            setting, start, end = self.pending.pop(0)
            self.seconds[setting].append(end.seconds_since(start))

    def recovers(self, setting: PassSetting, error: Exception, rows: int | None = None, examples: int = 0) -> bool:
        """Whether a pass that failed with ``error`` can be run again with the next setting.

        Args:
            setting (PassSetting): Of the pass.
            error (Exception): What it raised.
            rows (int or None): What it had. Default: None, all the setting's
            examples (int): How many the caller has: so many rows the model takes. Default: 0, not known
        """
        rows = setting.rows if rows is None else rows
        if out_of_memory(error):
            return self._with_fewer(setting, rows)
        if (rows, setting.channels_last) in self.proven:
            return False
        # Whatever is no RuntimeError, no memory format is at fault for.
        plainer = isinstance(error, RuntimeError) and setting.channels_last and False in self.formats
        if plainer and not any(last for _rows, last in self.proven):
            # A model that views its feature maps as vectors needs the usual format.
            self.formats = (False,)
            return True
        if (isinstance(error, WrongRows) or _is_about_shapes(error)) and self._with_other_rows(setting, rows, examples):
            return True
        if not self.proven:
            # Nor does it run in any plainer form: none was at fault.
            self._start()
        return False

    def _with_other_rows(self, setting: PassSetting, rows: int, examples: int) -> bool:
        """For a model that was made for a number of rows."""
        if not self.constant and rows < setting.rows and (setting.rows, setting.channels_last) in self.proven:
            self.constant = True
        elif self.fewest_rows == rows == FEWEST_ROWS and not self.constant:
            self.fewest_rows = 1
        elif examples not in (0, rows) and not self.proven:
            self.rows = self.limit = self.most_rows = examples
            self.constant, self.to_learn = True, False
        else:
            return False
        return True

    def _with_fewer(self, setting: PassSetting, rows: int) -> bool:
        if self.grew:
            self.passes_before_more *= 2
        self.gone_well, self.grew = 0, False
        if rows > setting.rows:
            self.fewest_rows = 1
            return True
        self.most_rows = max(setting.rows // 2, 1)
        return setting.rows > 1

    def release(self) -> None:
        """Gives the device's free memory back, once nothing refers to the failed pass."""
        release_memory(self.device)


class WrongRows(ValueError):
    """A model's output has not one row for each row of its input."""


def out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that memory ran out. Only CUDA has a class for it; others raise RuntimeError."""
    said = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    plain = isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    return plain or isinstance(error, torch.OutOfMemoryError)


def _is_about_shapes(error: Exception) -> bool:
    said = str(error).lower()
    return any(word in said for word in ("shape", "size", "dimension", "guard"))
