"""Files in the output folder: named without collisions, and written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from captum_unioncam.system.errors import Failure, one_line

_LONGEST_SLUG = 60

# In bytes: what file systems take, less the number and the suffix.
_LONGEST_NAME = 255 - 20


def check_regular(path: Path) -> None:
    """Refuses pipes, which would be waited for, and devices, which need not end; links are followed.

    Raises:
        OSError: It is no file of a disk, or not there.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file")


def make_folder(folder: Path) -> None:
    """Makes the folder and those above it where they do not exist.

    Raises:
        Failure: It cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_writable(folder, PermissionError("permission denied"))


def slug(name: str) -> str:
    """The letters and digits of ``name`` with hyphens between: safe in a file name, and never empty."""
    text = re.sub(r"[\W_]+", "-", name)[:_LONGEST_SLUG]
    return _cut(text, _LONGEST_SLUG + 20).strip("-") or "unnamed"


def _cut(text: str, size: int) -> str:
    """As much of the text as so many bytes hold."""
    return os.fsencode(text)[:size].decode(errors="ignore")


def _shortened(name: str, size: int) -> str:
    """The name, or its beginning with a hash of all of it, in no more bytes than that."""
    content = os.fsencode(name)
    return name if len(content) <= size else f"{_cut(name, size - 9)}-{hashlib.sha256(content).hexdigest()[:8]}"


class FreeNames:
    """Gives out file names that no file of the same command has, not even on a file system that ignores case.

    Args:
        folder (Path): Where the files go.
        taken (Iterable[Path]): Files that must not be overwritten, such as the pictures that are read.
    """

    def __init__(self, folder: Path, taken: Iterable[Path] = ()) -> None:
        self.folder = folder
        self._taken = {_identity(path) for path in taken}

    def write(self, picture: str, about: Iterable[str], contents: Mapping[str, bytes]) -> list[Path]:
        """Writes files about a picture, contents by suffix, under a name made of its and of what they are about.

        Raises:
            Failure: One cannot be written.
        """
        ending = "-".join(["", *map(slug, about)])
        paths = self.paths(_shortened(picture, _LONGEST_NAME - len(os.fsencode(ending))) + ending, contents)
        for path, content in zip(paths, contents.values(), strict=True):
            write_whole(path, content)
        return paths

    def paths(self, name: str, suffixes: Iterable[str]) -> list[Path]:
        """``name`` with each suffix, numbered (``name-2``) where one of those is taken.

        Args:
            name (str): A file name without suffix.
            suffixes (Iterable[str]): Such as "png".

        Returns:
            *list[Path]*: One in the folder for each suffix; they count as taken from now on.
        """
        suffixes = list(suffixes)
        number = 1
        while True:
            numbered = name if number == 1 else f"{name}-{number}"
            paths = [self.folder / f"{numbered}.{suffix}" for suffix in suffixes]
            identities = {_identity(path) for path in paths}
            if not identities & self._taken:
                self._taken |= identities
                return paths
            number += 1


def write_whole(path: Path, content: bytes) -> None:
    """Writes the file, replacing an old one; whoever reads ``path`` finds the old content or all of the new.

    Raises:
        Failure: The file cannot be written. What was at ``path`` is still there then.
    """
    # In the same folder, since a file is only renamed in one step within a file system.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        finally:
            with suppress(OSError):
                unfinished.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error


def write_new(path: Path, content: bytes) -> None:
    """Writes the file unless there is one: of several processes that do so at once, one does.

    Raises:
        Failure: The file cannot be written, and is not there then.
    """
    try:
        with path.open("xb") as file:
            try:
                file.write(content)
                file.flush()
            except BaseException:
                with suppress(OSError):
                    path.unlink()
                raise
    except FileExistsError:
        return
    except OSError as error:
        raise _not_writable(path, error) from error


def _identity(path: Path) -> str:
    return os.path.realpath(path).casefold()


def _not_writable(path: Path, error: OSError) -> Failure:
    return Failure(f"cannot write {path}: {error.strerror or one_line(error)}; make room or give another folder.")
