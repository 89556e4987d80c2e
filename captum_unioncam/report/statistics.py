"""What an evaluation's records say: means, intervals, curves, examples and failures."""

from __future__ import annotations

import math
from array import array
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from captum_unioncam.evaluation.records import Record
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.system.errors import Failure

Array = npt.NDArray[np.float64]

METRICS = tuple(all_metrics().values())


_INTERVAL = (2.5, 97.5)


_SEED = 0


_RESAMPLES_AT_ONCE = 32


_EXAMPLES = 4


_NAMED_IMAGES = 3


# Of the curves, which records hold to four decimals.
_FIXED_POINT = 1e6


CURVES = ("insertion", "deletion")


@dataclass
class FailureGroup:
    """Failures that differ in the image alone.

    Args:
        message (str): The error, with "…" for the image's name.
        count (int): How many records.
        methods (list[str]): In which it occurred, sorted.
        images (list[str]): The first few, sorted.
        has_more (bool): Whether there are other images.
    """

    message: str
    count: int = 0
    methods: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    has_more: bool = False

    def add(self, record: Record) -> None:
        """Counts a record with this error."""
        self.count += 1
        if record.method not in self.methods:
            insort(self.methods, record.method)
        if record.image not in self.images:
            insort(self.images, record.image)
            self.has_more = self.has_more or len(self.images) > _NAMED_IMAGES
            del self.images[_NAMED_IMAGES:]


@dataclass(frozen=True)
class Summary:
    """What the records say.

    Args:
        table (pandas.DataFrame): A row for each method and metric that has values: method, metric, mean, low, high
            (the interval; NaN where fewer than two images have a value), n (records with a value), failures.
        values (dict[str, numpy.ndarray]): For each method its records' values (records, ``METRICS``), in the records'
            own scale, sorted by image and target, NaN where there is none.
        curves (dict[str, dict[str, numpy.ndarray]]): For "insertion" and "deletion" each method's mean curve.
        best, worst (dict[str, list[Record]]): For each method the records of the largest and smallest insertion minus
            deletion, that one first; none is in both.
        failures (list[FailureGroup]): The most frequent first.
        images, records, failed (int): How many there are, failed ones among them.
        same_maps (bool): Whether the values of all methods are of the same images and targets.
    """

    table: pd.DataFrame
    values: dict[str, Array]
    curves: dict[str, dict[str, Array]]
    best: dict[str, list[Record]]
    worst: dict[str, list[Record]]
    failures: list[FailureGroup]
    images: int
    records: int
    failed: int
    same_maps: bool


def summarize(records: Iterable[Record], resamples: int = 1000) -> Summary:
    """Means, bootstrap intervals, mean curves, examples and failures of each method.

    Intervals are percentiles of means over resampled images, with all records of an image going together: an image's
    targets are not independent.

    Args:
        records (Iterable[Record]): In any order, one for each image, target and method.
        resamples (int): Of the bootstrap. Default: 1000

    Returns:
        *Summary*: The same for the same records.

    Raises:
        Failure: Curves of a method differ in length.
    """
    methods: dict[str, _MethodRecords] = {}
    images: dict[str, int] = {}
    failures: dict[str, FailureGroup] = {}
    for record in records:
        method = methods.setdefault(record.method, _MethodRecords())
        image = images.setdefault(record.image, len(images))
        if record.error is None:
            method.add(image, record)
        else:
            method.failed += 1
            message = record.error.replace(record.image, "…")
            failures.setdefault(message, FailureGroup(message)).add(record)
    methods = dict(sorted(methods.items()))
    ranks = np.argsort(sorted(range(len(images)), key=list(images).__getitem__))
    values = {name: method.sorted_values(ranks) for name, method in methods.items()}
    return Summary(
        table=_table(values, {name: method.failed for name, method in methods.items()}, len(images), resamples),
        values={name: of_metrics for name, (*_, of_metrics) in values.items()},
        curves={
            curve: {name: method.curves[curve].mean() for name, method in methods.items() if method.curves[curve].count}
            for curve in CURVES
        },
        best={name: method.best for name, method in methods.items()},
        worst={name: method.only_worst() for name, method in methods.items()},
        failures=sorted(failures.values(), key=lambda group: (-group.count, group.message)),
        images=len(images),
        records=sum(len(method.images) for method in methods.values()),
        failed=sum(method.failed for method in methods.values()),
        same_maps=_all_equal([maps for maps, *_ in values.values()]),
    )


def _all_equal(arrays: list[npt.NDArray[np.int64]]) -> bool:
    return all(np.array_equal(array, arrays[0]) for array in arrays)


class _CurveSum:
    """The sum of curves in fixed point: unlike that of floats it does not depend on the order."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: npt.NDArray[np.int64] | None = None

    def add(self, record: Record, curve: list[float]) -> None:
        values = np.rint(np.array(curve) * _FIXED_POINT).astype(np.int64)
        if self._sum is None:
            self._sum = values
        elif len(values) != len(self._sum):
            raise Failure(
                f"the curves of {record.method} have {len(self._sum) - 1} steps, and {len(values) - 1} for "
                f"{record.image}; evaluate into a folder of its own."
            )
        else:
            self._sum += values
        self.count += 1

    def mean(self) -> Array:
        assert self._sum is not None
        return self._sum / _FIXED_POINT / self.count


class _MethodRecords:
    """A method's records as they come in."""

    def __init__(self) -> None:
        self.images = array("q")
        self._targets = array("q")
        self._values = array("d")
        self.curves = {curve: _CurveSum() for curve in CURVES}
        self.best: list[Record] = []
        self.worst: list[Record] = []
        self.failed = 0

    def add(self, image: int, record: Record) -> None:
        self.images.append(image)
        self._targets.append(_target_order(record))
        values = (getattr(record, metric.name) for metric in METRICS)
        self._values.extend(math.nan if value is None else value for value in values)
        if record.insertion_curve is not None:
            self.curves["insertion"].add(record, record.insertion_curve)
        if record.deletion_curve is not None:
            self.curves["deletion"].add(record, record.deletion_curve)
        if record.map is not None and record.insertion is not None and record.deletion is not None:
            insort(self.best, record, key=lambda kept: (-_quality(kept), kept.image, _target_order(kept)))
            insort(self.worst, record, key=lambda kept: (_quality(kept), kept.image, _target_order(kept)))
            del self.best[_EXAMPLES:], self.worst[_EXAMPLES:]

    def only_worst(self) -> list[Record]:
        return [record for record in self.worst if record not in self.best]

    def sorted_values(self, ranks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Array]:
        """Images, as ranks among all names, and targets, (2, records), and the values, sorted by both."""
        maps = np.stack([ranks[np.array(self.images, dtype=np.int64)], np.array(self._targets, dtype=np.int64)])
        order = np.lexsort(maps[::-1])
        return maps[:, order], np.array(self._values).reshape(-1, len(METRICS))[order]


def _target_order(record: Record) -> int:
    return -1 if record.target is None else record.target


def _quality(record: Record) -> float:
    assert record.insertion is not None
    assert record.deletion is not None
    return record.insertion - record.deletion


def _table(
    values: dict[str, tuple[npt.NDArray[np.int64], Array]], failed: dict[str, int], images: int, resamples: int
) -> pd.DataFrame:
    """The summary's table: means and intervals of each method and metric."""
    sums, counts = np.zeros((2, images, len(values), len(METRICS)))
    for i, ((of_images, _), of_metrics) in enumerate(values.values()):
        for j, column in enumerate(of_metrics.T):
            known = ~np.isnan(column)
            sums[:, i, j] = np.bincount(of_images[known], column[known], minlength=images)
            counts[:, i, j] = np.bincount(of_images[known], minlength=images)
    seen = counts.sum((0, 1)) > 0
    # Failures without a single value still want their rows.
    shown = [j for j in range(len(METRICS)) if seen[j] or not seen.any()]
    pairs = [(name, METRICS[j]) for name in values for j in shown]
    sums, counts = (of_images[:, :, shown].reshape(images, len(pairs)) for of_images in (sums, counts))
    scales = np.array([metric.scale for _, metric in pairs])
    low, high = bootstrap_intervals(sums, counts, resamples) * scales
    with np.errstate(invalid="ignore"):
        mean: Array = sums.sum(0) / counts.sum(0) * scales
    table: pd.DataFrame = pd.DataFrame(
        {
            "method": [name for name, _ in pairs],
            "metric": [metric.title for _, metric in pairs],
            "mean": mean,
            "low": low,
            "high": high,
            "n": counts.sum(0).astype(int),
            "failures": [failed[name] for name, _ in pairs],
        }
    )
    return table


def bootstrap_intervals(sums: Array, counts: Array, resamples: int = 1000) -> Array:
    """95 % percentile intervals of means over records, resampling the images that the records are of.

    Args:
        sums (numpy.ndarray): For each image and mean, the sum of its records' values: (images, means).
        counts (numpy.ndarray): How many those are, likewise.
        resamples (int): How often images are drawn, as many as there are, with replacement. Default: 1000

    Returns:
        *numpy.ndarray*: (2, means), lower and upper ends; NaN where fewer than two images have values. All means are
        resampled together, and always alike.
    """
    intervals = np.full((2, sums.shape[1]), np.nan)
    wanted = (counts > 0).sum(0) >= 2
    if not wanted.any():
        return intervals
    with_values = np.ix_(counts.any(1), wanted)
    sums, counts = sums[with_values], counts[with_values]
    images = len(sums)
    generator = np.random.default_rng(_SEED)
    means = []
    for begin in range(0, resamples, _RESAMPLES_AT_ONCE):
        # How often each image was drawn.
        draws = generator.integers(images, size=(min(_RESAMPLES_AT_ONCE, resamples - begin), images))
        weights = np.stack([np.bincount(row, minlength=images) for row in draws]).astype(float)
        with np.errstate(invalid="ignore"):
            means.append((weights @ sums) / (weights @ counts))
    # NaN where no image that has a value was drawn.
    intervals[:, wanted] = np.nanpercentile(np.concatenate(means), _INTERVAL, axis=0)
    return intervals
