"""A small trained model, images and data sets to try the methods, without downloads.

Example::

    >>> from captum_unioncam import LayerUnionCam, demo
    >>> model = demo.load_model()
    >>> images, labels, masks = demo.generate(8, seed=0)
    >>> layer = model.get_submodule(demo.EXPLAINED_LAYER)
    >>> union_cam = LayerUnionCam(model, layer)
    >>> attributions = union_cam.attribute(images, target=labels)  # (8, 1, 7, 7)

Imports nothing of the package but system.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from captum_unioncam.demo.data_sets import write_image_folder, write_voc
from captum_unioncam.demo.network import EXPLAINED_LAYER, DemoNet
from captum_unioncam.demo.pictures import CLASS_NAMES, generate

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "CLASS_NAMES",
    "EXPLAINED_LAYER",
    "DemoNet",
    "generate",
    "load_model",
    "load_picture",
    "write_image_folder",
    "write_voc",
]

_FOLDER = Path(__file__).parent


def load_model() -> DemoNet:
    """Returns the trained demo model, on the CPU and in evaluation mode."""
    from safetensors.torch import load_file

    model = DemoNet()
    model.load_state_dict(load_file(_FOLDER / "demo_net.safetensors"))
    return model.eval()


def load_picture() -> Image.Image:
    """Returns the demo image: a star among clutter, RGB, 112x112."""
    from PIL import Image

    with Image.open(_FOLDER / "picture.png") as picture:
        return picture.convert("RGB")
