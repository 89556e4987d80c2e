"""Statistics of an evaluation's records: means, intervals, curves, examples and failures."""

import hashlib
import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import bootstrap  # type: ignore[import-untyped]

from captum_unioncam.evaluation.records import Record
from captum_unioncam.metrics.table import Metric, all_metrics
from captum_unioncam.system.errors import Failure, WrongArgument

Array = npt.NDArray[np.float64]

# Quality, image and target, by which examples are sorted, and the record.
_Example = tuple[float, str, int, Record]

_SEED = 0
_RESAMPLES_AT_ONCE = 32
_EXAMPLES = 4
_NAMED_IMAGES = 3
_SAMPLED_IMAGES = 48

# Records hold the values of curves to four decimals.
_FIXED_POINT = 1e6


@dataclass(frozen=True)
class FailureGroup:
    """Failures that differ in the image alone.

    Args:
        message (str): The error, with "…" for the image's name.
        count (int): How many records.
        methods (list[str]): Those that failed so, sorted.
        images (list[str]): The first few, sorted.
        has_more (bool): Whether there are other images.
    """

    message: str
    count: int
    methods: list[str]
    images: list[str]
    has_more: bool


@dataclass(frozen=True)
class Summary:
    """Statistics of the records.

    Args:
        table (pandas.DataFrame): A row for each method and metric that has values: method, metric, mean, low, high
            (the interval; NaN where fewer than two images have a value), n (records with a value), failures.
        values (pandas.DataFrame): A row for each record that did not fail, sorted: method and image, whose categories
            are all there are, target (-1 for none), and each metric by name, not scaled, NaN where there is no value.
        curves (dict[str, dict[str, numpy.ndarray]]): By metric that can have curves, each method's mean curve.
        best, worst (dict[str, list[Record]]): For each method the records that are the best and the worst by
            ``ranking``, that one first; none is in both.
        failures (list[FailureGroup]): The most frequent first.
        shortages (int): Records of exhausted memory, which are neither counted nor failures: the next start of
            ``evaluate`` does them again.
        classes (dict[int, str]): The name of each target, in their order.
        sample (dict[str, list[Record]]): All records of some images, drawn by their names: 48, or all if there are
            fewer.
    """

    table: pd.DataFrame
    values: pd.DataFrame
    curves: dict[str, dict[str, Array]]
    best: dict[str, list[Record]]
    worst: dict[str, list[Record]]
    failures: list[FailureGroup]
    shortages: int
    classes: dict[int, str]
    sample: dict[str, list[Record]]

    @property
    def images(self) -> int:
        """How many there are, including those on which all methods failed."""
        return len(self.values["image"].cat.categories)

    @property
    def records(self) -> int:
        """How many did not fail."""
        return len(self.values)

    @property
    def failed(self) -> int:
        """How many did."""
        return sum(group.count for group in self.failures)

    @property
    def judged(self) -> dict[str, int]:
        """For each method, how many of its records did not fail."""
        return {str(method): count for method, count in self.values["method"].value_counts(sort=False).items()}

    @property
    def same_maps(self) -> bool:
        """Whether the values of all methods are of the same images and targets."""
        methods = self.values.groupby(["image", "target"], observed=True).size()
        return bool((methods == len(self.judged)).all())


def ranking(values: Iterable[str]) -> list[Metric]:
    """The metrics by which maps are ranked: those with a curve among the named ones, or else the first of them."""
    known = [metric for name, metric in all_metrics().items() if name in values and metric.function is not None]
    return [metric for metric in known if metric.has_curve] or known[:1]


def summarize(records: Iterable[Record], resamples: int = 1000) -> Summary:
    """Means, bootstrap intervals, mean curves, examples and failures of each method.

    Intervals are percentiles of means over resampled images. All records of an image are resampled together, since an
    image's targets are not independent.

    Args:
        records (Iterable[Record]): In any order, one for each image, target and method.
        resamples (int): How many resamples the bootstrap takes. Default: 1000

    Returns:
        *Summary*: The same for the same records.

    Raises:
        Failure: Curves of a method differ in length.
    """
    kept = _Kept()
    # As numbers, not as objects: there may be half a million records.
    columns = [("method", "i4"), ("image", "i4"), ("target", "i8"), *((name, "f8") for name in all_metrics())]
    values = pd.DataFrame(np.fromiter(kept.rows(records), columns))
    methods = sorted(kept.methods)
    for column, found in (("method", kept.methods), ("image", kept.images)):
        categories = pd.Categorical.from_codes(values[column], pd.Index(list(found), dtype=object))
        values[column] = categories.reorder_categories(sorted(found))
    values = values.sort_values(["method", "image", "target"], ignore_index=True)
    best, worst = (
        {name: [example[-1] for example in examples[name]] for name in methods} for examples in kept.examples
    )
    failures = pd.DataFrame(kept.failures, columns=["message", "method", "image"])
    failed = Counter(failures["method"])
    table = _table(values, resamples)
    return Summary(
        table=table.assign(failures=[failed[method] for method in table["method"]]),
        values=values,
        curves={
            # The last element of each sum counts the curves.
            metric: {name: sums[name][:-1] / sums[name][-1] for name in methods if name in sums}
            for metric, sums in kept.curves.items()
        },
        best=best,
        worst={name: [record for record in worst[name] if record not in best[name]] for name in methods},
        failures=_grouped(failures),
        shortages=kept.shortages,
        classes=dict(sorted(kept.classes.items())),
        sample={
            image: sorted(found, key=lambda record: (target_of(record), record.method))
            for image, found in sorted((found[0].image, found) for found in kept.sample.values())
        },
    )


def class_table(summary: Summary, targets: Iterable[int] | None = None, resamples: int = 1000) -> pd.DataFrame:
    """The means of each class.

    Args:
        summary (Summary): As ``summarize`` returns it.
        targets (Iterable[int] or None): The classes, by their targets. Default: None, all, in their order
        resamples (int): How many resamples the bootstrap takes. Default: 1000

    Returns:
        *pandas.DataFrame*: A row for each class, method and metric that has values: class (its name), target, and the
        columns of ``summary.table`` without the failures. Intervals are over the images that show the class.

    Examples::

        >>> class_table(summarize(read_records(folder)))
    """
    of_target = summary.values.groupby("target")
    tables = []
    for target in summary.classes if targets is None else targets:
        values = of_target.get_group(target) if target in of_target.groups else summary.values[:0]
        # The other classes' images would be rows of zeros.
        values = values.assign(image=values["image"].cat.remove_unused_categories())
        table = _table(values, resamples)
        table = table[table["n"] > 0]
        table.insert(0, "class", summary.classes[target])
        table.insert(1, "target", target)
        tables.append(table)
    columns = ["class", "target", *summary.table.columns.drop("failures")]
    return pd.concat(tables or [pd.DataFrame(columns=columns)], ignore_index=True)


def paired_differences(summary: Summary, against: str, resamples: int = 1000) -> pd.DataFrame:
    """Differences of each other method from one, map by map, with their intervals and the share of images won.

    Only maps for which both methods have a value are compared. An image is won if the mean over its maps is better,
    and tied if it is equal. Intervals are those of :func:`summarize`: images are resampled.

    Args:
        summary (Summary): As ``summarize`` returns it.
        against (str): The method from whose values the differences are taken.
        resamples (int): How many resamples the bootstrap takes. Default: 1000

    Returns:
        *pandas.DataFrame*: A row for each other method and metric: method, metric (its title), difference (the mean
        over maps, scaled as in the table), low, high (the interval; NaN where fewer than two images have both), won,
        tied (shares of the images, in [0, 1]), images. NaN where no image has both values.

    Raises:
        WrongArgument: The method has no records.

    Examples::

        >>> paired_differences(summarize(read_records(folder)), "union_cam")
    """
    if against not in summary.judged:
        raise WrongArgument(f"there is no record of {against!r}; give one of {', '.join(summary.judged)}.")
    shown = set(summary.table["metric"])
    metrics = [metric for metric in all_metrics().values() if metric.title in shown]
    names = [metric.name for metric in metrics]
    is_against = summary.values["method"] == against
    here, there = summary.values[~is_against], summary.values[is_against]
    both = here.merge(there, on=["image", "target"], suffixes=("", " there"))
    differences = both[names] - both[[f"{name} there" for name in names]].to_numpy()
    differences["method"] = both["method"].cat.remove_categories(against)
    differences["image"] = both["image"]
    table, sums, counts = _means(differences, metrics, resamples)
    signs = [1 if metric.larger_is_better else -1 for metric in metrics]
    better = sums * np.tile(signs, len(summary.judged) - 1) > 0
    images = (counts > 0).sum(0)
    seen = np.where(images, images, np.nan)
    table = table.rename(columns={"mean": "difference"}).drop(columns="n")
    return table.assign(won=better.sum(0) / seen, tied=((sums == 0) & (counts > 0)).sum(0) / seen, images=images)


def _grouped(failures: pd.DataFrame) -> list[FailureGroup]:
    groups = []
    for message, group in failures.groupby("message"):
        methods, images = sorted(set(group["method"])), sorted(set(group["image"]))
        has_more = len(images) > _NAMED_IMAGES
        groups.append(FailureGroup(str(message), len(group), methods, images[:_NAMED_IMAGES], has_more))
    return sorted(groups, key=lambda group: (-group.count, group.message))


class _Kept:
    """What is kept of the records besides their values: names, failures, sums of curves, and examples."""

    def __init__(self) -> None:
        self.methods: dict[str, int] = {}
        self.images: dict[str, int] = {}
        self.failures: list[tuple[str, str, str]] = []
        self.shortages = 0
        self.curves: dict[str, dict[str, npt.NDArray[np.int64]]] = {
            name: {} for name, metric in all_metrics().items() if metric.has_curve
        }
        self.classes: dict[int, str] = {}
        # By the hash of the image's name.
        self.sample: dict[bytes, list[Record]] = {}
        # The best and the worst of each method.
        self.examples = defaultdict[str, list[_Example]](list), defaultdict[str, list[_Example]](list)

    def rows(self, records: Iterable[Record]) -> Iterator[tuple[float, ...]]:
        """For each record that did not fail: the numbers of its method and image, its target, and its values."""
        metrics = list(all_metrics())
        for record in records:
            method = self.methods.setdefault(record.method, len(self.methods))
            image = self.images.setdefault(record.image, len(self.images))
            self._add_to_sample(record)
            if record.is_shortage:
                self.shortages += 1
                continue
            if record.error is not None:
                self.failures.append((record.error.replace(record.image, "…"), record.method, record.image))
                continue
            self.classes[target_of(record)] = class_name(record)
            for name in self.curves.keys() & record.curves.keys():
                self._add_curve(self.curves[name], record, record.curves[name])
            if record.map is not None and (metrics_of_rank := ranking(record.values)):
                self._add_example(record, metrics_of_rank)
            yield method, image, target_of(record), *(record.values.get(name, math.nan) for name in metrics)

    def _add_to_sample(self, record: Record) -> None:
        """Keeps all records of the images whose names have the smallest hashes, in whatever order they come."""
        # File names may hold bytes that are not text.
        drawn = hashlib.sha256(record.image.encode(errors="surrogateescape")).digest()
        self.sample.setdefault(drawn, []).append(record)
        if len(self.sample) > _SAMPLED_IMAGES:
            del self.sample[max(self.sample)]

    def _add_curve(self, sums: dict[str, npt.NDArray[np.int64]], record: Record, curve: list[float]) -> None:
        # In fixed point, so that the sum does not depend on the order of the records.
        curve_and_one = np.rint(np.array([*curve, 1]) * _FIXED_POINT).astype(np.int64)
        before = sums.get(record.method, np.zeros_like(curve_and_one))
        if len(before) != len(curve_and_one):
            raise Failure(
                f"the curves of {record.method} have {len(before) - 2} steps, and {len(curve) - 1} for "
                f"{record.image}; evaluate into a folder of its own."
            )
        sums[record.method] = before + curve_and_one

    def _add_example(self, record: Record, metrics: list[Metric]) -> None:
        quality = sum(record.values[metric.name] * (1 if metric.larger_is_better else -1) for metric in metrics)
        for examples, place in zip(self.examples, (-quality, quality), strict=True):
            kept = examples[record.method]
            insort(kept, (place, record.image, target_of(record), record), key=itemgetter(0, 1, 2))
            del kept[_EXAMPLES:]


def class_name(record: Record) -> str:
    """The name of the explained class, or what there is in its place."""
    return record.target_name or ("the only output" if record.target is None else f"class {record.target}")


def target_of(record: Record) -> int:
    """The target, -1 for none."""
    return -1 if record.target is None else record.target


def _table(values: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Means and intervals of each method and each metric that is shown, as in the summary's table."""
    known = all_metrics().values()
    metrics = [metric for metric in known if not metric.on_request or values[metric.name].notna().any()]
    table, _, _ = _means(values, metrics, resamples)
    # Where no record has a value, the rows still show the failures.
    is_seen = table["metric"].isin(table["metric"][table["n"] > 0])
    shown: pd.DataFrame = table[is_seen | (table["n"].sum() == 0)].reset_index(drop=True)
    return shown


def _means(values: pd.DataFrame, metrics: list[Metric], resamples: int) -> tuple[pd.DataFrame, Array, Array]:
    """Means and intervals of each method and metric, and what they are made of.

    Returns:
        *tuple of a pandas.DataFrame and two numpy.ndarray*: method, metric, mean, low, high and n of each, and for each
        image and row, as :func:`bootstrap_intervals` takes them, the sum of the values and their number.
    """
    pairs = [(method, metric) for method in values["method"].cat.categories for metric in metrics]
    by_image = values.groupby(["image", "method"], observed=False)[[metric.name for metric in metrics]]
    shape = len(values["image"].cat.categories), len(pairs)
    sums, counts = (found.to_numpy(float).reshape(shape) for found in (by_image.sum(), by_image.count()))
    scales = np.array([metric.scale for _, metric in pairs])
    low, high = bootstrap_intervals(sums, counts, resamples) * scales
    n = counts.sum(0).astype(int)
    table = pd.DataFrame(
        {
            "method": [method for method, _ in pairs],
            "metric": [metric.title for _, metric in pairs],
            "mean": sums.sum(0) / np.where(n, n, np.nan) * scales,
            "low": low,
            "high": high,
            "n": n,
        }
    )
    return table, sums, counts


def bootstrap_intervals(sums: Array, counts: Array, resamples: int = 1000) -> Array:
    """95 % percentile intervals of means over records, by resampling their images.

    Args:
        sums (numpy.ndarray): For each image and mean, the sum of its records' values: (images, means).
        counts (numpy.ndarray): The number of those values: (images, means).
        resamples (int): How often images are drawn, as many as have values, with replacement. Default: 1000

    Returns:
        *numpy.ndarray*: (2, means), lower and upper ends; NaN where fewer than two images have values. Means over the
        same images are resampled together, and always alike.
    """
    intervals = np.full((2, sums.shape[1]), np.nan)
    known = counts > 0
    for images in np.unique(known[:, known.sum(0) > 1], axis=1).T:
        means = (known == images[:, None]).all(0)
        intervals[:, means] = _interval(sums[images][:, means], counts[images][:, means], resamples)
    return intervals


def _interval(sums: Array, counts: Array, resamples: int) -> tuple[Array, Array]:
    """The ends of the intervals, where all means are over all images."""

    def mean(drawn: npt.NDArray[np.int64], axis: int) -> Array:
        # Weighted by how often each image was drawn: a hundred times as fast as summing the values drawn.
        times = np.apply_along_axis(np.bincount, axis, drawn, minlength=len(sums)).astype(float)
        ratio: Array = (times @ sums) / (times @ counts)
        return ratio.T

    found = bootstrap(
        [np.arange(len(sums))],
        mean,
        n_resamples=resamples,
        batch=_RESAMPLES_AT_ONCE,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    return found.confidence_interval.low, found.confidence_interval.high
