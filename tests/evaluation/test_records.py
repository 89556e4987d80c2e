"""Records on disk: whole lines or none, whatever a crash, a full disk or another process does to them."""

import errno
import json
import os
import random
import resource
from contextlib import contextmanager

import pytest

from captum_unioncam.evaluation.records import (
    Record,
    RecordFile,
    begin_or_go_on,
    differing,
    read_records,
    read_settings,
)
from captum_unioncam.system.errors import Failure, WrongArgument

SETTINGS = {"theta": 10.0, "limit": None, "weights": "a.safetensors", "model_sha256": "1"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "records").mkdir()
    return tmp_path


def record(number, method="grad_cam", **values):
    return Record(f"demo/{number}.png", number, "star", method, **values)


FULL = Record(
    "ä b/1.png",
    3,
    "Stern ☆",
    "own:method",
    confidence=0.5,
    values={"seconds": 0.25, "drop": 0.125, "increase": 1.0, "insertion": 0.75, "a metric of its own": 0.0},
    curves={"insertion": [0.0, 1.0], "deletion": [1.0]},
    map="AA==",
)
BAD = Record("\udcff.jpg", None, None, "grad_cam", error="\udcff.jpg: is no\npicture")


def write(folder, *records):
    with RecordFile(folder) as file:
        for each in records:
            file.append(each)
    return file.path


@contextmanager
def files_of_at_most(size):
    """Writing more fails halfway, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusing(code):
    def refuse(*_arguments):
        raise OSError(code, os.strerror(code))

    return refuse


def test_records_are_read_as_they_were_written(folder):
    written = [FULL, BAD, record(0, values={"energy": 1e-30}, map="AA=="), record(0, "saliency", error="")]
    write(folder, *written)
    assert list(read_records(folder)) == failures_last(written)


def failures_last(records):
    return sorted(records, key=lambda each: each.error is not None)


def test_a_failure_that_was_made_good_is_none_whatever_the_file_it_is_in(folder):
    failed, good = record(0, error="out of memory"), record(0, values={"drop": 0.5})
    for order in ([failed, good], [good, failed]):
        for name, each in zip("ab", order, strict=True):
            (folder / "records" / f"{name}.jsonl").write_bytes(each.line())
        assert list(read_records(folder)) == [good]


def test_a_line_is_json_that_says_what_is_known_by_name():
    assert json.loads(BAD.line()) == {"image": BAD.image, "method": "grad_cam", "error": BAD.error}
    assert json.loads(FULL.line()) == {
        "image": "ä b/1.png",
        "target": 3,
        "target_name": "Stern ☆",
        "method": "own:method",
        "confidence": 0.5,
        "values": {"seconds": 0.25, "drop": 0.125, "increase": 1.0, "insertion": 0.75, "a metric of its own": 0.0},
        "curves": {"insertion": [0.0, 1.0], "deletion": [1.0]},
        "map": "AA==",
    }
    assert FULL.line().count(b"\n") == BAD.line().count(b"\n") == 1


OLD_LINES = b"""\
{"image":"demo/1.png","target":6,"target_name":"leaf","method":"grad_cam","seconds":0.0043,"confidence":1.0,\
"drop":0.94,"increase":0.0,"insertion":0.99,"deletion":0.75,"insertion_curve":[0.97,1.0],"deletion_curve":[1.0,0.12],\
"pointing":0.0,"energy":0.024,"map":"AAAA"}
{"image":"demo/2.png","target":0,"target_name":"star","method":"grad_cam","seconds":0.5,"confidence":0.5,"drop":0.0,\
"increase":1.0,"insertion":0.5,"deletion":0.25,"insertion_curve":[0.5],"deletion_curve":[0.25],"map":"AAAA"}
{"image":"demo/3.png","target":1,"target_name":"ring","method":"grad_cam","error":"ValueError: too bright"}
{"image":"demo/4.png","method":"grad_cam","error":"is not a picture"}
"""


def test_lines_of_version_0_1_0_are_read(folder):
    """Which had the metrics beside the image."""
    (folder / "records" / "a.jsonl").write_bytes(OLD_LINES)
    values = {"drop": 0.94, "increase": 0.0, "insertion": 0.99, "deletion": 0.75, "pointing": 0.0, "energy": 0.024}
    fewer = {"drop": 0.0, "increase": 1.0, "insertion": 0.5, "deletion": 0.25, "seconds": 0.5}
    expected = [
        Record(
            *("demo/1.png", 6, "leaf", "grad_cam"),
            confidence=1.0,
            values={**values, "seconds": 0.0043},
            curves={"insertion": [0.97, 1.0], "deletion": [1.0, 0.12]},
            map="AAAA",
        ),
        Record(
            *("demo/2.png", 0, "star", "grad_cam"),
            confidence=0.5,
            values=fewer,
            curves={"insertion": [0.5], "deletion": [0.25]},
            map="AAAA",
        ),
        Record("demo/3.png", 1, "ring", "grad_cam", error="ValueError: too bright"),
        Record("demo/4.png", None, None, "grad_cam", error="is not a picture"),
    ]
    assert list(read_records(folder)) == expected
    (folder / "records" / "a.jsonl").write_bytes(b"".join(each.line() for each in expected))
    assert list(read_records(folder)) == expected


def test_numbers_that_json_does_not_have_are_not_written(folder):
    with RecordFile(folder) as file:
        with pytest.raises(ValueError, match="JSON compliant"):
            file.append(record(0, values={"drop": float("nan")}))
        file.append(record(1))
    assert list(read_records(folder)) == [record(1)]


def test_what_is_appended_is_there_before_the_file_is_closed(folder):
    with RecordFile(folder) as file:
        for number in range(3):
            file.append(record(number))
            assert list(read_records(folder)) == [record(i) for i in range(number + 1)]


def test_every_start_writes_a_file_of_its_own_when_there_is_something_to_write(folder):
    with RecordFile(folder):
        pass
    assert list((folder / "records").iterdir()) == []
    first, second = write(folder, record(0)), write(folder, record(1))
    assert first != second
    assert sorted((folder / "records").iterdir()) == sorted([first, second])


def test_of_several_records_for_the_same_one_is_read(folder):
    write(folder, record(0, values={"seconds": 1.0}), record(1), record(0, values={"seconds": 2.0}))
    write(
        folder, record(0, values={"seconds": 3.0}), record(0, "saliency"), Record("demo/0.png", 7, "ring", "grad_cam")
    )
    read = list(read_records(folder))
    assert len(read) == 4
    assert {each.key for each in read} == {
        ("demo/0.png", 0, "grad_cam"),
        ("demo/1.png", 1, "grad_cam"),
        ("demo/0.png", 0, "saliency"),
        ("demo/0.png", 7, "grad_cam"),
    }


def test_wherever_a_file_is_torn_its_whole_lines_are_read(folder):
    written = [FULL, BAD, record(2, curves={"insertion": [0.25, 0.5]})]
    path = write(folder, *written)
    other = record(9)
    write(folder, other)
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        read = [each for each in read_records(folder) if each != other]
        assert read == failures_last(written[: content[:length].count(b"\n")])
        assert other in read_records(folder)


@pytest.mark.parametrize(
    "junk",
    [
        b"\n",
        b"\0" * 64 + b"\n",
        b"\xff\xfe\n",
        b"null\n",
        b"[]\n",
        b'{"image": "a"}\n',
        b'{"image": "a", "method": "m", "unheard of": 1}\n',
        b"3\n",
        b'"a text"\n',
        b'{"image": 3, "method": "m"}\n',
        b'{"image": "a", "method": ["m"]}\n',
        b'{"image": "a", "method": "m", "target": 1.5}\n',
        b'{"image": "a", "method": "m", "target": true}\n',
        b'{"image": "a", "method": "m", "error": 1}\n',
        b'{"image": "a", "method": "m", "map": 1}\n',
        b'{"image": "a", "method": "m", "confidence": "high"}\n',
        b'{"image": "a", "method": "m", "values": null}\n',
        b'{"image": "a", "method": "m", "values": [1]}\n',
        b'{"image": "a", "method": "m", "values": {"drop": "large"}}\n',
        b'{"image": "a", "method": "m", "curves": {"insertion": 1}}\n',
        b'{"image": "a", "method": "m", "curves": {"insertion": [[1]]}}\n',
        b'{"image": "a", "method": "m", "drop": "large"}\n',
        b'{"image": "a", "method": "m", "insertion_curve": 1}\n',
    ],
)
def test_lines_that_are_no_records_are_left_out(folder, junk):
    (folder / "records" / "a.jsonl").write_bytes(record(0).line() + junk + record(1).line())
    assert list(read_records(folder)) == [record(0), record(1)]


def test_other_files_are_not_read(folder):
    (folder / "records" / "a.jsonl~").write_bytes(record(0).line())
    (folder / "b.jsonl").write_bytes(record(0).line())
    assert list(read_records(folder)) == []
    assert list(read_records(folder / "nothing here")) == []


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "records" / "a.jsonl").mkdir()
    with pytest.raises(Failure, match=r"cannot read .*a\.jsonl: Is a directory"):
        list(read_records(folder))


def test_a_full_disk_loses_no_record_and_leaves_no_part_of_one(folder):
    line = len(record(0).line())
    with RecordFile(folder) as file:
        file.append(record(0))
        with files_of_at_most(2 * line + line // 2):
            file.append(record(1))
            for _ in range(2):
                with pytest.raises(Failure, match="make room there and start again: the records written so far"):
                    file.append(record(2))
                assert file.path.read_bytes() == record(0).line() + record(1).line()
        file.append(record(3))
    assert list(read_records(folder)) == [record(0), record(1), record(3)]


def test_a_line_that_the_system_takes_piece_by_piece_is_written_whole(folder, monkeypatch):
    write_all = os.write
    pieces = random.Random(0)
    monkeypatch.setattr(os, "write", lambda file, content: write_all(file, content[: pieces.randint(1, 9)]))
    write(folder, FULL, BAD)
    assert list(read_records(folder)) == [FULL, BAD]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_file_that_cannot_be_made_is_named_with_the_reason(folder, monkeypatch, code):
    monkeypatch.setattr(os, "open", refusing(code))
    with pytest.raises(Failure, match=os.strerror(code)) as caught:
        write(folder, record(0))
    assert str(folder / "records") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_only_when_the_file_is_closed_is_told_alike(folder, monkeypatch):
    """As file systems of other machines are."""
    close = os.close

    def close_and_fail(file):
        close(file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "close", close_and_fail)
    with pytest.raises(Failure, match=r"cannot write .*\.jsonl: No space left on device; make room there"):
        write(folder, record(0))
    # What went wrong before is not hidden by it.
    with pytest.raises(ValueError, match="JSON compliant"):
        write(folder, record(1), record(2, values={"drop": float("nan")}))


# The settings.


def test_a_folder_keeps_the_settings_of_its_first_start(tmp_path):
    folder = tmp_path / "made" / "here"
    assert read_settings(folder) is None
    begin_or_go_on(folder, SETTINGS)
    assert read_settings(folder) == SETTINGS
    begin_or_go_on(folder, {**SETTINGS, "weights": "the same, elsewhere"})
    assert read_settings(folder) == SETTINGS
    assert sorted(path.name for path in folder.iterdir()) == ["records", "settings.json"]


def test_of_processes_that_begin_at_once_one_writes_the_settings(tmp_path, monkeypatch):
    link = os.link

    def link_second(*arguments):
        # Another process comes in between.
        monkeypatch.setattr(os, "link", link)
        begin_or_go_on(tmp_path, {**SETTINGS, "theta": 20.0})
        link(*arguments)

    monkeypatch.setattr(os, "link", link_second)
    with pytest.raises(WrongArgument, match=r"theta 20\.0 there, 10\.0 now"):
        begin_or_go_on(tmp_path, SETTINGS)
    assert read_settings(tmp_path) == {**SETTINGS, "theta": 20.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "settings.json"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_settings_are_written_where_there_are_no_links(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "link", refusing(code))
    begin_or_go_on(tmp_path, SETTINGS)
    assert read_settings(tmp_path) == SETTINGS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "settings.json"]


def test_where_there_are_no_links_the_first_to_come_writes_the_settings(tmp_path, monkeypatch):
    def another_was_first(*_arguments):
        (tmp_path / "settings.json").write_text(json.dumps({**SETTINGS, "theta": 20.0}))
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", another_was_first)
    with pytest.raises(WrongArgument, match=r"theta 20\.0 there, 10\.0 now"):
        begin_or_go_on(tmp_path, SETTINGS)
    assert read_settings(tmp_path)["theta"] == 20.0


def test_settings_that_vanish_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_arguments: None)
    with pytest.raises(Failure, match=r"settings\.json, which was there a moment ago; start again"):
        begin_or_go_on(tmp_path, SETTINGS)


def test_settings_that_a_full_disk_does_not_take_are_not_there(tmp_path):
    with files_of_at_most(20), pytest.raises(Failure, match=r"cannot write .*settings\.json: .*; make room"):
        begin_or_go_on(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"theta": 20.0}, "theta 10.0 there, 20.0 now"),
        ({"limit": 8}, "limit None there, 8 now"),
        ({"theta": 20.0, "model_sha256": "2"}, "theta 10.0 there, 20.0 now; model_sha256 '1' there, '2' now"),
        ({"new": True}, "new None there, True now"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, now, says):
    begin_or_go_on(tmp_path, SETTINGS)
    with pytest.raises(WrongArgument) as caught:
        begin_or_go_on(tmp_path, {**SETTINGS, **now})
    assert f"other settings: {says}; give the same, or another folder." in str(caught.value)
    assert read_settings(tmp_path) == SETTINGS


def test_a_setting_that_is_not_there_any_more_differs():
    assert differing({"old": 1}, {}) == "old 1 there, None now"
    assert differing({"versions": {"torch": "2.5"}, "seed": 0}, {"seed": 0}) == ""


def test_the_metrics_need_not_be_in_one_order_and_old_settings_do_not_name_them():
    metrics = ["drop", "increase", "insertion", "deletion", "pointing", "energy"]
    assert differing({}, {"metrics": metrics}) == ""
    assert differing({"metrics": metrics}, {"metrics": metrics[::-1]}) == ""
    assert differing({"metrics": ["drop", "energy"]}, {"metrics": ["drop"]}) == (
        "metrics ['drop', 'energy'] there, ['drop'] now"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_settings_that_cannot_be_read_are_refused_and_kept(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(Failure, match=r"cannot read .*settings\.json: .*; give another folder\."):
        begin_or_go_on(tmp_path, SETTINGS)
    assert path.read_bytes() == content


@pytest.mark.parametrize("blocked", ["out", "out/records"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, blocked):
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file")
    with pytest.raises(Failure, match=f"cannot write {tmp_path / blocked}: File exists"):
        begin_or_go_on(tmp_path / "out", SETTINGS)
