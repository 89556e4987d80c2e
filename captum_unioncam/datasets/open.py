"""Opens data sets of labelled images in any of the layouts."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from captum_unioncam.datasets.base import DEMO_DATA, DataSet, no_data_set
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.datasets.coco import Coco, coco_files, coco_folder
from captum_unioncam.datasets.folders import ClassFolders, MaskedPictures, has_masks
from captum_unioncam.datasets.generated import DEMO_SEED, GeneratedPictures
from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.datasets.table import Table
from captum_unioncam.datasets.voc import PascalVoc, voc_folder
from captum_unioncam.datasets.yolo import Yolo, is_yolo
from captum_unioncam.demo.data_sets import draw


def open_data_set(
    path: str, class_names: Sequence[str] | None, classes: int, class_file: Path | None = None
) -> DataSet:
    """Lists the images of a data set, and finds the model's output for each of their classes.

    Without ``class_file``, a class is matched with the output of the same name, ignoring case, and "_" and space are
    equal. If no class has the name of an output, classes that are numbers are those outputs, counted from 0, or from 1
    if they are 1 to the number of outputs. Other names are matched in order, if there are as many classes as outputs:
    in the order of the folders' names (ImageNet's 1000), of ``VOC_CLASSES``, of COCO's numbers, of ``classes.txt`` or
    ``data.yaml``, or of the demo network. Names like "class_2" and "class_10", which sort differently as text and as
    numbers, are refused.

    Args:
        path (str): "demo", 1000 generated images (a folder of that name is "./demo"), or one of these, whose images
            are found by their extension, without hidden and system files (".DS_Store", "__MACOSX"):

            - a folder with one subfolder for each class, with masks in ``masks/NAME.png`` beside images or without;
            - a folder of images with their masks in ``masks/CLASS/NAME.png``;
            - a folder that holds ``VOCdevkit/VOC2007`` (or 2012), or one of those two, or any with ``JPEGImages`` and
              ``Annotations``. Every annotated class of an image is a target, also if all its objects are marked
              difficult;
            - a folder with YOLO's ``images`` and ``labels``;
            - COCO's ``instances*.json``, or a folder that holds one, alone or in ``annotations``;
            - a table ``.csv`` with the columns path, label, x0, y0, x1, y1 and a row for each object.
        class_names (Sequence[str] or None): Names of the model's outputs, if they are known.
        classes (int): How many outputs the model has.
        class_file (Path or None): The outputs of the classes. A text with one line for each output, in order, whose
            first word is the class's name in the data set (ImageNet's ``LOC_synset_mapping.txt``); or ``*.json``, an
            object of outputs by name. Names must match exactly. Default: None

    Returns:
        *DataSet*: Its images are only listed; annotations are read. What cannot be read fails on access.

    Raises:
        WrongArgument: There are no images in such a layout, a table or COCO's file cannot be read, or the outputs of
            the classes are ambiguous.
        Failure: COCO's file needs pycocotools, which is not installed.

    Example::

        >>> data_set = open_data_set("imagenet/val", None, classes=1000)
        >>> data_set.names[0]
        'n01440764/ILSVRC2012_val_00000293.JPEG'
        >>> data_set.targets(data_set.names[0])
        (0,)
    """
    outputs = Outputs(class_names, classes, class_file)
    if path == DEMO_DATA:
        return GeneratedPictures(outputs)
    layout, place = _layout(Path(path))
    return layout(place, outputs)


def check_layout(path: str) -> None:
    """Refuses what holds no data set, before a model is loaded for it.

    Args:
        path (str): As ``open_data_set`` takes it.

    Raises:
        WrongArgument: It does not exist, or is no such file or folder.
    """
    if path != DEMO_DATA:
        _layout(Path(path))


def picture_of(path: str, name: str) -> Image.Image:
    """One image of a data set, without its classes.

    Args:
        path (str): As ``open_data_set`` takes it.
        name (str): One of the data set's ``names``.

    Raises:
        Failure: It cannot be read.
    """
    if path == DEMO_DATA:
        return draw(DEMO_SEED, int(Path(name).stem)).picture
    layout, place = _layout(Path(path))
    folder = coco_folder(place) if layout is Coco else place.parent if layout is Table else place
    return open_picture(folder / name)


def _layout(path: Path) -> tuple[Callable[[Path, Outputs], DataSet], Path]:
    """The layout of a data set, and the folder or file that it is opened by."""
    # Path's methods raise an error for a name that is too long.
    if not os.path.isdir(path):
        of_files: dict[str, Callable[[Path, Outputs], DataSet]] = {".csv": Table, ".json": Coco}
        if path.suffix.lower() not in of_files or not os.path.exists(path):
            raise no_data_set(path, "is not a folder" if os.path.exists(path) else "does not exist")
        return of_files[path.suffix.lower()], path
    if (voc := voc_folder(path)) is not None:
        return PascalVoc, voc
    if files := coco_files(path):
        if len(files) > 1:
            raise no_data_set(path, f"holds {', '.join(file.name for file in files)}: give one of them")
        return Coco, files[0]
    if is_yolo(path):
        return Yolo, path
    return (MaskedPictures if has_masks(path) else ClassFolders), path
