"""``captum-unioncam compare``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_unioncam.cli import options
from captum_unioncam.cli.shared import (
    check_folder,
    complain,
    end,
    methods_in,
    metrics_in,
    names_in,
    opened,
    readable_pictures,
    settings_of,
    tell_of_download,
    use_threads,
)
from captum_unioncam.system.errors import Failure, WrongArgument
from captum_unioncam.system.files import FreeNames, output_folder

if TYPE_CHECKING:
    from captum_unioncam.evaluation.compare import Comparison
    from captum_unioncam.report.images import Look


@options.with_model_options
def compare(
    context: typer.Context,
    images: options.ImagesArgument = None,
    methods: options.MethodsOption = "union_cam, denoised_grad_cam, score_cam, grad_cam, guided_grad_cam, occlusion",
    metrics: options.MetricsOption = None,
    target: options.TargetOption = None,
    steps: options.StepsOption = 100,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves", help="Also draw the curves of deletion, insertion and the like: a file, and on the page."
        ),
    ] = False,
    seed: options.SeedOption = 0,
    output: options.OutputOption = Path("comparison"),
    colormap: options.ColormapOption = "glow",
    opacity: options.OpacityOption = 0.6,
    dpi: options.DpiOption = 150,
    open_it: options.OpenOption = False,
    quiet: options.QuietOption = False,
    threads: options.ThreadsOption = None,
    **_model_options: Any,
) -> None:
    """Compare methods on images, by maps and metrics.

    Writes for each image a panel of the maps (png), each method's metrics and seconds (csv), and one page with both
    (html). The best value of each metric is marked with a star, unless several methods share it. The error of a method
    that fails is printed, and the exit code is 1.
    """
    from captum_unioncam.evaluation.compare import compare as compare_methods
    from captum_unioncam.evaluation.explain import demo_note, is_photo
    from captum_unioncam.evaluation.judge import Judge
    from captum_unioncam.report.images import Look

    check_folder(output)
    method_names, metric_names = methods_in(methods), _metric_names(metrics)
    look = Look(colormap, opacity)
    pictures, failed = readable_pictures(images)
    settings = settings_of(context.params, bool(pictures))
    use_threads(threads)
    on_terminal = sys.stderr.isatty() and not quiet
    if not quiet:
        tell_of_download(settings)
    subject = settings.subject(on_terminal)
    class_index = None if target is None else subject.class_index(target)
    judge = Judge(subject, method_names, settings.of_methods(), steps, seed, metric_names)
    if curves and not any(metric.has_curve for metric in judge.metrics):
        raise WrongArgument("--curves: none of the metrics has a curve; add deletion or insertion to --metrics.")
    written: list[Path] = []
    with output_folder(output):
        names = FreeNames(output, taken=pictures)
        for path in pictures or (None,):
            try:
                name, stem, picture = opened(path)
            except Failure as error:
                failed = True
                complain(error)
                continue
            comparison = compare_methods(judge, name, picture, class_index, on_terminal)
            paths = names.write(stem, [comparison.class_name], _contents(comparison, look, dpi, curves))
            written += paths
            if not quiet:
                _tell(comparison, demo_note(settings, is_photo(picture)), paths)
            for method, what in comparison.failures.items():
                failed = True
                complain(Failure(f"{method}: {what}"))
    end(written, open_it, failed)


def _contents(comparison: Comparison, look: Look, dpi: int, curves: bool) -> dict[str, bytes]:
    """The files of one image, by suffix; the page first, which --open opens."""
    from captum_unioncam.report.comparison import comparison_curves, comparison_page, comparison_panel
    from captum_unioncam.report.panels import png

    return {
        "html": comparison_page(comparison, look, curves),
        "png": png(comparison_panel(comparison, look), dpi),
        "csv": comparison.csv(),
        **({"curves.png": png(comparison_curves(comparison), dpi)} if curves else {}),
    }


def _tell(comparison: Comparison, note: str | None, paths: Sequence[Path]) -> None:
    """Prints the results of one image."""
    from captum_unioncam.report.comparison import comparison_text

    confidence = f"{comparison.class_name} {comparison.confidence:.2f}"
    typer.echo(f"{comparison.picture}: {confidence}; layer {comparison.layer}")
    if note:
        typer.echo(f"Note: {note}", err=True)
    if comparison.judgements:
        typer.echo(comparison_text(comparison))
    typer.echo(", ".join(map(str, paths)))


def _metric_names(metrics: str | None) -> list[str] | None:
    from captum_unioncam.metrics.table import find_metrics

    names = metrics_in(metrics)
    # Those of "all" are left out.
    named = [] if metrics is None else names_in("--metrics", metrics, every=list)
    for metric in find_metrics(named):
        if metric.needs_objects:
            raise WrongArgument(f"--metrics {metric.name}: needs object masks, which only evaluate has; leave it out.")
    return names
