"""Data sets of labelled pictures to evaluate attribution methods on: listed at once, read one picture at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from captum_unioncam.datasets.base import DEMO_DATA, DataSet, no_data_set
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.datasets.folders import ClassFolders
from captum_unioncam.datasets.generated import DEMO_SEED, GeneratedPictures
from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.datasets.voc import VOC_FOLDER, PascalVoc, voc_root
from captum_unioncam.demo.data_sets import draw


def open_data_set(
    path: str, class_names: Sequence[str] | None, classes: int, class_file: Path | None = None
) -> DataSet:
    """Lists the pictures of a data set, and finds the outputs of the model that stand for their classes.

    Without ``class_file``, a class is the output of the same name, where upper and lower case, and "_" and space, are
    the same. If none of the classes is the name of an output, numbers are the outputs of that number, from 0, or from 1
    where they are all of 1 to the number of outputs. Other names, of as many classes as outputs, are the outputs in
    order: that of the folders' names (ImageNet's 1000), of ``VOC_CLASSES``, of the demo network. Names like "class_2"
    and "class_10", whose order as text is not that of their numbers, are refused.

    Args:
        path (str): "demo", 1000 generated pictures (a folder of that name is "./demo"); a folder that holds
            ``VOCdevkit/VOC2007``, or one of those two, of which the test set is taken; or a folder with one subfolder
            for each class, in which pictures are found by their extension, as by torchvision's ``ImageFolder``, but for
            what is hidden or of the system (".ipynb_checkpoints", "__MACOSX"). Of a VOC picture every annotated class
            is a target, also where all its objects are marked difficult.
        class_names (Sequence[str] or None): Names of the model's outputs, if they are known.
        classes (int): How many outputs the model has.
        class_file (Path or None): Which output each class of the data set is. Text, with one line for each output, in
            order, whose first word is the class's name in the data set (ImageNet's ``LOC_synset_mapping.txt``); or
            ``*.json``, an object of outputs by name. Names are the same only to the letter. Default: None

    Returns:
        *DataSet*: Its files are only listed, except for VOC's annotations, which are read; what cannot be read fails
        when it is asked for.

    Raises:
        WrongArgument: There are no pictures in such a layout, or it cannot be told which output each class is.

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
    folder = Path(path)
    # Unlike Path's, they say no to a name that is too long.
    if not os.path.isdir(folder):
        raise no_data_set(folder, "is not a folder" if os.path.exists(folder) else "does not exist")
    root = voc_root(folder)
    return ClassFolders(folder, outputs) if root is None else PascalVoc(root, outputs)


def picture_of(path: str, name: str) -> Image.Image:
    """One picture of a data set, where its classes do not matter.

    Args:
        path (str): As ``open_data_set`` takes it.
        name (str): One of the data set's ``names``.

    Raises:
        Failure: It cannot be read.
    """
    if path == DEMO_DATA:
        return draw(DEMO_SEED, int(Path(name).stem)).picture
    folder = Path(path)
    root = voc_root(folder)
    return open_picture((folder if root is None else root / VOC_FOLDER) / name)
