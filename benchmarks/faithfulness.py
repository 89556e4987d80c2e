"""Methods side by side as in the paper's Tables 1 and 2: average drop and increase, and insertion and deletion.

``python -m benchmarks.faithfulness`` evaluates what is at hand, and writes the tables to ``benchmarks/results/``: the
embedded network on generated images; where IMAGENET_SAMPLE names their folder, the sample's trained MobileNetV2 on
its photos; where BRAIN_MRI does, a trained VGG16 on slices with boxes, at two layers. ``--only`` takes some of them::

    python -m benchmarks.faithfulness --only mri-features.29 --limit 12 --methods union_cam,grad_cam --metrics pointing

The paper's own experiment needs its data and torchvision's weights of VGG16::

    python -m benchmarks.faithfulness --imagenet ILSVRC2012/val --classes LOC_synset_mapping.txt
    python -m benchmarks.faithfulness --voc VOC2007 --model package.module:function --layer features.29

Records are kept in ``benchmarks/runs/``, and an interrupted run resumes when started again. It is one process; on many
GPUs ``captum-unioncam evaluate --protocol paper`` under torchrun makes the same records, and ``report`` their tables.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from pandas import DataFrame

from benchmarks import brain_mri, imagenet_sample
from benchmarks.machine import describe, markdown, write_result
from captum_unioncam import methods
from captum_unioncam.cli.shared import metrics_in
from captum_unioncam.engine.accelerators import default_device
from captum_unioncam.evaluation.distributed import local_device
from captum_unioncam.evaluation.records import read_records
from captum_unioncam.evaluation.run import Evaluation, evaluate
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics.table import SECONDS, all_metrics
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.report.statistics import Summary, paired_differences, summarize
from captum_unioncam.report.tables import display_differences, display_table
from captum_unioncam.system.errors import Failure, WrongArgument

RUNS = Path(__file__).parent / "runs"
PEERS = [
    *("torchcam:GradCAMpp", "torchcam:SmoothGradCAMpp", "torchcam:XGradCAM", "torchcam:LayerCAM"),
    "grad_cam:AblationCAM",
]
REFERENCE = "union_cam"
# Of the paper's Tables 1 and 2, and what else the records tell.
TABLES = {
    "Average drop and increase": ("drop", "increase"),
    "Insertion and deletion": ("insertion", "deletion"),
    "Pointing games": ("pointing", "energy"),
}


@dataclass
class Experiment:
    """A model on a data set."""

    name: str
    title: str
    model: str
    data: str
    layer: str | None = None
    classes: Path | None = None
    weights: str | None = None
    preprocess: str = "paper"
    limit: int | None = None
    settings: MethodSettings = field(default_factory=MethodSettings)
    metrics: list[str] | None = None


def experiments(limit: int | None) -> list[Experiment]:
    """What needs nothing that is not at hand."""
    found = [
        Experiment(
            "demo",
            "Demo model (a fully connected head), generated images",
            "demo",
            "demo",
            preprocess="auto",
            limit=limit or 64,
        )
    ]
    if imagenet_sample.sample():
        folder = imagenet_sample.folder()
        found.append(
            Experiment(
                "sample",
                "MobileNetV2, trained on ImageNet (global average pooling), photos of the sample",
                "benchmarks.imagenet_sample:load_model",
                str(folder / "val"),
                imagenet_sample.LAYER,
                folder / "classes.txt",
                limit=limit,
            )
        )
    if brain_mri.sample():
        table, classes = brain_mri.write_data(RUNS / "brain-mri")
        found += [
            Experiment(
                f"mri-{layer}",
                f"VGG16, trained on brain MRI (a fully connected head), slices with boxes, layer {layer}",
                "benchmarks.brain_mri:load_model",
                str(table),
                layer,
                classes,
                preprocess="size=240",
                limit=limit,
            )
            for layer in brain_mri.LAYERS
        ]
    return found


def summary_of(
    experiment: Experiment, method_names: list[str], steps: int, device: str | None, folder: Path, finish: bool = True
) -> tuple[Summary, str]:
    """Evaluates what is missing, or takes what all methods are done with, and sums up; and the name of the layer."""
    subject = ExplainedModel(
        experiment.model,
        experiment.weights,
        experiment.layer,
        experiment.preprocess,
        local_device(device),
    )
    evaluation = Evaluation(
        experiment.data, experiment.classes, experiment.limit, steps=steps, settings=experiment.settings
    )
    if finish:
        evaluate(evaluation, subject, method_names, folder, metric_names=experiment.metrics)
    records = [record for record in read_records(folder) if record.method in method_names]
    if not finish:
        done = Counter((record.image, record.target) for record in records)
        records = [record for record in records if done[record.image, record.target] == len(method_names)]
    if not records:
        raise Failure(f"{folder} holds no image that all methods are done with; run this without --no-finish.")
    return summarize(records), subject.layer_name


def tables(summary: Summary) -> str:
    """The paper's tables, and one of each further metric, in Markdown, best first."""
    return _by_title(*display_table(summary), summary.table, "mean")


def differences(summary: Summary) -> str:
    """Of each method from union_cam, image by image, in the same tables; nothing where there is no other method."""
    if REFERENCE not in summary.judged or len(summary.judged) < 2:
        return ""
    table = paired_differences(summary, REFERENCE)
    return (
        f"\n## Differences from `{REFERENCE}`, image by image\n\nThe mean difference with its 95 % bootstrap interval "
        "over images, and the share of images where the method is better; equal values count as not better. Bold: the "
        f"whole interval is on the better side of 0.\n\n{_by_title(*display_differences(table), table, 'difference')}"
    )


def _by_title(texts: DataFrame, bold: DataFrame, table: DataFrame, column: str) -> str:
    """A table for each of TABLES and for each further metric, sorted by a column of the first metric."""
    written = []
    shown_above = {SECONDS.name, *(name for names in TABLES.values() for name in names)}
    others = {metric.title: (name,) for name, metric in all_metrics().items() if name not in shown_above}
    for title, names in {**TABLES, **others}.items():
        metrics = [all_metrics()[name] for name in names]
        columns = [metric.heading for metric in metrics if metric.heading in texts.columns]
        if not columns:
            continue
        first = table[table.metric == metrics[0].title]
        order = first.sort_values(column, ascending=not metrics[0].larger_is_better).method
        shown = texts.mask(bold, "**" + texts + "**").loc[order, columns]
        rows = [{"method": f"`{method}`", **cells} for method, cells in shown.to_dict("index").items()]
        written.append(f"### {title}\n\n{markdown(rows)}\n")
    return "\n".join(written)


def command() -> str:
    """As it was given."""
    return " ".join(["python -m", str(getattr(sys.modules["__main__"].__spec__, "name", "")), *sys.argv[1:]])


def main(
    imagenet: Annotated[Path | None, typer.Option(help="ILSVRC2012's validation set, a folder for each class.")] = None,
    voc: Annotated[Path | None, typer.Option(help="The folder that holds VOCdevkit/VOC2007.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Which output each class is, as evaluate takes it.")] = None,
    model: Annotated[str, typer.Option(help="For the two data sets.")] = "vgg16",
    weights: Annotated[str | None, typer.Option(help="A file of its weights.")] = None,
    layer: Annotated[str, typer.Option(help="The explained layer of it.")] = "features.29",
    limit: Annotated[int | None, typer.Option(help="Pictures; the paper takes 2000 of ILSVRC2012.")] = None,
    steps: Annotated[int, typer.Option(help="Of the curves.")] = 50,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    names: Annotated[str, typer.Option("--methods", help="With commas between.")] = "",
    finish: Annotated[bool, typer.Option(help="Evaluate what is missing; else only the images that are done.")] = True,
    only: Annotated[str, typer.Option(help="Of what is at hand: demo, sample, mri-features.29, mri-features.30.")] = "",
    metrics: Annotated[str, typer.Option(help="With commas between, or all; by default those not on request.")] = "",
    max_channels: Annotated[int | None, typer.Option(help="Channels scored; all where it is not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="In which channels are scored, such as bfloat16.")] = None,
    runs: Annotated[Path, typer.Option(help="Where the records are kept.")] = RUNS,
    write: Annotated[bool, typer.Option(help="Write the tables also where methods are named.")] = False,
) -> None:
    """Evaluates all methods on what is at hand, or on the data given."""
    if imagenet and voc:
        raise WrongArgument("--imagenet and --voc: each needs a model of its own classes; give one at a time.")
    chosen = [
        Experiment(name, f"{model}, {title}", model, str(path), layer, classes, weights, limit=limit or most)
        for name, title, path, most in (
            ("imagenet", "ILSVRC2012 validation photos", imagenet, 2000),
            ("voc", "VOC2007 test set", voc, None),
        )
        if path
    ]
    if not chosen:
        at_hand = {experiment.name: experiment for experiment in experiments(limit)}
        if unknown := [name for name in only.split(",") if only and name not in at_hand]:
            raise WrongArgument(f"--only: there is no {unknown[0]}; at hand are {', '.join(at_hand)}.")
        chosen = [at_hand[name] for name in (only.split(",") if only else at_hand)]
    settings = MethodSettings(max_channels=max_channels, score_dtype=getattr(torch, dtype) if dtype else None)
    how = "".join(f"-{value}" for value in (max_channels and f"{max_channels}ch", dtype) if value)
    for given in chosen:
        experiment = replace(given, settings=settings, metrics=metrics_in(metrics or None))
        method_names = names.split(",") if names else [*methods.names(), *PEERS]
        summary, layer_name = summary_of(
            experiment, method_names, steps, device, runs / f"{experiment.name}-{steps}{how}", finish
        )
        machine = describe(torch.device(local_device(device) or default_device()))
        done = "" if finish else " (those done so far)"
        text = (
            f"# {experiment.title}\n\n`{command()}`: {summary.images} images{done}, {steps} steps, "
            f"layer `{layer_name}`, means with 95 % bootstrap intervals over images; "
            f"{summary.failed} failures. {machine}.\n\n{tables(summary)}{differences(summary)}"
        )
        print(text)
        if write or not names:
            write_result(f"faithfulness-{experiment.name}{how}.md", text)


if __name__ == "__main__":
    typer.run(main)
