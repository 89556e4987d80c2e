"""Pascal VOC's layout, with the objects' boxes, of any list of classes."""

import os
from pathlib import Path
from xml.etree import ElementTree

from captum_unioncam.datasets.annotated import BoxedPictures
from captum_unioncam.datasets.base import DEMO_DATA, no_data_set
from captum_unioncam.datasets.boxes import Box
from captum_unioncam.datasets.classes import Outputs, listed_classes
from captum_unioncam.datasets.listing import is_hidden, pictures_in
from captum_unioncam.system.errors import Failure, one_line
from captum_unioncam.system.files import check_regular

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Pascal VOC's classes, in the order of models' outputs."""

_PLACES = ("VOCdevkit/VOC2007", "VOCdevkit/VOC2012", "VOC2007", "VOC2012")
_PICTURES, _ANNOTATIONS, _LISTS = "JPEGImages", "Annotations", "ImageSets/Main"


def is_voc(path: str) -> bool:
    """Whether the data set has Pascal VOC's layout."""
    return path != DEMO_DATA and voc_folder(Path(path)) is not None


class PascalVoc(BoxedPictures):
    """Pascal VOC's images: those of its test list, or else of its validation list; without lists, all annotated.

    Args:
        folder (Path): That holds ``Annotations`` and ``JPEGImages``. Names are relative to it.
        outputs (Outputs): Of the model.
    """

    def __init__(self, folder: Path, outputs: Outputs) -> None:
        names = {Path(name).stem: name for name in pictures_in(folder / _PICTURES)}
        stems = _listed(folder)
        if names.keys().isdisjoint(stems):
            raise no_data_set(folder, f"has no image of the test set in {_PICTURES}")
        objects = {
            f"{_PICTURES}/{names.get(stem, f'{stem}.jpg')}": _voc_boxes(folder / _ANNOTATIONS / f"{stem}.xml")
            for stem in stems
        }
        found = {class_name for boxes in objects.values() if not isinstance(boxes, Failure) for class_name in boxes}
        # Other data sets in VOC's format have other classes.
        ordered = VOC_CLASSES if found <= set(VOC_CLASSES) else listed_classes(folder) or sorted(found)
        super().__init__(folder, objects, outputs, ordered)


def voc_folder(folder: Path) -> Path | None:
    """The folder that holds Annotations and JPEGImages: ``folder`` itself, or VOCdevkit/VOC2007 and such below it."""
    folder = Path(os.path.abspath(folder))
    for place in (folder, *(folder / name for name in _PLACES)):
        if os.path.isdir(place / _ANNOTATIONS) and (os.path.isdir(place / _PICTURES) or place.name.startswith("VOC")):
            return place
    return None


def _listed(folder: Path) -> list[str]:
    """The images' names without their extension."""
    lists = [folder / _LISTS / f"{split}.txt" for split in ("test", "val")]
    if not (folder / _LISTS).is_dir():
        return sorted(
            Path(name).stem
            for name in os.listdir(folder / _ANNOTATIONS)
            if name.lower().endswith(".xml") and not is_hidden(name)
        )
    try:
        file = next((path for path in lists if path.exists()), lists[0])
        check_regular(file)
        return sorted({line.strip() for line in file.read_text(encoding="utf-8").splitlines()} - {""})
    except (OSError, ValueError) as error:
        raise no_data_set(folder, f"has no {_LISTS}/test.txt or val.txt that can be read") from error


def _voc_boxes(annotation: Path) -> dict[str, list[Box]] | Failure:
    """The boxes of each class, or why they cannot be read."""
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
    except FileNotFoundError:
        return Failure(f"{annotation}: does not exist; unpack the data set anew.")
    except Exception as error:
        # Files in other formats raise errors of many types.
        return Failure(
            f"{annotation}: is not an annotation of Pascal VOC ({type(error).__name__}: {one_line(error)}); unpack the "
            "data set anew."
        )
    return boxes
