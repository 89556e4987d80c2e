"""What several commands do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from captum_unioncam.system.errors import WrongArgument, in_words, one_line

if TYPE_CHECKING:
    from PIL import Image

    from captum_unioncam.evaluation.explain import Settings
    from captum_unioncam.models.subject import ExplainedModel

EMBEDDED = "embedded picture"

_OPTIONS = {
    "class_file": "--classes",
    "confidence": "--confidence",
    "device": "--device",
    "layer": "--layer",
    "name": "--model",
    "steps": "--steps",
    "subset": "--subset",
    "target": "--target",
    "weights": "--weights",
}
"""The option for each argument that the library's errors name."""


def complain(error: Exception) -> None:
    """Prints the error in one line on stderr, if that can be written to."""
    with suppress(OSError):
        typer.echo(f"Error: {in_words(one_line(error), _OPTIONS)}", err=True)


def settings_of(options: Mapping[str, Any]) -> Settings:
    """The settings among a command's options, which have the same names."""
    from captum_unioncam.evaluation.explain import Settings

    given = {field.name: options[field.name] for field in fields(Settings) if field.name in options}
    values: dict[str, Any] = {
        name: str(value) if isinstance(value, StrEnum) else value for name, value in given.items()
    }
    return Settings(**values)


def opened(path: Path | None) -> tuple[str, str, Image.Image]:
    """The picture, or the embedded one, with its name and the stem of its output files."""
    if path is None:
        from captum_unioncam.demo import load_picture

        return EMBEDDED, "demo", load_picture()
    from captum_unioncam.datasets.pictures import open_picture

    # Pipes are read too, for explain <(curl ...).
    return str(path), path.stem, open_picture(path, from_pipes=True)


def layer_line(subject: ExplainedModel) -> str:
    """The explained layer, and whether it was found by itself."""
    found = " (found: the last whose output has space)" if subject.layer_found else ""
    return f"layer: {subject.layer_name}{found}"


def names_in(option: str, text: str) -> list[str]:
    """The names in an option's list, separated by commas, each once."""
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    if not names:
        raise WrongArgument(f"{option}: is empty; give names with commas between.")
    return list(dict.fromkeys(names))


def methods_in(text: str) -> list[str]:
    """The methods in ``--methods``; "all" stands for all that ``captum-unioncam methods`` lists."""
    from captum_unioncam import methods

    given = names_in("--methods", text)
    names = [name for one in given for name in (methods.names() if one == "all" else [one])]
    return list(dict.fromkeys(names))
