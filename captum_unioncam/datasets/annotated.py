"""Images with annotated objects of any number of classes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from captum_unioncam.datasets.base import DataSet, Sample
from captum_unioncam.datasets.boxes import Box, mask_of_boxes
from captum_unioncam.datasets.classes import Outputs, by_output
from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.system.errors import Failure

ObjectT = TypeVar("ObjectT")


class AnnotatedPictures(DataSet, Generic[ObjectT]):
    """Images with the objects of their classes.

    Args:
        folder (Path): That the names are relative to.
        objects (Mapping): By image, its objects by class; or why they cannot be read.
        outputs (Outputs): Of the model.
        ordered (Sequence[str] or None): All possible classes in order. Default: None, those of the images, sorted
    """

    def __init__(
        self,
        folder: Path,
        objects: Mapping[str, Mapping[str, list[ObjectT]] | Failure],
        outputs: Outputs,
        ordered: Sequence[str] | None = None,
    ) -> None:
        self._folder = folder
        self.names = sorted(objects)
        # An error that is raised anew each time would keep the frames of all of them.
        self._problems = {name: str(of) for name, of in objects.items() if isinstance(of, Failure)}
        known = {name: of for name, of in objects.items() if not isinstance(of, Failure)}
        found = {class_name for of in known.values() for class_name in of}
        output_of = outputs.of(found, sorted(found) if ordered is None else ordered)
        self._objects = {name: by_output(of, output_of) for name, of in known.items()}

    def targets(self, name: str) -> tuple[int, ...]:
        if name in self._problems:
            raise Failure(self._problems[name])
        return tuple(self._objects[name])

    def sample(self, name: str) -> Sample:
        targets = self.targets(name)
        picture = open_picture(self._folder / name)
        try:
            masks = {target: self._mask(picture.size, self._objects[name][target]) for target in targets}
        except ValueError as error:
            raise Failure(f"{self._folder / name}: {error}; give the annotation of this image.") from error
        return Sample(picture, masks)

    @abstractmethod
    def _mask(self, size: tuple[int, int], objects: list[ObjectT]) -> Image.Image:
        """The objects' mask, as ``Sample`` has it.

        Raises:
            ValueError: They do not fit an image of that size.
        """


class BoxedPictures(AnnotatedPictures[Box]):
    """Images with boxes."""

    def sample(self, name: str) -> Sample:
        sample = super().sample(name)
        boxes = {target: self._boxes(sample.picture.size, of) for target, of in self._objects[name].items()}
        return replace(sample, boxes=boxes)

    def _mask(self, size: tuple[int, int], objects: list[Box]) -> Image.Image:
        return mask_of_boxes(size, self._boxes(size, objects))

    def _boxes(self, size: tuple[int, int], objects: list[Box]) -> list[Box]:
        """The boxes in pixels of an image of that size."""
        return objects
