"""Generated images as data sets: drawn one by one, or written in the layouts of ImageNet and Pascal VOC."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from captum_unioncam.demo.pictures import CLASS_NAMES, PICTURE_SIZE, _draw_picture
from captum_unioncam.system.files import make_folder, write_whole

if TYPE_CHECKING:
    from PIL import Image


class DrawnPicture(NamedTuple):
    """A generated image with its object.

    Args:
        picture (PIL.Image.Image): In mode RGB, 112 x 112.
        class_name (str): What the object is, one of :data:`~captum_unioncam.demo.CLASS_NAMES`.
        mask (PIL.Image.Image): In mode "L", of the image's size: 255 on the object's own pixels, 0 elsewhere.
    """

    picture: Image.Image
    class_name: str
    mask: Image.Image


def draw(seed: int, index: int) -> DrawnPicture:
    """Draws image ``index`` of ``generate(..., seed)`` alone.

    Example::

        >>> draw(seed=0, index=5).class_name
        'star'
    """
    from PIL import Image

    canvas, label, painted = _draw_picture(np.random.default_rng([seed, index]))
    picture = Image.fromarray((canvas * 255).round().astype(np.uint8))
    return DrawnPicture(picture, CLASS_NAMES[label], Image.fromarray(painted.astype(np.uint8) * 255))


def write_image_folder(folder: Path, count: int, seed: int) -> None:
    """Writes generated images in ImageNet's layout: ``folder/star/00005.png``.

    Args:
        folder (Path): Made if need be. A class without images has no folder in it.
        count (int): How many images: those of ``generate(count, seed)``.
        seed (int): Selects the sequence of images, 0 or more.

    Raises:
        Failure: A file cannot be written.

    Example::

        >>> write_image_folder(Path("pictures"), 64, seed=0)
    """
    for index in range(count):
        drawn = draw(seed, index)
        make_folder(folder / drawn.class_name)
        write_whole(folder / drawn.class_name / f"{index:05d}.png", encoded(drawn.picture, "PNG"))


def write_voc(folder: Path, count: int, seed: int) -> None:
    """Writes generated images in the layout of Pascal VOC 2007's test set: ``folder/VOCdevkit/VOC2007``.

    Every third image is two side by side, 224 x 112, with objects of different classes. The boxes bound the masks.

    Args:
        folder (Path): Made if need be.
        count (int): How many images.
        seed (int): Selects the sequence of images, 0 or more.

    Raises:
        Failure: A file cannot be written.

    Example::

        >>> write_voc(Path("pictures"), 64, seed=0)
    """
    root = folder / "VOCdevkit" / "VOC2007"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        make_folder(root / part)
    neighbours = (draw(seed, index) for index in itertools.count(count))
    for index in range(count):
        shown = [draw(seed, index)]
        if index % 3 == 2:
            shown.append(next(drawn for drawn in neighbours if drawn.class_name != shown[0].class_name))
        write_whole(root / "JPEGImages" / f"{index:06d}.jpg", encoded(_side_by_side(shown), "JPEG", quality=95))
        write_whole(root / "Annotations" / f"{index:06d}.xml", _annotation(f"{index:06d}.jpg", shown))
    test_list = "".join(f"{index:06d}\n" for index in range(count))
    write_whole(root / "ImageSets" / "Main" / "test.txt", test_list.encode())


def _side_by_side(shown: list[DrawnPicture]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.hstack([np.asarray(drawn.picture) for drawn in shown]))


def _annotation(file_name: str, shown: list[DrawnPicture]) -> bytes:
    annotation = Element("annotation")
    _add_entries(annotation, filename=file_name)
    _add_entries(SubElement(annotation, "size"), width=PICTURE_SIZE * len(shown), height=PICTURE_SIZE, depth=3)
    for place, drawn in enumerate(shown):
        left, top, right, bottom = drawn.mask.getbbox() or (0, 0, PICTURE_SIZE, PICTURE_SIZE)
        shift = PICTURE_SIZE * place
        entry = SubElement(annotation, "object")
        _add_entries(entry, name=drawn.class_name, difficult=0)
        # VOC counts pixels from 1, and its boxes include their last.
        _add_entries(SubElement(entry, "bndbox"), xmin=left + 1 + shift, ymin=top + 1, xmax=right + shift, ymax=bottom)
    indent(annotation, "\t")
    return bytes(tostring(annotation))


def _add_entries(parent: Element, **entries: str | int) -> None:
    for tag, entry in entries.items():
        SubElement(parent, tag).text = str(entry)


def encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    """The content of an image's file; the options are those of Pillow's ``save``."""
    file = io.BytesIO()
    picture.save(file, format=file_format, **options)
    return file.getvalue()
