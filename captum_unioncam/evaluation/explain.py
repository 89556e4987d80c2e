"""Explains classes of an image by any method, with Grad-CAM for comparison, and records how."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captum_unioncam import demo
from captum_unioncam.attr.union_cam import UnionCamDetails
from captum_unioncam.engine.accelerators import fast_dtype
from captum_unioncam.engine.maps import up
from captum_unioncam.evaluation.judge import Judge
from captum_unioncam.methods.registry import PEER_PACKAGES, with_defaults
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.models.zoo import DEMO_MODEL
from captum_unioncam.system.errors import Failure, WrongArgument
from captum_unioncam.system.versions import package_versions

# Shown for comparison with every method.
_COMPARED = "grad_cam"

_LOW_CONFIDENCE = 0.2

# A difference of betas that shows in two digits.
_NOTICEABLE = 0.01

QUALITIES = {"exact": None, "balanced": 128, "fast": 32}
"""Presets, by how many channels of an image they score."""


@dataclass(frozen=True)
class Settings:
    """How images are explained. All of it goes into the record.

    Args:
        model, weights, preprocess: As ``load_classifier`` takes them.
        layer (str or None): Dotted name of the layer to explain. Default: None, the classifier's own, or else the last
            with a spatial output
        device (str or None): Where to compute. Default: None, the accelerator (CUDA, XPU, MPS) if there
            is one, else "cpu"
        confidence (str): As ``ExplainedModel`` takes it. Default: "softmax"
        dtype (str): Precision in which channels are scored: "float32", "bfloat16" or "float16". Default: "float32"
        batch_size (int or None): Batch size of the masked forward passes. Default: None, the fastest
        theta, channel_weights, max_channels, channel_selection: As ``MethodSettings`` takes them. Default: None, the
            method's own
        method (str): As ``captum_unioncam.methods`` knows it. Default: "union_cam"
        class_names (str or None): A file of the classes' names, in the order of the model's outputs: one a line, or a
            list in ``.json``. Default: None, the model's own
        output_fn (str or None): As ``ExplainedModel`` takes it, by name. Default: None
    """

    model: str = DEMO_MODEL
    weights: str | None = None
    layer: str | None = None
    preprocess: str = "auto"
    device: str | None = None
    confidence: str = "softmax"
    dtype: str = "float32"
    batch_size: int | None = None
    theta: float | None = None
    channel_weights: str | None = None
    max_channels: int | None = None
    channel_selection: str | None = None
    method: str = "union_cam"
    class_names: str | None = None
    output_fn: str | None = None

    def subject(self, show_progress: bool = False) -> ExplainedModel:
        """Loads the model, on the device, with the layer.

        Raises:
            WrongArgument, Failure: As ``ExplainedModel``.
        """
        names = None if self.class_names is None else _names_in(Path(self.class_names))
        given = self.model, self.weights, self.layer, self.preprocess, self.device
        subject = ExplainedModel(*given, show_progress, self.confidence, self.output_fn)
        if names is not None:
            if len(names) != subject.classes:
                raise WrongArgument(
                    f"class_names={self.class_names!r}: holds {len(names)} names, and the model has {subject.classes} "
                    "classes; give a name for each output."
                )
            subject.classifier = replace(subject.classifier, class_names=names)
        return subject

    def of_quality(self, quality: str, device: torch.device) -> Settings:
        """The settings with a preset's, of ``QUALITIES``: half precision only where the device has the arithmetic."""
        dtype = fast_dtype(device) if quality == "fast" else None
        name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        return replace(self, max_channels=QUALITIES[quality], dtype=name)

    def of_methods(self, show_progress: bool = False) -> MethodSettings:
        """Those of the methods."""
        return MethodSettings(
            theta=self.theta,
            max_channels=self.max_channels,
            internal_batch_size=self.batch_size,
            score_dtype=None if self.dtype == "float32" else getattr(torch, self.dtype),
            channel_weights=self.channel_weights,
            channel_selection=self.channel_selection,
            show_progress=show_progress,
        )


def _names_in(path: Path) -> tuple[str, ...]:
    """The names in a file: the entries of a list in JSON, or else the lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix.lower() == ".json" else text.strip().splitlines()
    except OSError as error:
        raise Failure(f"class_names={str(path)!r}: {error.strerror}; give a file of names.") from error
    except ValueError as error:
        raise Failure(f"class_names={str(path)!r}: cannot be read; give one name a line, in UTF-8, or JSON.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Failure(f"class_names={str(path)!r}: holds no list of names; give one, or one name a line.")
    return tuple(name.strip() for name in names)


def is_photo(picture: Image.Image) -> bool:
    """Whether the image has another size than demo images."""
    return picture.size != demo.load_picture().size


def demo_note(settings: Settings, has_photos: bool) -> str | None:
    """What the demo model knows, where it is given photos."""
    if settings.model != DEMO_MODEL or settings.weights is not None or not has_photos:
        return None
    return (
        f"The demo model knows only {len(demo.CLASS_NAMES)} drawn shapes ({', '.join(demo.CLASS_NAMES)}), and finds "
        "one in any photo; choose another model."
    )


@dataclass(frozen=True)
class Explanation:
    """One class of one image explained.

    Args:
        photo (Tensor): The image as the model saw it, before normalisation: (3, H, W), in [0, 1].
        class_index (int): The explained output of the model.
        class_name (str): Its name.
        confidence (float): The model's confidence in the class.
        settings (Settings): How it was explained.
        map (Tensor): The method's map, (1, 1, h, w), not negative. UnionCAM's is the selected one, in [0, 1].
        grad_cam (Tensor or None): Grad-CAM's map of the layer, (1, 1, h, w), not scaled. Default: None, it failed
        details (Any): Intermediate results, such as ``UnionCamDetails``. Default: None, the method has none
        picture (PIL.Image.Image or None): The image as it was given. Default: None, unknown
        box (tuple or None): The part of it that the model saw, in its pixels: left, top, right, bottom. Default: None,
            unknown
    """

    photo: Tensor
    class_index: int
    class_name: str
    confidence: float
    settings: Settings
    map: Tensor
    grad_cam: Tensor | None = None
    details: Any = None
    picture: Image.Image | None = None
    box: tuple[int, int, int, int] | None = None

    @property
    def warnings(self) -> list[str]:
        """What to know before the map is trusted, a sentence each."""
        note = demo_note(self.settings, self.picture is not None and is_photo(self.picture))
        found = [] if note is None else [note]
        if self.confidence < _LOW_CONFIDENCE and self.settings.confidence != "sigmoid":
            found.append(
                f"The model gives {self.class_name} a confidence of only {self.confidence:.2f}: the map explains a "
                "class that the model hardly sees."
            )
        betas = self.betas
        if betas is None:
            return found
        if max(betas.values()) <= 0:
            found.append(
                "No beta is above 0: no map shows the model more of the class than a black image does, so the maps "
                "explain nothing, and the union, whose weights are not positive, is upside down."
            )
        elif self.choice != "denoised" and betas["denoised"] - betas[str(self.choice)] >= _NOTICEABLE:
            found.append(
                f"The {self.choice} map is selected, though the denoised map's beta is higher: the paper's rule "
                '(Eq. 8) compares union and region only; selection="best" (--method union_cam_best) compares all three.'
            )
        return found

    def original(self) -> tuple[Image.Image, tuple[int, int, int, int]]:
        """The image as it was given, and the part of it that the model saw, in its pixels.

        Raises:
            Failure: They are not known.
        """
        if self.picture is None or self.box is None:
            raise Failure(
                "the part of the image that the model sees is not known; its preprocessing does more than "
                "resize, crop and pad."
            )
        return self.picture, self.box

    def full_map(self) -> npt.NDArray[np.float32]:
        """The map at the image's own resolution, (H, W); NaN where the model did not see the image.

        Raises:
            Failure: The part that it saw is not known.
        """
        picture, (left, top, right, bottom) = self.original()
        full = np.full((picture.height, picture.width), np.nan, np.float32)
        of_box = up(self.map.detach().float(), (bottom - top, right - left))[0, 0].cpu().numpy()
        # Where the preprocessing pads, the box reaches over the image's edge.
        rows, columns = slice(max(top, 0), min(bottom, full.shape[0])), slice(max(left, 0), min(right, full.shape[1]))
        full[rows, columns] = of_box[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        return full

    @property
    def choice(self) -> str | None:
        """UnionCAM's selected map: "union" or "region"; None for other methods."""
        if not isinstance(self.details, UnionCamDetails):
            return None
        if self.details.denoised_selected.item():
            return "denoised"
        return "union" if self.details.union_selected.item() else "region"

    @property
    def betas(self) -> dict[str, float] | None:
        """The confidence that each of UnionCAM's maps adds to the black image's: "denoised", "region" and "union"."""
        if not isinstance(self.details, UnionCamDetails):
            return None
        return {name: getattr(self.details, f"{name}_beta").item() for name in ("denoised", "region", "union")}

    def record(self) -> dict[str, Any]:
        """All but the maps, as JSON values. Entries that are None are left out."""
        known = {
            "class": {"index": self.class_index, "name": self.class_name},
            "confidence": self.confidence,
            "black_confidence": self._number("baseline_confidence"),
            "betas": self.betas,
            "choice": self.choice,
            "forward_passes": self._number("forward_passes"),
            "warnings": self.warnings or None,
            "settings": with_defaults(self.settings.method, asdict(self.settings)),
            "versions": package_versions(*(PEER_PACKAGES if ":" in self.settings.method else ())),
        }
        return {key: value for key, value in known.items() if value is not None}

    def _number(self, name: str) -> float | None:
        """A number of the details, None if they do not have it."""
        value = getattr(self.details, name, None)
        return None if value is None else value.item()

    def npy(self, full: bool = False) -> bytes:
        """The raw map, float32, as a file for ``numpy.load``.

        Args:
            full (bool): At the image's resolution, as ``full_map`` gives it. Default: False, (h, w) as the layer's
        """
        file = io.BytesIO()
        values = self.full_map() if full else self.map[0, 0].cpu().numpy().astype(np.float32)
        np.save(file, values, allow_pickle=False)
        return file.getvalue()


class Explainer:
    """Explains images with one model and layer.

    Args:
        settings (Settings): How to explain.
        show_progress (bool): Show the progress of downloads and of masked passes. Default: False
        subject (ExplainedModel or None): The settings' model with its layer. Default: None, loaded

    Attributes:
        subject (ExplainedModel): The model.
        settings (Settings): As given, with the layer, the device and the confidence that were chosen.

    Raises:
        WrongArgument: There is no such model, layer, device or method, or the layer has no spatial output.
        Failure: The model cannot be loaded, does not run on images, or does not return (N, classes); or the method's
            package is not installed.
    """

    def __init__(self, settings: Settings, show_progress: bool = False, subject: ExplainedModel | None = None) -> None:
        self.subject = subject or settings.subject(show_progress)
        self.settings = replace(
            settings,
            device=str(self.subject.device),
            layer=self.subject.layer_name,
            confidence=self.subject.confidence,
        )
        names = dict.fromkeys((settings.method, _COMPARED))
        self._judge = Judge(self.subject, names, settings.of_methods(show_progress), metrics=())

    def explain(self, picture: Image.Image, target: int | None = None, top_k: int = 1) -> Iterator[Explanation]:
        """Explains one class of an image, or several.

        Args:
            picture (PIL.Image.Image): In mode RGB, of any size.
            target (int or None): The class to explain. Default: None, the most probable
            top_k (int): Without ``target``, how many of the most probable classes to explain. Default: 1

        Returns:
            *Iterator[Explanation]*: One for each class. The masked passes of all classes are one sweep.

        Raises:
            Exception: Whatever the method raises. If Grad-CAM fails, it is left out.
        """
        subject = self.subject
        shown, box = subject.shown(picture), subject.classifier.preprocessing.box_seen(picture.size)
        confidences = self._judge.confidences(shown)
        classes = confidences.topk(min(top_k, subject.classes)).indices.tolist() if target is None else [target]
        pairs = [(method, classes) for method in self._judge.method_names]
        judgements = {}
        for outcome in self._judge.run(pairs, shown, confidences=confidences):
            if outcome.error is not None and outcome.method == self.settings.method:
                raise outcome.error
            judgements[outcome.method] = outcome.judgements
        compared: list[Tensor | None] = [judged.map for judged in judgements[_COMPARED]] or [None] * len(classes)
        for index, judged, grad_cam in zip(classes, judgements[self.settings.method], compared, strict=True):
            yield Explanation(
                photo=shown,
                class_index=index,
                class_name=subject.classifier.class_name(index),
                confidence=judged.confidence,
                settings=self.settings,
                map=judged.map,
                grad_cam=grad_cam,
                details=judged.details,
                picture=picture,
                box=box,
            )
