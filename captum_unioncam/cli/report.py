"""``captum-unioncam report``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from captum_unioncam.evaluation.records import EvaluationSettings


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where an evaluation's records are.")] = Path(
        "evaluation"
    ),
) -> None:
    """Report on an evaluation in tables, plots and a page.

    Prints the means of each method, and writes them with their plots to FOLDER/report: table.csv, table.md, table.tex,
    curves.png, box.png, and report.html, which also shows the best and the worst maps. Works on unfinished evaluations
    too.
    """
    from captum_unioncam.evaluation.records import read_records
    from captum_unioncam.report.page import settings_in, write_report
    from captum_unioncam.report.statistics import summarize
    from captum_unioncam.report.tables import text

    settings = settings_in(folder)
    summary = summarize(read_records(folder))
    paths = write_report(folder, _photos(settings), summary)
    # A table in a file or a pipe is not wrapped.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(text(summary, width, settings))
    typer.echo(f"\n{', '.join(map(str, paths))}")


def _photos(settings: EvaluationSettings) -> Callable[[str], Tensor | None]:
    """Gives the photos of an evaluation as its model saw them, None where they are no longer available."""
    from captum_unioncam.datasets.open import picture_of
    from captum_unioncam.models.zoo import preprocessing_of

    def photo(name: str) -> Tensor | None:
        try:
            preprocessing = preprocessing_of(settings["model"], settings["preprocess"])
            return preprocessing.fit(picture_of(settings["data"], name))
        except Exception:
            # The report then shows the map alone.
            return None

    return photo
