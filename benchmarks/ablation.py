"""The paper's ablation: the halves alone, the union without selection, the whole; theta, weights and channels.

``python -m benchmarks.ablation`` writes a table for each network, and a plot over theta, to ``benchmarks/results/``:
for the embedded network, whose fully connected head reads each position by its own weights, and, where IMAGENET_SAMPLE
names its folder, for the sample's trained MobileNetV2. Behind the latter's global average pooling every channel's
gradient is the same everywhere, so theta removes nothing there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from pandas import DataFrame
from torch import Tensor
from torch.nn import Module

from benchmarks.faithfulness import RUNS, command, experiments, summary_of
from benchmarks.machine import RESULTS, describe, markdown, write_result
from captum_unioncam import LayerUnionCam, methods
from captum_unioncam.evaluation.distributed import local_device
from captum_unioncam.metrics.table import all_metrics
from captum_unioncam.report.panels import png
from captum_unioncam.report.statistics import Summary
from captum_unioncam.report.tables import display_table
from captum_unioncam.system.files import write_whole

THETAS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90)
CHANNELS = (16, 32, 64, 128, 256)
METRICS = [all_metrics()[name] for name in ("drop", "increase", "insertion", "deletion")]
LIMITS = {"demo": 32, "sample": 8, "mri-features.29": 8, "mri-features.30": 8}


class Variants:
    """UnionCAM with other arguments, as methods; what is computed of an image is kept for those that share it."""

    def __init__(self) -> None:
        self.groups: dict[str, list[str]] = {}
        self._image: Tensor | None = None
        self._results: dict[str, tuple[Tensor, Any]] = {}

    def add(self, group: str, name: str, selected: Callable[[Tensor, Any], Tensor], **arguments: Any) -> None:
        """Registers one, whose map ``selected`` takes from the result and its details."""

        def factory(model: Module, layer: Module, _settings: methods.MethodSettings) -> methods.Attribute:
            union_cam = LayerUnionCam(model, layer)

            def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
                if self._image is None or not torch.equal(inputs, self._image):
                    self._image, self._results = inputs.clone(), {}
                key = f"{sorted(arguments.items())} {target.tolist()}"
                if key not in self._results:
                    self._results[key] = union_cam.attribute(
                        inputs, target, baselines=baselines, return_details=True, **arguments
                    )
                return selected(*self._results[key])

            return attribute

        methods.register(name, factory)
        self.groups.setdefault(group, []).append(name)


def variants() -> Variants:
    """All that the tables compare."""

    def whole(attributions: Tensor, _details: Any) -> Tensor:
        return attributions

    def denoised(_attributions: Tensor, details: Any) -> Tensor:
        return details.denoised_map

    found = Variants()
    found.add("Parts", "denoised alone (AMD)", denoised, theta=10.0)
    found.add("Parts", "region alone", lambda _, details: details.region_map, theta=10.0)
    found.add("Parts", "union without selection (AMD, AMU)", lambda _, details: details.union_map, theta=10.0)
    found.add("Parts", "the whole (AMD, AMU, AMS)", whole, theta=10.0)
    for theta in THETAS:
        found.add("Theta, the whole", f"theta {theta}", whole, theta=float(theta))
    for theta in THETAS:
        found.add("Theta, denoised alone", f"denoised, theta {theta}", denoised, theta=float(theta))
    found.add("Channel weights", "score", whole, theta=10.0)
    found.add("Channel weights", "softmax", whole, theta=10.0, channel_weights="softmax")
    for channels in CHANNELS:
        found.add("Channels scored", f"max_channels {channels}", whole, theta=10.0, max_channels=channels)
    found.add("Channels scored", "all channels", whole, theta=10.0)
    return found


def cells(summary: Summary) -> DataFrame:
    """The metrics of the tables, with their intervals, as they are shown: methods down, metrics across."""
    texts, _ = display_table(summary)
    return texts[[metric.heading for metric in METRICS]]


def tables(summary: Summary, groups: dict[str, list[str]]) -> str:
    """A table for each group, in its order."""
    texts = cells(summary)
    return "\n".join(
        f"## {title}\n\n" + markdown([{"variant": name, **texts.loc[name]} for name in names]) + "\n"
        for title, names in groups.items()
    )


def theta_has_no_effect(summary: Summary, groups: dict[str, list[str]]) -> bool:
    """Whether every theta is shown with the same digits; beyond those the region maps of two calls differ."""
    texts = cells(summary)
    titles = [title for title in groups if title.startswith("Theta")]
    return all(bool((texts.loc[groups[title]].nunique() == 1).all()) for title in titles)


def theta_plot(summary: Summary, groups: dict[str, list[str]]) -> Figure:
    """Each metric over theta, with its interval."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for group in ("Theta, the whole", "Theta, denoised alone"):
            table = summary.table[summary.table.metric == metric.title].set_index("method").loc[groups[group]]
            axis.plot(THETAS, table["mean"], marker="o", markersize=3, label=group.removeprefix("Theta, "))
            axis.fill_between(THETAS, table["low"], table["high"], alpha=0.15)
        axis.set_title(metric.title)
        axis.set_xlabel("theta")
    axis.legend()
    return figure


def main(
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    steps: Annotated[int, typer.Option(help="Of the curves.")] = 50,
) -> None:
    """Evaluates all variants on what is at hand."""
    found = variants()
    names = [name for group in found.groups.values() for name in group]
    for experiment in experiments(None):
        experiment.limit = LIMITS[experiment.name]
        folder = RUNS / f"ablation-{experiment.name}-{steps}"
        summary, layer_name = summary_of(experiment, names, steps, device, folder)
        pooled = experiment.name == "sample"
        effect = "it has none here, in any digit shown"
        if not theta_has_no_effect(summary, found.groups):
            effect = "YET IT HAS ONE HERE"
        plot = f"ablation-theta{'' if experiment.name == 'demo' else f'-{experiment.name}'}.png"
        note = f"![Metrics over theta]({plot})"
        if pooled:
            note = (
                "Behind global average pooling a channel's gradient is the same everywhere, so theta can have no "
                f"effect; {effect}."
            )
        machine = describe(torch.device(local_device(device) or ("cuda" if torch.cuda.is_available() else "cpu")))
        text = (
            f"# Ablation: {experiment.title}\n\n`{command()}`: {summary.images} images, {steps} "
            f"steps, layer `{layer_name}`, means with 95 % bootstrap intervals over images; {summary.failed} failures. "
            f"{machine}.\n\n{note}\n\n"
            f"{tables(summary, found.groups)}"
        )
        print(text)
        write_result(f"ablation-{experiment.name}.md", text)
        if not pooled:
            write_whole(RESULTS / plot, png(theta_plot(summary, found.groups)))


if __name__ == "__main__":
    typer.run(main)
