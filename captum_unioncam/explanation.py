"""Classes of a picture explained: UnionCAM's maps with GradCAM beside them, and what is recorded of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam.errors import Failure, WrongArgument, one_line
from captum_unioncam.layers import find_spatial_layer
from captum_unioncam.masked_scoring import class_confidence
from captum_unioncam.models import DEMO, load_classifier, suggestion
from captum_unioncam.union_cam import LayerUnionCam, UnionCamDetails

_PACKAGES = ("captum-unioncam", "captum", "torch", "torchvision", "pillow")


@dataclass(frozen=True)
class Settings:
    """What pictures are explained with; all of it goes into the record.

    Args:
        model, weights, preprocess: As ``load_classifier`` takes them.
        layer (str or None): Dotted name of the layer to explain. Default: None, the classifier's own, or else the last
            whose output has space
        device (str or None): Where to compute. Default: None, "cuda" where there is one, and "cpu" elsewhere
        dtype (str): What the channels are scored in: "float32", "bfloat16" or "float16". Default: "float32"
        batch_size (int or None): Masked pictures in a forward pass. Default: None, the fastest
        theta, channel_weights, max_channels: As ``LayerUnionCam.attribute`` takes them.
    """

    model: str = DEMO
    weights: str | None = None
    layer: str | None = None
    preprocess: str = "auto"
    device: str | None = None
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
            "versions": _versions(),
        }

    def npy(self) -> bytes:
        """A file of the raw map at the layer's resolution, (h, w), float32, for ``numpy.load``."""
        file = io.BytesIO()
        np.save(file, self.union_cam[0, 0].cpu().numpy().astype(np.float32), allow_pickle=False)
        return file.getvalue()


class Explainer:
    """Explains pictures with one model and layer.

    The model is run on a black picture first, to find the layer and to see that all goes together.

    Args:
        settings (Settings): What to explain with.
        show_progress (bool): Show the progress of downloads and of masked passes. Default: False

    Attributes:
        settings (Settings): As given, with the layer and the device that were chosen.
        layer_found (bool): Whether the layer was neither given nor the classifier's own.
        classes (int): How many the model tells apart.

    Raises:
        WrongArgument: There is no such model, layer or device, or the layer has no space.
        Failure: The model cannot be loaded, does not run on pictures, or does not return (N, classes).
    """

    def __init__(self, settings: Settings, show_progress: bool = False) -> None:
        device = _device(settings.device)
        weights = None if settings.weights is None else Path(settings.weights)
        self.classifier = load_classifier(settings.model, weights, settings.preprocess, show_progress)
        self.model = self.classifier.model
        self.settings = replace(settings, device=str(device))
        self.show_progress = show_progress
        black, self.classes = self._try_out()
        layer = settings.layer or self.classifier.explained_layer
        self.layer_found = layer is None
        layer, self._layer = self._find_layer(black) if layer is None else self._named_layer(layer, black)
        self.settings = replace(self.settings, layer=layer)
        self._union_cam = LayerUnionCam(self.model, self._layer)

    def class_index(self, target: str) -> int:
        """The class of that index or name.

        Raises:
            WrongArgument: There is none, or the name is that of several.
        """
        if target.lstrip("-").isdecimal():
            if 0 <= int(target) < self.classes:
                return int(target)
            raise WrongArgument(f"--target {target}: there are the classes 0 to {self.classes - 1}.")
        names = [name.casefold() for name in self.classifier.class_names or ()]
        indices = [index for index, name in enumerate(names) if name == target.casefold()]
        if len(indices) == 1:
            return indices[0]
        if indices:
            raise WrongArgument(f"--target {target}: is the name of the classes {indices}; give the index.")
        if not names:
            raise WrongArgument(
                f"--target {target}: the names of this model's classes are not known; give an index from 0 to "
                f"{self.classes - 1}."
            )
        raise WrongArgument(f"--target: there is no class {target!r}{suggestion(target.casefold(), names)}")

    def explain(self, picture: Image.Image, target: int | None = None, top_k: int = 1) -> Iterator[Explanation]:
        """Explains one class of a picture, or several.

        Args:
            picture (PIL.Image.Image): In mode RGB, of any size.
            target (int or None): The class to explain. Default: None, the most probable
            top_k (int): Without ``target``, how many of the most probable classes to explain. Default: 1

        Returns:
            *Iterator[Explanation]*: One for each class; the masked passes of all are one sweep.
        """
        shown = self._shown(picture)
        inputs, black = self._input_and_baseline(shown)
        confidences = self._confidences(inputs)[0]
        classes = confidences.topk(min(top_k, self.classes)).indices.tolist() if target is None else [target]
        union_cams, details = self._union_cam.attribute_targets(
            inputs,
            [classes],
            baselines=black,
            show_progress=self.show_progress,
            return_details=True,
            **self.settings.attribute_arguments(),
        )
        for t, index in enumerate(classes):
            grad_cam = LayerGradCam(self.model, self._layer).attribute(inputs.clone(), index, relu_attributions=True)
            yield Explanation(
                photo=shown,
                class_index=index,
                class_name=self.classifier.class_name(index),
                confidence=confidences[index].item(),
                settings=self.settings,
                grad_cam=grad_cam.detach(),
                union_cam=union_cams[:, t],
                details=details.of_target(t),
            )

    def _shown(self, picture: Image.Image) -> Tensor:
        return self.classifier.preprocessing.fit(picture)

    def _input_and_baseline(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next((parameter.dtype for parameter in self.model.parameters()), torch.float32)
        normalized = self.classifier.preprocessing.normalized
        inputs, black = (
            normalized(x).unsqueeze(0).to(self.settings.device, dtype) for x in (shown, torch.zeros_like(shown))
        )
        return inputs, black

    def _try_out(self) -> tuple[Tensor, int]:
        """A black input, and the number of classes that the model has for it."""
        shown = self._shown(Image.new("RGB", (256, 256)))
        try:
            self.model.to(self.settings.device)
            black, _ = self._input_and_baseline(shown)
            return black, self._confidences(black).shape[1]
        except Failure:
            raise
        except Exception as error:
            # A user's model may raise anything.
            raise Failure(
                f"--model {self.classifier.name}: cannot run on pictures of shape {tuple(shown.shape)}: "
                f"{one_line(error)}; try another --preprocess or --device."
            ) from error

    @torch.no_grad()
    def _confidences(self, inputs: Tensor) -> Tensor:
        """Class confidences (1, classes)."""
        # A copy, since the model may write into its input.
        output = self.model(inputs.clone())
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != 1:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise Failure(
                f"--model {self.classifier.name}: returned {what} for one picture; give a model that returns a tensor "
                "of shape (1, classes)."
            )
        return class_confidence(output.float())

    def _find_layer(self, inputs: Tensor) -> tuple[str, Module]:
        try:
            return find_spatial_layer(self.model, inputs)
        except ValueError as error:
            raise WrongArgument(f"{one_line(error)} Give --layer.") from error

    def _named_layer(self, name: str, inputs: Tensor) -> tuple[str, Module]:
        layers = dict(self.model.named_modules())
        if name not in layers:
            raise WrongArgument(f"--layer: the model has no layer {name!r}{suggestion(name, layers)}")
        outputs: list[Any] = []
        handle = layers[name].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            self._confidences(inputs)
        finally:
            handle.remove()
        shape = tuple(outputs[-1].shape) if outputs and isinstance(outputs[-1], Tensor) else None
        if shape is None or len(shape) != 4 or shape[2] * shape[3] == 1:
            what = "does not run" if not outputs else f"has {shape or type(outputs[-1]).__name__} as output"
            raise WrongArgument(
                f"--layer {name}: {what}; give a layer that maps pictures, (1, channels, height, width)."
            )
        return name, layers[name]


def _versions() -> dict[str, str]:
    """The installed versions of the packages that the numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # What torch can name need not be there.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise WrongArgument(f"--device {name}: is not there; give cpu, or leave it out.") from error
    return device
