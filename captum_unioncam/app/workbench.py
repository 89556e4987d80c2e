"""Answers the page's questions, one at a time, and keeps recent models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from PIL import Image

from captum_unioncam import demo
from captum_unioncam.evaluation.compare import Comparison, compare
from captum_unioncam.evaluation.explain import Explanation, Settings
from captum_unioncam.evaluation.judge import Judge
from captum_unioncam.methods.registry import names
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.models.zoo import DEMO_MODEL
from captum_unioncam.report.comparison import comparison_table
from captum_unioncam.report.html import jpeg_uri, render
from captum_unioncam.report.images import as_picture, overlay
from captum_unioncam.system.errors import Failure, WrongArgument

_MODELS_KEPT = 3
_CURVE_STEPS = 50

# UnionCAM's name by its channel weights; it is always shown.
OWN_METHODS = {"score": "union_cam", "softmax": "union_cam_softmax"}


@dataclass(frozen=True)
class Question:
    """A visitor's question.

    Args:
        model (str): One of ``Workbench.model_names``.
        layer (str or None): Dotted name of the layer to explain. Default: None, found
        target (str or None): The class, index or name. Default: None, the most probable
        theta, channel_weights: As ``LayerUnionCam.attribute`` takes them.
        quality (str): A preset, of ``QUALITIES``. Default: "exact"
        methods (tuple[str, ...]): Methods to compare with, from ``methods.names()``. Default: none
    """

    model: str = DEMO_MODEL
    layer: str | None = None
    target: str | None = None
    theta: float = 10.0
    channel_weights: str = "score"
    methods: tuple[str, ...] = ()
    quality: str = "exact"


@dataclass(frozen=True)
class Answer:
    """An answer, as the page shows it.

    Args:
        explanation (Explanation): UnionCAM's.
        comparison (Comparison): UnionCAM and the other methods judged.
        code (str): Lines of Python that compute UnionCAM's map as ``attr``.
    """

    explanation: Explanation
    comparison: Comparison
    code: str

    def page(self) -> str:
        """The answer without the code, as a piece of HTML."""
        explanation, photo = self.explanation, self.explanation.photo
        maps = {name: getattr(explanation.details, f"{name}_map") for name in explanation.betas or ()}
        table = comparison_table(self.comparison)
        return render(
            "app.html",
            explanation=explanation,
            comparison=self.comparison,
            photo=jpeg_uri(as_picture(photo)),
            maps={name: (overlay(photo, values), values.max() > 0) for name, values in maps.items()},
            overlays={name: overlay(photo, each.attribution) for name, each in self.comparison.judgements.items()},
            headings=list(table.columns),
            rows=table.to_numpy().tolist(),
        ).decode()


class Workbench:
    """Answers one visitor at a time, and keeps recent models.

    Args:
        model, weights (str or None): The first model, as ``load_classifier`` takes them. Other models have their own
            weights.
        device (str or None): As ``ExplainedModel`` takes it.

    Attributes:
        model_names (list[str]): The models that visitors may choose: the given one, the embedded one, torchvision's.
        model (str): The given model.
    """

    def __init__(self, model: str = DEMO_MODEL, weights: str | None = None, device: str | None = None) -> None:
        from torchvision import models

        self.model_names = list(dict.fromkeys([model, DEMO_MODEL, *models.list_models(module=models)]))
        self.model, self.weights, self.device = model, weights, device
        self._subject = lru_cache(maxsize=_MODELS_KEPT)(self._load)
        self._working, self._closed = Lock(), False
        self._is_wanted: Callable[[], bool] = _always

    def subject(self, model: str) -> ExplainedModel:
        """The model with its default layer."""
        subject = self._subject(model)
        with self._working:
            subject.set_layer()
        return subject

    def answer(
        self,
        name: str,
        picture: Image.Image,
        question: Question,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Answer:
        """Explains a class of a picture, and compares.

        Args:
            name (str): The picture's file, as the code opens it.
            picture (PIL.Image.Image): In mode RGB, of any size.
            question (Question): The question.
            is_wanted (callable or None): Whether the visitor still waits for the answer; called before each pass of
                the model. Default: None, always

        Raises:
            WrongArgument: There is no such model, layer, class or method.
            Failure: The model cannot be loaded, UnionCAM fails, or the answer is not wanted any more.
        """
        unknown = [method for method in question.methods if method not in names()]
        if unknown:
            # Visitors must not import code, as the registry does for package.module:function.
            raise WrongArgument(f"there is no method {unknown[0]!r}; give some of {', '.join(names())}.")
        with self._working:
            self._is_wanted = is_wanted or _always
            try:
                self._stop_if_unwanted()
                return self._answer(name, picture, question)
            finally:
                self._is_wanted = _always

    def close(self) -> None:
        """Stops the computation at the next pass of its model; torch aborts a process that ends during a pass."""
        self._closed = True
        with self._working:
            pass

    def _answer(self, name: str, picture: Image.Image, question: Question) -> Answer:
        subject = self._subject(question.model)
        subject.set_layer(question.layer)
        own = OWN_METHODS[question.channel_weights]
        target = None if question.target is None else subject.class_index(question.target)
        methods = dict.fromkeys((own, *question.methods))
        settings = Settings(
            question.model,
            subject.weights,
            subject.layer_name,
            theta=question.theta,
            channel_weights=question.channel_weights,
        ).of_quality(question.quality, subject.device)
        # The other methods keep their own channel weights.
        of_methods = replace(settings.of_methods(show_progress=True), channel_weights=None)
        judge = Judge(subject, methods, of_methods, _CURVE_STEPS)
        comparison = compare(judge, name, picture, target, show_progress=True)
        if own in comparison.failures:
            raise Failure(f"UnionCAM: {comparison.failures[own]}")
        explanation = _explanation(comparison, own, settings)
        return Answer(explanation, comparison, python_lines(explanation, name, picture, self.device))

    def _load(self, model: str) -> ExplainedModel:
        if model not in self.model_names:
            # Visitors must not import code, as the loader does for package.module:function.
            raise WrongArgument(f"there is no network {model!r}; choose one of the list.")
        weights = self.weights if model == self.model else None
        subject = ExplainedModel(model, weights, device=self.device, show_progress=True)
        subject.model.register_forward_pre_hook(self._stop_if_unwanted)
        return subject

    def _stop_if_unwanted(self, *_: Any) -> None:
        if self._closed:
            raise Failure("the page is closed; start it again.")
        if not self._is_wanted():
            raise Failure("nobody waits for the answer any more; ask again.")


def _always() -> bool:
    return True


def _explanation(comparison: Comparison, method: str, settings: Settings) -> Explanation:
    """One method's result in a comparison as an explanation."""
    judged = comparison.judgements[method]
    return Explanation(
        comparison.photo,
        comparison.class_index,
        comparison.class_name,
        comparison.confidence,
        settings,
        judged.map,
        details=judged.details,
    )


def python_lines(explanation: Explanation, name: str, picture: Image.Image, device: str | None) -> str:
    """The lines of Python that compute the explanation's map as ``attr``.

    Args:
        explanation (Explanation): To reproduce.
        name (str): The picture's file.
        picture (PIL.Image.Image): The picture. An embedded one is loaded by the lines without a file.
        device (str or None): As ``ExplainedModel`` takes it.
    """
    settings = explanation.settings
    arguments = {"weights": settings.weights, "layer": settings.layer, "device": device}
    given = "".join(f", {key}={value!r}" for key, value in arguments.items() if value is not None)
    cheaper = [] if settings.max_channels is None else [f"    max_channels={settings.max_channels},\n"]
    cheaper += [] if settings.dtype == "float32" else [f"    score_dtype=torch.{settings.dtype},\n"]
    torch_import = "" if settings.dtype == "float32" else "import torch\n"
    from_file = (
        "from pathlib import Path\nfrom captum_unioncam.datasets.pictures import open_picture\n"
        f"picture = open_picture(Path({name!r}))"
    )
    return f"""{next((lines for lines, embedded in embedded_pictures() if embedded == picture), from_file)}

{torch_import}from captum_unioncam import LayerUnionCam
from captum_unioncam.models.subject import ExplainedModel
subject = ExplainedModel({settings.model!r}{given})
inputs, black = subject.input_and_baseline(subject.shown(picture))
union_cam = LayerUnionCam(subject.model, subject.layer)
attr = union_cam.attribute(  # (1, 1, h, w), in [0, 1]
    inputs,
    target={explanation.class_index},  # {explanation.class_name}
    baselines=black,
    theta={settings.theta!r},
    channel_weights={settings.channel_weights!r},
{"".join(cheaper)})"""


@cache
def embedded_pictures() -> list[tuple[str, Image.Image]]:
    """Embedded pictures, each after the lines of Python that make it."""
    from torchvision.transforms.functional import to_pil_image

    count, seed, shown = 6, 2, (0, 1, 2, 4, 5)
    images = demo.generate(count, seed)[0]
    generated = (
        "from torchvision.transforms.functional import to_pil_image\nfrom captum_unioncam import demo\n"
        f"picture = to_pil_image(demo.generate({count}, seed={seed})[0]"
    )
    return [
        ("from captum_unioncam import demo\npicture = demo.load_picture()", demo.load_picture()),
        *((f"{generated}[{i}])", to_pil_image(images[i])) for i in shown),
    ]
