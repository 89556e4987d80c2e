"""``captum-unioncam explain``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_unioncam.cli import options
from captum_unioncam.cli.shared import EMBEDDED, complain, layer_line, opened, settings_of
from captum_unioncam.system.errors import Failure, WrongArgument
from captum_unioncam.system.files import FreeNames, make_folder

if TYPE_CHECKING:
    from captum_unioncam.evaluation.explain import Explainer, Explanation

_DEFAULT = "union_cam"
Format = StrEnum("Format", ["png", "npy", "json"])


@options.with_model_options
def explain(
    context: typer.Context,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGES", help="Pictures.", show_default="an embedded one")
    ] = None,
    method: options.MethodOption = _DEFAULT,
    target: options.TargetOption = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, metavar="K", help="Explain the K most probable classes instead.")
    ] = None,
    channel_weights: options.ChannelWeightsOption = None,
    quality: options.QualityOption = None,
    output: options.OutputOption = Path("unioncam"),
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            metavar="png|npy|json",
            help="A panel of all maps, the raw map, or the numbers and settings; may be given again for more.",
            show_default="png",
        ),
    ] = None,
    **_model_options: Any,
) -> None:
    """Explain the class that a network sees in each picture.

    For each picture a panel is written: the photo, GradCAM for comparison, and the method's map, with the class and the
    confidence. UnionCAM's panel has its denoised, region and union maps, and says which was selected.

    Without arguments, an embedded picture is explained with an embedded network, and nothing is downloaded.
    """
    if target is not None and top_k is not None:
        raise WrongArgument("--target and --top-k do not go together; give one of them.")
    on_terminal, settings = sys.stderr.isatty(), settings_of(context.params)
    replaced = "max_channels", "channel_selection", "dtype"
    if quality is not None and any(options.is_given(context, name) for name in replaced):
        raise WrongArgument("--quality stands for --max-channels, --channel-selection and --dtype; give it, or those.")
    from captum_unioncam.evaluation.explain import Explainer

    subject = settings.subject(on_terminal)
    if quality is not None:
        settings = settings.of_quality(quality, subject.device)
    explainer = Explainer(settings, on_terminal, subject)
    class_index = None if target is None else explainer.subject.class_index(target)
    make_folder(output)
    names = FreeNames(output, taken=images or [])
    typer.echo(layer_line(subject))
    if quality is not None:
        typer.echo(f"quality: {quality}, {settings.max_channels or 'all'} channels scored in {settings.dtype}")
    failed = False
    for path in images or (None,):
        for outcome in _explain_picture(explainer, path, class_index, top_k or 1, formats or [Format.png], names):
            if isinstance(outcome, Failure):
                failed = True
                complain(outcome)
            else:
                typer.echo(outcome)
    if failed:
        raise typer.Exit(1)


def _explain_picture(
    explainer: Explainer, path: Path | None, target: int | None, top_k: int, formats: Sequence[Format], names: FreeNames
) -> Iterator[str | Failure]:
    """Writes the files of one picture. Gives a line for each class, and ends with what fails."""
    try:
        name, stem, picture = opened(path)
        for explanation in explainer.explain(picture, target, top_k):
            # Before any file is written: what fails here leaves none.
            contents = {wanted.value: _content(explanation, name, wanted) for wanted in formats}
            # Maps of other methods are written beside UnionCAM's, not in their place.
            method = [] if explanation.settings.method == _DEFAULT else [explanation.settings.method]
            paths = names.write(stem, [explanation.class_name, *method], contents)
            parts = [f"{name}: {explanation.class_name} {explanation.confidence:.2f}"]
            if explanation.betas is not None:
                betas = (f"{map_name} {beta:.2f}" for map_name, beta in explanation.betas.items())
                parts += [f"betas: {', '.join(betas)}", f"{explanation.choice} map selected"]
            yield "; ".join([*parts, ", ".join(map(str, paths))])
    except Exception as error:
        # A user's model may raise anything for one picture; the others are still explained.
        problem = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        name = str(path or EMBEDDED)
        yield Failure(problem if problem.startswith(name) else f"{name}: {problem}")


def _content(explanation: Explanation, picture: str, wanted: Format) -> bytes:
    if wanted is Format.npy:
        return explanation.npy()
    if wanted is Format.json:
        return (json.dumps({"picture": picture, **explanation.record()}, indent=2) + "\n").encode()
    from captum_unioncam.report.panels import explanation_panel, png

    return png(explanation_panel(explanation))
