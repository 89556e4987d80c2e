"""Ranks of methods: against plain loops, and Demšar's own example of the critical difference."""

import math
from dataclasses import replace

import numpy as np
import pytest

from captum_unioncam.evaluation.records import Record
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.ranks import critical_difference, method_ranks, rank_plot
from captum_unioncam.report.statistics import summarize

METHODS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def records():
    """12 images, every third with two classes, of values with ties; "d" failed on one, "e" has one image."""
    generator = np.random.default_rng(0)
    made = []
    for i in range(12):
        for target in ((3,), (3, 7))[i % 3 == 0]:
            for shift, method in enumerate(METHODS):
                values = {"drop": float(generator.integers(5)) + shift, "insertion": float(generator.random())}
                made.append(Record(f"{i}.png", target, "class", method, confidence=0.5, values=values))
    failed = Record("4.png", 3, "class", "d", error="too large")
    return [failed if one.key == failed.key else one for one in made]


def in_loops(records, name, larger_is_better):
    """Mean ranks, Friedman's statistic with its correction for ties, and the number of images."""
    found = {one.key: one.values[name] for one in records if not one.error}
    keys = {key[:2] for key in found}
    complete = {key for key in keys if all((*key, method) in found for method in METHODS)}
    images = sorted({image for image, _ in complete})
    ranks, ties = {method: [] for method in METHODS}, 0
    for image in images:
        targets = [target for of_image, target in complete if of_image == image]
        values = {m: sum(found[image, target, m] for target in targets) / len(targets) for m in METHODS}
        for method in METHODS:
            better = [v for v in values.values() if (v > values[method]) == larger_is_better and v != values[method]]
            equal = [v for v in values.values() if v == values[method]]
            ranks[method].append(len(better) + (len(equal) + 1) / 2)
            ties += len(equal) ** 2 - 1
    n, k = len(images), len(METHODS)
    sums = sum(sum(of_method) ** 2 for of_method in ranks.values())
    statistic = (12 * sums / (n * k * (k + 1)) - 3 * n * (k + 1)) / (1 - ties / (n * k * (k**2 - 1)))
    return {method: sum(of_method) / n for method, of_method in ranks.items()}, statistic, n


def chi_square_above(statistic):
    """Its probability with three degrees of freedom."""
    return math.erfc(math.sqrt(statistic / 2)) + math.sqrt(2 * statistic / math.pi) * math.exp(-statistic / 2)


def test_ranks_are_those_of_plain_loops(records):
    by_name = {ranks.metric.name: ranks for ranks in method_ranks(summarize(records))}
    assert list(by_name) == ["drop", "insertion"]
    for name, ranks in by_name.items():
        means, statistic, images = in_loops(records, name, all_metrics()[name].larger_is_better)
        assert ranks.means.to_dict() == pytest.approx(means)
        assert list(ranks.means) == sorted(ranks.means)
        assert ranks.p_value == pytest.approx(chi_square_above(statistic))
        assert ranks.images == images == 11
    assert by_name["drop"].p_value < 0.05 < by_name["insertion"].p_value
    assert by_name["drop"].means.index[0] == "a"


def test_the_critical_difference_is_that_of_demsars_tables():
    # Table 5a, and the example of section 3.2.3.
    for methods, quantile in {2: 1.960, 3: 2.343, 4: 2.569, 10: 3.164}.items():
        expected = quantile * math.sqrt(methods * (methods + 1) / 36)
        assert critical_difference(methods, 6) == pytest.approx(expected, rel=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_methods_without_values_are_left_out_and_equal_ones_do_not_differ(records):
    equal = [replace(one, values={"drop": 0.5}) for one in records if not one.error]
    equal.append(Record("1.png", 3, "class", "broken", error="out of luck"))
    (ranks,) = method_ranks(summarize(equal))
    assert ranks.means.to_dict() == dict.fromkeys(METHODS, 2.5)
    assert ranks.p_value == 1
    assert method_ranks(summarize([one for one in equal if one.method in "ab"])) == []
    assert method_ranks(summarize([one for one in equal if one.image == "1.png"])) == []


def test_the_plot_has_a_bar_as_long_as_the_critical_difference(records):
    ranks = method_ranks(summarize(records))
    figure = rank_plot(ranks)
    assert len(figure.axes) == len(ranks)
    for axis, each in zip(figure.axes, ranks, strict=True):
        assert axis.get_title() == each.metric.heading
        assert [label.get_text() for label in axis.get_yticklabels()] == list(each.means.index)
        for place, (container, mean) in enumerate(zip(axis.containers, each.means, strict=True)):
            ((start, end),) = container.lines[2][0].get_segments()
            assert end[0] - start[0] == pytest.approx(each.critical_difference)
            assert (start[0] + end[0]) / 2 == pytest.approx(mean)
            assert start[1] == place
    assert "no difference" in figure.axes[1].get_xlabel()
