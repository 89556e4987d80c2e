"""``captum-unioncam explain``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_unioncam.cli import options
from captum_unioncam.cli.shared import (
    EMBEDDED,
    complain,
    end,
    layer_line,
    opened,
    readable_pictures,
    settings_of,
    tell_of_download,
    use_threads,
)
from captum_unioncam.system.errors import Failure, WrongArgument, without_name
from captum_unioncam.system.files import FreeNames, output_folder

if TYPE_CHECKING:
    from captum_unioncam.evaluation.explain import Explainer, Explanation
    from captum_unioncam.report.images import Look

_DEFAULT = "union_cam"
ChannelWeights = StrEnum("ChannelWeights", ["score", "softmax"])
Format = StrEnum("Format", ["png", "pdf", "svg", "npy", "json"])
Size = StrEnum("Size", ["model", "original"])


@options.with_model_options
def explain(
    context: typer.Context,
    images: options.ImagesArgument = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Method, one of those that captum-unioncam methods lists.")
    ] = _DEFAULT,
    target: options.TargetOption = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Explain the K most probable classes instead.")
    ] = None,
    channel_weights: Annotated[
        ChannelWeights | None,
        typer.Option(
            help="Weight channels by their score, or by the softmax of all scores.",
            show_default="the method's own, score for UnionCAM",
        ),
    ] = None,
    quality: options.QualityOption = None,
    output: options.OutputOption = Path("unioncam"),
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            metavar="png|pdf|svg|npy|json",
            help="A panel of all maps, the raw map, or the numbers and settings; may be given again for more.",
            show_default="png",
        ),
    ] = None,
    size: Annotated[
        Size,
        typer.Option(
            help="model: the image as the model sees it, and the raw map at the layer's resolution. original: both "
            "at the resolution of the file."
        ),
    ] = Size.model,
    overlay_only: Annotated[
        bool,
        typer.Option("--overlay-only", help="Write only the image with the method's map over it, without the panel."),
    ] = False,
    colormap: options.ColormapOption = "glow",
    opacity: options.OpacityOption = 0.6,
    dpi: options.DpiOption = 150,
    open_it: options.OpenOption = False,
    quiet: options.QuietOption = False,
    threads: options.ThreadsOption = None,
    **_model_options: Any,
) -> None:
    """Explain the predicted class of each image.

    For each image a panel is written: the photo, Grad-CAM for comparison, and the method's map, with the class and
    the confidence. UnionCAM's panel has its denoised, region and union maps, and says which was selected. With
    --output - the one file goes to standard output.

    Without arguments, the demo image is explained with the demo model, and nothing is downloaded.
    """
    _check_options(context)
    pictures, failed = readable_pictures(images)
    piped = str(output) == "-"
    wanted = formats or [Format.png]
    if piped and (len(pictures) > 1 or len(wanted) > 1 or (top_k or 1) > 1 or open_it):
        raise WrongArgument("--output -: takes one file; give one image, one --format and one class, without --open.")
    from captum_unioncam.evaluation.explain import Explainer
    from captum_unioncam.report.images import Look

    settings = settings_of(context.params, bool(pictures))
    contents = _Contents(wanted, Look(colormap, opacity), dpi, size is Size.original, overlay_only)
    use_threads(threads)
    on_terminal = sys.stderr.isatty() and not quiet
    if not quiet:
        tell_of_download(settings)
    standard_output = sys.stdout
    # What models print goes to stderr too, where the file goes to stdout.
    with ExitStack() as stack:
        if piped:
            stack.enter_context(redirect_stdout(sys.stderr))
        subject = settings.subject(on_terminal)
        if quality is not None:
            settings = settings.of_quality(quality, subject.device)
        explainer = Explainer(settings, on_terminal and len(pictures) < 2, subject)
        class_index = None if target is None else explainer.subject.class_index(target)
        if not piped:
            stack.enter_context(output_folder(output))
        if not quiet:
            typer.echo(layer_line(subject), err=piped)
            if quality is not None:
                channels = settings.max_channels or "all"
                typer.echo(f"quality: {quality}, {channels} channels scored in {settings.dtype}", err=piped)
        writer = None if piped else FreeNames(output, taken=pictures)
        outcomes = _explained(explainer, pictures or (None,), class_index, top_k or 1, contents, writer, on_terminal)
        written: list[Path] = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failed = True
                complain(outcome)
                continue
            written += outcome.paths
            if not quiet:
                outcome.tell(err=piped)
            if piped:
                standard_output.buffer.write(outcome.content)
    end(written, open_it, failed)


def _check_options(context: typer.Context) -> None:
    """Refuses options that do not go together."""
    given = context.params
    if given["target"] is not None and given["top_k"] is not None:
        raise WrongArgument("--target and --top-k do not go together; give one of them.")
    replaced = "max_channels", "channel_selection", "dtype"
    if given["quality"] is not None and any(options.is_given(context, name) for name in replaced):
        raise WrongArgument("--quality stands for --max-channels, --channel-selection and --dtype; give it, or those.")


@dataclass(frozen=True)
class _Contents:
    """What is written of each explanation."""

    formats: Sequence[Format]
    look: Look
    dpi: int
    original: bool
    overlay_only: bool

    def of(self, wanted: Format, explanation: Explanation, picture: str) -> bytes:
        from captum_unioncam.report.panels import drawn, explanation_overlay, explanation_panel, picture_file

        if wanted is Format.npy:
            return explanation.npy(full=self.original)
        if wanted is Format.json:
            return (json.dumps({"picture": picture, **explanation.record()}, indent=2) + "\n").encode()
        if self.overlay_only:
            return picture_file(explanation_overlay(explanation, self.look, self.original), wanted.value, self.dpi)
        return drawn(explanation_panel(explanation, self.look, self.original), wanted.value, self.dpi)


@dataclass(frozen=True)
class _Outcome:
    """One class of one image: the files, or the content for standard output, and what is printed."""

    line: str
    warnings: list[str]
    paths: list[Path]
    content: bytes = b""

    def tell(self, err: bool) -> None:
        """Prints the line, on stderr if so, and the warnings."""
        typer.echo(self.line, err=err)
        for warning in self.warnings:
            typer.echo(f"Note: {warning}", err=True)


def _explained(
    explainer: Explainer,
    pictures: Sequence[Path | None],
    target: int | None,
    top_k: int,
    contents: _Contents,
    writer: FreeNames | None,
    on_terminal: bool,
) -> Iterator[_Outcome | Failure]:
    """Writes the files of each image, with a progress bar over several images on a terminal."""
    from captum_unioncam.engine._captum import progress

    shown = progress(pictures, desc="images") if on_terminal and len(pictures) > 1 else pictures
    for path in shown:
        try:
            name, stem, picture = opened(path)
            for explanation in explainer.explain(picture, target, top_k):
                yield _outcome(explanation, name, stem, contents, writer)
        except Exception as error:
            # A user's model may raise anything for one image; the others are still explained.
            name = str(path or EMBEDDED)
            yield Failure(f"{name}: {without_name(error, name)}")


def _outcome(explanation: Explanation, name: str, stem: str, contents: _Contents, writer: FreeNames | None) -> _Outcome:
    # Before any file is written: what fails here leaves none.
    made = {wanted.value: contents.of(wanted, explanation, name) for wanted in contents.formats}
    # Maps of other methods are written beside UnionCAM's, not in their place.
    method = [] if explanation.settings.method == _DEFAULT else [explanation.settings.method]
    paths = writer.write(stem, [explanation.class_name, *method], made) if writer else []
    parts = [f"{name}: {explanation.class_name} {explanation.confidence:.2f}"]
    if explanation.betas is not None:
        betas = (f"{map_name} {beta:.2f}" for map_name, beta in explanation.betas.items())
        parts += [f"betas: {', '.join(betas)}", f"{explanation.choice} map selected"]
    if paths:
        parts.append(", ".join(map(str, paths)))
    return _Outcome("; ".join(parts), explanation.warnings, paths, b"" if writer else next(iter(made.values())))
