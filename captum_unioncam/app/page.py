"""The page to try it on: a picture and a network go in, UnionCAM's maps, other methods' and their metrics come out.

Gradio draws it and queues the visitors. The page asks nobody but the server that it comes from.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from signal import SIGTERM, default_int_handler, signal
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from PIL import Image

from captum_unioncam.app.workbench import OWN_METHODS, Question, Workbench, embedded_pictures
from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.methods.registry import names
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.report.html import render
from captum_unioncam.system.errors import Failure, WrongArgument, in_words, one_line

_LARGEST_FILE = "20mb"

# Seconds: how often uploaded pictures are looked through, and how old they get.
_DELETION = (600, 3600)

_PREDICTED = "predicted"
_MOST_PROBABLE = ("the most probable", _PREDICTED)
_COMPARED = ["score_cam", "grad_cam", "guided_grad_cam"]

# What visitors see, by argument of the library, which its errors name.
_LABELS = {"name": "Network", "layer": "Layer", "target": "Class"}

# Captum's bars and torchvision's are tqdm's, which Gradio then shows on the page as well.
_PROGRESS = gr.Progress(track_tqdm=True)

# Where it is below the controls, as on a phone.
_SCROLL_TO_RESULT = "() => { if (innerWidth < 768) document.querySelector('.unioncam').scrollIntoView() }"

_INTRODUCTION = """# What does the network look at?

A network names what it sees in a picture. UnionCAM shows which places speak for that name: the brighter, the more.
Take a picture, press **Explain**, and compare with other methods."""


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
        # It would be read as HTML.
        raise gr.Error(escape(in_words(sentence, _LABELS)), duration=None, print_exception=not foreseen) from error


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
        {"choices": list(dict.fromkeys([subject.layer_name, *subject.spatial_layers()])), "value": subject.layer_name},
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
            gr.Radio(list(OWN_METHODS), value="score", label="Channel weights", info="As the paper, or as Score-CAM."),
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
