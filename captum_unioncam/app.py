"""The page to try it on: a picture and a network go in, UnionCAM's maps, other methods' and their metrics come out.

Gradio draws it and queues the visitors. The page asks nobody but the server that it comes from.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from signal import SIGTERM, default_int_handler, signal
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import gradio as gr
import matplotlib
import torch
from gradio.data_classes import FileData
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam import demo
from captum_unioncam.comparison import Comparison, compare
from captum_unioncam.errors import Failure, WrongArgument, one_line
from captum_unioncam.explained_model import ExplainedModel
from captum_unioncam.explanation import Explainer, Explanation, Settings
from captum_unioncam.judging import Judge
from captum_unioncam.layouts import KnownTransforms, WithMaps
from captum_unioncam.maps import up
from captum_unioncam.methods import MethodSettings, names
from captum_unioncam.models import DEMO
from captum_unioncam.pages import jpeg_uri, render
from captum_unioncam.pictures import open_picture
from captum_unioncam.visualization import COLORS, OPACITY

_LARGEST_FILE = "20mb"
# Seconds: how often uploaded pictures are looked through, and how old they get.
_DELETION = (600, 3600)
_MODELS_KEPT = 3
_CURVE_STEPS = 50
_PREDICTED = "predicted"
_MOST_PROBABLE = ("the most probable", _PREDICTED)
# UnionCAM is shown always, with the channel weights that are chosen.
_OWN_METHODS = {"score": "union_cam", "softmax": "union_cam_softmax"}
_COMPARED = ["score_cam", "grad_cam", "guided_grad_cam"]
_OPTIONS = {"--model": "Network", "--layer": "Layer", "--target": "Class"}
# Captum's bars and torchvision's are tqdm's, which Gradio then shows on the page as well.
_PROGRESS = gr.Progress(track_tqdm=True)

# Where it is below the controls, as on a phone.
_SCROLL_TO_RESULT = "() => { if (innerWidth < 768) document.querySelector('.unioncam').scrollIntoView() }"
_INTRODUCTION = """# What does the network look at?

A network names what it sees in a picture. UnionCAM shows which places speak for that name: the brighter, the more.
Take a picture, press **Explain**, and compare with other methods."""


@dataclass(frozen=True)
class Question:
    """What a visitor asks for.

    Args:
        model (str): One of ``Workbench.model_names``.
        layer (str or None): Dotted name of the layer to explain. Default: None, the one that is found
        target (str or None): The class, index or name. Default: None, the most probable
        theta, channel_weights: As ``LayerUnionCam.attribute`` takes them.
        methods (tuple[str, ...]): To compare with, of ``methods.names()``. Default: none
    """

    model: str = DEMO
    layer: str | None = None
    target: str | None = None
    theta: float = 10.0
    channel_weights: str = "score"
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the page shows.

    Args:
        explanation (Explanation): UnionCAM's.
        comparison (Comparison): UnionCAM and the other methods judged.
        code (str): Lines of Python that make UnionCAM's map, ``attr``, anew.
    """

    explanation: Explanation
    comparison: Comparison
    code: str

    def page(self) -> str:
        """All but the code as a piece of HTML."""
        explanation, photo = self.explanation, self.explanation.photo
        details = explanation.details
        maps = {"denoised": details.denoised_map, "region": details.region_map, "union": details.union_map}
        return render(
            "app.html",
            explanation=explanation,
            comparison=self.comparison,
            photo=jpeg_uri(_picture(photo)),
            maps={name: (overlay(photo, values), values.max() > 0) for name, values in maps.items()},
            overlays={name: overlay(photo, each.attribution) for name, each in self.comparison.judgements.items()},
        ).decode()


class Workbench:
    """Answers one visitor at a time, with models that are kept for the next.

    Args:
        model, weights (str or None): What the page begins with, as ``load_classifier`` takes them; the weights are for
            this model alone.
        device (str or None): As ``ExplainedModel`` takes it.

    Attributes:
        model_names (list[str]): What visitors may choose: the given model, the embedded one, and torchvision's.
        model (str): The given one.
    """

    def __init__(self, model: str = DEMO, weights: str | None = None, device: str | None = None) -> None:
        from torchvision import models

        self.model_names = list(dict.fromkeys([model, DEMO, *models.list_models(module=models)]))
        self.model, self.weights, self.device = model, weights, device
        self._subject = lru_cache(maxsize=_MODELS_KEPT)(self._load)
        self._working, self._closed = Lock(), False

    def subject(self, model: str) -> ExplainedModel:
        """The model, with the layer that is found in it."""
        subject = self._subject(model)
        with self._working:
            subject.set_layer()
        return subject

    def answer(self, name: str, picture: Image.Image, question: Question) -> Answer:
        """Explains a class of a picture, and compares.

        Args:
            name (str): The picture's file, as the code is to open it.
            picture (PIL.Image.Image): In mode RGB, of any size.
            question (Question): What is asked for.

        Raises:
            WrongArgument: There is no such model, layer, class or method.
            Failure: The model cannot be loaded, or UnionCAM fails.
        """
        unknown = [method for method in question.methods if method not in names()]
        if unknown:
            # Not for visitors: the registry would import package.module:function.
            raise WrongArgument(f"there is no method {unknown[0]!r}; give some of {', '.join(names())}.")
        with self._working:
            return self._answer(name, picture, question)

    def close(self) -> None:
        """Stops what is running, at the next pass of its model; torch aborts the process that ends in the middle."""
        self._closed = True
        with self._working:
            pass

    def _answer(self, name: str, picture: Image.Image, question: Question) -> Answer:
        subject = self._subject(question.model)
        subject.set_layer(question.layer)
        settings = Settings(
            question.model, subject.weights, theta=question.theta, channel_weights=question.channel_weights
        )
        explainer = Explainer(settings, show_progress=True, subject=subject)
        target = None if question.target is None else subject.class_index(question.target)
        own = _OWN_METHODS[question.channel_weights]
        judge = _Judge(explainer, picture, own, [method for method in question.methods if method != own])
        comparison = compare(judge, name, picture, target, show_progress=True)
        if judge.explanation is None or own in comparison.failures:
            raise Failure(f"UnionCAM: {comparison.failures[own]}")
        return Answer(judge.explanation, comparison, python_lines(judge.explanation, name, picture, self.device))

    def _load(self, model: str) -> ExplainedModel:
        if model not in self.model_names:
            # Not for visitors: the loader would import package.module:function.
            raise WrongArgument(f"there is no network {model!r}; choose one of the list.")
        weights = self.weights if model == self.model else None
        subject = ExplainedModel(model, weights, device=self.device, show_progress=True)
        subject.model.register_forward_pre_hook(self._stop_if_closed)
        return subject

    def _stop_if_closed(self, *_: Any) -> None:
        if self._closed:
            raise Failure("the page is closed; start it again.")


class _Judge(Judge):
    """Judges the map that the explainer makes as that of the method ``own``, and keeps how it came to be."""

    def __init__(self, explainer: Explainer, picture: Image.Image, own: str, others: Sequence[str]) -> None:
        settings = MethodSettings(theta=explainer.settings.theta)
        super().__init__(explainer.subject, [own, *others], settings, _CURVE_STEPS)
        self.explanation: Explanation | None = None

        def attribute(inputs: Tensor, target: Tensor, _baselines: Tensor) -> Tensor:
            self.explanation = next(explainer.explain(picture, int(target)))
            return up(self.explanation.union_cam, inputs.shape[2:])

        self._attribute[own] = attribute


def spatial_layers(subject: ExplainedModel) -> list[str]:
    """Names of the layers that can be explained, those whose output has space, the last to run first.

    Args:
        subject (ExplainedModel): Is run on a black picture.
    """
    transforms = KnownTransforms([subject.model])
    found: dict[str, None] = {}

    def look(name: str) -> Callable[[Module, Any, Any], None]:
        def hook(module: Module, _args: Any, output: Any) -> None:
            # Of a layer that runs several times, the last run is what is explained.
            found.pop(name, None)
            if transforms.has_space(module, output, {4}):
                found[name] = None

        return hook

    modules = [(name, module) for name, module in subject.model.named_modules() if name]
    # What was put around the explained layer is not in the model that --layer names one of.
    wrappers = tuple(f"{name}." for name, module in modules if isinstance(module, WithMaps))
    modules = [(name, module) for name, module in modules if not name.startswith(wrappers)]
    handles = [module.register_forward_hook(look(name)) for name, module in modules]
    try:
        subject.confidences(subject.input_and_baseline(subject.shown(Image.new("RGB", (256, 256))))[0])
    finally:
        for handle in handles:
            handle.remove()
    return list(found)[::-1]


def overlay(photo: Tensor, values: Tensor) -> str:
    """A map over the gray photo, as ``visualization`` draws it, as a ``data:`` URI.

    Args:
        photo (Tensor): (3, H, W), in [0, 1].
        values (Tensor): (1, 1, h, w), of any scale; zeros, and what is negative, show the photo's dark parts.
    """
    heat = up(values.float().clamp(min=0), photo.shape[1:])[0, 0].cpu().numpy()
    colored = matplotlib.colormaps[COLORS](heat / (heat.max() or 1), bytes=True)[:, :, :3]
    gray = _picture(photo).convert("L").convert("RGB")
    return jpeg_uri(Image.blend(gray, Image.fromarray(colored.copy()), OPACITY))


def python_lines(explanation: Explanation, name: str, picture: Image.Image, device: str | None) -> str:
    """The lines of Python that make the explanation's map anew, as ``attr``.

    Args:
        explanation (Explanation): What to make anew.
        name (str): The picture's file.
        picture (PIL.Image.Image): Itself; of an embedded one the lines say where it comes from.
        device (str or None): As ``ExplainedModel`` takes it.
    """
    settings = explanation.settings
    arguments = {"weights": settings.weights, "layer": settings.layer, "device": device}
    given = "".join(f", {key}={value!r}" for key, value in arguments.items() if value is not None)
    from_file = (
        "from pathlib import Path\nfrom captum_unioncam.pictures import open_picture\n"
        f"picture = open_picture(Path({name!r}))"
    )
    return f"""{next((lines for lines, embedded in embedded_pictures() if embedded == picture), from_file)}

from captum_unioncam import LayerUnionCam
from captum_unioncam.explained_model import ExplainedModel
subject = ExplainedModel({settings.model!r}{given})
inputs, black = subject.input_and_baseline(subject.shown(picture))
union_cam = LayerUnionCam(subject.model, subject.layer)
attr = union_cam.attribute(  # (1, 1, h, w), in [0, 1]
    inputs,
    target={explanation.class_index},  # {explanation.class_name}
    baselines=black,
    theta={settings.theta!r},
    channel_weights={settings.channel_weights!r},
)"""


@cache
def embedded_pictures() -> list[tuple[str, Image.Image]]:
    """Pictures to begin with, each after the lines of Python that make it."""
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


class _Handlers:
    """What the page's controls call: choices go in as Gradio has them, and errors come out as sentences."""

    def __init__(self, workbench: Workbench) -> None:
        self.workbench = workbench

    def check(self, file: FileData | None) -> None:
        with _as_sentence():
            _opened(file)

    def choose(self, model: str, progress: gr.Progress = _PROGRESS) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            with _as_sentence():
                layer, target = choices(self.workbench.subject(model))
        except gr.Error as error:
            # An error would be written over the lists, and they stay those of the other network.
            gr.Warning(error.message, duration=None)
            layer, target = {"choices": [], "value": None}, {"choices": [_MOST_PROBABLE], "value": _PREDICTED}
        return gr.update(**layer), gr.update(**target)

    def explain(
        self,
        file: FileData | None,
        model: str,
        target: str,
        methods: list[str],
        layer: str | None,
        theta: float,
        channel_weights: str,
        progress: gr.Progress = _PROGRESS,
    ) -> tuple[str, dict[str, Any]]:
        with _as_sentence():
            name, picture = _opened(file)
            asked = None if target == _PREDICTED else target
            question = Question(model, layer, asked, float(theta), channel_weights, tuple(methods))
            answer = self.workbench.answer(name, picture, question)
            return answer.page(), gr.update(value=answer.code, visible=True)


@contextmanager
def _as_sentence() -> Iterator[None]:
    """Whatever goes wrong is said on the page; what is not foreseen, on the standard error stream too."""
    try:
        yield
    except Exception as error:
        foreseen = isinstance(error, (Failure, WrongArgument))
        sentence = one_line(error) if foreseen else f"{type(error).__name__}: {one_line(error)}"
        for option, label in _OPTIONS.items():
            if sentence.startswith(option):
                sentence = label + sentence.removeprefix(option)
        # It would be read as HTML.
        raise gr.Error(escape(sentence), duration=None, print_exception=not foreseen) from error


def _opened(file: FileData | None) -> tuple[str, Image.Image]:
    """The uploaded picture and its name, without the folder that it is kept in here."""
    if file is None or not file.path:
        raise Failure("there is no picture; drop one, or take an embedded one.")
    name = Path(file.orig_name or file.path).name
    if not Path(file.path).exists():
        raise Failure(f"{name}: has been deleted here in the meantime; drop it again.")
    try:
        return name, open_picture(Path(file.path))
    except Failure as error:
        raise Failure(str(error).replace(file.path, name)) from error


def choices(subject: ExplainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to choose layer and class from, as the arguments of a ``gr.Dropdown`` each."""
    classes = [(f"{subject.classifier.class_name(index)} ({index})", str(index)) for index in range(subject.classes)]
    return (
        {"choices": list(dict.fromkeys([subject.layer_name, *spatial_layers(subject)])), "value": subject.layer_name},
        {"choices": [_MOST_PROBABLE, *classes], "value": _PREDICTED},
    )


def build_page(workbench: Workbench, folder: Path) -> gr.Blocks:
    """The page, not served yet.

    Args:
        workbench (Workbench): Does what the page asks for; its model is loaded.
        folder (Path): Where files of the embedded pictures go.

    Raises:
        WrongArgument, Failure: As ``Workbench.subject``.
    """
    layers, classes = choices(workbench.subject(workbench.model))
    page: gr.Blocks
    with gr.Blocks(title="UnionCAM", analytics_enabled=False, delete_cache=_DELETION) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image, embedded, files = _picture_controls(folder)
                button = gr.Button("Explain", variant="primary")
                model = gr.Dropdown(
                    workbench.model_names,
                    value=workbench.model,
                    label="Network",
                    info="demo is embedded; torchvision's are downloaded when first chosen.",
                )
                target = gr.Dropdown(**classes, label="Class to explain")
                others = [name for name in names() if name != "union_cam"]
                methods = gr.Dropdown(others, value=_COMPARED, multiselect=True, label="Compare with")
                settings = _setting_controls(layers)
            with gr.Column(scale=5, min_width=280):
                result, code = _result_places()
        handlers = _Handlers(workbench)
        # The computations share the models, which hooks are put on: one at a time.
        one_by_one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        # gr.Examples would put another image component in this one's place, with Gradio's own decoding.
        embedded.click(files.__getitem__, embedded, image, api_visibility="private")
        checked = image.upload(handlers.check, image, None, api_visibility="private")
        checked.failure(lambda: None, None, image, api_visibility="private")
        model.input(handlers.choose, model, [settings[0], target], **one_by_one)
        button.click(None, js=_SCROLL_TO_RESULT)
        asked = [image, model, target, methods, *settings]
        button.click(handlers.explain, asked, [result, code], show_progress_on=result, **one_by_one)
    return page


def _picture_controls(folder: Path) -> tuple[gr.Image, gr.Dataset, list[str]]:
    """The picture, the embedded ones to choose it from, and the latter's files."""
    files = []
    for number, (_, picture) in enumerate(embedded_pictures(), 1):
        files.append(str(folder / f"embedded-{number}.png"))
        picture.save(files[-1])
    image = gr.Image(files[0], label="Picture", sources=["upload"], height=220, buttons=[])
    # Gradio would open the file itself, with every decoder that Pillow has.
    image.preprocess = _as_uploaded  # type: ignore[method-assign]
    samples = [[file] for file in files]
    embedded = gr.Dataset(components=[image], samples=samples, type="index", label="Embedded pictures")
    image.keep_in_cache.update(sample["path"] for (sample,) in embedded.samples)
    return image, embedded, files


def _setting_controls(layers: dict[str, Any]) -> tuple[gr.Dropdown, gr.Slider, gr.Radio]:
    with gr.Accordion("Settings of UnionCAM", open=False):
        return (
            gr.Dropdown(**layers, label="Layer", info="The usual one is chosen already."),
            gr.Slider(0, 100, 10, step=1, label="Theta", info="Gradients below this percentile are noise."),
            gr.Radio(list(_OWN_METHODS), value="score", label="Channel weights", info="As the paper, or as Score-CAM."),
        )


def _result_places() -> tuple[gr.HTML, gr.Code]:
    page = render("app.html", explanation=None).decode()
    return gr.HTML(page, apply_default_css=False), gr.Code(
        language="python", label="The same map in Python", visible=False, wrap_lines=True, show_line_numbers=False
    )


@contextmanager
def served(workbench: Workbench, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serves the page meanwhile, and gives its address. SIGTERM, as of ``docker stop``, ends it as Ctrl-C does.

    Args:
        workbench (Workbench): Does what the page asks for.
        host (str): Address to listen at. Default: "127.0.0.1", which other machines cannot reach
        port (int or None): Default: None, the first free one from 7860 on

    Raises:
        WrongArgument, Failure: As ``Workbench.subject``, or the address cannot be listened at.

    Examples::

        >>> with served(Workbench()) as address:
        ...     webbrowser.open(address)
    """
    _try_address(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with _interrupted_by(SIGTERM), TemporaryDirectory(prefix="captum-unioncam-") as folder:
        # Uploaded pictures go there, and with it.
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(workbench, Path(folder)).queue(api_open=False)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            max_file_size=_LARGEST_FILE,
            theme=_theme(),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
        )
        try:
            yield address
        finally:
            workbench.close()
            page.close(verbose=False)


@contextmanager
def _interrupted_by(number: int) -> Iterator[None]:
    """Makes the signal raise ``KeyboardInterrupt`` meanwhile."""
    before = signal(number, default_int_handler)
    try:
        yield
    finally:
        signal(number, before)


def _try_address(host: str, port: int | None) -> None:
    """Fails where nothing can listen, for which Gradio would try again and again."""
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise Failure(f"cannot listen at {where}: {one_line(error)}; give another --host or --port.") from error


def _theme() -> gr.themes.Base:
    # Gradio's own fonts would come from elsewhere, and its pale colors are hard to read.
    theme = gr.themes.Default(
        primary_hue="pink", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="#c2185b",
        button_primary_background_fill_hover="#a3154c",
    )


def _as_uploaded(payload: Any) -> Any:
    return payload


def _picture(photo: Tensor) -> Image.Image:
    return Image.fromarray((photo.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
