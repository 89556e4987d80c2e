"""COCO's layout: one file of all images' objects, with boxes and segmentations."""

import io
import os
from collections.abc import Iterable
from contextlib import redirect_stdout
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from captum_unioncam.datasets.annotated import AnnotatedPictures
from captum_unioncam.datasets.base import no_data_set
from captum_unioncam.datasets.boxes import mask_of_boxes
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.files import check_regular

_ANNOTATIONS = "annotations"


class Coco(AnnotatedPictures[int]):
    """COCO's images with objects, by their segmentation where there is one, or else their box; crowds are left out.

    Args:
        file (Path): ``instances*.json``. Names are relative to its folder, or that above ``annotations``.
        outputs (Outputs): Of the model.
    """

    def __init__(self, file: Path, outputs: Outputs) -> None:
        self._file = file
        self._loaded = _load(file)
        root = coco_folder(file)
        objects: dict[str, dict[str, list[int]]] = {}
        try:
            place = _picture_folder(file, root, (image["file_name"] for image in self._loaded.imgs.values()))
            for annotation in self._loaded.anns.values():
                if not annotation.get("iscrowd"):
                    name = f"{place}{self._loaded.imgs[annotation['image_id']]['file_name']}"
                    class_name = self._loaded.cats[annotation["category_id"]]["name"]
                    objects.setdefault(name, {}).setdefault(class_name, []).append(annotation["id"])
            ordered = [self._loaded.cats[number]["name"] for number in sorted(self._loaded.cats)]
        except (KeyError, TypeError, AttributeError) as error:
            raise _not_instances(file, error) from error
        if not objects:
            raise WrongArgument(f"{file}: has no object that is not a crowd; give another file.")
        super().__init__(root, objects, outputs, ordered)

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads the file itself.
        return {**self.__dict__, "_loaded": None}

    def _mask(self, size: tuple[int, int], objects: list[int]) -> Image.Image:
        if self._loaded is None:
            self._loaded = _load(self._file)
        return reduce(ImageChops.lighter, (self._mask_of(size, self._loaded.anns[number]) for number in objects))

    def _mask_of(self, size: tuple[int, int], annotation: dict[str, Any]) -> Image.Image:
        image = self._loaded.imgs[annotation["image_id"]]
        if (image["width"], image["height"]) != size:
            raise ValueError(f"is {size[0]}x{size[1]}, but annotated as {image['width']}x{image['height']}")
        try:
            if annotation.get("segmentation"):
                mask = self._loaded.annToMask(annotation)
                # Of thin polygons, no pixel.
                if mask.any():
                    return Image.fromarray(mask * np.uint8(255))
            x, y, width, height = annotation["bbox"]
            return mask_of_boxes(size, [(x, y, x + width, y + height)])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"annotation {annotation['id']} has no readable segmentation or box") from error


def coco_files(folder: Path) -> list[Path]:
    """The files of objects in a folder or its ``annotations``."""
    return [path for place in (folder, folder / _ANNOTATIONS) for path in sorted(place.glob("instances*.json"))]


def coco_folder(file: Path) -> Path:
    """The folder that the images' names are relative to."""
    folder = Path(os.path.abspath(file)).parent
    return folder.parent if folder.name == _ANNOTATIONS else folder


def _load(file: Path) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise Failure("COCO's annotations need pycocotools; pip install 'captum-unioncam[coco]'.") from error
    try:
        check_regular(file)
        # It prints how long it takes.
        with redirect_stdout(io.StringIO()):
            return COCO(file)
    except OSError as error:
        raise WrongArgument(f"{file}: {error.strerror or one_line(error)}; give COCO's instances*.json.") from error
    except Exception as error:
        # Of other contents it raises errors of many types.
        raise _not_instances(file, error) from error


def _not_instances(file: Path, error: Exception) -> WrongArgument:
    return WrongArgument(
        f"{file}: is not COCO's file of instances ({type(error).__name__}: {one_line(error)}); give instances*.json."
    )


def _picture_folder(file: Path, root: Path, names: Iterable[str]) -> str:
    """Where the images are in ``root``: such as "val2017/" for instances_val2017.json."""
    split = file.stem.removeprefix("instances").strip("_")
    places = dict.fromkeys((f"{split}/" if split else "", f"images/{split}/" if split else "images/", "images/", ""))
    some = list(names)[:100]
    for place in places:
        if any((root / f"{place}{name}").is_file() for name in some):
            return place
    looked = ", ".join(str(root / place) for place in places)
    raise no_data_set(file, f"none of its first images is in {looked}")
