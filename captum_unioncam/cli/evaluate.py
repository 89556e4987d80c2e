"""``captum-unioncam evaluate``."""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_unioncam.cli import options
from captum_unioncam.cli.shared import (
    check_folder,
    layer_line,
    methods_in,
    metrics_in,
    settings_of,
    tell_of_download,
)
from captum_unioncam.system.errors import Failure

if TYPE_CHECKING:
    from captum_unioncam.evaluation.run import Evaluation
    from captum_unioncam.models.subject import ExplainedModel

Protocol = StrEnum("Protocol", ["own", "paper"])


@options.with_model_options
def evaluate(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="demo, 1000 generated images; a folder with one subfolder of images for each class (ImageNet's "
            "layout), with masks or without; a folder in the layout of Pascal VOC, COCO or YOLO; or a table of boxes, "
            ".csv.",
        ),
    ] = "demo",
    methods: options.MethodsOption = "union_cam, score_cam, denoised_grad_cam, grad_cam",
    metrics: options.MetricsOption = None,
    output: Annotated[
        Path, typer.Option("--out", "--output", metavar="FOLDER", help="Folder of the records; created if missing.")
    ] = Path("evaluation"),
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The model's output for each class of the data: a text with one line for each output that begins with "
            "the class's name (as ImageNet's LOC_synset_mapping.txt), or .json with the output of each name.",
            show_default="by name or order",
        ),
    ] = None,
    subset: Annotated[
        options.Subset | None,
        typer.Option(
            help="difficult: classes whose objects cover less than a quarter of an image that shows another class "
            "too, as in TorchRay.",
            show_default="all",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="A random subset of N images.", show_default="all")
    ] = None,
    seed: options.SeedOption = 0,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="own: the other options as given. paper: as in the UnionCAM paper, --model vgg16 --layer features.29 "
            "--preprocess paper --theta 10 --limit 2000 (Pascal VOC: no limit); options that are given take precedence."
        ),
    ] = Protocol.own,
    steps: options.StepsOption = 100,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that read images ahead.")] = 2,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Also redo records that failed in an earlier start.")
    ] = False,
    accept_other_versions: Annotated[
        bool, typer.Option("--accept-other-versions", help="Continue with other versions of packages.")
    ] = False,
    confidence: Annotated[
        options.SettledConfidence,
        typer.Option(help=f"{options.CONFIDENCES}; auto, found out by the first images, where they tell."),
    ] = options.SettledConfidence.softmax,
    **_model_options: Any,
) -> None:
    """Evaluate methods over a data set, in one process or many.

    Writes one record for each image, class and method to files in the folder: metrics, or the error of a method that
    fails. Started again with the same settings, it adds only missing records. See captum-unioncam report.

    On several GPUs or machines with a shared file system:

    \b
    torchrun --nproc-per-node G --nnodes M -m captum_unioncam evaluate DATA ...
    """
    from captum_unioncam.datasets.base import DEMO_DATA
    from captum_unioncam.datasets.open import check_layout
    from captum_unioncam.evaluation import distributed, run
    from captum_unioncam.evaluation.explain import demo_note

    check_folder(output)
    method_names = methods_in(methods)
    metric_names = metrics_in(metrics)
    check_layout(data)
    has_photos = data != DEMO_DATA
    given = _with_the_papers(context, data) if protocol is Protocol.paper else context.params
    settings = settings_of({**given, "device": distributed.local_device(given["device"])}, has_photos)
    # It alone prints what is common to all.
    first = distributed.rank() == 0
    if first:
        tell_of_download(settings)
    subject = settings.subject(sys.stderr.isatty())
    evaluation = run.Evaluation(data, classes, given["limit"], seed, steps, settings.of_methods(), subset)
    if first:
        typer.echo(layer_line(subject))
        note = demo_note(settings, has_photos)
        if note and _shows_photos(evaluation, subject):
            typer.echo(f"Note: {note}", err=True)
    if line := distributed.shared_gpus(settings.device):
        typer.echo(line, err=True)
    how = workers, first, retry_failures, metric_names, accept_other_versions
    tally = run.evaluate(evaluation, subject, method_names, output, *how)
    typer.echo(
        f"{tally.records} new records of {tally.images} images in {output}, {tally.failures} of them failures; "
        f"captum-unioncam report {output} shows all."
    )
    if tally.shortages:
        typer.echo(f"Out of memory: {tally.shortages} of them, which are done again at the next start.")


def _shows_photos(evaluation: Evaluation, subject: ExplainedModel) -> bool:
    """Whether the first image that can be read has another size than demo images."""
    from captum_unioncam.datasets.open import open_data_set
    from captum_unioncam.evaluation.explain import is_photo

    names = subject.classifier.class_names
    data_set = open_data_set(evaluation.data, names, subject.classes, evaluation.classes)
    for name in data_set.names:
        with suppress(Failure):
            return is_photo(data_set.sample(name).picture)
    return False


def _with_the_papers(context: typer.Context, data: str) -> dict[str, Any]:
    """The options, with the paper's values for those that are not given."""
    from captum_unioncam.datasets.voc import is_voc

    papers = {"model": "vgg16", "preprocess": "paper", "theta": 10.0, "limit": None if is_voc(data) else 2000}
    found = context.params | {name: value for name, value in papers.items() if not options.is_given(context, name)}
    if found["model"] == papers["model"]:
        found["layer"] = found["layer"] or "features.29"
    return found
