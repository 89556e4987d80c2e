"""Every method against the clock: beside torchcam's and grad-cam's, and over the cost of its bare forward passes.

``python -m benchmarks.speed_methods`` prints a table for MobileNetV2 and ResNet-18 with random weights, one picture of
224 x 224, all in one process, and writes it to ``benchmarks/results/speed-methods.md``. Seconds are medians, with the
least and the most. Each call is repeated until ``--seconds`` have gone by, after one call that is not counted; calls
that take twice as long are made once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from statistics import median
from typing import Annotated, Any

import torch
import torchvision
import typer
from torch import Tensor, nn

from benchmarks.machine import describe, markdown, write_result
from captum_unioncam import methods
from captum_unioncam.attr.base import CAMS, TailCam

LAYERS = {"mobilenet_v2": "features.18", "resnet18": "layer4"}
PEERS = {
    "cam": ["torchcam:CAM"],
    "grad_cam": ["torchcam:GradCAM", "grad_cam:GradCAM"],
    "grad_cam_plus_plus": ["torchcam:GradCAMpp", "grad_cam:GradCAMPlusPlus"],
    "x_grad_cam": ["torchcam:XGradCAM", "grad_cam:XGradCAM"],
    "layer_cam": ["torchcam:LayerCAM", "grad_cam:LayerCAM"],
    "hires_cam": ["grad_cam:HiResCAM"],
    "eigen_cam": ["grad_cam:EigenCAM"],
    "score_cam": ["torchcam:ScoreCAM", "grad_cam:ScoreCAM"],
    "ablation_cam": ["grad_cam:AblationCAM"],
}
# With all channels, 35 and 10 passes each, they would take minutes.
FEWER_CHANNELS = {"ss_cam": 32, "is_cam": 32}
# Takes transformers alone.
LEFT_OUT = ("vit_recipro_cam",)


def timed(call: Callable[[], Any], at_least: float) -> list[float]:
    """Seconds of each repetition; of the first alone, where that takes twice as long."""
    found: list[float] = []
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > 2 * at_least:
        return [first]
    while sum(found) < at_least:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def bare_row(model: nn.Module, picture: Tensor, at_least: float) -> float:
    """Seconds of a row in the fastest forward pass, over batch sizes and memory formats."""
    found = []
    with torch.no_grad():
        for rows in (1, 2, 4, 8, 16):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                batch = picture.expand(rows, -1, -1, -1).contiguous(memory_format=memory_format)
                found.append(median(timed(lambda batch=batch: model(batch), at_least / 10)) / rows)
    return min(found)


def measured(
    name: str, model: nn.Module, layer: nn.Module, picture: Tensor, at_least: float
) -> tuple[list[float], int]:
    """Seconds of a method's calls, and the rows that go through the whole model in one."""
    attribute = methods.create(name, model, layer, methods.MethodSettings(max_channels=FEWER_CHANNELS.get(name)))
    target, black = torch.tensor([7]), torch.zeros_like(picture)
    rows: list[int] = []
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        attribute(picture, target, black)

    # Not where only a part of the model is run, which a hook would keep from being traced.
    of_tail = issubclass(CAMS.get(name, object), TailCam)
    counted = nn.Identity() if of_tail else model
    handle = counted.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    # grad-cam's progress bars would stand between the lines.
    with redirect_stderr(StringIO()):
        seconds = timed(call, at_least)
    handle.remove()
    return seconds, sum(rows) // calls


def shown(seconds: list[float]) -> str:
    return f"{median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def rows_of(model_name: str, at_least: float, only: list[str]) -> list[dict[str, str]]:
    """The table of a model."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(model_name).eval()
    layer, picture = model.get_submodule(LAYERS[model_name]), torch.rand(1, 3, 224, 224)
    bare = bare_row(model, picture, at_least)
    table = []
    for name in [name for name in sorted({*CAMS, "grad_cam", "rise"} - set(LEFT_OUT)) if not only or name in only]:
        seconds, rows = measured(name, model, layer, picture, at_least)
        peers = {peer: measured(peer, model, layer, picture, at_least)[0] for peer in PEERS.get(name, [])}
        fastest = min(map(median, peers.values()), default=None)
        fewer = f", `max_channels={FEWER_CHANNELS[name]}`" if name in FEWER_CHANNELS else ""
        row = {
            "method": f"`{name}`{fewer}",
            "seconds": shown(seconds),
            "passes": str(rows or "1, and the tail's"),
            "over bare passes": f"{median(seconds) / (rows * bare):.2f}" if rows > 8 else "",
            "torchcam": next((shown(peers[peer]) for peer in peers if peer.startswith("torchcam")), ""),
            "grad-cam": next((shown(peers[peer]) for peer in peers if peer.startswith("grad_cam")), ""),
            "faster peer over ours": "" if fastest is None else f"{fastest / median(seconds):.2f}",
        }
        print(" | ".join(row.values()), flush=True)
        table.append(row)
    return table


def main(
    seconds: Annotated[float, typer.Option(help="Of repetitions of each call.")] = 3.0,
    only: Annotated[str, typer.Option(help="Methods, separated by commas. Default: all.")] = "",
    save: Annotated[bool, typer.Option(help="Write the results.")] = True,
) -> None:
    """Times every method."""
    text = [
        "# Every method's speed",
        "`python -m benchmarks.speed_methods`",
        describe(torch.device("cpu")) + ".",
        "One picture of 224 x 224, one class, random weights. Seconds are medians, with the least and the most. Passes "
        "are rows that go through the whole model. Rows that go through what is behind the layer alone do not count.",
    ]
    for model_name, layer in LAYERS.items():
        print(model_name)
        table = rows_of(model_name, seconds, [name for name in only.split(",") if name])
        text += [f"## {model_name}, {layer}", markdown(table)]
    if save:
        print(write_result("speed-methods.md", "\n\n".join(text) + "\n"))


if __name__ == "__main__":
    typer.run(main)
