"""The paper's ablation: the halves alone, the union without selection, the whole; theta, weights and channels.

``python -m benchmarks.ablation`` writes a table for each network, and a plot over theta, to ``benchmarks/results/``:
for the demo model, whose fully connected head reads each position by its own weights, and, where IMAGENET_SAMPLE
names its folder, for the sample's trained MobileNetV2. Behind the latter's global average pooling every channel's
gradient is the same everywhere, so theta removes nothing there.

Where BRAIN_MRI names its folder, theta is measured on a trained VGG16, the kind of network of the paper, with both
channel weightings and both selections: what it does to the average drop and to pointing. One layer of it::

    python -m benchmarks.ablation --only mri-features.30 --limit 24 --dtype bfloat16

A slice's channels are scored once for all of it. It takes about 100 seconds of a core with bfloat16 arithmetic: 55 for
the channels, and the rest for the confidences in float32; with ``--max-channels 64`` half of it. Records are kept in
``benchmarks/runs/``, one folder for each limit, number of channels and precision; interrupted runs resume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from pandas import DataFrame
from torch import Tensor
from torch.nn import Module

from benchmarks.faithfulness import RUNS, Experiment, command, experiments, summary_of
from benchmarks.machine import RESULTS, describe, markdown, write_result
from captum_unioncam import LayerUnionCam, methods
from captum_unioncam.attr.score_cam import CHANNEL_WEIGHTS
from captum_unioncam.engine.accelerators import default_device
from captum_unioncam.evaluation.distributed import local_device
from captum_unioncam.metrics.table import Metric, all_metrics
from captum_unioncam.report.panels import png
from captum_unioncam.report.statistics import Summary, paired_differences
from captum_unioncam.report.tables import display_differences, display_table
from captum_unioncam.system.errors import WrongArgument
from captum_unioncam.system.files import write_whole

THETAS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90)
CHANNELS = (16, 32, 64, 128, 256)
LIMITS = {"demo": 32, "sample": 8, "mri-features.29": 24, "mri-features.30": 24}
THETA = "Theta, "
"""How the titles begin of groups with a variant for each of THETAS."""


class Variants:
    """UnionCAM with other arguments, as methods; what is computed of an image is kept for those that share it."""

    def __init__(self) -> None:
        self.groups: dict[str, list[str]] = {}
        self._image: Tensor | None = None
        self._results: dict[str, tuple[Tensor, Any]] = {}

    def add(self, group: str, name: str, selected: Callable[[Tensor, Any], Tensor], **arguments: Any) -> None:
        """Registers one, whose map ``selected`` takes from the result and its details."""

        def factory(model: Module, layer: Module, settings: methods.MethodSettings) -> methods.Attribute:
            union_cam = LayerUnionCam(model, layer)
            # Of another experiment, which may end with the image that this one begins with.
            self._image = None
            passes = {"max_channels": settings.max_channels, "score_dtype": settings.score_dtype, **arguments}

            def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
                if self._image is None or not torch.equal(inputs, self._image):
                    self._image, self._results = inputs.clone(), {}
                key = f"{sorted(arguments.items())} {target.tolist()}"
                if key not in self._results:
                    self._results[key] = union_cam.attribute(
                        inputs, target, baselines=baselines, return_details=True, **passes
                    )
                return selected(*self._results[key])

            return attribute

        methods.register(name, factory)
        self.groups.setdefault(group, []).append(name)

    @property
    def of_thetas(self) -> dict[str, list[str]]:
        """The groups with a variant for each of THETAS, without the beginning of their titles."""
        return {title.removeprefix(THETA): names for title, names in self.groups.items() if title.startswith(THETA)}


def whole(attributions: Tensor, _details: Any) -> Tensor:
    """As the paper selects it."""
    return attributions


def best(attributions: Tensor, details: Any) -> Tensor:
    """As ``selection="best"`` selects it, which needs no other pass."""
    is_denoised = details.denoised_beta > torch.maximum(details.region_beta, details.union_beta)
    return torch.where(is_denoised.reshape(-1, 1, 1, 1), details.denoised_map, attributions)


def denoised(_attributions: Tensor, details: Any) -> Tensor:
    """The gradient half."""
    map_: Tensor = details.denoised_map
    return map_


def region(_attributions: Tensor, details: Any) -> Tensor:
    """The half of scores."""
    map_: Tensor = details.region_map
    return map_


def variants() -> Variants:
    """All that the tables of the demo model and of the sample compare."""
    found = Variants()
    found.add("Parts", "denoised alone (AMD)", denoised, theta=10.0)
    found.add("Parts", "region alone", region, theta=10.0)
    found.add("Parts", "union without selection (AMD, AMU)", lambda _, details: details.union_map, theta=10.0)
    found.add("Parts", "the whole (AMD, AMU, AMS)", whole, theta=10.0)
    for theta in THETAS:
        found.add(f"{THETA}the whole", f"theta {theta}", whole, theta=float(theta))
    for theta in THETAS:
        found.add(f"{THETA}denoised alone", f"denoised, theta {theta}", denoised, theta=float(theta))
    found.add("Channel weights", "score", whole, theta=10.0)
    found.add("Channel weights", "softmax", whole, theta=10.0, channel_weights="softmax")
    for channels in CHANNELS:
        found.add("Channels scored", f"max_channels {channels}", whole, theta=10.0, max_channels=channels)
    found.add("Channels scored", "all channels", whole, theta=10.0)
    return found


def theta_variants() -> Variants:
    """Every theta with both channel weightings and both selections, and the halves alone."""
    found = Variants()
    for weights in CHANNEL_WEIGHTS:
        found.add("Region alone, which has no theta", f"region, {weights}", region, theta=10.0, channel_weights=weights)
    for theta in THETAS:
        name = f"denoised alone, theta {theta}"
        found.add(f"{THETA}denoised alone", name, denoised, theta=float(theta), channel_weights=CHANNEL_WEIGHTS[0])
    for weights in CHANNEL_WEIGHTS:
        for selection, selected in (("paper", whole), ("best", best)):
            title = f"weights {weights}, selection {selection}"
            for theta in THETAS:
                name = f"{weights}, {selection}, theta {theta}"
                found.add(f"{THETA}{title}", name, selected, theta=float(theta), channel_weights=weights)
    return found


@dataclass(frozen=True)
class Study:
    """What is compared on an experiment, and by which metrics; whether thetas are compared image by image too."""

    variants: Variants
    metric_names: tuple[str, ...]
    is_paired: bool = False

    @property
    def metrics(self) -> list[Metric]:
        """In the order of the tables."""
        return [all_metrics()[name] for name in self.metric_names]


def studies() -> tuple[Study, Study]:
    """Of the paper's parts, and of theta; made once, since a method's name is given once."""
    parts = Study(variants(), ("drop", "increase", "insertion", "deletion"))
    return parts, Study(theta_variants(), ("drop", "increase", "pointing", "energy"), is_paired=True)


def cells(summary: Summary, metrics: list[Metric]) -> DataFrame:
    """The metrics of the tables, with their intervals, as they are shown: methods down, metrics across."""
    texts, _ = display_table(summary)
    return texts[[metric.heading for metric in metrics]]


def tables(summary: Summary, groups: dict[str, list[str]], metrics: list[Metric]) -> str:
    """A table for each group, in its order."""
    texts = cells(summary, metrics)
    return "\n".join(
        f"## {title}\n\n" + markdown([{"variant": name, **texts.loc[name]} for name in names]) + "\n"
        for title, names in groups.items()
    )


def differences(summary: Summary, groups: dict[str, list[str]], metrics: list[Metric]) -> str:
    """Of each theta from the paper's, slice by slice: a table for each group."""
    written = []
    for title, names in groups.items():
        papers = names[THETAS.index(10)]
        texts, _ = display_differences(paired_differences(summary, papers))
        shown = texts.loc[[name for name in names if name != papers], [metric.heading for metric in metrics]]
        rows = [{"variant": str(name), **row} for name, row in shown.iterrows()]
        written.append(f"### {title}: differences from theta 10\n\n{markdown(rows)}\n")
    return "\n".join(written)


def theta_has_no_effect(summary: Summary, found: Variants, metrics: list[Metric]) -> bool:
    """Whether every theta is shown with the same digits; beyond those the region maps of two calls differ."""
    texts = cells(summary, metrics)
    return all(bool((texts.loc[names].nunique() == 1).all()) for names in found.of_thetas.values())


def theta_plot(summary: Summary, found: Variants, metrics: list[Metric]) -> Figure:
    """Each metric over theta, with its interval."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics)), metrics, strict=True):
        for title, names in found.of_thetas.items():
            table = summary.table[summary.table.metric == metric.title].set_index("method").loc[names]
            axis.plot(THETAS, table["mean"], marker="o", markersize=3, label=title)
            axis.fill_between(THETAS, table["low"], table["high"], alpha=0.15)
        axis.set_title(metric.heading)
        axis.set_xlabel("theta")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def main(
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    steps: Annotated[int, typer.Option(help="Of the curves.")] = 50,
    only: Annotated[str, typer.Option(help="Of what is at hand: demo, sample, mri-features.29, mri-features.30.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Images; else a number for each experiment.")] = None,
    max_channels: Annotated[int | None, typer.Option(min=1, help="Channels scored; all if it is not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="In which channels are scored, such as bfloat16.")] = None,
) -> None:
    """Evaluates all variants on what is at hand."""
    at_hand = {experiment.name: experiment for experiment in experiments(None)}
    wanted = only.split(",") if only else list(at_hand)
    if unknown := [name for name in wanted if name not in at_hand]:
        raise WrongArgument(f"--only: there is no {unknown[0]}; at hand are {', '.join(at_hand)}.")
    settings = methods.MethodSettings(max_channels=max_channels, score_dtype=getattr(torch, dtype) if dtype else None)
    how = "".join(f"-{value}" for value in (max_channels and f"{max_channels}ch", dtype) if value)
    parts, of_theta = studies()
    for name in wanted:
        images = limit or LIMITS[name]
        study = of_theta if name.startswith("mri") else parts
        experiment = replace(at_hand[name], limit=images, settings=settings, metrics=list(study.metric_names))
        write(experiment, study, steps, device, f"ablation-{name}-{images}images-{steps}{how}", how)


def write(experiment: Experiment, study: Study, steps: int, device: str | None, run: str, how: str) -> None:
    """Evaluates what is missing of an experiment, and writes its tables and its plot."""
    found, metrics = study.variants, study.metrics
    names = [name for group in found.groups.values() for name in group]
    summary, layer_name = summary_of(experiment, names, steps, device, RUNS / run)
    pooled = experiment.name == "sample"
    plot = f"ablation-theta{'' if experiment.name == 'demo' else f'-{experiment.name}{how}'}.png"
    note = f"![Metrics over theta]({plot})"
    if pooled:
        effect = "it has none here, in any digit shown"
        if not theta_has_no_effect(summary, found, metrics):
            effect = "YET IT HAS ONE HERE"
        note = (
            "Behind global average pooling a channel's gradient is the same everywhere, so theta can have no "
            f"effect; {effect}."
        )
    machine = describe(torch.device(local_device(device) or default_device()))
    text = (
        f"# Ablation: {experiment.title}\n\n`{command()}`: {summary.images} images, {steps} "
        f"steps, layer `{layer_name}`, means with 95 % bootstrap intervals over images; {summary.failed} failures. "
        f"{machine}.\n\n{note}\n\n"
        f"{tables(summary, found.groups, metrics)}"
    )
    if study.is_paired:
        text += (
            "\n## Theta, image by image\n\nEach value minus that of the paper's theta 10, with its interval, and the "
            f"share of images where it is better; equal values count as not better.\n\n"
            f"{differences(summary, found.of_thetas, metrics)}"
        )
    print(text)
    write_result(f"ablation-{experiment.name}{how}.md", text)
    if not pooled:
        write_whole(RESULTS / plot, png(theta_plot(summary, found, metrics)))


if __name__ == "__main__":
    typer.run(main)
