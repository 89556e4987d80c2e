"""An evaluation's files: its settings, and one record for each image, target and method.

A folder holds ``settings.json`` and ``records/*.jsonl``. Each process appends to its own file, one JSON object a line.
So processes cannot damage each other's records, and a killed process damages at most its last line. Each line begins
with a checksum of the rest; incomplete and damaged lines are not read.
"""

import base64
import json
import math
import os
import re
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.files import check_regular, make_folder, write_new, write_whole

MAP_SIZE = 16
"""Rows and columns of a record's map."""


FIRST_METRICS = ("drop", "increase", "insertion", "deletion", "pointing", "energy")
"""The metrics of folders whose settings do not name them."""

_FIRST_VALUES = (*FIRST_METRICS, "seconds")

# At the beginning, so that a line cut there loses the image's name too and is not read.
_CHECKSUM = re.compile(rb'\{"crc":"([0-9a-f]{8})",')

_MOST = 2**31
"""Bound of outputs and of values of curves."""

_SECONDS_TO_WRITE_SETTINGS = 1.0

SHORTAGE = "out of memory: "
"""Prefix of the errors of records that are done again at the next start."""


EvaluationSettings = dict[str, Any]


Key = tuple[str, int | None, str]


# Kept with the settings, but not compared: the fingerprints cover what they affect.
_ABOUT = ("classes", "weights", "records_of_a_method")


@dataclass(frozen=True)
class Record:
    """One method's result for one image and target, or its error.

    Args:
        image (str): The image's name in the data set.
        target (int or None): The explained output of the model. None where the image's classes cannot be read.
        target_name (str or None): Its name.
        method (str): The method's name.
        error (str or None): The error; all following fields are then empty. Default: None
        confidence (float or None): The model's confidence in the target, for the whole image.
        values (dict[str, float]): The value of each metric that could be computed, and the method's "seconds".
        curves (dict[str, list[float]]): The curve of each metric that has one: confidences at equal steps from 0 to all
            of the pixels.
        map (str or None): The attribution scaled to 0..255 at 16x16, base64 of its bytes, row by row.
    """

    image: str
    target: int | None
    target_name: str | None
    method: str
    error: str | None = None
    confidence: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    map: str | None = None

    @property
    def key(self) -> Key:
        """Image, target and method, unique among records."""
        return self.image, self.target, self.method

    @property
    def is_shortage(self) -> bool:
        """Whether memory ran out: it is no failure of the image, and the next start does it again."""
        return self.error is not None and self.error.startswith(SHORTAGE)

    def line(self) -> bytes:
        """The record as a line of its file, with a checksum."""
        known = {name: value for name, value in asdict(self).items() if value is not None and value != {}}
        line = json.dumps(known, separators=(",", ":"), allow_nan=False).encode()
        return b'{"crc":"%08x",%b\n' % (zlib.crc32(line), line[1:])


class RecordFile(AbstractContextManager["RecordFile"]):
    """This process's file of records, created with the first record; a context manager.

    Args:
        folder (Path): The evaluation's.
    """

    def __init__(self, folder: Path) -> None:
        # A new file for each start, since an earlier process of the same rank may still run.
        self.path = folder / "records" / f"{uuid.uuid4().hex}.jsonl"
        self._file = -1

    def append(self, record: Record) -> None:
        """Appends the record, whole or not at all, without buffering.

        Raises:
            Failure: It cannot be written. All records before it are kept.
        """
        line = record.line()
        written = 0
        try:
            if self._file < 0:
                # Without it, Windows converts line ends.
                binary = getattr(os, "O_BINARY", 0)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | binary, 0o666)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            if written:
                # If this fails, the incomplete line is ignored when read.
                with suppress(OSError):
                    os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise self._not_written(error) from error
        if self._is_deleted():
            raise self._deleted()

    def _not_written(self, error: OSError) -> Failure:
        return Failure(
            f"cannot write {self.path}: {error.strerror or one_line(error)}; make room there and start again: the "
            "records written so far are kept."
        )

    def _is_deleted(self) -> bool:
        with suppress(OSError):
            return os.fstat(self._file).st_nlink == 0 and not self.path.exists()
        return False

    def _deleted(self) -> Failure:
        return Failure(f"{self.path} was deleted meanwhile, with its records; start again, which does them anew.")

    def __exit__(self, _type: object, error: object, _traceback: object) -> None:
        if self._file < 0:
            return
        deleted = self._is_deleted()
        try:
            os.close(self._file)
        except OSError as at_close:
            # Network file systems may report a full disk only here.
            if error is None:
                raise self._not_written(at_close) from at_close
        if error is None and deleted:
            raise self._deleted()


def read_records(folder: Path) -> Iterator[Record]:
    """Reads an evaluation's records, one for each image, target and method.

    Incomplete and damaged lines are left out, and those with curves of another number of steps than in the settings.
    Failures come last, without those that were redone successfully.

    Args:
        folder (Path): The evaluation's.

    Raises:
        Failure: A file cannot be read.
    """
    seen: set[Key] = set()
    failures: dict[Key, Record] = {}
    steps = (read_settings(folder) or {}).get("steps")
    for path in sorted((folder / "records").glob("*.jsonl")):
        for record in _records_of(path):
            if not _has_steps(record, steps):
                continue
            if record.error is not None:
                failures.setdefault(record.key, record)
            elif record.key not in seen:
                seen.add(record.key)
                yield record
    yield from (record for key, record in failures.items() if key not in seen)


def _records_of(path: Path) -> Iterator[Record]:
    try:
        # Reading a pipe or a device may never end.
        check_regular(path)
        with path.open("rb") as file:
            yield from filter(None, map(_parsed, file))
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or one_line(error)}; make it readable.") from error


def _parsed(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        known = _without_flat_metrics(json.loads(_checked(line)))
        # Interned, since thousands of records share them.
        image, method = sys.intern(known.pop("image")), sys.intern(known.pop("method"))
        record = Record(image, known.pop("target", None), known.pop("target_name", None), method, **known)
        return record if _is_sound(record) else None
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        return None


def _checked(line: bytes) -> bytes:
    """The line without its checksum, which earlier versions did not write."""
    found = _CHECKSUM.match(line)
    if not found:
        return line
    rest = b"{" + line[found.end() : -1]
    if int(found[1], 16) != zlib.crc32(rest):
        raise ValueError("damaged")
    return rest


def _without_flat_metrics(known: dict[str, Any]) -> dict[str, Any]:
    """A line's content, with the values and curves that earlier versions wrote beside "image" moved to their place."""
    values = {name: known.pop(name) for name in _FIRST_VALUES if name in known}
    curves = {name: known.pop(f"{name}_curve") for name in _FIRST_VALUES if f"{name}_curve" in known}
    for name, found in (("values", values), ("curves", curves)):
        known[name] = {sys.intern(key): value for key, value in (known.get(name, {}) | found).items()}
    return known


def _is_sound(record: Record) -> bool:
    """Whether all fields have their types, and related fields are complete."""
    texts = record.target_name, record.error, record.map
    return (
        record.method.isprintable()
        and (record.target is None or (type(record.target) is int and 0 <= record.target < _MOST))
        and all(text is None or isinstance(text, str) for text in texts)
        and (record.confidence is None or _is_number(record.confidence))
        and all(map(_is_number, record.values.values()))
        and all(_is_curve(curve) for curve in record.curves.values())
        and (record.map is None or (record.confidence is not None and _is_map(record.map)))
    )


def _has_steps(record: Record, steps: int | None) -> bool:
    """Whether this package's curves have the number of steps of the settings; those of plugins may differ."""
    return steps is None or all(len(record.curves.get(name, ())) in (0, steps + 1) for name in FIRST_METRICS)


def _is_curve(curve: object) -> bool:
    return isinstance(curve, list) and len(curve) > 0 and all(_is_number(y) and abs(y) < _MOST for y in curve)


def _is_map(text: str) -> bool:
    return len(base64.b64decode(text, validate=True)) == MAP_SIZE**2


def _is_number(value: Any) -> bool:
    # Squares of larger numbers overflow.
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e100


def read_settings(folder: Path) -> EvaluationSettings | None:
    """The settings of the evaluation in the folder, or None if it holds none.

    Raises:
        Failure: They cannot be read.
    """
    path = folder / "settings.json"
    try:
        check_regular(path)
        content = path.read_bytes()
        if _is_unfinished(content, folder):
            return None
        settings = json.loads(content)
        _check_types(settings)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Failure(f"cannot read {path}: {one_line(error)}; give another folder.") from error
    return dict(settings)


def settings_in(folder: Path) -> EvaluationSettings:
    """The settings of the evaluation in the folder.

    Raises:
        WrongArgument: There is none.
        Failure: They cannot be read.
    """
    settings = read_settings(folder)
    if settings is None:
        raise WrongArgument(
            f"{folder}: holds no evaluation; give the folder that captum-unioncam evaluate has written."
        )
    return settings


def _is_unfinished(content: bytes, folder: Path) -> bool:
    """Whether the settings are empty, of a start that was killed before writing them, and there are no records."""
    return not content.strip(b"\0") and not any(path.stat().st_size for path in (folder / "records").glob("*.jsonl"))


def _check_types(settings: object) -> None:
    if not isinstance(settings, dict):
        raise ValueError("it holds no evaluation")
    versions, metrics = settings.get("versions", {}), settings.get("metrics", [])
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise ValueError("its versions are not those of packages by name")
    if not isinstance(metrics, list) or not all(isinstance(metric, str) for metric in metrics):
        raise ValueError("its metrics are no list of names")
    for name in ("records_of_a_method", "steps"):
        number = settings.get(name, 0)
        if type(number) is not int or number < 0:
            raise ValueError(f"its {name} is no number")


def begin_or_go_on(folder: Path, settings: EvaluationSettings, accept_other_versions: bool = False) -> None:
    """Begins an evaluation with these settings in the folder, or checks that the one in it has the same.

    Args:
        folder (Path): Made if need be.
        settings (dict): All that the records depend on, as JSON values. "classes", "weights" and "records_of_a_method"
            are not compared, and only "versions" of packages that were installed before and are now.
        accept_other_versions (bool): Accept other versions. Default: False

    Raises:
        WrongArgument: The folder holds an evaluation with other settings.
        Failure: It cannot be read or written.
    """
    make_folder(folder)
    make_folder(folder / "records")
    if read_settings(folder) is None:
        _write_if_first(folder / "settings.json", (json.dumps(settings, indent=2) + "\n").encode())
    before = read_settings(folder)
    if before is None:
        raise Failure(f"cannot read {folder / 'settings.json'}, which was there a moment ago; start again.")
    differences = differing(before, {**settings, "versions": {}} if accept_other_versions else settings)
    if differences:
        only_versions = not differing(before, {**settings, "versions": {}})
        how = ", --accept-other-versions, or another folder" if only_versions else ", or another folder"
        raise WrongArgument(f"{folder} holds an evaluation with other settings: {differences}; give the same{how}.")


def _write_if_first(path: Path, content: bytes) -> None:
    """Writes the file atomically; only one of several processes does."""
    own = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        own.write_bytes(content)
        os.link(own, path)
    except FileExistsError:
        _finish(path, content)
    except OSError:
        # The file system has no links; a full one raises an error here.
        write_new(path, content)
        _finish(path, content)
    finally:
        # Fails on append-only file systems.
        with suppress(OSError):
            own.unlink()


def _finish(path: Path, content: bytes) -> None:
    """Writes the file if it stays empty, since the process that created it was killed."""
    end = time.monotonic() + _SECONDS_TO_WRITE_SETTINGS
    while path.is_file() and not path.read_bytes().strip(b"\0"):
        if time.monotonic() >= end:
            return write_whole(path, content)
        time.sleep(_SECONDS_TO_WRITE_SETTINGS / 10)


def _comparable(settings: EvaluationSettings) -> EvaluationSettings:
    versions = settings.get("versions") or {}
    rest = {name: value for name, value in settings.items() if name not in ("versions", *_ABOUT)}
    # In any order. Folders of earlier versions do not name them.
    rest["metrics"] = sorted(settings.get("metrics", FIRST_METRICS))
    if rest.get("max_channels") is not None:
        # The first folders do not name it: there was no other.
        rest.setdefault("channel_selection", "deviation")
    return rest | {f"{package} version": version for package, version in versions.items()}


def differing(before: EvaluationSettings, now: EvaluationSettings) -> str:
    """Names the settings that differ, with both values; empty if none does."""
    before, now = _comparable(before), _comparable(now)
    # A package that was not installed before belongs to methods that are added now.
    names = [
        name
        for name in {**before, **now}
        if before.get(name) != now.get(name)
        and not (name.endswith(" version") and (name not in before or name not in now))
    ]
    return "; ".join(f"{name} {before.get(name)!r} there, {now.get(name)!r} now" for name in names)
