"""ImageNet's layout: a folder for each class."""

from __future__ import annotations

from pathlib import Path

from captum_unioncam.datasets.base import DataSet, Sample, no_data_set
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.datasets.pictures import open_picture


class ClassFolders(DataSet):
    """ImageNet's layout: the folder that a picture is in, or below, says its class."""

    def __init__(self, folder: Path, outputs: Outputs) -> None:
        from torchvision import datasets

        try:
            ordered, numbers = datasets.folder.find_classes(folder)
            pictures = datasets.folder.make_dataset(folder, numbers, datasets.folder.IMG_EXTENSIONS, allow_empty=True)
        except OSError as error:
            raise no_data_set(folder, error.strerror or "has no subfolder") from error
        if not pictures:
            raise no_data_set(folder, "has no picture in its subfolders")
        self._folder = folder
        self._outputs = outputs.of({ordered[number] for _, number in pictures}, ordered)
        self.names = sorted(Path(path).relative_to(folder).as_posix() for path, _ in pictures)

    def targets(self, name: str) -> tuple[int, ...]:
        return (self._outputs[name.partition("/")[0]],)

    def sample(self, name: str) -> Sample:
        return Sample(open_picture(self._folder / name), dict.fromkeys(self.targets(name)))
