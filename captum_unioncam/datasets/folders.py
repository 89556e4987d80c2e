"""ImageNet's layout: a folder for each class, with masks beside the images or without."""

from functools import reduce
from pathlib import Path, PurePosixPath

from PIL import Image, ImageChops

from captum_unioncam.datasets.annotated import AnnotatedPictures
from captum_unioncam.datasets.base import DataSet, Sample, no_data_set
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.datasets.listing import folders_in, pictures_below, pictures_in
from captum_unioncam.datasets.pictures import open_mask, open_picture
from captum_unioncam.system.errors import Failure

MASKS = "masks"
"""Name of the folders of masks."""

# Folders that are no classes where the classes are below them.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class ClassFolders(DataSet):
    """ImageNet's layout: an image's class is the name of its top folder.

    The mask of ``star/a.jpg`` is ``star/masks/a.png`` or ``masks/star/a.png``; without one, its objects are unknown.
    """

    def __init__(self, folder: Path, outputs: Outputs) -> None:
        try:
            ordered = folders_in(folder)
        except OSError as error:
            raise no_data_set(folder, error.strerror or "cannot be read") from error
        if MASKS in ordered and not set(ordered).isdisjoint(folders_in(folder / MASKS)):
            # It holds the masks of the class folders beside it, and is no class itself.
            ordered.remove(MASKS)
        if not ordered:
            raise no_data_set(folder, "has no subfolder")
        pictures = [path for name in ordered for path in pictures_below(folder / name, passed_over=MASKS)]
        if not pictures:
            raise no_data_set(folder, "has no image in its subfolders")
        if _SPLITS.issuperset(map(str.lower, ordered)) and all(path.parent.parent != folder for path in pictures):
            raise no_data_set(folder, f"holds {', '.join(ordered)}, each with folders of its own: give one of them")
        self._folder = folder
        self.names = sorted(path.relative_to(folder).as_posix() for path in pictures)
        self._outputs = outputs.of({name.partition("/")[0] for name in self.names}, ordered)

    def targets(self, name: str) -> tuple[int, ...]:
        return (self._outputs[name.partition("/")[0]],)

    def sample(self, name: str) -> Sample:
        picture = open_picture(self._folder / name)
        return Sample(picture, dict.fromkeys(self.targets(name), self._mask(name, picture.size)))

    def _mask(self, name: str, size: tuple[int, int]) -> Image.Image | None:
        path = PurePosixPath(name)
        for place in (path.parent / MASKS / f"{path.stem}.png", MASKS / path.with_suffix(".png")):
            if (self._folder / place).is_file():
                return _fitting(self._folder / place, size)
        return None


class MaskedPictures(AnnotatedPictures[str]):
    """Images in a folder, whose objects of each class are in ``masks/CLASS/NAME.png``.

    For a model of one output they may be in ``masks/NAME.png``. Images without a mask are left out.
    """

    def __init__(self, folder: Path, outputs: Outputs) -> None:
        classes = folders_in(folder / MASKS)
        if not classes and outputs.count > 1:
            raise no_data_set(folder, f"has images with masks but no classes, and the model {outputs.count} outputs")
        places = {name: f"{MASKS}/{name}" for name in classes} or {"0": MASKS}
        masks = {place: set(pictures_in(folder / place)) for place in places.values()}
        objects = {
            name: {
                class_name: [f"{place}/{mask}"]
                for class_name, place in places.items()
                if (mask := f"{PurePosixPath(name).stem}.png") in masks[place]
            }
            for name in pictures_in(folder)
        }
        objects = {name: of for name, of in objects.items() if of}
        if not objects:
            raise no_data_set(folder, f"has no image with a mask of its name in {MASKS}")
        super().__init__(folder, objects, outputs, list(places))

    def _mask(self, size: tuple[int, int], objects: list[str]) -> Image.Image:
        return reduce(ImageChops.lighter, (_fitting(self._folder / place, size) for place in objects))


def has_masks(folder: Path) -> bool:
    """Whether there are images in the folder and masks beside them."""
    return (folder / MASKS).is_dir() and bool(pictures_in(folder))


def _fitting(path: Path, size: tuple[int, int]) -> Image.Image:
    mask = open_mask(path)
    if mask.size != size:
        raise Failure(f"{path}: is {mask.width}x{mask.height}, but its image {size[0]}x{size[1]}; give its own mask.")
    return mask
