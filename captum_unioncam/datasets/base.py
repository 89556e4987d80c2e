"""The interface of data sets: images by name, their classes, and the masks of their objects."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from captum_unioncam.datasets.boxes import Box
from captum_unioncam.system.errors import WrongArgument

DEMO_DATA = "demo"
"""Path of the data set of generated images."""

_LAYOUTS = (
    f"give {DEMO_DATA}, a table .csv of path,label,x0,y0,x1,y1, COCO's instances*.json, or a folder that holds one of: "
    "VOCdevkit/VOC2007, or JPEGImages and Annotations; annotations/instances*.json; images and labels, as YOLO's; "
    "images and masks/CLASS/NAME.png; one subfolder of images for each class"
)


@dataclass(frozen=True)
class Sample:
    """An image of a data set, and the masks of its objects.

    Args:
        picture (PIL.Image.Image): In mode RGB, as ``open_picture`` returns it.
        objects (Mapping[int, PIL.Image.Image or None]): By target, an output of the model: an image in mode "L", of the
            same size, 255 on the objects or within their boxes and 0 elsewhere; None where that is unknown.
        boxes (Mapping[int, list[Box]]): By target, the boxes that its mask was made from. Default: none, it was not
    """

    picture: Image.Image
    objects: Mapping[int, Image.Image | None]
    boxes: Mapping[int, list[Box]] = field(default_factory=dict)


class DataSet(ABC):
    """Labelled images, read on demand; small to pickle, for the workers of a ``DataLoader``.

    Attributes:
        names (list[str]): The images' names, sorted and unique: relative paths with "/" on every system.
    """

    names: list[str]

    @abstractmethod
    def targets(self, name: str) -> tuple[int, ...]:
        """The model's outputs for the image's classes, ascending.

        Args:
            name (str): One of ``names``.

        Raises:
            Failure: The image's annotation cannot be read.
        """

    @abstractmethod
    def sample(self, name: str) -> Sample:
        """The image, and the objects of each of its targets.

        Args:
            name (str): One of ``names``.

        Raises:
            Failure: The image or its annotation cannot be read, or the annotation does not fit the image.
        """


def subset(names: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """Draws a random subset of names, the same on every machine and for any order. Smaller ones are parts of larger.

    Args:
        names (Iterable[str]): The names, unique.
        limit (int or None): Size of the subset, 1 or more; None takes all.
        seed (int): Seed of the subset, 0 or more.

    Returns:
        *list[str]*: Sorted; all names if there are at most ``limit``.

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
        # File names may hold bytes that are not text.
        return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()

    return sorted(sorted(names, key=rank)[:limit])


def difficult(data_set: DataSet, name: str) -> tuple[int, ...]:
    """The image's targets in TorchRay's difficult subset (Fong et al., *Understanding deep networks via extremal
    perturbations and smooth masks*, 2019): their objects cover less than a quarter of the image, and it shows an
    object of another class.

    Args:
        data_set (DataSet): With boxes or masks.
        name (str): One of its ``names``.

    Raises:
        Failure: The image or its annotation cannot be read.
    """
    if len(data_set.targets(name)) < 2:
        return ()
    sample = data_set.sample(name)
    pixels = sample.picture.width * sample.picture.height
    marked = {target: mask.histogram()[255] for target, mask in sample.objects.items() if mask is not None}
    return tuple(target for target, count in marked.items() if 4 * count < pixels)


def no_data_set(path: Path, problem: str) -> WrongArgument:
    return WrongArgument(f"{path}: {problem}; {_LAYOUTS}.")
