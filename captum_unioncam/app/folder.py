"""The folder of uploaded images, and the removal of those that killed processes have left."""

import os
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

_PREFIX = "captum-unioncam-"

# Marks a folder as locked; one without it may be about to be locked.
_MARK = ".served"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder, removed afterwards, with those that killed processes of the same user have left."""
    _remove_left()
    with TemporaryDirectory(prefix=_PREFIX) as name, _locked(Path(name)):
        (Path(name) / _MARK).touch()
        yield Path(name)


def keep_newest(folder: Path, most_bytes: int, most_files: int, kept: Collection[Path]) -> None:
    """Removes the oldest files of a folder with too many files or bytes.

    Args:
        folder (Path): Searched recursively.
        most_bytes, most_files (int): The limits.
        kept (Collection[Path]): Files that are not counted and never removed.
    """
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path not in kept and path.is_file():
                found.append((path.stat().st_ctime, path.stat().st_size, path))
    bytes_kept = files_kept = 0
    for _, size, path in sorted(found, reverse=True):
        bytes_kept, files_kept = bytes_kept + size, files_kept + 1
        if bytes_kept > most_bytes or files_kept > most_files:
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()


def _remove_left() -> None:
    """Removes folders that no process has locked, left by killed processes."""
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or not (folder / _MARK).is_file():
                continue
            with _locked(folder) as is_left:
                if is_left and folder.stat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)


if sys.platform == "win32":

    @contextmanager
    def _locked(folder: Path) -> Iterator[bool]:
        """Folders cannot be locked on this system, so none is removed."""
        yield False

else:
    import fcntl

    @contextmanager
    def _locked(folder: Path) -> Iterator[bool]:
        """Locks a folder within the context, if no other process has. The system unlocks those of killed processes."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)
