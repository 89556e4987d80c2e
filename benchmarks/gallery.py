"""Pictures of maps for README and documentation: on the demo picture, and on photos in the public domain.

``IMAGENET_SAMPLE=... python -m benchmarks.gallery`` writes ``docs/methods-demo.jpg`` with every CAM. With the sample's
trained MobileNetV2 it also writes ``docs/methods-photo.jpg``, of the photo of Grace Hopper that comes with matplotlib
(by James S. Davis, United States Navy, 1984), and, of photos that come with scikit-image, README's
``docs/three-methods.jpg`` (the licence is in ``docs/three-methods.license``). With ``--three`` it writes that alone.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import matplotlib.cbook
import skimage.data
import torch
from PIL import Image

from benchmarks import imagenet_sample
from captum_unioncam import demo, methods, shared_passes
from captum_unioncam.attr.base import CAMS
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.report.panels import HeatMap, panel, png
from captum_unioncam.system.errors import Failure
from captum_unioncam.system.files import write_whole

DOCS = Path(__file__).parent.parent / "docs"
WIDTH = 1500
SETTINGS = methods.MethodSettings(max_channels=64)


def gallery(subject: ExplainedModel, picture: Image.Image, target: int, class_name: str) -> bytes:
    """The picture and the map of every method that explains a layer, with RISE, as a JPEG file of a page's width."""
    shown = subject.shown(picture)
    inputs, black = subject.input_and_baseline(shown)
    heat_maps = []
    for name in sorted([*CAMS, "grad_cam", "rise"]):
        start = time.perf_counter()
        try:
            attribute = methods.create(name, subject.model, subject.layer, SETTINGS)
            heat_maps.append(HeatMap(attribute(inputs, torch.tensor([target]), black), name))
        except (Failure, ValueError) as error:
            print(f"{name}: left out: {error}")
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    confidence = subject.confidences(inputs)[0, target]
    figure = png(panel(shown, heat_maps, f"{class_name}  {confidence:.2f}   |   layer {subject.layer_name}"))
    return jpeg(figure)


def three_methods(subject: ExplainedModel) -> bytes:
    """Grad-CAM, Score-CAM and UnionCAM of a photo, with 128 representatives of the channels, as a JPEG file."""
    photo = Image.fromarray(skimage.data.coffee())
    shown = subject.shown(photo)
    inputs, black = subject.input_and_baseline(shown)
    confidences = subject.confidences(inputs)[0]
    target = int(confidences.argmax())
    names = {"grad_cam": "Grad-CAM", "score_cam": "Score-CAM", "union_cam": "UnionCAM"}
    heat_maps = []
    with shared_passes():
        for name, title in names.items():
            attribute = methods.create(name, subject.model, subject.layer, methods.MethodSettings(max_channels=128))
            heat_maps.append(HeatMap(attribute(inputs, torch.tensor([target]), black), title))
    class_name = imagenet_sample.sample().class_names()[target]
    return jpeg(png(panel(shown, heat_maps, f"{class_name}  {confidences[target]:.2f}")))


def jpeg(figure: bytes) -> bytes:
    """A picture as a JPEG file, ``WIDTH`` pixels wide."""
    with Image.open(io.BytesIO(figure)) as drawn:
        page = drawn.convert("RGB")
    page.thumbnail((WIDTH, page.height))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=85)
    return file.getvalue()


def main() -> None:
    """Writes the pictures that can be made here."""
    if imagenet_sample.sample() is not None:
        subject = ExplainedModel("benchmarks.imagenet_sample:load_model", layer=imagenet_sample.LAYER)
        write_whole(DOCS / "three-methods.jpg", three_methods(subject))
    if "--three" in sys.argv:
        return
    subject = ExplainedModel("demo", layer=demo.EXPLAINED_LAYER)
    picture = demo.load_picture()
    target = int(subject.confidences(subject.input_and_baseline(subject.shown(picture))[0])[0].argmax())
    write_whole(DOCS / "methods-demo.jpg", gallery(subject, picture, target, demo.CLASS_NAMES[target]))
    if imagenet_sample.sample() is None:
        print("methods-photo.jpg: left out: IMAGENET_SAMPLE names no folder")
        return
    subject = ExplainedModel("benchmarks.imagenet_sample:load_model", layer=imagenet_sample.LAYER)
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB")
    write_whole(DOCS / "methods-photo.jpg", gallery(subject, photo, 652, "military uniform"))


if __name__ == "__main__":
    main()
