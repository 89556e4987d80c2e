"""ImageNet's layout: a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from captum_unioncam.datasets.base import DataSet, Sample, no_data_set
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.datasets.pictures import open_picture

# Folders and files of systems and programs, besides hidden ones.
_OF_SYSTEMS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}

# Folders that are no classes where the classes are below them.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class ClassFolders(DataSet):
    """ImageNet's layout: a picture's class is the name of its top folder."""

    def __init__(self, folder: Path, outputs: Outputs) -> None:
        try:
            ordered = sorted(
                entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name)
            )
        except OSError as error:
            raise no_data_set(folder, error.strerror or "cannot be read") from error
        if not ordered:
            raise no_data_set(folder, "has no subfolder")
        pictures = [path for name in ordered for path in _pictures_below(folder / name)]
        if not pictures:
            raise no_data_set(folder, "has no picture in its subfolders")
        if _SPLITS.issuperset(map(str.lower, ordered)) and all(path.parent.parent != folder for path in pictures):
            raise no_data_set(folder, f"holds {', '.join(ordered)}, each with folders of its own: give one of them")
        self._folder = folder
        self.names = sorted(path.relative_to(folder).as_posix() for path in pictures)
        self._outputs = outputs.of({name.partition("/")[0] for name in self.names}, ordered)

    def targets(self, name: str) -> tuple[int, ...]:
        return (self._outputs[name.partition("/")[0]],)

    def sample(self, name: str) -> Sample:
        return Sample(open_picture(self._folder / name), dict.fromkeys(self.targets(name)))


def _pictures_below(folder: Path) -> Iterator[Path]:
    """The files with a picture's extension. Links are followed, except to folders that contain them."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.join(os.path.realpath(root), "")
        folders[:] = [
            name
            for name in folders
            if not _is_hidden(name)
            and not real.startswith(os.path.join(os.path.realpath(os.path.join(root, name)), ""))
        ]
        yield from (
            Path(root, name) for name in files if name.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(name)
        )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS
