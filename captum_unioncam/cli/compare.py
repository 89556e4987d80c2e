"""``captum-unioncam compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from captum_unioncam.cli import options
from captum_unioncam.cli.shared import complain, methods_in, names_in, opened, settings_of
from captum_unioncam.system.errors import Failure, WrongArgument
from captum_unioncam.system.files import FreeNames, make_folder


@options.with_model_options
def compare(
    context: typer.Context,
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Picture.", show_default="an embedded one")
    ] = None,
    methods: options.MethodsOption = "union_cam, denoised_grad_cam, score_cam, grad_cam, guided_grad_cam, occlusion",
    metrics: options.MetricsOption = None,
    target: options.TargetOption = None,
    steps: options.StepsOption = 100,
    seed: options.SeedOption = 0,
    output: options.OutputOption = Path("comparison"),
    **_model_options: Any,
) -> None:
    """Compare methods on one picture, by maps and metrics.

    Writes a panel of the maps (png), each method's metrics and seconds (csv), and one page with both (html). The error
    of a method that fails is printed, and the exit code is 1.
    """
    from captum_unioncam.evaluation.compare import compare as compare_methods
    from captum_unioncam.evaluation.judge import Judge
    from captum_unioncam.report.comparison import comparison_page, comparison_panel, comparison_text
    from captum_unioncam.report.panels import png

    method_names, metric_names = methods_in(methods), _metric_names(metrics)
    name, stem, picture = opened(image)
    settings = settings_of(context.params)
    on_terminal = sys.stderr.isatty()
    subject = settings.subject(on_terminal)
    class_index = None if target is None else subject.class_index(target)
    judge = Judge(subject, method_names, settings.of_methods(), steps, seed, metric_names)
    make_folder(output)
    comparison = compare_methods(judge, name, picture, class_index, on_terminal)
    contents = {
        "png": png(comparison_panel(comparison)),
        "csv": comparison.csv(),
        "html": comparison_page(comparison),
    }
    paths = FreeNames(output, taken=[] if image is None else [image]).write(stem, [comparison.class_name], contents)
    typer.echo(f"{name}: {comparison.class_name} {comparison.confidence:.2f}; layer {comparison.layer}")
    if comparison.judgements:
        typer.echo(comparison_text(comparison))
    typer.echo(", ".join(map(str, paths)))
    for method, problem in comparison.failures.items():
        complain(Failure(f"{method}: {problem}"))
    if comparison.failures:
        raise typer.Exit(1)


def _metric_names(metrics: str | None) -> list[str] | None:
    from captum_unioncam.metrics.table import find_metrics

    names = None if metrics is None else names_in("--metrics", metrics)
    for metric in find_metrics(names or ()):
        if metric.needs_objects:
            raise WrongArgument(
                f"--metrics {metric.name}: is of the picture's objects, which evaluate knows of some data sets; leave "
                "it out."
            )
    return names
