"""``captum-unioncam report``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captum_unioncam.system.errors import WrongArgument

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from captum_unioncam.evaluation.records import EvaluationSettings
    from captum_unioncam.report.statistics import Summary

Format = StrEnum("Format", ["text", "csv", "markdown", "latex", "json"])


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where an evaluation's records are.")] = Path(
        "evaluation"
    ),
    against: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Also print each other method's differences from this one, image by image, with intervals and the "
            "share of images where it is better; written to differences.csv.",
        ),
    ] = None,
    by_class: Annotated[
        bool, typer.Option("--by-class", help="Also print each class's means, with intervals; written to by_class.csv.")
    ] = False,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Format of what is printed. With any format but text, only the table is printed, or that of --against "
            "or --by-class, and no file is written.",
        ),
    ] = Format.text,
) -> None:
    """Report on an evaluation in tables, plots and a page.

    Prints the means of each method, and writes them to FOLDER/report: table.csv, table.md, table.tex, plots (box.png,
    curves.png, trade_off.png, ranks.png), and report.html, which also shows differences between methods, classes,
    single images with all methods, and the best and the worst maps. Works on unfinished evaluations too.
    """
    from captum_unioncam.evaluation.records import read_records, settings_in
    from captum_unioncam.report import page, statistics, tables
    from captum_unioncam.system.files import write_whole

    if against is not None and by_class and form is not Format.text:
        raise WrongArgument(f"--against and --by-class: are two tables; give one of them with --format {form}.")
    settings = settings_in(folder)
    summary = statistics.summarize(read_records(folder))
    differences = None if against is None else statistics.paired_differences(summary, against)
    classes = statistics.class_table(summary) if by_class else None
    if form is not Format.text:
        typer.echo(_formatted(form, summary, differences, classes), nl=False)
        return
    paths = page.write_report(folder, _photos(settings), summary, against)
    # A table in a file or a pipe is not wrapped.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(tables.text(summary, width, settings))
    if against is not None and differences is not None:
        typer.echo(f"\n{tables.differences_text(differences, against, width)}")
    if classes is not None:
        typer.echo(f"\n{tables.classes_text(classes, width)}")
    for name, table in (("differences", differences), ("by_class", classes)):
        if table is not None:
            paths.append(folder / "report" / f"{name}.csv")
            write_whole(paths[-1], table.to_csv(index=False).encode(errors="replace"))
    typer.echo(f"\n{', '.join(map(str, paths))}")


def _formatted(form: Format, summary: Summary, differences: pd.DataFrame | None, classes: pd.DataFrame | None) -> str:
    """The numbers as CSV or JSON, or the texts as Markdown or LaTeX, of one of the tables."""
    from captum_unioncam.report import tables

    table, shown = summary.table, tables.display_table(summary)
    if differences is not None:
        table, shown = differences, tables.display_differences(differences)
    if classes is not None:
        table, shown = classes, tables.display_classes(classes)
    if form is Format.csv:
        return str(table.to_csv(index=False))
    if form is Format.json:
        return f"{table.to_json(orient='records', indent=2)}\n"
    return (tables.as_markdown if form is Format.markdown else tables.as_latex)(*shown)


def _photos(settings: EvaluationSettings) -> Callable[[str], Tensor | None]:
    """Gives the photos of an evaluation as its model saw them, None where they are no longer available."""
    from captum_unioncam.datasets.open import picture_of
    from captum_unioncam.models.zoo import preprocessing_of

    try:
        # Once: it may build a user's own model.
        preprocessing = preprocessing_of(settings["model"], settings["preprocess"])
    except Exception:
        # A user's own model may raise anything. The report then shows the maps alone.
        return lambda _name: None

    def photo(name: str) -> Tensor | None:
        try:
            return preprocessing.fit(picture_of(settings["data"], name))
        except Exception:
            # The report then shows the map alone.
            return None

    return photo
