"""Generated images, with the objects' true masks."""

from pathlib import Path

from captum_unioncam.datasets.base import DEMO_DATA, DataSet, Sample
from captum_unioncam.datasets.classes import Outputs
from captum_unioncam.demo.data_sets import draw
from captum_unioncam.demo.pictures import CLASS_NAMES

DEMO_PICTURES = 1000
DEMO_SEED = 2024
"""Not in the demo network's training set."""


class GeneratedPictures(DataSet):
    """Images of the demo's generator, drawn on demand, with true masks."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs.of(CLASS_NAMES, ordered=CLASS_NAMES)
        self.names = [f"{DEMO_DATA}/{index:05d}.png" for index in range(DEMO_PICTURES)]

    def targets(self, name: str) -> tuple[int, ...]:
        return tuple(self.sample(name).objects)

    def sample(self, name: str) -> Sample:
        drawn = draw(DEMO_SEED, int(Path(name).stem))
        return Sample(drawn.picture, {self._outputs[drawn.class_name]: drawn.mask})
