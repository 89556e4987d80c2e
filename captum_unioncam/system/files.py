"""Output files: names without collisions, and atomic writes."""

import errno
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from captum_unioncam.system.errors import Failure, one_line

_LONGEST_SLUG = 60

# In bytes: the limit of file systems, less room for a number and the suffix.
_LONGEST_NAME = 255 - 20


def check_regular(path: Path) -> None:
    """Refuses pipes and devices, whose reading may never end. Links are followed.

    Raises:
        OSError: It is not a regular file, or does not exist.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file")


def make_folder(folder: Path) -> None:
    """Makes the folder and its parents if need be.

    Raises:
        Failure: It cannot be made or written to.
    """
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("permission denied")


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Makes the folder if it is missing, and removes it again if nothing was written into it.

    Raises:
        Failure: It cannot be made or written to.
    """
    is_new = not os.path.exists(folder)
    make_folder(folder)
    try:
        yield
    finally:
        if is_new:
            # Fails if it holds anything.
            with suppress(OSError):
                folder.rmdir()


def slug(name: str) -> str:
    """The letters and digits of ``name`` joined by hyphens: safe in a file name, and never empty."""
    text = re.sub(r"[\W_]+", "-", name)[:_LONGEST_SLUG]
    return _cut(text, _LONGEST_SLUG + 20).strip("-") or "unnamed"


def _cut(text: str, size: int) -> str:
    """The beginning of the text, of at most ``size`` bytes."""
    return os.fsencode(text)[:size].decode(errors="ignore")


def _shortened(name: str, size: int) -> str:
    """The name, or its beginning and a hash of it, in at most ``size`` bytes."""
    content = os.fsencode(name)
    return name if len(content) <= size else f"{_cut(name, size - 9)}-{hashlib.sha256(content).hexdigest()[:8]}"


class FreeNames:
    """Writes files of one command under different names, also on file systems that ignore case.

    Args:
        folder (Path): Where the files go.
        taken (Iterable[Path]): Files that must not be overwritten, such as the images that are read.
    """

    def __init__(self, folder: Path, taken: Iterable[Path] = ()) -> None:
        self.folder = folder
        self._taken = {_identity(path) for path in taken}

    def write(self, picture: str, about: Iterable[str], contents: Mapping[str, bytes]) -> list[Path]:
        """Writes files about an image, named by it and by what they are about, and numbered where a name is taken.

        Args:
            picture (str): The image's name.
            about (Iterable[str]): Such as the class and the method.
            contents (Mapping[str, bytes]): By suffix, such as "png".

        Raises:
            Failure: A file cannot be written.
        """
        ending = "-".join(["", *map(slug, about)])
        name = _shortened(picture, _LONGEST_NAME - len(os.fsencode(ending))) + ending
        for number in count(1):
            numbered = name if number == 1 else f"{name}-{number}"
            paths = [self.folder / f"{numbered}.{suffix}" for suffix in contents]
            if self._taken.isdisjoint(map(_identity, paths)):
                break
        self._taken.update(map(_identity, paths))
        for path, content in zip(paths, contents.values(), strict=True):
            write_whole(path, content)
        return paths


def write_whole(path: Path, content: bytes) -> None:
    """Writes or replaces the file atomically: readers of ``path`` find the old content or all of the new.

    Raises:
        Failure: The file cannot be written. An old file at ``path`` is kept.
    """
    # In the same folder, since renaming is atomic only within a file system.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    with _written(path):
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        finally:
            with suppress(OSError):
                unfinished.unlink()


def write_new(path: Path, content: bytes) -> None:
    """Writes the file unless it exists; only one of several processes does.

    Raises:
        Failure: The file cannot be written. It does not exist then.
    """
    with _written(path), suppress(FileExistsError), path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


def _identity(path: Path) -> str:
    return os.path.realpath(path).casefold()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Names the path where writing it raises an error."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise Failure(f"cannot write {path}: {reason}; make room or give another folder.") from error
