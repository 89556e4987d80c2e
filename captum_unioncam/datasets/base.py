"""What every data set has: pictures by name, their classes, and where their objects are."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from captum_unioncam.system.errors import WrongArgument

DEMO_DATA = "demo"
"""Path of the data set of generated pictures."""

_LAYOUTS = (
    f"give {DEMO_DATA}, a folder that holds VOCdevkit/VOC2007 with its test set, or a folder with one subfolder of "
    "pictures for each class, as ImageNet's validation set sorted by class"
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


def no_data_set(path: Path, problem: str) -> WrongArgument:
    return WrongArgument(f"{path}: {problem}; {_LAYOUTS}.")
