"""Paired differences between methods: against plain loops over the records."""

import csv
import io
import json
import math
import random

import numpy as np
import pandas as pd
import pytest

from captum_unioncam import evaluation
from captum_unioncam.cli.main import main
from captum_unioncam.evaluation.records import Record
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.statistics import paired_differences, summarize
from captum_unioncam.report.tables import differences_text, display_differences
from captum_unioncam.system.errors import WrongArgument
from tests.report import write_evaluation

METRICS = ("drop", "insertion", "pointing")
SETTINGS = {"data": "nowhere", "model": "demo", "preprocess": "auto", "steps": 4, "metrics": list(METRICS)}
RESAMPLES = 1000


def a_record(generator, image, target, method, shift):
    numbers = generator.random(3)
    values = {"drop": numbers[0] + shift, "insertion": numbers[1] - shift, "pointing": float(numbers[2] < 0.5)}
    return Record(image, target, f"class {target}", method, confidence=0.5, values=values)


@pytest.fixture(scope="module")
def records():
    """20 images, every third with two classes; "b" failed on one, "c" has no pointing, "d" has no record but errors."""
    generator = np.random.default_rng(0)
    maps = [(f"{i:02}.png", target) for i in range(20) for target in ((3,), (3, 7))[i % 3 == 0]]
    made = [a_record(generator, *pair, method, shift) for pair in maps for method, shift in (("a", 0), ("b", 0.3))]
    made = [one for one in made if one.key != ("04.png", 3, "b")]
    made.append(Record("04.png", 3, "class 3", "b", error="RuntimeError: too large"))
    for pair in maps[:6]:
        equal = next(one for one in made if (*pair, "a") == one.key)
        made.append(Record(*pair, "class", "c", confidence=0.5, values={"drop": equal.values["drop"]}))
    made.append(Record("00.png", 3, "class 3", "d", error="RuntimeError: too large"))
    return made


def in_loops(records, method, against, name, larger_is_better):
    """Mean, interval, share won, share tied and number of images."""
    found = {one.key: one.values[name] for one in records if name in one.values}
    by_image = {}
    for (image, target, of_method), value in found.items():
        if of_method == method and (image, target, against) in found:
            by_image.setdefault(image, []).append(value - found[image, target, against])
    groups = list(by_image.values())
    if not groups:
        return None
    generator, means = random.Random(1), []
    for _ in range(4 * RESAMPLES):
        drawn = [value for group in generator.choices(groups, k=len(groups)) for value in group]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    sign = 1 if larger_is_better else -1
    return {
        "difference": sum(map(sum, groups)) / sum(map(len, groups)),
        "low": means[int(0.025 * len(means))],
        "high": means[int(0.975 * len(means))],
        "won": sum(sign * sum(group) > 0 for group in groups) / len(groups),
        "tied": sum(sum(group) == 0 for group in groups) / len(groups),
        "images": len(groups),
    }


def test_differences_are_those_of_plain_loops(records):
    table = paired_differences(summarize(records), "a", RESAMPLES)
    assert list(table["method"].unique()) == ["b", "c", "d"]
    for _, row in table.iterrows():
        metric = next(metric for metric in all_metrics().values() if metric.title == row["metric"])
        expected = in_loops(records, row["method"], "a", metric.name, metric.larger_is_better)
        if expected is None:
            assert row["images"] == 0
            assert row[["difference", "low", "high", "won", "tied"]].isna().all()
            continue
        assert row["images"] == expected["images"]
        assert row["difference"] == pytest.approx(metric.scale * expected["difference"])
        assert (row["won"], row["tied"]) == pytest.approx((expected["won"], expected["tied"]))
        # Both draw at random.
        spread = metric.scale * (expected["high"] - expected["low"])
        for end in ("low", "high"):
            assert row[end] == pytest.approx(metric.scale * expected[end], abs=0.15 * spread + 1e-9)
    # 27 maps of 20 images, without the one that failed.
    assert table[table["method"] == "b"]["images"].tolist() == [19, 19, 19]


def test_what_is_equal_is_tied_and_neither_won_nor_better(records):
    summary = summarize(records)
    table = paired_differences(summary, "a")
    drop = table[(table["method"] == "c") & table["metric"].str.contains("drop")].iloc[0]
    assert (drop["difference"], drop["low"], drop["high"], drop["won"], drop["tied"]) == (0, 0, 0, 0, 1)
    texts, better = display_differences(table)
    assert texts.loc["c", "average drop (%) ↓"] == "+0.0 [+0.0, +0.0] 0%"
    assert not better.loc["c"].any()
    assert not better.loc["b"].any()
    assert better_of(summary, "b", "a") == {"average drop (%) ↓", "insertion ↑"}


def better_of(summary, against, method):
    _, better = display_differences(paired_differences(summary, against))
    return {heading for heading in better.columns if better.loc[method, heading]}


def test_the_text_says_what_is_compared(records):
    lines = differences_text(paired_differences(summarize(records), "b"), "b").splitlines()
    assert lines[0].startswith("differences from b, map by map, with their 95 % bootstrap intervals over images")
    (row,) = (line for line in lines if line.startswith("a "))
    assert row.count(" *") == 2
    assert row.count("%") == 3
    assert len(differences_text(paired_differences(summarize(records), "b"), "b", 60).splitlines()) > len(lines)


def test_a_method_alone_has_no_differences_and_an_unknown_one_is_refused(records):
    alone = summarize(one for one in records if one.method == "a")
    assert paired_differences(alone, "a").empty
    assert differences_text(paired_differences(alone, "a"), "a")
    with pytest.raises(WrongArgument, match="there is no record of 'z'; give one of a, b, c, d"):
        paired_differences(summarize(records), "z")


@pytest.fixture
def folder(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_evaluation(tmp_path / "evaluation", records, SETTINGS)


def printed(capsys, *arguments):
    capsys.readouterr()
    code = main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_differences_and_writes_them(capsys, folder, records):
    code, out, _ = printed(capsys, folder, "--against", "b")
    assert code == 0
    assert "differences from b" in out
    assert out.splitlines()[-1].endswith("report.html, " + str(folder / "report" / "differences.csv"))
    written = pd.read_csv(folder / "report" / "differences.csv")
    pd.testing.assert_frame_equal(written, paired_differences(summarize(records), "b"), check_dtype=False)
    code, _, err = printed(capsys, folder, "--against", "z")
    assert code == 2
    assert "there is no record of 'z'; give one of a, b, c, d" in err


def test_every_format_is_printed_alone(capsys, folder, records):
    summary = summarize(records)
    for more, table in (([], summary.table), (["--against", "b"], paired_differences(summary, "b"))):
        code, out, _ = printed(capsys, folder, "--format", "csv", *more)
        assert code == 0
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [(row["method"], row["metric"]) for row in rows] == list(
            zip(table["method"], table["metric"], strict=True)
        )
        found = json.loads(printed(capsys, folder, "--format", "json", *more)[1])
        for row, expected in zip(found, table.to_dict("records"), strict=True):
            assert row.keys() == expected.keys()
            for name, value in expected.items():
                is_missing = isinstance(value, float) and math.isnan(value)
                assert row[name] == (None if is_missing else value if isinstance(value, str) else pytest.approx(value))
        markdown = printed(capsys, folder, "--format", "markdown", *more)[1].splitlines()
        assert markdown[0].startswith("| method")
        assert len(markdown) == 2 + table["method"].nunique()
        latex = printed(capsys, folder, "--format", "latex", *more)[1]
        assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 1
        assert latex.count(r"\\") == 1 + table["method"].nunique()
    assert not (folder / "report").exists()


def test_records_are_loaded_as_a_table(folder, records, tmp_path):
    table = evaluation.load(str(folder))
    assert list(table.columns) == ["image", "target", "target_name", "method", "error", "confidence", *METRICS]
    keys = sorted(one.key for one in records)
    assert list(zip(table["image"], table["target"], table["method"], strict=True)) == keys
    by_key = {one.key: one for one in records}
    for row in table.to_dict("records"):
        record = by_key[row["image"], row["target"], row["method"]]
        assert pd.isna(row["error"]) if record.error is None else row["error"] == record.error
        for name in METRICS:
            assert row[name] == record.values[name] if name in record.values else pd.isna(row[name])
    assert str(table["target"].dtype) == "Int64"
    with pytest.raises(WrongArgument, match="holds no evaluation"):
        evaluation.load(tmp_path)


def test_records_without_a_class_and_without_values_are_loaded(tmp_path):
    out = tmp_path / "evaluation"
    (out / "records").mkdir(parents=True)
    (out / "settings.json").write_text(json.dumps(SETTINGS))
    assert evaluation.load(out).empty
    (out / "records" / "a.jsonl").write_bytes(Record("a.png", None, None, "grad_cam", error="no image").line())
    table = evaluation.load(out)
    assert len(table) == 1
    assert pd.isna(table["target"][0])
    assert table["error"][0] == "no image"
