"""The web app's page: UnionCAM's maps, other methods' maps and their metrics for an image and a network.

Gradio renders it and queues the visitors. The page connects only to its own server.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from ipaddress import ip_address
from pathlib import Path
from signal import SIG_DFL, SIGTERM, default_int_handler, signal
from threading import current_thread, main_thread
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.routes import App, ORJSONResponse
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.types import ASGIApp

from captum_unioncam.app.folder import keep_newest, temporary_folder
from captum_unioncam.app.guard import Guard, Listeners
from captum_unioncam.app.workbench import OWN_METHODS, Answer, Question, Stopped, Workbench, embedded_pictures
from captum_unioncam.datasets.pictures import open_picture
from captum_unioncam.evaluation.explain import QUALITIES
from captum_unioncam.methods.registry import names
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.report.images import OPACITY
from captum_unioncam.system.errors import Failure, WrongArgument, in_words, one_line

_LARGEST_FILE = 20 * 2**20
_MOST_PIXELS = 40_000_000

# Limits of uploaded images; the oldest are deleted.
_MOST_BYTES_KEPT, _MOST_FILES_KEPT = 500 * 2**20, 1000

# Visitors beyond it get an error.
_LONGEST_QUEUE = 20

# In seconds: how often uploaded images are checked, and their maximum age.
_DELETION = (600, 3600)

_PREDICTED = "predicted"
_MOST_PROBABLE = ("the most probable", _PREDICTED)
_COMPARED = ["score_cam", "grad_cam", "guided_grad_cam"]

# The labels of the controls, by the arguments that the library's errors name.
_LABELS = {
    "name": "Network",
    "model": "Network",
    "layer": "Layer",
    "target": "Class",
    "methods": "Compare with",
    "theta": "Theta",
    "channel_weights": "Channel weights",
    "quality": "Quality",
}

# Gradio shows the bars of tqdm, which Captum and torchvision use, on the page.
_PROGRESS = gr.Progress(track_tqdm=True)

# For small screens, where the answer is below the controls.
_SCROLL_TO_RESULT = """(...inputs) => {
  if (innerWidth < 768) document.querySelector('.status').scrollIntoView()
  return inputs
}"""

# The maps' figures read it; it outlasts them.
_SET_OPACITY = "value => document.documentElement.style.setProperty('--map-opacity', value)"

_INTRODUCTION = """# What does the network look at?

A network names what it sees in an image. UnionCAM shows which regions support that class; brighter means more.
Take an image, press **Explain**, and compare with other methods."""

_EXAMPLE = "A worked example: the demo model on the demo image. Press <b>Explain</b> for an answer of your own."


# Pillow's limit is the process's, and large images take much memory: one at a time, and always in the same thread,
# since the C library keeps what a thread has freed for that thread.
_opening = ThreadPoolExecutor(1, "opening")


class _Page(gr.Blocks):
    """Gradio's page, which refuses requests that no control sends without a traceback."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        try:
            prepared: list[Any] = await super().preprocess_data(*args, **kwargs)
            for value in prepared:
                _check_uploaded(value)
        except Exception as error:
            sentence = "A setting is not one of the choices, or the image is gone; reload the page."
            raise gr.Error(sentence, duration=None, print_exception=False) from error
        return prepared


def _check_uploaded(value: Any) -> None:
    """Refuses other files of this machine; Gradio checks only data that is marked as a file."""
    path = getattr(value, "path", None)
    if path is not None and not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise Failure("the image has not been uploaded.")


class _Handlers:
    """The functions behind the page's controls. They take Gradio's values, and raise errors as sentences."""

    def __init__(self, workbench: Workbench, listeners: Listeners) -> None:
        self.workbench, self.listeners = workbench, listeners

    def check(self, file: FileData | None) -> None:
        with _as_sentence():
            _opened(file)

    def choose(self, model: str, progress: gr.Progress = _PROGRESS) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            with _as_sentence():
                _check_type("model", model, str)
                layer, target = choices(self.workbench.subject(model))
        except gr.Error as error:
            # An error would cover the lists, which still belong to the other network.
            gr.Warning(error.message, duration=None)
            layer, target = {"choices": [], "value": None}, {"choices": [_MOST_PROBABLE], "value": _PREDICTED}
        return gr.update(**layer), gr.update(**target)

    def choose_class(self, bar: gr.SelectData, model: str) -> str:
        """The class of a bar that was clicked, for the list of classes; the bars may be of another network."""
        with _as_sentence():
            _check_type("model", model, str)
            index = dict(_class_choices(self.workbench.subject(model))).get(str(bar.value))
            if index is None:
                raise Failure(f"{bar.value}: is a class of another network; press Explain for those of {model}.")
            return index

    def explain(
        self,
        file: FileData | None,
        model: str,
        target: str,
        methods: list[str],
        layer: str | None,
        theta: float,
        channel_weights: str,
        quality: str,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> Iterator[list[Any]]:
        """What ``_shown`` gives of each answer, as it is ready."""
        with _as_sentence():
            question = _question(model, target, methods, layer, theta, channel_weights, quality)
            visitor = str(request.session_hash)
            is_wanted = partial(self.listeners.is_waiting, visitor)
            if not is_wanted():
                raise Stopped("nobody waits for the answer any more; ask again.")
            name, picture = _opened(file)
            _watch(progress, self.workbench.stop_if_unwanted)
            yield [f"Loading {escape(model)} …", gr.skip(), gr.skip(), gr.skip(), gr.update(visible=True)]
            answer, start = None, time.monotonic()
            try:
                for answer in self.workbench.answers(name, picture, question, is_wanted, show_progress=True):
                    doing = f"Computing {answer.computing} …" if answer.computing else ""
                    yield _shown(answer, doing or f"Done in {time.monotonic() - start:.1f} s.")
            except Stopped:
                if answer is None or not self.listeners.is_stopped(visitor):
                    raise
                yield _shown(
                    replace(answer, computing=""), f"Stopped before {answer.computing}; the rest is not computed."
                )

    def stop(self, request: gr.Request) -> None:
        """Stops the visitor's answer before the next pass of the model."""
        self.listeners.stop(str(request.session_hash))


def _shown(answer: Answer, status: str) -> list[Any]:
    """An answer for the places of ``_result_places``, and whether it can be stopped."""
    bars = {f"{name} ({index})": confidence for index, (name, confidence) in answer.classes.items()}
    code = gr.update(value=answer.code, visible=bool(answer.code))
    return [escape(status), bars, answer.page(), code, gr.update(visible=bool(answer.computing))]


def _watch(progress: gr.Progress, check: Callable[[], object]) -> None:
    """Adds the time left to the names of progress bars, and calls ``check`` as they move.

    The workbench itself checks before each pass of a model, but some methods run only the layers behind the explained
    one.
    """
    update = progress.update

    def updated(n: int | float = 1) -> None:
        check()
        bar = progress.iterables[-1] if progress.iterables else None
        if bar is not None and bar._tqdm is not None and bar.length:
            known = bar._tqdm.format_dict
            done = known["n"] + n
            left = known["elapsed"] / done * (bar.length - done)
            bar.desc = f"{known['prefix']}: {left:.0f} s left"
        update(n)

    progress.update = updated  # type: ignore[method-assign]


def _question(
    model: Any, target: Any, methods: Any, layer: Any, theta: Any, channel_weights: Any, quality: Any
) -> Question:
    """The question, checked, since requests need not come from the page's controls."""
    _check_type("model", model, str)
    _check_type("target", target, str)
    _check_type("methods", methods, list)
    for method in methods:
        _check_type("methods", method, str)
    if layer is not None:
        _check_type("layer", layer, str)
    _check_type("theta", theta, int, float)
    if channel_weights not in list(OWN_METHODS):
        raise WrongArgument(f"channel_weights={channel_weights!r}: give {' or '.join(OWN_METHODS)}.")
    if quality not in list(QUALITIES):
        raise WrongArgument(f"quality={quality!r}: give {', '.join(QUALITIES)}.")
    asked = None if target == _PREDICTED else target
    return Question(model, layer, asked, float(theta), channel_weights, tuple(methods), quality)


def _check_type(name: str, value: Any, *types: type) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        raise WrongArgument(f"{name}={value!r}: is not one of the choices; reload the page.")


@contextmanager
def _as_sentence() -> Iterator[None]:
    """Shows errors on the page, and unexpected ones on the standard error stream too."""
    try:
        yield
    except Exception as error:
        foreseen = isinstance(error, (Failure, WrongArgument))
        sentence = one_line(error) if foreseen else f"{type(error).__name__}: {one_line(error)}"
        # Gradio renders messages as HTML.
        raise gr.Error(escape(in_words(sentence, _LABELS)), duration=None, print_exception=not foreseen) from error


def _opened(file: FileData | None) -> tuple[str, Image.Image]:
    """The uploaded image, and its name without the server's folder."""
    if file is None or not file.path:
        raise Failure("there is no image; drop one, or take an example.")
    # JSON may hold what no text file can.
    name = Path(file.orig_name or file.path).name.encode(errors="replace").decode()
    if not Path(file.path).exists():
        raise Failure(f"{name}: has been deleted here in the meantime; drop it again.")
    try:
        return name, _opening.submit(_within_limit, Path(file.path)).result()
    except Failure as error:
        raise Failure(str(error).replace(file.path, name)) from error


def _within_limit(path: Path) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = min(limit or _MOST_PIXELS, _MOST_PIXELS)
    try:
        return open_picture(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def choices(subject: ExplainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choices of layer and class, as arguments of a ``gr.Dropdown`` each."""
    return (
        {"choices": list(dict.fromkeys([subject.layer_name, *subject.spatial_layers()])), "value": subject.layer_name},
        {"choices": [_MOST_PROBABLE, *_class_choices(subject)], "value": _PREDICTED},
    )


def _class_choices(subject: ExplainedModel) -> list[tuple[str, str]]:
    """The model's classes, each as it is shown, with the value of the choice."""
    return [(f"{subject.classifier.class_name(index)} ({index})", str(index)) for index in range(subject.classes)]


def build_page(workbench: Workbench, folder: Path, listeners: Listeners) -> gr.Blocks:
    """The page, not served yet.

    Args:
        workbench (Workbench): Answers the questions; its model is loaded.
        folder (Path): For the files of the demo images.
        listeners (Listeners): Visitors that wait for an answer; others get none.

    Raises:
        WrongArgument, Failure: As ``Workbench.subject``.
    """
    layers, classes = choices(workbench.subject(workbench.model))
    page: gr.Blocks
    with _Page(title="UnionCAM", analytics_enabled=False, delete_cache=_DELETION) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image, embedded, files = _picture_controls(folder)
                button = gr.Button("Explain", variant="primary")
                model = gr.Dropdown(
                    workbench.model_names,
                    value=workbench.model,
                    label="Network",
                    info="demo needs no download; torchvision's weights are downloaded when first chosen.",
                )
                target = gr.Dropdown(**classes, label="Class to explain")
                others = [name for name in names() if name != "union_cam"]
                methods = gr.Dropdown(others, value=_COMPARED, multiselect=True, label="Compare with")
                settings = _setting_controls(layers, workbench.quality)
            with gr.Column(scale=5, min_width=280):
                places = _result_places(_worked_example(workbench))
        status, bars, _, _, stop = places
        handlers = _Handlers(workbench, listeners)
        private: dict[str, Any] = {"api_visibility": "private"}
        # One computation at a time, since they share the models and put hooks on them.
        one_by_one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", **private}
        # gr.Examples would replace this image component by one with Gradio's own decoding.
        embedded.click(files.__getitem__, embedded, image, **private)
        checked = image.upload(handlers.check, image, None, **private)
        checked.failure(lambda: None, None, image, **private)
        model.input(handlers.choose, model, [settings[0], target], **one_by_one)
        asked = [image, model, target, methods, *settings]
        chosen = bars.select(handlers.choose_class, model, target, show_progress="hidden", **one_by_one)
        for event in (button.click, chosen.success):
            explained = event(
                handlers.explain, asked, places, show_progress_on=status, js=_SCROLL_TO_RESULT, **one_by_one
            )
            explained.failure(lambda: gr.update(visible=False), None, stop, show_progress="hidden", **private)
        # Not queued, so that it is not behind what it stops, and always has a place.
        stop.click(handlers.stop, None, None, queue=False, show_progress="hidden", **private)
    return page


def _worked_example(workbench: Workbench) -> Answer:
    """What the first screen shows."""
    question = Question(methods=tuple(_COMPARED), quality=workbench.quality)
    *_, answer = workbench.answers("demo image", embedded_pictures()[0][1], question)
    return answer


def _picture_controls(folder: Path) -> tuple[gr.Image, gr.Dataset, list[str]]:
    """The image component, the demo images to choose from, and their files."""
    files = []
    for number, (_, picture) in enumerate(embedded_pictures(), 1):
        files.append(str(folder / f"embedded-{number}.png"))
        picture.save(files[-1])
    image = gr.Image(files[0], label="Image", sources=["upload"], height=220, buttons=[])
    # Gradio itself would open the file with any of Pillow's decoders.
    image.preprocess = _as_uploaded  # type: ignore[method-assign]
    samples = [[file] for file in files]
    embedded = gr.Dataset(components=[image], samples=samples, type="index", label="Examples")
    image.keep_in_cache.update(sample["path"] for (sample,) in embedded.samples)
    return image, embedded, files


def _setting_controls(layers: dict[str, Any], quality: str) -> tuple[gr.Dropdown, gr.Slider, gr.Radio, gr.Radio]:
    with gr.Accordion("Settings of UnionCAM", open=False):
        return (
            gr.Dropdown(**layers, label="Layer", info="The usual one is chosen already."),
            gr.Slider(0, 100, 10, step=1, label="Theta", info="Gradients below this percentile are noise."),
            gr.Radio(list(OWN_METHODS), value="score", label="Channel weights", info="As the paper, or as Score-CAM."),
            gr.Radio(list(QUALITIES), value=quality, label="Quality", info="All channels, or 128 or 32 of them."),
        )


def _result_places(example: Answer) -> list[Any]:
    """The places of an answer, in the order of ``_shown``; between them, the opacity of the maps."""
    _, bars, page, code, _ = _shown(example, "")
    with gr.Row(elem_classes="status"):
        status = gr.HTML(_EXAMPLE, container=True)
        stop = gr.Button("Stop", visible=False, variant="stop", scale=0, min_width=100)
    with gr.Row():
        label = gr.Label(bars, label="Classes: click one to explain it", show_heading=False, scale=3)
        opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the maps", scale=2)
    opacity.input(None, opacity, None, js=_SET_OPACITY)
    result = gr.HTML(page, apply_default_css=False)
    lines = gr.Code(
        code["value"], language="python", label="The same map in Python", wrap_lines=True, show_line_numbers=False
    )
    return [status, label, result, lines, stop]


@contextmanager
def served(workbench: Workbench, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serves the page within the context, and yields its address. SIGTERM ends it as Ctrl-C does.

    Args:
        workbench (Workbench): Answers the questions.
        host (str): Address to listen at. Default: "127.0.0.1", which other machines cannot reach
        port (int or None): Default: None, the first free one from 7860 on

    Raises:
        WrongArgument, Failure: As ``Workbench.subject``, or the server cannot listen at the address.

    Examples::

        >>> with served(Workbench()) as address:
        ...     webbrowser.open(address)
    """
    is_local = _try_address(host, port)
    with _interrupted_by(SIGTERM), temporary_folder() as folder, _environment(folder):
        listeners = Listeners()
        page = build_page(workbench, folder, listeners).queue(api_open=False, max_size=_LONGEST_QUEUE)
        embedded = frozenset(folder.rglob("*"))
        limited = partial(keep_newest, folder, _MOST_BYTES_KEPT, _MOST_FILES_KEPT, embedded)
        guard = partial(
            Guard,
            listeners=listeners,
            is_local=is_local,
            host=host,
            largest_file=_LARGEST_FILE,
            after_upload=limited,
        )
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
            _app=_GuardedApp(guard),
        )
        try:
            yield address
        finally:
            workbench.close()
            page.close(verbose=False)


class _GuardedApp(App):
    """Gradio's server behind a guard. A middleware of FastAPI would run after Gradio's own."""

    def __init__(self, guard: partial[Guard]) -> None:
        super().__init__(default_response_class=ORJSONResponse)
        self._guard = guard

    def build_middleware_stack(self) -> ASGIApp:
        return self._guard(super().build_middleware_stack())


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Sets the environment variables that Gradio reads or sets, such as the folder of uploads, and restores them."""
    given = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "True",
    }
    before = {name: os.environ[name] for name in given.keys() & os.environ.keys()}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _interrupted_by(number: int) -> Iterator[None]:
    """Makes the signal raise ``KeyboardInterrupt`` within the context, in the main thread only."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal(number, default_int_handler)
    try:
        yield
    finally:
        signal(number, SIG_DFL if before is None else before)


def _try_address(host: str, port: int | None) -> bool:
    """Raises an error if the server cannot listen, where Gradio would retry.

    Returns:
        *bool*: Whether other machines cannot reach it.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
        return ip_address(str(address[0]).partition("%")[0]).is_loopback
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise Failure(f"cannot listen at {where}: {one_line(error)}; give another --host or --port.") from error


def _theme() -> gr.themes.Base:
    # Gradio's fonts are loaded from other servers, and its pale colors are hard to read.
    return gr.themes.Default(
        primary_hue="pink", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="#c2185b",
        button_primary_background_fill_hover="#a3154c",
    )


def _as_uploaded(payload: Any) -> Any:
    return payload
