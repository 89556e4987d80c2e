"""Classes of a picture explained: UnionCAM's maps with GradCAM beside them, and what is recorded of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor

from captum_unioncam.attr.union_cam import LayerUnionCam, UnionCamDetails
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.models.zoo import DEMO_MODEL
from captum_unioncam.system.versions import package_versions


@dataclass(frozen=True)
class Settings:
    """What pictures are explained with; all of it goes into the record.

    Args:
        model, weights, preprocess: As ``load_classifier`` takes them.
        layer (str or None): Dotted name of the layer to explain. Default: None, the classifier's own, or else the last
            whose output has space
        device (str or None): Where to compute. Default: None, "cuda" where there is one, and "cpu" elsewhere
        confidence (str): As ``ExplainedModel`` takes it. Default: "softmax"
        dtype (str): What the channels are scored in: "float32", "bfloat16" or "float16". Default: "float32"
        batch_size (int or None): Masked pictures in a forward pass. Default: None, the fastest
        theta, channel_weights, max_channels: As ``LayerUnionCam.attribute`` takes them.
    """

    model: str = DEMO_MODEL
    weights: str | None = None
    layer: str | None = None
    preprocess: str = "auto"
    device: str | None = None
    confidence: str = "softmax"
    dtype: str = "float32"
    batch_size: int | None = None
    theta: float = 10.0
    channel_weights: str = "score"
    max_channels: int | None = None

    def attribute_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``LayerUnionCam.attribute``."""
        return {
            "theta": self.theta,
            "channel_weights": self.channel_weights,
            "max_channels": self.max_channels,
            "internal_batch_size": self.batch_size,
            "score_dtype": None if self.dtype == "float32" else getattr(torch, self.dtype),
        }


@dataclass(frozen=True)
class Explanation:
    """One class of one picture explained.

    Args:
        photo (Tensor): The picture as the model saw it, before normalisation: (3, H, W), in [0, 1].
        class_index (int): The explained output of the model.
        class_name (str): Its name.
        confidence (float): The model's confidence in the class.
        settings (Settings): What it was explained with.
        grad_cam (Tensor): GradCAM's map of the layer, (1, 1, h, w), not scaled.
        union_cam (Tensor): UnionCAM's map: the selected one of the union and the region map, (1, 1, h, w), in [0, 1].
        details (UnionCamDetails): How it came to be.
    """

    photo: Tensor
    class_index: int
    class_name: str
    confidence: float
    settings: Settings
    grad_cam: Tensor
    union_cam: Tensor
    details: UnionCamDetails

    @property
    def choice(self) -> str:
        """The selected map: "union" or "region"."""
        return "union" if self.details.union_selected.item() else "region"

    @property
    def betas(self) -> dict[str, float]:
        """The confidence that each map adds to the black image's: "denoised", "region" and "union"."""
        betas = self.details.denoised_beta, self.details.region_beta, self.details.union_beta
        return {name: beta.item() for name, beta in zip(("denoised", "region", "union"), betas, strict=True)}

    def record(self) -> dict[str, Any]:
        """All but the maps, as JSON has it."""
        return {
            "class": {"index": self.class_index, "name": self.class_name},
            "confidence": self.confidence,
            "black_confidence": self.details.baseline_confidence.item(),
            "betas": self.betas,
            "choice": self.choice,
            "forward_passes": int(self.details.forward_passes.item()),
            "settings": asdict(self.settings),
            "versions": package_versions(),
        }

    def npy(self) -> bytes:
        """A file of the raw map at the layer's resolution, (h, w), float32, for ``numpy.load``."""
        file = io.BytesIO()
        np.save(file, self.union_cam[0, 0].cpu().numpy().astype(np.float32), allow_pickle=False)
        return file.getvalue()


class Explainer:
    """Explains pictures with one model and layer.

    Args:
        settings (Settings): What to explain with.
        show_progress (bool): Show the progress of downloads and of masked passes. Default: False
        subject (ExplainedModel or None): The settings' model, with its layer, where it is there already. Default: None,
            it is loaded

    Attributes:
        subject (ExplainedModel): The model.
        settings (Settings): As given, with the layer and the device that were chosen.

    Raises:
        WrongArgument: There is no such model, layer or device, or the layer has no space.
        Failure: The model cannot be loaded, does not run on pictures, or does not return (N, classes).
    """

    def __init__(self, settings: Settings, show_progress: bool = False, subject: ExplainedModel | None = None) -> None:
        self.subject = subject or ExplainedModel(
            settings.model,
            settings.weights,
            settings.layer,
            settings.preprocess,
            settings.device,
            show_progress,
            settings.confidence,
        )
        self.settings = replace(settings, device=str(self.subject.device), layer=self.subject.layer_name)
        self.show_progress = show_progress
        self._union_cam = LayerUnionCam(
            self.subject.model, self.subject.layer, confidence_fn=self.subject.confidence_fn
        )

    def explain(self, picture: Image.Image, target: int | None = None, top_k: int = 1) -> Iterator[Explanation]:
        """Explains one class of a picture, or several.

        Args:
            picture (PIL.Image.Image): In mode RGB, of any size.
            target (int or None): The class to explain. Default: None, the most probable
            top_k (int): Without ``target``, how many of the most probable classes to explain. Default: 1

        Returns:
            *Iterator[Explanation]*: One for each class; the masked passes of all are one sweep.
        """
        subject = self.subject
        shown = subject.shown(picture)
        inputs, black = subject.input_and_baseline(shown)
        confidences = subject.confidences(inputs)[0]
        classes = confidences.topk(min(top_k, subject.classes)).indices.tolist() if target is None else [target]
        union_cams, details = self._union_cam.attribute_targets(
            inputs,
            [classes],
            baselines=black,
            show_progress=self.show_progress,
            return_details=True,
            **self.settings.attribute_arguments(),
        )
        for t, index in enumerate(classes):
            grad_cam = LayerGradCam(subject.model, subject.layer)
            compared = grad_cam.attribute(inputs.clone(), index, relu_attributions=True)
            yield Explanation(
                photo=shown,
                class_index=index,
                class_name=subject.classifier.class_name(index),
                confidence=confidences[index].item(),
                settings=self.settings,
                grad_cam=compared.detach(),
                union_cam=union_cams[:, t],
                details=details.of_target(t),
            )
