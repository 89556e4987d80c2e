"""Lists the images and folders in a folder, without hidden ones and those that systems and programs create."""

import os
from collections.abc import Iterator
from pathlib import Path

# Folders and files of systems and programs, besides hidden ones.
_OF_SYSTEMS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as .DS_Store and ._x.jpg, or a system's, such as __MACOSX."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def is_picture(name: str) -> bool:
    """Whether a file is an image by its extension, and not hidden."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in one, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))


def pictures_in(folder: Path) -> list[str]:
    """The names of the images in a folder, not below it, sorted; none if it does not exist."""
    if not os.path.isdir(folder):
        return []
    return sorted(entry.name for entry in os.scandir(folder) if is_picture(entry.name) and not entry.is_dir())


def pictures_below(folder: Path, passed_over: str | None = None) -> Iterator[Path]:
    """The images in a folder and below it. Links are followed, except to folders that contain them.

    Args:
        folder (Path): Where to begin.
        passed_over (str or None): Name of folders that are passed over where images are beside them. Default: None
    """
    for root, folders, files in os.walk(folder, followlinks=True):
        pictures = [name for name in files if is_picture(name)]
        real = os.path.join(os.path.realpath(root), "")
        folders[:] = [
            name
            for name in folders
            if not is_hidden(name)
            and not real.startswith(os.path.join(os.path.realpath(os.path.join(root, name)), ""))
            and not (pictures and name == passed_over)
        ]
        yield from (Path(root, name) for name in pictures)
