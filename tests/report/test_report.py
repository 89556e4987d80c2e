import base64
import csv
import io
import itertools
import math
import random
import re
import statistics
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from captum_unioncam.evaluation.records import Record
from captum_unioncam.metrics import table as metric_table
from captum_unioncam.report.page import plots_of, report_page, write_report
from captum_unioncam.report.panels import png
from captum_unioncam.report.plots import box_plot, curve_plot
from captum_unioncam.report.statistics import bootstrap_intervals, summarize
from captum_unioncam.report.tables import as_latex, as_markdown, display_table, remarks
from captum_unioncam.system.errors import Failure, WrongArgument
from tests import report

pytest_plugins = ("tests.browser",)

HOSTILE = "<script>alert(1)</script>"
SPECIAL = "$x_1$ & 100% #{|}~^\\"
SETTINGS = {"data": HOSTILE, "theta": 10.0, "layer": None, "versions": {"torch": "2.5", "captum": "0.8"}}
write_evaluation = partial(report.write_evaluation, settings=SETTINGS)
FILES = ["table.csv", "table.md", "table.tex", "curves.png", "box.png", "trade_off.png", "report.html"]

# Those of the records: others are computed on request, or come with what is installed.
METRICS = tuple(metric for metric in metric_table.all_metrics().values() if not metric.on_request)


def a_record(generator, image, target, method):
    values = generator.random(7)
    curves = generator.random((2, 5)).round(4)
    small_map = generator.integers(0, 256, 256, dtype=np.uint8)
    return Record(
        image,
        target,
        f"class {target}",
        method,
        confidence=values[1],
        values={
            "drop": values[2],
            "increase": float(values[3] < 0.3),
            "insertion": values[4],
            "deletion": values[5],
            "pointing": float(values[6] < 0.5),
            "energy": values[6],
            "seconds": values[0],
        },
        curves={"insertion": curves[0].tolist(), "deletion": curves[1].tolist()},
        map=base64.b64encode(small_map.tobytes()).decode(),
    )


def with_values(record, **values):
    """The record with other values; without those that are None."""
    values = {**record.values, **values}
    return replace(record, values={name: value for name, value in values.items() if value is not None})


@pytest.fixture(scope="module")
def records():
    """15 images, every third with two targets, under two methods; the second fails on the first image."""
    generator = np.random.default_rng(0)
    targets = [(f"{i:02}.png", target) for i in range(15) for target in ((3,), (3, 7))[i % 3 == 0]]
    made = [a_record(generator, *pair, method) for pair in targets for method in ("union_cam", "grad_cam")]
    return [failed(record) if record.key == ("00.png", 3, "union_cam") else record for record in made]


def failed(record, error="RuntimeError: out of memory"):
    return Record(record.image, record.target, record.target_name, record.method, error)


def markdown_table(summary):
    return as_markdown(*display_table(summary))


def no_photo(_name):
    return None


def row_of(summary, method, title):
    table = summary.table
    return table[(table["method"] == method) & (table["metric"] == title)].iloc[0]


def percentile(values, percent):
    values = sorted(values)
    place = percent / 100 * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def intervals_in_loops(records, field, resamples):
    by_image = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record.values[field])
    groups = list(by_image.values())
    generator = random.Random(1)
    means = []
    for _ in range(resamples):
        drawn = [value for _ in groups for value in generator.choice(groups)]
        means.append(sum(drawn) / len(drawn))
    return percentile(means, 2.5), percentile(means, 97.5)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_means_and_counts_are_those_of_plain_loops(records, metric):
    summary = summarize(records, resamples=10)
    for method, failures in (("union_cam", 1), ("grad_cam", 0)):
        values = [r.values[metric.name] for r in records if r.method == method and r.error is None]
        row = row_of(summary, method, metric.title)
        assert row["mean"] == pytest.approx(metric.scale * statistics.fmean(values), rel=1e-12)
        assert (row["n"], row["failures"]) == (len(values), failures)
    assert (summary.images, summary.records, summary.failed) == (15, 39, 1)


@pytest.mark.parametrize("field", ["insertion", "increase"])
def test_intervals_are_those_of_a_bootstrap_in_plain_loops(records, field):
    metric = next(metric for metric in METRICS if metric.name == field)
    row = row_of(summarize(records, resamples=4000), "grad_cam", metric.title)
    low, high = intervals_in_loops([r for r in records if r.method == "grad_cam"], field, 4000)
    # Two draws of 4000 resamples: the standard error of such a percentile is about 0.01 of the width.
    width = high - low
    assert row["low"] / metric.scale == pytest.approx(low, abs=0.06 * width)
    assert row["high"] / metric.scale == pytest.approx(high, abs=0.06 * width)


def test_intervals_are_those_of_all_draws_there_are():
    sums, counts = np.array([[0.3, 2.1, 0.7, 3.9, 1.6], [1.0, 3.0, 1.0, 4.0, 2.0]])
    draws = itertools.product(range(5), repeat=5)
    means = sorted(sum(sums[i] for i in draw) / sum(counts[i] for i in draw) for draw in draws)
    (low,), (high,) = bootstrap_intervals(sums[:, None], counts[:, None], resamples=20000)
    # The standard error of what lies below is 0.1 %.
    assert percentile(means, 2) < low < percentile(means, 3)
    assert percentile(means, 97) < high < percentile(means, 98)


def test_only_images_with_a_value_are_drawn(records):
    names = ("03.png", "06.png", "09.png")
    partly = [r if r.image in names else with_values(r, energy=None) for r in records]
    rows = [
        row_of(summarize(of), "grad_cam", "energy pointing game (%)")
        for of in (partly, [r for r in records if r.image in names])
    ]
    assert rows[0].equals(rows[1])
    assert rows[0]["low"] < rows[0]["mean"] < rows[0]["high"]
    one = summarize([r if r.image == "03.png" else with_values(r, energy=None) for r in records])
    assert row_of(one, "grad_cam", "energy pointing game (%)")[["low", "high"]].isna().all()
    assert row_of(one, "grad_cam", "insertion")[["low", "high"]].notna().all()


def test_intervals_hold_the_true_mean_in_about_95_of_100_cases():
    samples = np.random.default_rng(5).normal(3, 1, (60, 1000))
    low, high = bootstrap_intervals(samples, np.ones_like(samples))
    # Percentile intervals of 60 values hold it slightly too seldom; the share's own standard error is 0.7 %.
    assert 0.92 < ((low < 3) & (high > 3)).mean() < 0.97


def test_several_targets_of_an_image_are_not_counted_as_independent(records):
    single = [r for r in records if r.target == 3]
    repeated = [replace(r, target=target) for r in single for target in range(4)]
    before, after = summarize(single).table, summarize(repeated).table
    assert (after["n"] == 4 * before["n"]).all()
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(after[column], before[column], rtol=1e-12)


def test_one_image_gives_means_without_intervals(records):
    one = [r for r in records if r.image == "03.png"]
    summary = summarize(one)
    assert summary.table["mean"].notna().all()
    assert summary.table[["low", "high"]].isna().all(axis=None)
    assert "[" not in markdown_table(summary)


def test_metrics_without_a_value_have_no_column(records):
    without = [with_values(r, pointing=None, energy=None) for r in records]
    summary = summarize(without)
    assert set(summary.table["metric"]) == {m.title for m in METRICS if m.name not in ("pointing", "energy")}
    assert "pointing" not in markdown_table(summary)
    partly = [with_values(r, energy=None) if r.image > "05.png" else r for r in records]
    energies = [r.values["energy"] for r in partly if r.method == "grad_cam" and "energy" in r.values]
    row = row_of(summarize(partly), "grad_cam", "energy pointing game (%)")
    assert row["n"] == len(energies)
    assert row["mean"] == pytest.approx(100 * statistics.fmean(energies))


def test_curves_are_the_records_means(records):
    summary = summarize(records)
    for curve in ("insertion", "deletion"):
        assert list(summary.curves[curve]) == ["grad_cam", "union_cam"]
        for method, mean in summary.curves[curve].items():
            curves = [r.curves[curve] for r in records if r.method == method and r.error is None]
            expected = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            assert mean == pytest.approx(expected, abs=1e-11)
    axes = curve_plot(summary).axes
    for axis, name in zip(axes, ("insertion", "deletion"), strict=True):
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        methods = ("grad_cam", "union_cam")
        assert labels == [f"{row_of(summary, method, name)['mean']:.3f}  {method}" for method in methods]
        for line, method in zip(axis.get_lines(), methods, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [0, 25, 50, 75, 100])
            np.testing.assert_array_equal(line.get_ydata(), summary.curves[name][method])


def test_curves_of_a_model_without_confidences_are_averaged_too(records):
    large = [
        replace(r, curves={"insertion": [-3e8 * value for value in r.curves["insertion"]]})
        for r in records
        if not r.error
    ]
    mean = summarize(large).curves["insertion"]["grad_cam"]
    curves = [r.curves["insertion"] for r in large if r.method == "grad_cam"]
    assert mean == pytest.approx([statistics.fmean(values) for values in zip(*curves, strict=True)], rel=1e-9)


def test_a_metric_of_another_package_is_shown_where_it_is_installed(records, monkeypatch):
    records = [
        replace(
            with_values(r, other=2 * r.values["insertion"]),
            curves={**r.curves, "other": [value / 2 for value in r.curves["insertion"]]},
        )
        if not r.error
        else r
        for r in records
    ]
    without = summarize(records)
    assert "other" not in [*without.values, *without.curves]
    other = metric_table.Metric("other", len, "another", False, 10, ".2f", has_curve=True)
    monkeypatch.setitem(metric_table._metrics, "other", other)
    summary = summarize(records)
    mean = row_of(summary, "grad_cam", "another")["mean"]
    assert mean == pytest.approx(20 * row_of(summary, "grad_cam", "insertion")["mean"])
    assert "another ↓" in markdown_table(summary)
    axis = curve_plot(summary).axes[2]
    assert axis.get_title() == "another ↓"
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), summary.curves["insertion"]["grad_cam"] / 2, atol=1e-6)
    assert "another ↓" in [axis.get_title() for axis in box_plot(summary).axes]
    assert "By insertion minus deletion minus another;" in page_of(summary)


def test_maps_are_shown_by_the_first_metric_where_none_has_a_curve(records):
    dropped = [replace(r, values={"drop": r.values["drop"]}, curves={}) for r in records if not r.error]
    summary = summarize(dropped)
    order = sorted((r for r in dropped if r.method == "grad_cam"), key=lambda r: r.values["drop"])
    assert summary.best["grad_cam"] == order[:4]
    assert summary.worst["grad_cam"] == order[:-5:-1]
    page = page_of(summary)
    assert "By minus average drop (%);" in page
    assert f"confidence {order[0].confidence:.3f}, drop {order[0].values['drop']:.3f}" in page
    assert [plot.name for plot in plots_of(summary)] == ["box"]
    png(curve_plot(summary))
    timed = [replace(r, values={"seconds": 1.0}) for r in dropped]
    assert not any(summarize(timed).best.values())


def page_of(summary):
    return " ".join(report_page(summary, {}, no_photo, []).decode().split())


def test_what_keeps_means_from_comparing_is_said(records):
    done = [r for r in records if r.error is None and r.key[:2] != ("00.png", 3)]
    settings = {**SETTINGS, "images": 15, "records_of_a_method": 19}
    assert remarks(summarize(done), settings) == []
    # The same number of maps, of the same images.
    swapped = [r for r in done if r.key not in (("03.png", 3, "union_cam"), ("03.png", 7, "grad_cam"))]
    unfinished, different = remarks(summarize(swapped), settings)
    assert unfinished == (
        "Not finished: 19 records of each method are expected. Records so far: grad_cam 18, union_cam 18."
    )
    assert different == (
        "The methods' means are over different maps (grad_cam 18, union_cam 18), so they are not directly comparable."
    )
    # A failure is a record too.
    failing = [failed(r) if r.key == ("03.png", 3, "union_cam") else r for r in done]
    (different,) = remarks(summarize(failing), settings)
    assert "different maps (grad_cam 19, union_cam 18)" in different
    (unfinished,) = remarks(summarize(done), {**settings, "records_of_a_method": 20})
    assert unfinished.endswith("so far: grad_cam 19, union_cam 19.")


def test_curves_of_different_lengths_are_refused(records):
    shorter = replace(records[5], curves={"insertion": [0.1, 0.2]})
    with pytest.raises(Failure, match=r"curves of .* 4 steps, and 1 for"):
        summarize([*records[:5], shorter, *records[6:]])


def test_boxes_are_drawn_of_the_values_of_each_record(records):
    figure = box_plot(summarize(records))
    axis = next(axis for axis in figure.axes if axis.get_title() == "insertion ↑")
    medians = [line.get_xdata()[0] for line in axis.get_lines()[5::7]]
    values = [
        [r.values["insertion"] for r in records if r.method == m and r.error is None] for m in ("grad_cam", "union_cam")
    ]
    assert medians == pytest.approx([statistics.median(of_method) for of_method in values])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["grad_cam", "union_cam"]
    assert pyplot.get_fignums() == []


def test_best_and_worst_maps_are_of_the_largest_and_smallest_insertion_minus_deletion(records):
    def quality(record):
        return record.values["insertion"] - record.values["deletion"]

    tied = [with_values(r, insertion=0.5, deletion=0.5) if r.image > "05.png" and not r.error else r for r in records]
    for of_all in (records, tied):
        summary = summarize(of_all)
        done = [r for r in of_all if r.method == "union_cam" and r.error is None]
        best = sorted(done, key=lambda r: (-quality(r), r.image, r.target))[:4]
        worst = sorted(done, key=lambda r: (quality(r), r.image, r.target))[:4]
        assert summary.best["union_cam"] == best
        assert summary.worst["union_cam"] == [r for r in worst if r not in best]
    few = summarize([r for r in records if r.image < "04.png"])
    shown = few.best["grad_cam"] + few.worst["grad_cam"]
    assert len(few.best["grad_cam"]) == 4
    assert len(shown) == len({r.key for r in shown}) == 6


def test_failures_are_counted_by_what_differs_in_more_than_the_image():
    def failure(image, method, error):
        return Record(image, 0, None, method, error)

    summary = summarize(
        [
            *(failure(f"{i}.png", "b", f"/data/{i}.png: is broken") for i in (5, 3, 4, 1, 2)),
            failure("1.png", "a", "/data/1.png: is broken"),
            failure("1.png", "a", "out of memory"),
        ]
    )
    broken, memory = summary.failures
    assert (broken.message, broken.count, broken.methods) == ("/data/…: is broken", 6, ["a", "b"])
    assert (broken.images, broken.has_more) == (["1.png", "2.png", "3.png"], True)
    assert (memory.message, memory.count, memory.images, memory.has_more) == ("out of memory", 1, ["1.png"], False)


def test_a_shortage_of_memory_is_no_failure(records, tmp_path):
    short = [failed(r, "out of memory: OutOfMemoryError: 2 GiB") if r.image == "03.png" else r for r in records]
    summary = summarize(short)
    assert (summary.failed, summary.shortages, len(summary.failures)) == (1, 4, 1)
    assert list(summary.table.groupby("method").failures.first()) == [0, 1]
    unfinished, memory, _ = remarks(summary, {**SETTINGS, "records_of_a_method": 20})
    assert unfinished.endswith("Records so far: grad_cam 18, union_cam 18.")
    assert memory.startswith("Out of memory: 4 records, which are not counted; evaluate does them again")
    # Of these alone there is a report too.
    alone = write_evaluation(tmp_path / "evaluation", [r for r in short if r.image == "03.png"])
    assert "Out of memory: 4 records" in write_report(alone, no_photo)[-1].read_text()


def test_the_report_does_not_depend_on_the_order_of_the_records(records, tmp_path):
    shuffled = random.Random(0).sample(records, len(records))
    folders = [write_evaluation(tmp_path / str(i), order) for i, order in enumerate((records, shuffled))]
    first, second = ([path.read_bytes() for path in write_report(folder, no_photo)] for folder in folders)
    assert first == second


def test_not_even_rounding_depends_on_the_order():
    generator = np.random.default_rng(2)
    records = [a_record(generator, f"{i}.png", target, "union_cam") for i in range(12) for target in range(9)]
    first, second = map(summarize, (records, random.Random(0).sample(records, len(records))))
    assert first.table.equals(second.table)
    assert first.values.equals(second.values)
    np.testing.assert_array_equal(first.curves["insertion"]["union_cam"], second.curves["insertion"]["union_cam"])


def test_the_files_are_written_and_replaced(records, tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", records)
    (folder / "report").mkdir()
    (folder / "report" / "table.csv").write_text("old")
    paths = write_report(folder, no_photo)
    assert [path.name for path in paths] == FILES
    assert sorted(path.name for path in (folder / "report").iterdir()) == sorted(FILES)
    for name in ("curves.png", "box.png", "trade_off.png"):
        with Image.open(folder / "report" / name) as picture:
            assert picture.width > 600


def test_the_csv_file_holds_the_exact_numbers(records, tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", records)
    rows = list(csv.DictReader(io.StringIO(write_report(folder, no_photo)[0].read_text())))
    table = summarize(records).table
    assert len(rows) == len(table) == 2 * len(METRICS)
    for row, (_, expected) in zip(rows, table.iterrows(), strict=True):
        assert list(row) == ["method", "metric", "mean", "low", "high", "n", "failures"]
        assert all(type(expected[name])(text) == expected[name] for name, text in row.items())


def test_the_markdown_table_reads_back(records):
    summary = summarize(records)
    head, rule, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown_table(summary).splitlines()
    ]
    assert set(map(len, (rule, *rows))) == {len(head)}
    assert [row[0] for row in rows] == ["`grad_cam`", "`union_cam`"]
    for metric in METRICS:
        column = head.index(f"{metric.title} {'↑' if metric.larger_is_better else '↓'}")
        means = [row_of(summary, method, metric.title) for method in ("grad_cam", "union_cam")]
        for row, expected in zip(rows, means, strict=True):
            numbers = [float(number) for number in re.findall(r"[\d.]+", row[column])]
            assert numbers == pytest.approx([expected["mean"], expected["low"], expected["high"]], rel=5e-3, abs=0.05)
        best = (max if metric.larger_is_better else min)(mean["mean"] for mean in means)
        assert [row[column].startswith("**") for row in rows] == [mean["mean"] == best for mean in means]
    assert [row[-2:] for row in rows] == [["20", "0"], ["19", "1"]]


def test_of_equal_means_and_of_one_method_none_is_the_best(records):
    same = [with_values(r, drop=0.123456 if r.method == "union_cam" else 0.123411) for r in records if r.error is None]
    text = markdown_table(summarize(same))
    assert text.count(" 12.3 [12.3, 12.3] |") == 2
    assert "**" in text
    alone = markdown_table(summarize([record for record in same if record.method == "union_cam"]))
    assert "12.3 [12.3, 12.3]" in alone
    assert "**" not in alone


def test_the_latex_table_is_a_tabular_with_its_text_escaped(records):
    special = [replace(r, method=SPECIAL) if r.method == "grad_cam" else r for r in records]
    latex = as_latex(*display_table(summarize(special)))
    for rule in (r"\begin{tabular}{lrrrrrrrrr}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert latex.count(rule) == 1
    rows = [line.removesuffix(r"\\") for line in latex.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [9, 9, 9]
    assert r"average drop (\%) $\downarrow$ & average increase (\%) $\uparrow$" in rows[0]
    assert rows[1].startswith(r"\$x\_1\$ \& 100\% \#\{|\}\textasciitilde \textasciicircum \textbackslash")
    assert rows[2].startswith(r"union\_cam & ")
    # A best value in each of the seven columns.
    assert latex.count(r"\bfseries") == 7


def test_names_mean_nothing_to_markdown_and_plots(records):
    summary = summarize([replace(r, method=SPECIAL) if r.method == "grad_cam" else r for r in records])
    assert markdown_table(summary).splitlines()[2].startswith(r"| `$x_1$ & 100% #{\|}~^\` | ")
    for figure in (curve_plot(summary), box_plot(summary)):
        png(figure)
    text = curve_plot(summary).axes[0].get_legend().get_texts()[0]
    assert text.get_text().endswith(SPECIAL)
    assert not text.get_parse_math()


def test_a_folder_without_records_says_what_to_do(tmp_path):
    with pytest.raises(
        WrongArgument, match="holds no evaluation; give the folder that captum-unioncam evaluate has written"
    ):
        write_report(tmp_path, no_photo)
    with pytest.raises(Failure, match="holds no records; run captum-unioncam evaluate"):
        write_report(write_evaluation(tmp_path / "empty", []), no_photo)
    with pytest.raises(Failure, match="holds no evaluation"):
        write_report(write_evaluation(tmp_path / "list", [], settings=[]), no_photo)
    assert not (tmp_path / "empty" / "report").exists()


def test_a_picture_shows_the_photo_and_the_map_over_it(records):
    # Bright in the upper left quarter alone.
    values = np.zeros((16, 16), np.uint8)
    values[:8, :8] = 255
    one = replace(records[-1], map=base64.b64encode(values.tobytes()).decode())
    photo = torch.full((3, 60, 80), 0.5)
    with_photo, alone = (shown_pictures([one], look)[0] for look in (lambda _name: photo, no_photo))
    assert with_photo.size == (160, 60)
    pixels = np.asarray(with_photo).astype(int)
    assert np.abs(pixels[:, :76] - 128).max() < 8
    over = pixels[:, 80:]
    assert over[5:25, 5:30].mean() > 120 > 70 > over[35:, 45:].mean()
    assert alone.width == alone.height
    half = alone.width // 2
    assert np.asarray(alone)[: half - 20, : half - 20].mean() > 150
    assert np.asarray(alone)[half + 20 :, half + 20 :].mean() < 20


def shown_pictures(records, photo):
    summary = summarize(records)
    html = report_page(summary, {}, photo, []).decode()
    return [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in re.findall(r"image/jpeg;base64,([^\"]+)", html)]


@pytest.fixture(scope="module")
def hostile_page(records, tmp_path_factory):
    """A report whose every text is an attack; one photo is at hand."""
    named = [replace(r, target_name=HOSTILE, image=f'"><img src=x onerror=alert(2)>/{r.image}') for r in records]
    named = [replace(r, method=f"{SPECIAL}{HOSTILE}") if r.method == "grad_cam" else r for r in named]
    named.append(failed(replace(named[0], target=9), f"RuntimeError: {HOSTILE}"))
    folder = write_evaluation(tmp_path_factory.mktemp("hostile") / "an evaluation", named)
    photos = {'"><img src=x onerror=alert(2)>/03.png': torch.rand(3, 90, 120)}
    return write_report(folder, photos.get)[-1]


def test_the_page_escapes_every_text(hostile_page):
    html = hostile_page.read_text()
    # The data and the page's own.
    assert html.count("<script") == html.count("</script>") == 2
    assert "<img src=x" not in html
    # In the settings, as a method, as a target and in an error.
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 4


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(open_page, hostile_page, width, dark):
    page = open_page(hostile_page, width=width, dark=dark)
    assert page.title() == page.locator("h1").inner_text() == "Evaluation of attribution methods"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("html").get_attribute("lang") == "en"
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (brightness < 80) == dark
    table = page.locator("table").first
    names = table.locator("tbody th[scope=row]").all_inner_texts()
    assert [" ".join(name.split()) for name in names] == [f"{SPECIAL}{HOSTILE}", "union_cam"]
    assert table.locator("thead th[scope=col]").count() == table.locator("tbody tr").first.locator("> *").count() == 10
    assert table.locator("strong").count() == 7
    assert all(page.locator("img").evaluate_all("images => images.map(image => image.alt)"))
    # Three plots, and eight maps of each method; the image that is shown first has no photo.
    assert page.locator("img").count() == 3 + 16
    assert page.get_by_text("The photo is not available").count() == 16 - page.get_by_alt_text("The photo, and").count()
    assert page.locator("td", has_text="torch 2.5, captum 0.8").is_visible()
    assert page.locator("th", has_text=f"RuntimeError: {HOSTILE}").is_visible()


def test_failures_alone_make_a_report(open_page, records, tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", [failed(record) for record in records])
    paths = write_report(folder, no_photo)
    rows = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert {(row["method"], row["mean"], row["n"], row["failures"]) for row in rows} == {
        ("grad_cam", "", "0", "20"),
        ("union_cam", "", "0", "20"),
    }
    page = open_page(paths[-1])
    assert page.locator("table").first.locator("tbody tr").count() == 2
    assert page.locator("th", has_text="out of memory").is_visible()
