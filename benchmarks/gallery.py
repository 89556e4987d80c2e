"""Pictures for the README and the documentation: ``IMAGENET_SAMPLE=... python -m benchmarks.gallery [NAMES]``.

Without NAMES, all are drawn into ``docs/``; those on photos need the sample's trained MobileNetV2. The photos are in
the public domain: Grace Hopper, which comes with matplotlib, and chelsea, coffee and astronaut, which come with
scikit-image. ``docs/photos.license`` names their authors.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib.cbook
import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from benchmarks import imagenet_sample
from captum_unioncam import LayerUnionCam, demo, fuse, methods, metrics, shared_passes
from captum_unioncam.attr.base import CAMS
from captum_unioncam.engine.maps import blend, minmax, up
from captum_unioncam.evaluation.sanity import model_randomization
from captum_unioncam.models.preprocessing import Preprocessing
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.report.images import as_picture, laid_over
from captum_unioncam.report.panels import HeatMap, panel, png
from captum_unioncam.report.sanity import randomization_plot
from captum_unioncam.system.errors import Failure
from captum_unioncam.system.files import write_whole
from captum_unioncam.targets import PairTarget

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = Path(__file__).parent / "results"
WIDTH = 1500
CHANNELS = 128
NETWORK = "benchmarks.imagenet_sample:load_model"
UNIFORM = 652
"""The number of ImageNet's class military uniform."""
EARLY_TO_LATE = {
    "1.features.7.conv.0": "early, 28x28",
    "1.features.14.conv.0": "middle, 14x14",
    "1.features.18": "last, 7x7",
}
PEERS = {"torchcam:ScoreCAM": "torchcam, ScoreCAM", "grad_cam:ScoreCAM": "grad-cam, ScoreCAM"}


class Seen:
    """A photo as the trained MobileNetV2 sees it, and the maps of its classes.

    Args:
        photo (PIL.Image.Image): In mode RGB.
    """

    def __init__(self, photo: Image.Image) -> None:
        self.subject = trained()
        self.shown = self.subject.shown(photo)
        self.inputs, self.black = self.subject.input_and_baseline(self.shown)
        self.confidences = self.subject.confidences(self.inputs)[0]
        self.ranked = self.confidences.argsort(descending=True).tolist()
        self.target = torch.tensor(self.ranked[:1])

    def title(self, target: int) -> str:
        """A class's name and the confidence in it."""
        return f"{imagenet_sample.sample().class_names()[target]}  {self.confidences[target]:.2f}"

    def union_cam(self, layer: object = None, **options: object) -> Tensor:
        """UnionCAM's map of the predicted class, by default of the last layer and 128 scored channels."""
        options = {"target": self.target, "baselines": self.black, "max_channels": CHANNELS, **options}
        cam = LayerUnionCam(self.subject.model, layer or self.subject.layer)
        return cam.attribute(self.inputs, **options)


@cache
def trained() -> ExplainedModel:
    """The sample's MobileNetV2, which sees the middle square of a photo."""
    return ExplainedModel(NETWORK, layer=imagenet_sample.LAYER, preprocess="size=256 crop=224")


def three_methods() -> Figure:
    """Grad-CAM, Score-CAM and UnionCAM of a cup of coffee."""
    seen = Seen(Image.fromarray(skimage.data.coffee()))
    settings = methods.MethodSettings(max_channels=CHANNELS)
    heat_maps = []
    with shared_passes():
        for name, title in {"grad_cam": "Grad-CAM", "score_cam": "Score-CAM", "union_cam": "UnionCAM"}.items():
            attribute = methods.create(name, seen.subject.model, seen.subject.layer, settings)
            heat_maps.append(HeatMap(attribute(seen.inputs, seen.target, seen.black), title))
    return panel(seen.shown, heat_maps, seen.title(seen.ranked[0]))


def methods_photo() -> Figure:
    """Every method on the photo of Grace Hopper."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB")
    # The whole photo, since its middle square cuts off the cap.
    subject = ExplainedModel(NETWORK, layer=imagenet_sample.LAYER)
    shown = subject.shown(photo)
    confidence = subject.confidences(subject.input_and_baseline(shown)[0])[0, UNIFORM]
    return all_methods(subject, shown, UNIFORM, f"military uniform  {confidence:.2f}")


def methods_demo() -> Figure:
    """Every method on the demo image."""
    subject = ExplainedModel("demo", layer=demo.EXPLAINED_LAYER)
    shown = subject.shown(demo.load_picture())
    confidences = subject.confidences(subject.input_and_baseline(shown)[0])[0]
    target = int(confidences.argmax())
    return all_methods(subject, shown, target, f"{demo.CLASS_NAMES[target]}  {confidences[target]:.2f}")


def all_methods(subject: ExplainedModel, shown: Tensor, target: int, title: str) -> Figure:
    """The map of every method that explains a layer, and of RISE, with 64 scored channels."""
    inputs, black = subject.input_and_baseline(shown)
    heat_maps = []
    for name in sorted([*CAMS, "grad_cam", "rise"]):
        start = time.perf_counter()
        try:
            attribute = methods.create(name, subject.model, subject.layer, methods.MethodSettings(max_channels=64))
            heat_maps.append(HeatMap(attribute(inputs, torch.tensor([target]), black), name))
        except (Failure, ValueError) as error:
            print(f"{name}: left out: {error}")
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    return panel(shown, heat_maps, f"{title}   |   layer {subject.layer_name}")


def baselines() -> Figure:
    """A photo masked over grey, which is 0 after normalisation, and over black, with the maps of each baseline."""
    seen = Seen(Image.fromarray(skimage.data.chelsea()))
    photo = as_picture(seen.shown)
    mask = minmax(up(seen.union_cam(), seen.shown.shape[1:]))
    pictures = [("photo", photo)]
    for name, baseline in {"grey (0 after normalisation)": 0.5 + 0 * seen.black, "black": seen.black}.items():
        pictures.append((f"masked over\n{name}", as_picture(blend(mask, seen.inputs, baseline)[0])))
        pictures.append((f"UnionCAM, baseline\n{name}", laid_over(photo, seen.union_cam(baselines=baseline))))
    return row(pictures)


def layers() -> Figure:
    """UnionCAM of an early, a middle and the last layer, and the maximum of the three."""
    seen = Seen(Image.fromarray(skimage.data.chelsea()))
    maps = seen.union_cam(list(EARLY_TO_LATE))
    heat_maps = [HeatMap(one, title) for one, title in zip(maps, EARLY_TO_LATE.values(), strict=True)]
    heat_maps.append(HeatMap(fuse(maps, seen.inputs.shape[2:]), "fused"))
    return panel(seen.shown, heat_maps, seen.title(seen.ranked[0]))


def channels() -> Figure:
    """UnionCAM from few scored channels and from all."""
    seen = Seen(Image.fromarray(skimage.data.chelsea()))
    counts = {16: "16 channels", 32: "32 channels", 128: "128 channels", None: "all channels"}
    heat_maps = [HeatMap(seen.union_cam(max_channels=count), title) for count, title in counts.items()]
    return panel(seen.shown, heat_maps, seen.title(seen.ranked[0]))


def classes() -> Figure:
    """UnionCAM of three classes of the portrait of an astronaut."""
    seen = Seen(Image.fromarray(skimage.data.astronaut()))
    cam = LayerUnionCam(seen.subject.model, seen.subject.layer)
    names = imagenet_sample.sample().class_names()
    chosen = [names.index(name) for name in ("jersey", "football helmet", "space shuttle")]
    maps = cam.attribute_targets(seen.inputs, torch.tensor([chosen]), baselines=seen.black, max_channels=CHANNELS)
    return panel(seen.shown, [HeatMap(maps[:, i], seen.title(one)) for i, one in enumerate(chosen)], "")


def pairs() -> Figure:
    """UnionCAM of two breeds of cats, and of each against the other."""
    seen = Seen(Image.fromarray(skimage.data.chelsea()))
    one, other = seen.ranked[:2]
    heat_maps = [HeatMap(seen.union_cam(target=torch.tensor([a])), seen.title(a)) for a in (one, other)]
    names = imagenet_sample.sample().class_names()
    for a, b in ((one, other), (other, one)):
        pair = LayerUnionCam(PairTarget(a, b)(seen.subject.model), seen.subject.layer, confidence_fn=torch.sigmoid)
        attr = pair.attribute(seen.inputs, baselines=seen.black, max_channels=CHANNELS)
        heat_maps.append(HeatMap(attr, f"{names[a]},\nnot {names[b]}"))
    return panel(seen.shown, heat_maps, "")


def packages() -> Figure:
    """Score-CAM by torchcam, by grad-cam and by this package, on the demo image."""
    subject = ExplainedModel("demo", layer=demo.EXPLAINED_LAYER)
    shown = subject.shown(demo.load_picture())
    inputs, black = subject.input_and_baseline(shown)
    target = subject.confidences(inputs).argmax(1)
    settings = methods.MethodSettings(channel_weights="softmax")
    names = {**PEERS, "score_cam": 'LayerScoreCam,\nchannel_weights="softmax"'}
    heat_maps = []
    for name, title in names.items():
        attribute = methods.create(name, subject.model, subject.layer, settings)
        heat_maps.append(HeatMap(attribute(inputs, target, black), title))
    return panel(shown, heat_maps, demo.CLASS_NAMES[int(target)])


def curves() -> Figure:
    """Deletion and insertion, from and to black, by UnionCAM's pixels and Grad-CAM's, and the photo on the way."""
    seen = Seen(Image.fromarray(skimage.data.coffee()))
    grad_cam = methods.create("grad_cam", seen.subject.model, seen.subject.layer)
    maps = {"UnionCAM": seen.union_cam(), "Grad-CAM": grad_cam(seen.inputs, seen.target, seen.black)}
    values = up(maps["UnionCAM"], seen.shown.shape[1:])
    first = (values >= values.quantile(0.8)).float()
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1.3, 1, 1.3))
    for name, shown, title, judge in (
        ("deletion", 1 - first, "20 % deleted", metrics.deletion),
        ("insertion", first, "20 % inserted", metrics.insertion),
    ):
        (picture, plot), axes = axes[:2], axes[2:]
        picture.imshow(as_picture(blend(shown, seen.inputs, seen.black)[0]))
        picture.set_title(f"{title}, by UnionCAM", fontsize=10)
        picture.set_axis_off()
        for method, attr in maps.items():
            options = {"baselines": seen.black, "steps": 50, "return_curve": True}
            area, shares, confidences = judge(seen.subject.model, seen.inputs, attr, seen.target, **options)
            plot.plot(shares, confidences[0], label=f"{method}, area {area[0]:.2f}")
        plot.set(title=name, xlabel="share of the pixels", ylabel="confidence", ylim=(0, 1.02))
        plot.legend(frameon=False)
    return figure


def randomization() -> Figure:
    """How alike maps stay as layers of the demo model are reinitialised, on eight images."""
    model = demo.load_model()
    images, labels, _ = demo.generate(8, seed=2024)
    names = ["union_cam", "grad_cam", "saliency"]
    return randomization_plot(model_randomization(model, names, images, labels, demo.EXPLAINED_LAYER))


def objects() -> Figure:
    """A box and a mask of two generated images side by side, and both after the preprocessing."""
    fit = v2.Compose([v2.Resize(128), v2.CenterCrop(112), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images, _, masks = demo.generate(2, seed=5)
    picture, mask = (as_picture(torch.cat([*pair.expand(2, 3, 112, 112).float()], 2)) for pair in (images, masks))
    mask = mask.convert("L")
    boxed, boxes = Image.new("L", mask.size), []
    for x, one in zip((0, 112), masks[:, 0], strict=True):
        rows, columns = one.nonzero(as_tuple=True)
        boxes.append((int(columns.min()) + x, int(rows.min()), int(columns.max()) + x + 1, int(rows.max()) + 1))
        boxed.paste(255, boxes[-1])
    seen, follow = Preprocessing(fit), as_picture(fit(picture))
    return row(
        [
            ("picture with boxes", tinted(picture, np.array(boxed) > 0)),
            ("in the model's input", tinted(follow, seen.objects_seen(boxed, boxes).numpy())),
            ("picture with masks", tinted(picture, np.array(mask) > 0)),
            ("in the model's input", tinted(follow, seen.objects_seen(mask).numpy())),
        ]
    )


def tinted(picture: Image.Image, marked: NDArray[np.bool_]) -> Image.Image:
    """The image, dark except where it is marked."""
    pixels = np.array(picture)
    return Image.fromarray(np.where(marked[..., None], pixels, pixels // 3))


def drops() -> Figure:
    """Each method's average drop on photos, from the table of results."""
    text = (RESULTS / "faithfulness-sample.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| \**([\d.]+) \[([\d.]+), ([\d.]+)\]", text.split("###")[1], re.MULTILINE)
    names, values = [name for name, *_ in rows], np.array([numbers for _, *numbers in rows], float)
    mean, low, high = values.T
    figure = Figure(figsize=(9, 0.3 * len(rows) + 0.8), layout="constrained")
    axis = figure.subplots()
    colors = ["C0" if "union" in name else "C7" for name in names]
    axis.barh(names, mean, xerr=[mean - low, high - mean], color=colors, error_kw={"ecolor": "black", "capsize": 3})
    axis.invert_yaxis()
    axis.set_xlabel("average drop in % (smaller is better), with 95 % intervals; MobileNetV2, 60 photos")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def differences() -> Figure:
    """Each method's differences from union_cam on the photos, image by image, from the table of results."""
    text = (RESULTS / "faithfulness-sample-64ch-bfloat16.md").read_text().split("## Differences")[1]
    sections = [section for section in text.split("###") if "average drop" in section or "insertion" in section]
    cells = {"average drop (%)": (0, 0), "insertion": (1, 0), "deletion": (1, 1)}
    names = re.findall(r"^\| `(\S+)`", sections[0], re.MULTILINE)
    figure = Figure(figsize=(11, 0.24 * len(names) + 1), layout="constrained")
    axes = figure.subplots(1, len(cells), sharey=True)
    for axis, (title, (section, column)) in zip(axes, cells.items(), strict=True):
        rows = dict(re.findall(r"^\| `(\S+)` \| (.*) \|$", sections[section], re.MULTILINE))
        for name in names:
            number = r"[+-][\d.]+"
            cell = rows[name].split(" | ")[column]
            mean, low, high = map(float, re.findall(number, cell)[:3])
            # The table has the better ones in bold, by digits that it does not show.
            color = "C0" if "**" in cell else "0.55" if low <= 0 <= high else "C3"
            axis.errorbar(mean, name, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=2, markersize=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("minus union_cam's; " + ("larger" if title == "insertion" else "smaller") + " is better")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    return figure


def row(pictures: Sequence[tuple[str, Image.Image]]) -> Figure:
    """Pictures side by side, with their titles."""
    figure = Figure(figsize=(2.6 * len(pictures), 3.2), layout="constrained")
    for axis, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    return figure


def jpeg(figure: bytes) -> bytes:
    """An image as a JPEG file, ``WIDTH`` pixels wide."""
    with Image.open(io.BytesIO(figure)) as drawn:
        page = drawn.convert("RGB")
    page.thumbnail((WIDTH, page.height))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=85)
    return file.getvalue()


ON_THE_DEMO = {
    "methods-demo": methods_demo,
    "packages": packages,
    "randomization": randomization,
    "drops": drops,
    "differences": differences,
    "objects": objects,
}
ON_PHOTOS = {
    "three-methods": three_methods,
    "methods-photo": methods_photo,
    "baselines": baselines,
    "layers": layers,
    "channels": channels,
    "classes": classes,
    "pairs": pairs,
    "curves": curves,
}


def main() -> None:
    """Writes the images that are named, or all."""
    pictures: dict[str, Callable[[], Figure]] = {**ON_THE_DEMO, **ON_PHOTOS}
    for name in sys.argv[1:] or pictures:
        if name in ON_PHOTOS and imagenet_sample.sample() is None:
            print(f"{name}: left out: IMAGENET_SAMPLE names no folder")
            continue
        write_whole(DOCS / f"{name}.jpg", jpeg(png(pictures[name]())))
        print(name, flush=True)


if __name__ == "__main__":
    main()
