"""Records on disk: whole lines or none, whatever a crash, a full disk or another process does to them."""

import base64
import errno
import json
import os
import random
import re
import zlib
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from captum_unioncam.evaluation import records
from captum_unioncam.evaluation.records import (
    Record,
    RecordFile,
    _parsed,
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


MAP = base64.b64encode(bytes(range(256))).decode()


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
    map=MAP,
)
BAD = Record("\udcff.jpg", None, None, "grad_cam", error="\udcff.jpg: is no\npicture")


def write(folder, *written):
    with RecordFile(folder) as file:
        for each in written:
            file.append(each)
    return file.path


@contextmanager
def files_of_at_most(size):
    """Writing more fails halfway, as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has none")
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
    written = [
        FULL,
        BAD,
        record(0, values={"energy": 1e-30}, confidence=1e-9, map=MAP),
        record(0, "saliency", error=""),
    ]
    write(folder, *written)
    assert list(read_records(folder)) == failures_last(written)


def failures_last(written):
    return sorted(written, key=lambda each: each.error is not None)


def test_a_failure_that_was_made_good_is_none_whatever_the_file_it_is_in(folder):
    failed, good = record(0, error="out of memory"), record(0, values={"drop": 0.5})
    for order in ([failed, good], [good, failed]):
        for name, each in zip("ab", order, strict=True):
            (folder / "records" / f"{name}.jsonl").write_bytes(each.line())
        assert list(read_records(folder)) == [good]


def content_of(each):
    """What a line says beside its checksum, which is that of the line without it."""
    content = json.loads(each.line())
    checksum = content.pop("crc")
    assert zlib.crc32(each.line().replace(b'"crc":"%s",' % checksum.encode(), b"").rstrip(b"\n")) == int(checksum, 16)
    return content


def test_a_line_is_json_that_says_what_is_known_by_name():
    assert content_of(BAD) == {"image": BAD.image, "method": "grad_cam", "error": BAD.error}
    assert content_of(FULL) == {
        "image": "ä b/1.png",
        "target": 3,
        "target_name": "Stern ☆",
        "method": "own:method",
        "confidence": 0.5,
        "values": {"seconds": 0.25, "drop": 0.125, "increase": 1.0, "insertion": 0.75, "a metric of its own": 0.0},
        "curves": {"insertion": [0.0, 1.0], "deletion": [1.0]},
        "map": MAP,
    }
    assert FULL.line().count(b"\n") == BAD.line().count(b"\n") == 1


OLD_LINES = b"""\
{"image":"demo/1.png","target":6,"target_name":"leaf","method":"grad_cam","seconds":0.0043,"confidence":1.0,\
"drop":0.94,"increase":0.0,"insertion":0.99,"deletion":0.75,"insertion_curve":[0.97,1.0],"deletion_curve":[1.0,0.12],\
"pointing":0.0,"energy":0.024,"map":"%s"}
{"image":"demo/2.png","target":0,"target_name":"star","method":"grad_cam","seconds":0.5,"confidence":0.5,"drop":0.0,\
"increase":1.0,"insertion":0.5,"deletion":0.25,"insertion_curve":[0.5],"deletion_curve":[0.25],"map":"%s"}
{"image":"demo/3.png","target":1,"target_name":"ring","method":"grad_cam","error":"ValueError: too bright"}
{"image":"demo/4.png","method":"grad_cam","error":"is not an image"}
""" % (MAP.encode(), MAP.encode())


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
            map=MAP,
        ),
        Record(
            *("demo/2.png", 0, "star", "grad_cam"),
            confidence=0.5,
            values=fewer,
            curves={"insertion": [0.5], "deletion": [0.25]},
            map=MAP,
        ),
        Record("demo/3.png", 1, "ring", "grad_cam", error="ValueError: too bright"),
        Record("demo/4.png", None, None, "grad_cam", error="is not an image"),
    ]
    assert list(read_records(folder)) == expected
    (folder / "records" / "a.jsonl").write_bytes(b"".join(each.line() for each in expected))
    assert list(read_records(folder)) == expected


@pytest.mark.parametrize("metric", ["insertion", "deletion"])
@pytest.mark.parametrize("curve", [[0.5, 1.0], [0.5, 0.75, 0.875, 1.0]])
def test_a_line_that_lost_a_step_of_its_curve_is_left_out(folder, metric, curve):
    """Old lines have no checksum that would tell; reports could not add such curves up."""
    whole = Record(
        *("demo/1.png", 6, "leaf", "grad_cam"),
        confidence=1.0,
        curves={"insertion": [0.0, 0.5, 1.0], "deletion": [1.0, 0.5, 0.0], "of another package": [0.5]},
    )
    ragged = Record("demo/2.png", 6, "leaf", "grad_cam", confidence=1.0, curves={**whole.curves, metric: curve})
    write(folder, ragged, whole, record(3), record(4, error="bright"))
    assert list(read_records(folder)) == [ragged, whole, record(3), record(4, error="bright")]
    (folder / "settings.json").write_text(json.dumps({**SETTINGS, "steps": 2}))
    assert list(read_records(folder)) == [whole, record(3), record(4, error="bright")]


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
        b'{"image": "a", "method": "m", "target": -1}\n',
        b'{"image": "a", "method": "m", "target": 1%s}\n' % (b"0" * 23),
        b'{"image": "a", "method": "m", "target": 1%s}\n' % (b"0" * 5000),
        b'{"image": "a", "method": "m", "target": [1]}\n',
        b'{"image": "a", "method": "m", "target_name": 1}\n',
        b'{"image": "a", "method": "m", "confidence": NaN}\n',
        b'{"image": "a", "method": "m", "confidence": true}\n',
        b'{"image": "a", "method": "m", "confidence": 1, "map": "AAAA"}\n',
        b'{"image": "a", "method": "m", "confidence": 1, "map": "%s"}\n' % (b"?" * 344),
        b'{"image": "a", "method": "m", "map": "%s"}\n' % MAP.encode(),
        b'{"image": "a", "method": "m", "values": {"drop": Infinity}}\n',
        b'{"image": "a", "method": "m", "values": {"drop": 1%s}}\n' % (b"0" * 400),
        b'{"image": "a", "method": "m", "curves": [1]}\n',
        b'{"image": "a", "method": "m", "curves": {"insertion": []}}\n',
        b'{"image": "a", "method": "m", "curves": {"insertion": [null]}}\n',
        b'{"image": "a", "method": "m", "curves": {"insertion": [1e300]}}\n',
        b'{"image": "a", "method": "m", "drop": "0"}\n',
        b'{"image": "a", "method": "m", "seconds": "abc"}\n',
        b'{"image": "a", "method": "\\ud800"}\n',
        b'{"image": "a", "method": "m\\u0000"}\n',
        b'{"image": "a", "method": "m", "values": {"drop": 1e308}}\n',
        b"[" * 100_000 + b"\n",
        b'{"image":' * 100_000 + b"\n",
        b'{"crc":"00000000","image":"a","method":"m"}\n',
        b'{"crc":0,"image":"a","method":"m"}\n',
    ],
)
def test_lines_that_are_no_records_are_left_out(folder, junk):
    (folder / "records" / "a.jsonl").write_bytes(record(0).line() + junk + record(1).line())
    assert list(read_records(folder)) == [record(0), record(1)]


# Whatever of these lines is read has to be one of them.
WRITTEN = [
    record(0, values={"drop": 0.5, "seconds": 0.25}, curves={"insertion": [0.0, 1.0]}, confidence=0.5, map=MAP),
    record(12, values={"drop": 0.125}, confidence=0.25),
    record(0, "saliency", error="too bright"),
    BAD,
    FULL,
]
CONTENT = b"".join(each.line() for each in WRITTEN)
PLACE = st.integers(0, len(CONTENT))
DAMAGES = st.one_of(
    st.builds(lambda at, byte: lambda old: old[:at] + bytes([byte]) + old[at + 1 :], PLACE, st.integers(0, 255)),
    st.builds(
        lambda at, bit: lambda old: old[:at] + flipped(old[at : at + 1], bit) + old[at + 1 :], PLACE, st.integers(0, 7)
    ),
    st.builds(lambda at, size: lambda old: old[:at] + old[at + size :], PLACE, st.integers(1, 600)),
    st.builds(
        lambda at, size: lambda old: old[:at] + bytes(len(old[at : at + size])) + old[at + size :],
        PLACE,
        st.integers(1, 600),
    ),
    st.builds(
        lambda at, size, to: lambda old: old[:to] + old[at : at + size] + old[to:], PLACE, st.integers(1, 600), PLACE
    ),
    st.builds(lambda at, junk: lambda old: old[:at] + junk + old[at:], PLACE, st.binary(max_size=40)),
    st.builds(lambda at: lambda old: old[:at], PLACE),
)


def flipped(byte, bit):
    return bytes(value ^ (1 << bit) for value in byte)


def lines_read(content):
    return [found for found in map(_parsed, content.splitlines(keepends=True)) if found is not None]


@settings(max_examples=500, deadline=None)
@given(st.lists(DAMAGES, min_size=1, max_size=3))
def test_no_damage_changes_what_is_read(damages):
    content = CONTENT
    for damage in damages:
        content = damage(content)
    read = lines_read(content)
    assert all(each in WRITTEN for each in read)
    # A line that no damage has reached is read.
    whole = content.split(b"\n")[:-1]
    assert all(each in read for each in WRITTEN if each.line()[:-1] in whole)


@pytest.mark.parametrize("size", [1, 2, 9, 18, 60])
def test_no_cut_of_any_place_changes_what_is_read(size):
    for at in range(len(CONTENT)):
        assert all(each in WRITTEN for each in lines_read(CONTENT[:at] + CONTENT[at + size :]))


def test_no_bit_that_is_flipped_changes_what_is_read():
    for at in range(len(CONTENT)):
        damaged = CONTENT[:at] + flipped(CONTENT[at : at + 1], at % 8) + CONTENT[at + 1 :]
        assert all(each in WRITTEN for each in lines_read(damaged))
        assert len(lines_read(damaged)) >= len(WRITTEN) - 2


class Evaluating(RuleBasedStateMachine):
    """Starts that write, disks that damage: what is read is always a record as it was written, and done again else."""

    def __init__(self):
        super().__init__()
        self.place = TemporaryDirectory()
        self.folder = Path(self.place.name)
        (self.folder / "records").mkdir()
        self.written = {}

    def teardown(self):
        self.place.cleanup()

    def read(self):
        return list(read_records(self.folder))

    @rule(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=4), failing=st.booleans())
    def start(self, numbers, failing):
        done = {each.key for each in self.read() if each.error is None}
        new = [
            record(n, **({"error": "no"} if failing else {"values": {"drop": n / 8}})) for n in dict.fromkeys(numbers)
        ]
        write(self.folder, *(each for each in new if each.key not in done))
        self.written |= {(each.key, each.error): each for each in new}
        assert {each.key for each in new} <= {each.key for each in self.read()}

    @rule(which=st.integers(0, 99), damage=DAMAGES)
    def damage(self, which, damage):
        files = sorted((self.folder / "records").iterdir())
        if files:
            path = files[which % len(files)]
            path.write_bytes(damage(path.read_bytes()))

    @invariant()
    def what_is_read_is_what_was_written(self):
        read = self.read()
        assert len({each.key for each in read}) == len(read)
        assert all(self.written.get((each.key, each.error)) == each for each in read)


TestEvaluating = Evaluating.TestCase
TestEvaluating.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


def test_a_line_without_a_checksum_is_read(folder):
    """As version 0.1.0 wrote it."""
    plain = re.sub(rb'"crc":"\w+",', b"", CONTENT)
    assert b"crc" not in plain
    (folder / "records" / "a.jsonl").write_bytes(plain)
    assert list(read_records(folder)) == failures_last(WRITTEN)


@pytest.mark.parametrize("linked", [None, "/dev/zero", "/dev/full", "nothing"])
def test_pipes_and_devices_are_not_opened(folder, linked):
    path = folder / "records" / "a.jsonl"
    path.symlink_to(linked) if linked else os.mkfifo(path)
    with pytest.raises(Failure, match=r"cannot read .*a\.jsonl: (is a pipe or a device|No such file)"):
        list(read_records(folder))


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


@pytest.mark.parametrize("lost", [b"", b"\0" * 64])
def test_settings_that_were_never_written_are_none_while_there_are_no_records(tmp_path, lost, monkeypatch):
    """Where there are no links, a start that is killed may leave them so."""
    (tmp_path / "records").mkdir()
    (tmp_path / "settings.json").write_bytes(lost)
    assert read_settings(tmp_path) is None
    monkeypatch.setattr(records, "_SECONDS_TO_WRITE_SETTINGS", 0.01)
    begin_or_go_on(tmp_path, SETTINGS)
    assert read_settings(tmp_path) == SETTINGS
    write(tmp_path, record(0))
    (tmp_path / "settings.json").write_bytes(lost)
    with pytest.raises(Failure, match=r"cannot read .*settings\.json"):
        read_settings(tmp_path)


def test_settings_that_another_process_is_about_to_write_are_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "settings.json"
    path.touch()
    other = {**SETTINGS, "theta": 20.0}
    monkeypatch.setattr(records.time, "sleep", lambda _seconds: path.write_text(json.dumps(other)))
    with pytest.raises(WrongArgument, match=r"theta 20\.0 there, 10\.0 now"):
        begin_or_go_on(tmp_path, SETTINGS)
    assert read_settings(tmp_path) == other


def test_versions_that_differ_may_be_accepted(tmp_path):
    before = {**SETTINGS, "versions": {"torch": "2.5.0", "captum": "0.8"}}
    now = {**SETTINGS, "versions": {"torch": "2.5.1", "captum": "0.8"}}
    begin_or_go_on(tmp_path, before)
    with pytest.raises(WrongArgument, match=r"torch version '2.5.0' there, '2.5.1' now; .* --accept-other-versions"):
        begin_or_go_on(tmp_path, now)
    begin_or_go_on(tmp_path, now, accept_other_versions=True)
    assert read_settings(tmp_path) == before
    with pytest.raises(WrongArgument, match=r"other settings: theta 10\.0 there, 20\.0 now; give the same, or"):
        begin_or_go_on(tmp_path, {**now, "theta": 20.0}, accept_other_versions=True)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"versions": value} for value in (5, "2.5", [], True, None, {"torch": 2})),
        *({"metrics": value} for value in (5, "drop", None, [1], {})),
        *({name: value} for name in ("records_of_a_method", "steps") for value in (None, "4", {}, -1, True, 1.5)),
    ],
)
def test_settings_of_wrong_types_are_refused(tmp_path, wrong):
    (tmp_path / "settings.json").write_text(json.dumps({**SETTINGS, **wrong}))
    with pytest.raises(
        Failure, match=rf"cannot read .*settings\.json: its {next(iter(wrong))} .*; give another folder"
    ):
        begin_or_go_on(tmp_path, SETTINGS)


def test_settings_are_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "settings.json")
    with pytest.raises(Failure, match="is a pipe or a device"):
        begin_or_go_on(tmp_path, SETTINGS)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ESTALE, errno.EIO])
def test_what_cannot_be_unlinked_is_left(tmp_path, monkeypatch, code):
    """As where files can only be added."""
    monkeypatch.setattr(os, "unlink", refusing(code))
    begin_or_go_on(tmp_path, SETTINGS)
    assert read_settings(tmp_path) == SETTINGS


def test_a_folder_that_is_deleted_meanwhile_is_told_at_once(folder):
    file = RecordFile(folder)
    file.append(record(0))
    file.path.unlink()
    with pytest.raises(Failure, match=r"was deleted meanwhile, with its records; start again"):
        file.append(record(1))
    with pytest.raises(Failure, match="was deleted meanwhile"):
        file.__exit__(None, None, None)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b"5"])
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
