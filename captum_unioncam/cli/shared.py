"""What several commands do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from enum import StrEnum
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from captum_unioncam.system.errors import Failure, WrongArgument, in_words, one_line

if TYPE_CHECKING:
    from PIL import Image

    from captum_unioncam.evaluation.explain import Settings
    from captum_unioncam.models.subject import ExplainedModel

EMBEDDED = "demo image"

_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Of the images in a folder."""

_OPTIONS = {
    "class_file": "--classes",
    "class_names": "--class-names",
    "colormap": "--colormap",
    "confidence": "--confidence",
    "device": "--device",
    "layer": "--layer",
    "crop": "--crop",
    "mean": "--mean",
    "name": "--model",
    "opacity": "--opacity",
    "output_fn": "--output-fn",
    "preprocess": "--preprocess",
    "std": "--std",
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


def settings_of(options: Mapping[str, Any], has_photos: bool = False) -> Settings:
    """The settings among a command's options, which have the same names; for photos, another model by default."""
    from captum_unioncam.evaluation.explain import Settings
    from captum_unioncam.models.zoo import DEMO_MODEL, PHOTO_MODEL

    given = {name: str(value) if isinstance(value, StrEnum | Path) else value for name, value in options.items()}
    values: dict[str, Any] = {field.name: given[field.name] for field in fields(Settings) if field.name in given}
    if values["model"] is None:
        values["model"] = PHOTO_MODEL if has_photos else DEMO_MODEL
    own = {"size": "input_size", "crop": "crop", "mean": "mean", "std": "std"}
    parts = [f"{name}={options[option]}" for name, option in own.items() if options.get(option) is not None]
    if parts:
        if values["preprocess"] != "auto":
            raise WrongArgument("--preprocess paper does not go together with --input-size, --crop, --mean or --std.")
        values["preprocess"] = " ".join(part.replace(" ", "") for part in parts)
    return Settings(**values)


def tell_of_download(settings: Settings) -> None:
    """Says on stderr what will be downloaded, before it is."""
    if settings.weights is None:
        from captum_unioncam.models.zoo import download_of

        if line := download_of(settings.model):
            typer.echo(f"downloading {line}", err=True)


def readable_pictures(given: Sequence[Path] | None) -> tuple[list[Path], bool]:
    """The images that are given by files, folders and patterns, and whether there are others, which are told.

    Ends the command if none is left. Nothing is opened yet, so that a misspelled name is told before a model is loaded.
    """
    found: list[Path] = []
    problems = []
    for path in given or ():
        try:
            found += _pictures_of(path)
        except OSError as error:
            problems.append(Failure(f"{path}: {error.strerror or error}; check the path."))
        except Failure as error:
            problems.append(error)
    for problem in problems:
        complain(problem)
    if given and not found:
        raise typer.Exit(1)
    return list(dict.fromkeys(found)), bool(problems)


def end(written: Sequence[Path], open_it: bool, failed: bool) -> None:
    """Opens the first file if that is asked for, and gives the exit code."""
    if open_it and written:
        typer.launch(str(written[0]))
    if failed:
        raise typer.Exit(1)


def _pictures_of(path: Path) -> list[Path]:
    if path.is_dir():
        inside = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _SUFFIXES and file.name[0] != "."]
        if not inside:
            raise Failure(f"{path}: is a folder without images; give another.")
        return inside
    if path.exists():
        return [path]
    # A shell expands most patterns itself; not in quotes, and not on Windows.
    matching = sorted(glob(str(path)))
    if not matching:
        raise Failure(f"{path}: does not exist; check the path.")
    return [Path(name) for name in matching]


def check_folder(output: Path) -> None:
    """Refuses standard output, which only ``explain`` writes to, before anything is loaded."""
    if str(output) == "-":
        raise WrongArgument("--output -: several files are written, not to standard output; give a folder.")


def use_threads(number: int | None) -> None:
    """Computes with so many threads; None leaves PyTorch's own number."""
    if number is not None:
        import torch

        torch.set_num_threads(number)


def opened(path: Path | None) -> tuple[str, str, Image.Image]:
    """The image, or the embedded one, with its name and the stem of its output files."""
    if path is None:
        from captum_unioncam.demo import load_picture

        return EMBEDDED, "demo", load_picture()
    from captum_unioncam.datasets.pictures import open_picture

    # Pipes are read too, for explain <(curl ...).
    return str(path), path.stem, open_picture(path, from_pipes=True)


def layer_line(subject: ExplainedModel) -> str:
    """The explained layer, and whether it was found by itself."""
    found = " (found: the last layer with a spatial output)" if subject.layer_found else ""
    return f"layer: {subject.layer_name}{found}"


def names_in(option: str, text: str, every: Callable[[], Iterable[str]]) -> list[str]:
    """The names in an option's list, separated by commas, each once; "all" stands for every one."""
    given = [name for name in map(str.strip, text.split(",")) if name]
    if not given:
        raise WrongArgument(f"{option}: is empty; give names with commas between.")
    return list(dict.fromkeys(name for one in given for name in (every() if one == "all" else [one])))


def methods_in(text: str) -> list[str]:
    """The methods in ``--methods``; "all" stands for all that ``captum-unioncam methods`` lists."""
    from captum_unioncam import methods

    return names_in("--methods", text, methods.names)


def metrics_in(text: str | None) -> list[str] | None:
    """The metrics in ``--metrics``; "all" stands for all that ``captum-unioncam metrics`` lists, None for the usual."""
    if text is None:
        return None
    from captum_unioncam.metrics.table import all_metrics

    return names_in("--metrics", text, all_metrics)
