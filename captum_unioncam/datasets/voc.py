"""Pascal VOC's layout, with the objects' boxes."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

from captum_unioncam.datasets.base import DEMO_DATA, DataSet, Sample, no_data_set
from captum_unioncam.datasets.boxes import Box, mask_of_boxes
from captum_unioncam.datasets.classes import Outputs, by_output
from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.system.errors import Failure, one_line
from captum_unioncam.system.files import check_regular

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Pascal VOC's classes, in the order of models' outputs."""

VOC_FOLDER = Path("VOCdevkit", "VOC2007")


def is_voc(path: str) -> bool:
    """Whether the data set has Pascal VOC's layout."""
    return path != DEMO_DATA and voc_root(Path(path)) is not None


class PascalVoc(DataSet):
    """The test set of Pascal VOC 2007. Names are relative to ``VOCdevkit/VOC2007``."""

    def __init__(self, root: Path, outputs: Outputs) -> None:
        self._folder = root / VOC_FOLDER
        annotations: dict[str, dict[str, list[Box]]] = {}
        self._problems: dict[str, str] = {}
        for picture, annotation in _voc_test_files(root):
            name = picture.relative_to(self._folder).as_posix()
            try:
                annotations[name] = _voc_boxes(annotation)
            except Failure as failure:
                self._problems[name] = str(failure)
        self.names = sorted([*annotations, *self._problems])
        found = {class_name for boxes in annotations.values() for class_name in boxes}
        # Other data sets in VOC's format have other classes.
        ordered = VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)
        output_of = outputs.of(found, ordered)
        self._boxes = {name: by_output(boxes, output_of) for name, boxes in annotations.items()}

    def targets(self, name: str) -> tuple[int, ...]:
        if name in self._problems:
            raise Failure(self._problems[name])
        return tuple(self._boxes[name])

    def sample(self, name: str) -> Sample:
        targets = self.targets(name)
        picture = open_picture(self._folder / name)
        try:
            boxes = self._boxes[name]
            return Sample(picture, {target: mask_of_boxes(picture.size, boxes[target]) for target in targets})
        except ValueError as error:
            raise Failure(f"{self._folder / name}: {error}; give the annotation of this picture.") from error


def voc_root(folder: Path) -> Path | None:
    """The folder that holds VOCdevkit/VOC2007: ``folder`` itself, or above it where it is one of those two."""
    folder = Path(os.path.abspath(folder))
    for root in (folder, folder.parent, folder.parent.parent):
        voc = root / VOC_FOLDER
        if os.path.isdir(voc) and folder in (root, voc.parent, voc):
            return root
    return None


def _voc_test_files(root: Path) -> list[tuple[Path, Path]]:
    """The pictures of the test set and their annotations."""
    from torchvision import datasets

    try:
        check_regular(root / VOC_FOLDER / "ImageSets" / "Main" / "test.txt")
        voc = datasets.VOCDetection(root, year="2007", image_set="test")
    except (OSError, ValueError) as error:
        raise no_data_set(root, "has no VOCdevkit/VOC2007/ImageSets/Main/test.txt that can be read") from error
    # torchvision turns an empty line into a picture without a name.
    files = [
        (Path(picture), Path(annotation))
        for picture, annotation in zip(voc.images, voc.annotations, strict=True)
        if os.path.basename(picture) != ".jpg"
    ]
    if not any(picture.exists() for picture, _ in files):
        raise no_data_set(root, "has no picture of the test set in VOCdevkit/VOC2007/JPEGImages")
    return files


def _voc_boxes(annotation: Path) -> dict[str, list[Box]]:
    """The boxes of each class."""
    from torchvision import datasets

    boxes: dict[str, list[Box]] = {}
    try:
        check_regular(annotation)
        content = datasets.VOCDetection.parse_voc_xml(ElementTree.parse(annotation).getroot())
        for entry in content["annotation"]["object"]:
            corners = entry["bndbox"]
            # Some of Pascal's own corners have decimals.
            xmin, ymin, xmax, ymax = (round(float(corners[key])) for key in ("xmin", "ymin", "xmax", "ymax"))
            # Pascal counts pixels from 1, and includes the last.
            boxes.setdefault(entry["name"], []).append((xmin - 1, ymin - 1, xmax, ymax))
    except FileNotFoundError as error:
        raise Failure(f"{annotation}: does not exist; unpack the test set anew.") from error
    except Exception as error:
        # Files in other formats raise errors of many types.
        raise Failure(
            f"{annotation}: is not an annotation of Pascal VOC ({type(error).__name__}: {one_line(error)}); unpack the "
            "test set anew."
        ) from error
    return boxes
