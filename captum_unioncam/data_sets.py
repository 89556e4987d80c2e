"""Data sets of labelled pictures to evaluate attribution methods on: listed at once, read one picture at a time."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from captum_unioncam.demo.data_sets import draw
from captum_unioncam.demo.pictures import CLASS_NAMES
from captum_unioncam.errors import Failure, WrongArgument, one_line
from captum_unioncam.pictures import open_picture

DEMO = "demo"
"""Path of the data set of generated pictures."""

DEMO_PICTURES = 1000
DEMO_SEED = 2024
"""Not one that the demo network was trained on."""

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Pascal VOC's, in the order in which the outputs of models have them."""

Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax as Pascal VOC has them: pixels counted from 1, the last one included."""

_VOC = Path("VOCdevkit", "VOC2007")
_LAYOUTS = (
    f"give {DEMO}, a folder that holds VOCdevkit/VOC2007 with its test set, or a folder with one subfolder of pictures "
    "for each class, as ImageNet's validation set sorted by class"
)
_CLASS_FILE_FORM = (
    "--classes must hold one line for each output of the model, in order, whose first word is the class's name in the "
    "data set, as ImageNet's LOC_synset_mapping.txt has, or be .json with the output of each name"
)


@dataclass(frozen=True)
class Sample:
    """A picture of a data set, and where in it the objects of its classes are.

    Args:
        picture (PIL.Image.Image): In mode RGB, as ``open_picture`` gives it.
        objects (dict[int, PIL.Image.Image or None]): For each target, which is an output of the model: a picture in
            mode "L", of the same size, 255 on the true mask or inside of the class's boxes and 0 elsewhere; None where
            that is not known.
    """

    picture: Image.Image
    objects: dict[int, Image.Image | None]


class DataSet(ABC):
    """Labelled pictures, each read when it is asked for; small to pickle, for the workers of a ``DataLoader``.

    Attributes:
        names (list[str]): One for each picture: sorted and unique, relative paths with "/" on every system.
    """

    names: list[str]

    @abstractmethod
    def targets(self, name: str) -> tuple[int, ...]:
        """The outputs of the model that stand for the picture's classes, ascending.

        Args:
            name (str): One of ``names``.

        Raises:
            Failure: The picture's annotation cannot be read.
        """

    @abstractmethod
    def sample(self, name: str) -> Sample:
        """The picture, and its objects for each of its targets.

        Args:
            name (str): One of ``names``.

        Raises:
            Failure: The picture or its annotation cannot be read, or they do not fit.
        """


def open_data_set(
    path: str, class_names: Sequence[str] | None, classes: int, class_file: Path | None = None
) -> DataSet:
    """Lists the pictures of a data set, and finds the outputs of the model that stand for their classes.

    Without ``class_file``, a class is the output of the same name, where upper and lower case, and "_" and space, are
    the same. If none of the classes is the name of an output, and there are as many classes as outputs, they are the
    outputs in order: that of the folders' names (ImageNet's 1000), of ``VOC_CLASSES``, of the demo network.

    Args:
        path (str): "demo", 1000 generated pictures (a folder of that name is "./demo"); a folder that holds
            ``VOCdevkit/VOC2007``, or one of those two, of which the test set is taken; or a folder with one subfolder
            for each class, in which pictures are found by their extension, as by torchvision's ``ImageFolder``. Of a
            VOC picture every annotated class is a target, also where all its objects are marked difficult.
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
    outputs = _Outputs(class_names, classes, class_file)
    if path == DEMO:
        return _GeneratedPictures(outputs)
    folder = Path(path)
    if not folder.is_dir():
        raise _no_data_set(folder, "is not a folder" if folder.exists() else "does not exist")
    root = _voc_root(folder)
    return _ClassFolders(folder, outputs) if root is None else _PascalVoc(root, outputs)


def is_voc(path: str) -> bool:
    """Whether the data set is Pascal VOC's layout."""
    return path != DEMO and _voc_root(Path(path)) is not None


def picture_of(path: str, name: str) -> Image.Image:
    """One picture of a data set, where its classes do not matter.

    Args:
        path (str): As ``open_data_set`` takes it.
        name (str): One of the data set's ``names``.

    Raises:
        Failure: It cannot be read.
    """
    if path == DEMO:
        return draw(DEMO_SEED, int(Path(name).stem)).picture
    folder = Path(path)
    root = _voc_root(folder)
    return open_picture((folder if root is None else root / _VOC) / name)


def subset(names: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """Draws names at random, the same on every machine and whatever their order; fewer are a part of more.

    Args:
        names (Iterable[str]): To draw from, unique.
        limit (int or None): How many, 1 or more; None is all.
        seed (int): Another draws others; 0 or more.

    Returns:
        *list[str]*: Sorted; all where there are no more than ``limit``.

    Raises:
        WrongArgument: ``limit`` is below 1, or ``seed`` below 0.

    Example::

        >>> subset(data_set.names, 2000, seed=0)
    """
    if limit is not None and limit < 1:
        raise WrongArgument(f"limit: got {limit}; give 1 or more.")
    if seed < 0:
        raise WrongArgument(f"seed: got {seed}; give 0 or more.")

    def rank(name: str) -> bytes:
        # Names of files may hold bytes that are no text.
        return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()

    return sorted(sorted(names, key=rank)[:limit])


# Which output of the model a class is.


@dataclass(frozen=True)
class _Outputs:
    """The outputs of a model, as ``open_data_set`` is told of them."""

    names: Sequence[str] | None
    count: int
    class_file: Path | None

    def of(self, found: Collection[str], ordered: Sequence[str]) -> dict[str, int]:
        """The output of each class that was found; ``ordered`` are all classes that there may be, in their order."""
        if self.class_file is not None:
            return self._of_class_file(found, self.class_file)
        known = _positions(_plain(name) for name in self.names or ())
        matching = {name: known[_plain(name)] for name in found if _plain(name) in known}
        if len(matching) == len(found):
            return matching
        if not matching and len(ordered) == self.count:
            return {name: output for output, name in enumerate(ordered)}
        unknown = ", ".join(sorted(set(found) - set(matching))[:3])
        raise WrongArgument(
            f"the data set's classes {unknown} (of {len(ordered)}) are not names of the model's {self.count} outputs; "
            f"{_CLASS_FILE_FORM}."
        )

    def _of_class_file(self, found: Collection[str], path: Path) -> dict[str, int]:
        try:
            text = path.read_text(encoding="utf-8-sig")
            outputs = self._of_json(json.loads(text)) if path.suffix.lower() == ".json" else self._of_lines(text)
        except (OSError, ValueError, RecursionError) as error:
            problem = getattr(error, "strerror", None) or one_line(error)
            raise WrongArgument(f"--classes {path}: {problem}; {_CLASS_FILE_FORM}.") from error
        missing = sorted(set(found) - set(outputs))
        if missing:
            raise WrongArgument(
                f"--classes {path}: does not name {', '.join(missing[:3])} ({len(missing)} of the data set's "
                f"{len(found)} classes), or not only once; {_CLASS_FILE_FORM}."
            )
        return {name: outputs[name] for name in found}

    def _of_lines(self, text: str) -> dict[str, int]:
        lines = text.rstrip().splitlines()
        if len(lines) != self.count:
            # A heading, say, which would shift every class by one.
            raise ValueError(f"has {len(lines)} lines, but the model {self.count} outputs")
        return _positions(" ".join(line.split()[:1]) for line in lines)

    def _of_json(self, content: Any) -> dict[str, int]:
        if not isinstance(content, dict):
            raise ValueError("holds no object of outputs by name")
        for name, output in content.items():
            if type(output) is not int or not 0 <= output < self.count:
                raise ValueError(f"gives {name} the output {output!r}, which is not from 0 to {self.count - 1}")
        return content


def _positions(names: Iterable[str]) -> dict[str, int]:
    """Where each name stands, of those that stand there only once: two classes of ImageNet are called "crane"."""
    names = list(names)
    times = Counter(names)
    return {name: position for position, name in enumerate(names) if times[name] == 1}


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")


# The three kinds of data sets.


class _GeneratedPictures(DataSet):
    """Pictures of the demo's generator, each drawn alone; their objects are the true masks."""

    def __init__(self, outputs: _Outputs) -> None:
        self._outputs = outputs.of(CLASS_NAMES, ordered=CLASS_NAMES)
        self.names = [f"{DEMO}/{index:05d}.png" for index in range(DEMO_PICTURES)]

    def targets(self, name: str) -> tuple[int, ...]:
        return tuple(self.sample(name).objects)

    def sample(self, name: str) -> Sample:
        drawn = draw(DEMO_SEED, int(Path(name).stem))
        return Sample(drawn.picture, {self._outputs[drawn.class_name]: drawn.mask})


class _ClassFolders(DataSet):
    """ImageNet's layout: the folder that a picture is in, or below, says its class."""

    def __init__(self, folder: Path, outputs: _Outputs) -> None:
        from torchvision import datasets

        try:
            ordered, numbers = datasets.folder.find_classes(folder)
            pictures = datasets.folder.make_dataset(folder, numbers, datasets.folder.IMG_EXTENSIONS, allow_empty=True)
        except OSError as error:
            raise _no_data_set(folder, error.strerror or "has no subfolder") from error
        if not pictures:
            raise _no_data_set(folder, "has no picture in its subfolders")
        self._folder = folder
        self._outputs = outputs.of({ordered[number] for _, number in pictures}, ordered)
        self.names = sorted(Path(path).relative_to(folder).as_posix() for path, _ in pictures)

    def targets(self, name: str) -> tuple[int, ...]:
        return (self._outputs[name.partition("/")[0]],)

    def sample(self, name: str) -> Sample:
        return Sample(open_picture(self._folder / name), dict.fromkeys(self.targets(name)))


class _PascalVoc(DataSet):
    """The test set of Pascal VOC 2007; names are relative to ``VOCdevkit/VOC2007``, by whatever path it was opened."""

    def __init__(self, root: Path, outputs: _Outputs) -> None:
        self._folder = root / _VOC
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
        # Other classes than VOC's own are those of a data set that is only written in its format.
        ordered = VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)
        output_of = outputs.of(found, ordered)
        self._boxes = {name: _by_output(boxes, output_of) for name, boxes in annotations.items()}

    def targets(self, name: str) -> tuple[int, ...]:
        if name in self._problems:
            raise Failure(self._problems[name])
        return tuple(self._boxes[name])

    def sample(self, name: str) -> Sample:
        targets = self.targets(name)
        picture = open_picture(self._folder / name)
        try:
            return Sample(picture, {target: _mask(picture.size, self._boxes[name][target]) for target in targets})
        except ValueError as error:
            raise Failure(f"{self._folder / name}: {error}; give the annotation of this picture.") from error


def _voc_root(folder: Path) -> Path | None:
    """The folder that holds VOCdevkit/VOC2007: ``folder`` itself, or above it where it is one of those two."""
    folder = Path(os.path.abspath(folder))
    for root in (folder, folder.parent, folder.parent.parent):
        voc = root / _VOC
        if voc.is_dir() and folder in (root, voc.parent, voc):
            return root
    return None


def _voc_test_files(root: Path) -> list[tuple[Path, Path]]:
    """The pictures of the test set and their annotations."""
    from torchvision import datasets

    try:
        voc = datasets.VOCDetection(root, year="2007", image_set="test")
    except (OSError, ValueError) as error:
        raise _no_data_set(root, "has no VOCdevkit/VOC2007/ImageSets/Main/test.txt that can be read") from error
    # Of an empty line torchvision makes a picture without a name.
    files = [
        (Path(picture), Path(annotation))
        for picture, annotation in zip(voc.images, voc.annotations, strict=True)
        if os.path.basename(picture) != ".jpg"
    ]
    if not any(picture.exists() for picture, _ in files):
        raise _no_data_set(root, "has no picture of the test set in VOCdevkit/VOC2007/JPEGImages")
    return files


def _voc_boxes(annotation: Path) -> dict[str, list[Box]]:
    """The boxes of each class."""
    from torchvision import datasets

    boxes: dict[str, list[Box]] = {}
    try:
        content = datasets.VOCDetection.parse_voc_xml(ElementTree.parse(annotation).getroot())
        for entry in content["annotation"]["object"]:
            corners = entry["bndbox"]
            # Some of Pascal's own corners have decimals.
            xmin, ymin, xmax, ymax = (round(float(corners[key])) for key in ("xmin", "ymin", "xmax", "ymax"))
            boxes.setdefault(entry["name"], []).append((xmin, ymin, xmax, ymax))
    except FileNotFoundError as error:
        raise Failure(f"{annotation}: does not exist; unpack the test set anew.") from error
    except Exception as error:
        # Whatever is in such a file comes out as lists, dictionaries or text, or not at all.
        raise Failure(
            f"{annotation}: is not an annotation of Pascal VOC ({type(error).__name__}: {one_line(error)}); unpack the "
            "test set anew."
        ) from error
    return boxes


def _by_output(boxes: Mapping[str, list[Box]], outputs: Mapping[str, int]) -> dict[int, list[Box]]:
    """The boxes of each output, ascending; a file of classes may give several classes the same one."""
    merged: dict[int, list[Box]] = {}
    for class_name in sorted(boxes, key=lambda name: outputs[name]):
        merged.setdefault(outputs[class_name], []).extend(boxes[class_name])
    return merged


def _mask(size: tuple[int, int], boxes: Iterable[Box]) -> Image.Image:
    mask = Image.new("L", size)
    for xmin, ymin, xmax, ymax in boxes:
        left, top, right, bottom = max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, size[0]), min(ymax, size[1])
        if left >= right or top >= bottom:
            raise ValueError(f"the annotated box {(xmin, ymin, xmax, ymax)} covers none of its {size[0]}x{size[1]}")
        mask.paste(255, (left, top, right, bottom))
    return mask


def _no_data_set(path: Path, problem: str) -> WrongArgument:
    return WrongArgument(f"{path}: {problem}; {_LAYOUTS}.")
