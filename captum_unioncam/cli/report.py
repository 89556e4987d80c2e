"""``captum-unioncam report``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from captum_unioncam.evaluation.records import EvaluationSettings

Format = StrEnum("Format", ["text", "csv", "markdown", "latex", "json"])


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where an evaluation's records are.")] = Path(
        "evaluation"
    ),
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="METHOD",
            help="Also print each other method's differences from this one, image by image, with intervals and the "
            "share of images where it is better; written to differences.csv.",
        ),
    ] = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Of what is printed. Other than text: the table alone, or with --against that of the differences, and "
            "no file is written.",
        ),
    ] = Format.text,
) -> None:
    """Report on an evaluation in tables, plots and a page.

    Prints the means of each method, and writes them with their plots to FOLDER/report: table.csv, table.md, table.tex,
    curves.png, box.png, and report.html, which also shows the best and the worst maps. Works on unfinished evaluations
    too.
    """
    from captum_unioncam.evaluation.records import read_records
    from captum_unioncam.report.page import settings_in, write_report
    from captum_unioncam.report.statistics import paired_differences, summarize
    from captum_unioncam.report.tables import differences_text, display_differences, display_table, text
    from captum_unioncam.system.files import write_whole

    settings = settings_in(folder)
    summary = summarize(read_records(folder))
    differences = None if against is None else paired_differences(summary, against)
    if form is not Format.text:
        table, shown = summary.table, display_table(summary)
        if differences is not None:
            table, shown = differences, display_differences(differences)
        typer.echo(_formatted(form, table, *shown), nl=False)
        return
    paths = write_report(folder, _photos(settings), summary)
    if differences is not None:
        paths.append(folder / "report" / "differences.csv")
        write_whole(paths[-1], differences.to_csv(index=False).encode(errors="replace"))
    # A table in a file or a pipe is not wrapped.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(text(summary, width, settings))
    if against is not None and differences is not None:
        typer.echo(f"\n{differences_text(differences, against, width)}")
    typer.echo(f"\n{', '.join(map(str, paths))}")


def _formatted(form: Format, table: pd.DataFrame, texts: pd.DataFrame, best: pd.DataFrame) -> str:
    """The numbers as CSV or JSON, or the texts as Markdown or LaTeX."""
    from captum_unioncam.report.tables import as_latex, as_markdown

    if form is Format.csv:
        return str(table.to_csv(index=False))
    if form is Format.json:
        return f"{table.to_json(orient='records', indent=2)}\n"
    return (as_markdown if form is Format.markdown else as_latex)(texts, best)


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
