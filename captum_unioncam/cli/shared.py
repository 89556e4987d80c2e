"""What several commands do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from captum_unioncam.system.errors import WrongArgument, in_words, one_line

if TYPE_CHECKING:
    from PIL import Image

    from captum_unioncam.models.subject import ExplainedModel

EMBEDDED = "embedded picture"

_OPTIONS = {
    "class_file": "--classes",
    "confidence": "--confidence",
    "device": "--device",
    "layer": "--layer",
    "name": "--model",
    "steps": "--steps",
    "target": "--target",
    "weights": "--weights",
}
"""By argument of the library, which its errors name."""


def complain(error: Exception) -> None:
    """Tells what went wrong in one line on stderr, if that can be written to."""
    with suppress(OSError):
        typer.echo(f"Error: {in_words(one_line(error), _OPTIONS)}", err=True)


def opened(path: Path | None) -> tuple[str, str, Image.Image]:
    """The picture, or the embedded one, with its name and what its files are named after."""
    if path is None:
        from captum_unioncam.demo import load_picture

        return EMBEDDED, "demo", load_picture()
    from captum_unioncam.datasets.pictures import open_picture

    # As explain <(curl ...) gives it.
    return str(path), path.stem, open_picture(path, from_pipes=True)


def layer_line(subject: ExplainedModel) -> str:
    """Says which layer is explained."""
    found = " (found: the last whose output has space)" if subject.layer_found else ""
    return f"layer: {subject.layer_name}{found}"


def names_in(option: str, text: str) -> list[str]:
    """Those in an option's list with commas between, each once."""
    names = list(dict.fromkeys(name for name in (part.strip() for part in text.split(",")) if name))
    if not names:
        raise WrongArgument(f"{option}: is empty; give names with commas between.")
    return names
