"""Answers the page's questions, one at a time and as results are ready, and keeps recent models."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_unioncam import demo
from captum_unioncam.attr.base import CAMS, PerturbationCam
from captum_unioncam.engine.maps import minmax
from captum_unioncam.evaluation.compare import Comparison, comparisons
from captum_unioncam.evaluation.explain import Explanation, Settings, demo_note, is_photo
from captum_unioncam.evaluation.judge import Judge, Judgement
from captum_unioncam.methods.adapters.captum import CAPTUM_METHODS
from captum_unioncam.methods.registry import names
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.models.zoo import DEMO_MODEL
from captum_unioncam.report.comparison import best_methods, comparison_table
from captum_unioncam.report.html import data_uri, jpeg_uri, picture_uri, render
from captum_unioncam.report.images import as_picture, dimmed, heat, sheet
from captum_unioncam.report.panels import HeatMap, explanation_maps, panel, png
from captum_unioncam.system.errors import Failure, WrongArgument
from captum_unioncam.system.files import slug

_MODELS_KEPT = 3
_CURVE_STEPS = 50
_CLASSES_SHOWN = 5

PREVIEW_CHANNELS = 32
"""Representatives of the channels that a preview scores."""

# UnionCAM's name by its channel weights; it is always shown.
OWN_METHODS = {"score": "union_cam", "softmax": "union_cam_softmax"}

# Of Captum's methods, those that run many passes.
_SLOW = {"occlusion", "integrated_gradients", "gradient_shap"}


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
    """What is known of an answer so far, as the page shows it.

    Args:
        comparison (Comparison): The class, and the methods that the metrics have judged.
        classes (dict[int, tuple[str, float]]): Name and confidence of the most probable classes, by index.
        settings (Settings): UnionCAM's.
        own (str): UnionCAM's name as a method.
        picture (PIL.Image.Image): As it was given.
        computing (str): What is computed next. Default: "", nothing
        results (dict[str, Judgement]): Each method's map. Default: none yet
        is_preview (bool): Whether UnionCAM's map is of ``PREVIEW_CHANNELS`` channels. Default: False
        code (str): Lines of Python that compute UnionCAM's map as ``attr``. Default: "", not yet
    """

    comparison: Comparison
    classes: dict[int, tuple[str, float]]
    settings: Settings
    own: str
    picture: Image.Image
    computing: str = ""
    results: dict[str, Judgement] = field(default_factory=dict)
    is_preview: bool = False
    code: str = ""

    @cached_property
    def explanation(self) -> Explanation | None:
        """UnionCAM's, or its preview."""
        if self.own not in self.results:
            return None
        compared, judged = self.comparison, self.results[self.own]
        known = compared.photo, compared.class_index, compared.class_name, compared.confidence
        return Explanation(*known, self.settings, judged.map, details=judged.details, picture=self.picture)

    @cached_property
    def heat_maps(self) -> list[HeatMap]:
        """UnionCAM's maps and the other methods', each once: where a method's map is there already, it is named."""
        shown = explanation_maps(self.explanation) if self.explanation else []
        for method, judged in self.results.items():
            if method == self.own:
                continue
            same = next((i for i, each in enumerate(shown) if _alike(each.values, judged.map)), None)
            if same is None:
                shown.append(HeatMap(judged.map, method))
            else:
                shown[same] = replace(shown[same], title=f"{shown[same].title}\nalso {method}")
        return shown

    def page(self) -> str:
        """All but the code, as a piece of HTML."""
        explanation, photo = self.explanation, as_picture(self.comparison.photo)
        return render(
            "app.html",
            answer=self,
            preview_channels=PREVIEW_CHANNELS,
            comparison=self.comparison,
            warnings=self.warnings,
            photo=jpeg_uri(photo),
            dimmed=jpeg_uri(dimmed(photo)),
            size=photo.size,
            maps=[(each.title.splitlines(), sheet(each.values, photo.size), each) for each in self.heat_maps],
            raw=_raw(explanation.map) if explanation else None,
            downloads=self._downloads() if self.code and not self.computing else {},
            table=comparison_table(self.comparison),
            best=best_methods(self.comparison),
        ).decode()

    @property
    def warnings(self) -> list[str]:
        """Those of the explanation; before it is there, what the demo model knows."""
        if self.explanation and not self.is_preview:
            return self.explanation.warnings
        note = demo_note(self.settings, is_photo(self.picture))
        return [] if note is None else [note]

    def _downloads(self) -> dict[str, tuple[str, str]]:
        """Files by what they hold: each with its name and its content."""
        assert self.explanation is not None
        compared = self.comparison
        title = f"{compared.class_name}  {compared.confidence:.2f}   |   layer {compared.layer}"
        figure = panel(compared.photo, self.heat_maps, title, notes=self.explanation.warnings)
        stem = f"{slug(Path(compared.picture).stem)}-{slug(compared.class_name)}"
        array = data_uri("application/octet-stream", self.explanation.npy())
        return {
            "Panel (png)": (f"{stem}.png", data_uri("image/png", png(figure))),
            "UnionCAM's map (npy)": (f"{stem}-{self.own}.npy", array),
            "Table (csv)": (f"{stem}.csv", data_uri("text/csv", compared.csv())),
        }


class Stopped(Failure):
    """The visitor does not want the rest of the answer, or the page is closed."""


class Workbench:
    """Answers one visitor at a time, and keeps recent models.

    Args:
        model, weights (str or None): The first model, as ``load_classifier`` takes them. Other models have their own
            weights.
        device (str or None): As ``ExplainedModel`` takes it.
        quality (str): The preset that the page chooses at first, of ``QUALITIES``. Default: "exact"

    Attributes:
        model_names (list[str]): The models that visitors may choose: the given one, the demo model, torchvision's.
        model (str): The given model.
    """

    def __init__(
        self,
        model: str = DEMO_MODEL,
        weights: str | None = None,
        device: str | None = None,
        quality: str = "exact",
    ) -> None:
        from torchvision import models

        self.model_names = list(dict.fromkeys([model, DEMO_MODEL, *models.list_models(module=models)]))
        self.model, self.weights, self.device, self.quality = model, weights, device, quality
        self._subject = lru_cache(maxsize=_MODELS_KEPT)(self._load)
        # The first is held for all of an answer, the second while something is computed.
        self._answering, self._computing = Lock(), Lock()
        self._closed = False
        self._is_wanted: Callable[[], bool] = _always

    def subject(self, model: str) -> ExplainedModel:
        """The model with its default layer."""
        subject = self._subject(model)
        with self._answering:
            subject.set_layer()
        return subject

    def answers(
        self,
        name: str,
        picture: Image.Image,
        question: Question,
        is_wanted: Callable[[], bool] | None = None,
        show_progress: bool = False,
    ) -> Iterator[Answer]:
        """Explains a class of an image, and compares: what is known so far, as each result is ready.

        First comes the class, then the maps of methods without masked passes, then a preview of UnionCAM's map, then
        its map and each other method's with the metrics.

        Args:
            name (str): The image's file, as the code opens it.
            picture (PIL.Image.Image): In mode RGB, of any size.
            question (Question): The question.
            is_wanted (callable or None): Whether the visitor still waits for the answer; called before each pass of
                the model. Default: None, always
            show_progress (bool): Show progress bars of tqdm over masked passes. Default: False

        Raises:
            WrongArgument: There is no such model, layer, class or method.
            Failure: The model cannot be loaded, or UnionCAM fails.
            Stopped: The answer is not wanted any more.
        """
        unknown = [method for method in question.methods if method not in names()]
        if unknown:
            # Visitors must not import code, as the registry does for package.module:function.
            raise WrongArgument(f"there is no method {unknown[0]!r}; give some of {', '.join(names())}.")
        with self._answering:
            parts = self._answers(name, picture, question, show_progress)
            while (answer := self._next(parts, is_wanted or _always)) is not None:
                yield answer

    def _next(self, parts: Iterator[Answer], is_wanted: Callable[[], bool]) -> Answer | None:
        with self._computing:
            self._is_wanted = is_wanted
            try:
                self.stop_if_unwanted()
                return next(parts, None)
            finally:
                self._is_wanted = _always

    def close(self) -> None:
        """Stops the computation at the next pass of its model; torch aborts a process that ends during a pass."""
        self._closed = True
        with self._computing:
            pass

    def stop_if_unwanted(self, *_: Any) -> None:
        """Raises ``Stopped`` where nobody wants what is being computed; called before each pass of a model."""
        if self._closed:
            raise Stopped("the page is closed; start it again.")
        if not self._is_wanted():
            raise Stopped("nobody waits for the answer any more; ask again.")

    def _answers(self, name: str, picture: Image.Image, question: Question, show_progress: bool) -> Iterator[Answer]:
        subject = self._subject(question.model)
        if question.layer != subject.layer_name:
            subject.set_layer(question.layer)
        own = OWN_METHODS[question.channel_weights]
        target = None if question.target is None else subject.class_index(question.target)
        settings = Settings(
            question.model,
            subject.weights,
            subject.layer_name,
            theta=question.theta,
            channel_weights=question.channel_weights,
        ).of_quality(question.quality, subject.device)
        judges = _judges(subject, own, question.methods, settings, show_progress)
        answer = None
        for judge in judges:
            is_preview = judge is not judges[-1]
            waiting = [
                f"preview of {method}" if is_preview and method == own else method for method in judge.method_names
            ]
            for comparison in comparisons(judge, name, picture, target):
                # A method that is stopped has failed, and the next would begin.
                self.stop_if_unwanted()
                if own in comparison.failures:
                    raise Failure(f"UnionCAM: {comparison.failures[own]}")
                if answer is None:
                    answer = Answer(comparison, _most_probable(judge, comparison), settings, own, picture)
                if not is_preview:
                    answer = replace(answer, comparison=comparison)
                results = {**answer.results, **comparison.judgements}
                previews = is_preview if own in comparison.judgements else answer.is_preview
                done = len(comparison.judgements) + len(comparison.failures)
                answer = replace(
                    answer, results=results, is_preview=previews, computing="".join(waiting[done : done + 1])
                )
                if answer.explanation and not answer.is_preview and not answer.code:
                    answer = replace(answer, code=python_lines(answer.explanation, name, picture, self.device))
                if answer.computing or not is_preview:
                    yield answer

    def _load(self, model: str) -> ExplainedModel:
        if model not in self.model_names:
            # Visitors must not import code, as the loader does for package.module:function.
            raise WrongArgument(f"there is no network {model!r}; choose one of the list.")
        weights = self.weights if model == self.model else None
        subject = ExplainedModel(model, weights, device=self.device, show_progress=True)
        subject.model.register_forward_pre_hook(self.stop_if_unwanted)
        return subject


def _always() -> bool:
    return True


def _judges(
    subject: ExplainedModel, own: str, methods: tuple[str, ...], settings: Settings, show_progress: bool
) -> list[Judge]:
    """For the maps of the other methods without masked passes, for UnionCAM's preview, and for all with the metrics."""
    others = [method for method in dict.fromkeys(methods) if method != own]
    # The other methods keep their own channel weights.
    of_methods = replace(settings.of_methods(show_progress), channel_weights=None)
    has_preview = settings.max_channels is None or settings.max_channels > PREVIEW_CHANNELS
    return [
        Judge(subject, filter(_is_quick, others), of_methods, metrics=()),
        Judge(subject, [own] * has_preview, replace(of_methods, max_channels=PREVIEW_CHANNELS), metrics=()),
        Judge(subject, [own, *others], of_methods, _CURVE_STEPS),
    ]


def _is_quick(method: str) -> bool:
    """Whether the method runs a pass or a few."""
    of_captum = method in CAPTUM_METHODS and method not in _SLOW
    return of_captum or (method in CAMS and not issubclass(CAMS[method], PerturbationCam))


def _most_probable(judge: Judge, comparison: Comparison) -> dict[int, tuple[str, float]]:
    """Name and confidence of the most probable classes, by index."""
    confidences, classes = judge.confidences(comparison.photo).sort(descending=True)
    name = judge.subject.classifier.class_name
    most = zip(classes[:_CLASSES_SHOWN].tolist(), confidences[:_CLASSES_SHOWN].tolist(), strict=True)
    return {index: (name(index), confidence) for index, confidence in most}


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two maps are shown as the same image."""
    return one.shape == other.shape and torch.allclose(minmax(one), minmax(other), atol=1e-3)


def _raw(values: Tensor) -> tuple[str, str]:
    """A map as it is, a pixel for each of its places, and its size in words."""
    height, width = values.shape[2:]
    return picture_uri(heat(values, (width, height)), "png"), f"{height} x {width}"


def python_lines(explanation: Explanation, name: str, picture: Image.Image, device: str | None) -> str:
    """The lines of Python that compute the explanation's map as ``attr``.

    Args:
        explanation (Explanation): To reproduce.
        name (str): The image's file.
        picture (PIL.Image.Image): The image. An embedded one is loaded by the lines without a file.
        device (str or None): As ``ExplainedModel`` takes it.
    """
    settings = explanation.settings
    arguments = {"weights": settings.weights, "layer": settings.layer, "device": device}
    given = "".join(f", {key}={value!r}" for key, value in arguments.items() if value is not None)
    cheaper = [] if settings.max_channels is None else [f"    max_channels={settings.max_channels},\n"]
    cheaper += [] if settings.dtype == "float32" else [f"    score_dtype=torch.{settings.dtype},\n"]
    torch_import = "" if settings.dtype == "float32" else "import torch\n"
    from_file = (
        "from pathlib import Path\nfrom captum_unioncam.datasets import open_picture\n"
        f"picture = open_picture(Path({name!r}))"
    )
    return f"""{next((lines for lines, embedded in embedded_pictures() if embedded == picture), from_file)}

{torch_import}from captum_unioncam import LayerUnionCam
from captum_unioncam.models import ExplainedModel
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
    """Embedded images, each after the lines of Python that make it."""
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
