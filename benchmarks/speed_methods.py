"""Every method against the clock: beside torchcam's and grad-cam's, and over the cost of its bare forward passes.

``python -m benchmarks.speed_methods`` prints a table for MobileNetV2 and ResNet-18 with random weights, one image of
224 x 224, all in one process, and writes it to ``benchmarks/results/speed-methods.md``. Each class is made once and
called as its own package documents it, on a copy of the model of its own. After one call that is not counted, the
classes that are compared take turns until each has used ``--seconds``; calls that take twice as long are made once.
Seconds are medians, with the least and the most; the last column is the median over the turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from io import StringIO
from statistics import median
from typing import Annotated, Any

import torch
import torchvision
import typer
from captum.attr import LayerGradCam
from torch import Tensor, nn

from benchmarks.machine import describe, markdown, write_result
from captum_unioncam.attr.base import CAMS, TailCam
from captum_unioncam.attr.rise import Rise

LAYERS = {"mobilenet_v2": "features.18", "resnet18": "layer4"}
PEERS = {
    "cam": ["torchcam.CAM"],
    "grad_cam": ["torchcam.GradCAM", "pytorch_grad_cam.GradCAM"],
    "grad_cam_plus_plus": ["torchcam.GradCAMpp", "pytorch_grad_cam.GradCAMPlusPlus"],
    "smooth_grad_cam_plus_plus": ["torchcam.SmoothGradCAMpp"],
    "x_grad_cam": ["torchcam.XGradCAM", "pytorch_grad_cam.XGradCAM"],
    "layer_cam": ["torchcam.LayerCAM", "pytorch_grad_cam.LayerCAM"],
    "hires_cam": ["pytorch_grad_cam.HiResCAM"],
    "eigen_cam": ["pytorch_grad_cam.EigenCAM"],
    "score_cam": ["torchcam.ScoreCAM", "pytorch_grad_cam.ScoreCAM"],
    "ablation_cam": ["pytorch_grad_cam.AblationCAM"],
}
# As many as ours takes by default.
PEER_SETTINGS = {"torchcam.SmoothGradCAMpp": {"num_samples": 25}}
# With all channels, 35 and 10 passes each, they would take minutes.
FEWER_CHANNELS = {"ss_cam": 32, "is_cam": 32}
# Takes transformers alone.
LEFT_OUT = ("vit_recipro_cam",)


def timed(calls: dict[str, Callable[[], Any]], at_least: float) -> dict[str, list[float]]:
    """Seconds of each repetition of each call, made in turns; of the first alone, where that takes twice as long."""
    first = {name: seconds(call) for name, call in calls.items()}
    slow = [name for name in calls if first[name] > 2 * at_least]
    found = {name: [first[name]] if name in slow else [] for name in calls}
    while any(sum(found[name]) < at_least for name in calls if name not in slow):
        # All of them, so that each turn compares.
        for name in [name for name in calls if name not in slow]:
            found[name].append(seconds(calls[name]))
    return found


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bare_row(model: nn.Module, picture: Tensor, at_least: float) -> float:
    """Seconds of a row in the fastest forward pass, over batch sizes and memory formats."""
    found = []
    with torch.no_grad():
        for rows in (1, 2, 4, 8, 16):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                batch = picture.expand(rows, -1, -1, -1).contiguous(memory_format=memory_format)
                times = timed({"bare": partial(model, batch)}, at_least / 10)["bare"]
                found.append(median(times) / rows)
    return min(found)


def ours(name: str, model: nn.Module, layer: nn.Module, picture: Tensor) -> Callable[[], Any]:
    """A call of this package's method, or of Captum's Grad-CAM."""
    method_class = {**CAMS, "grad_cam": LayerGradCam, "rise": Rise}[name]
    method = method_class(model) if method_class is Rise else method_class(model, layer)
    given = getattr(method_class, "variants", {}).get(name, {})
    if name in FEWER_CHANNELS:
        given = {**given, "max_channels": FEWER_CHANNELS[name]}
    return lambda: method.attribute(picture, target=7, **given)


def peer(name: str, model: nn.Module, layer: nn.Module, picture: Tensor) -> Callable[[], Any]:
    """A call of another package's class."""
    package, _, class_name = name.partition(".")
    if package == "torchcam":
        extractor = getattr(import_module("torchcam.methods"), class_name)(model, layer, **PEER_SETTINGS.get(name, {}))
        return lambda: extractor(7, model(picture))
    cam = getattr(import_module(package), class_name)(model=model, target_layers=[layer])
    targets = [import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(7)]
    return lambda: cam(input_tensor=picture, targets=targets)


def measured(name: str, model_name: str, at_least: float) -> tuple[dict[str, list[float]], int]:
    """Seconds of a method's calls and of its peers', and the rows that go through the whole model in one of ours."""
    picture, model = torch.rand(1, 3, 224, 224), model_of(model_name)
    calls = {"ours": ours(name, model, model.get_submodule(LAYERS[model_name]), picture)}
    # Not where only a part of the model is run, which a hook would keep from being traced.
    rows = 0 if issubclass(CAMS.get(name, object), TailCam) else rows_in(calls["ours"], model)
    for other in PEERS.get(name, []):
        model = model_of(model_name)
        calls[other] = peer(other, model, model.get_submodule(LAYERS[model_name]), picture)
    # grad-cam's progress bars would stand between the lines.
    with redirect_stderr(StringIO()):
        return timed(calls, at_least), rows


def rows_in(call: Callable[[], Any], model: nn.Module) -> int:
    """Rows that go through the model in a call."""
    rows: list[int] = []
    handle = model.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    call()
    handle.remove()
    return sum(rows)


def model_of(name: str) -> nn.Module:
    """The network, with the same random weights each time."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name).eval()
    return model


def shown(seconds: list[float]) -> str:
    return f"{median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def compared(peers: dict[str, list[float]], mine: list[float]) -> str:
    """How many times as long the fastest of the peers takes: median over the turns, with the least and the most."""
    if not peers:
        return ""
    fastest = min(peers.values(), key=median)
    ratios = [theirs / own for theirs, own in zip(fastest, mine, strict=False)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else f"{ratios[0]:.2f}"


def rows_of(model_name: str, at_least: float, only: list[str]) -> list[dict[str, str]]:
    """The table of a model."""
    bare = bare_row(model_of(model_name), torch.rand(1, 3, 224, 224), at_least)
    table = []
    for name in [name for name in sorted({*CAMS, "grad_cam", "rise"} - set(LEFT_OUT)) if not only or name in only]:
        peers, rows = measured(name, model_name, at_least)
        mine = peers.pop("ours")
        fewer = f", `max_channels={FEWER_CHANNELS[name]}`" if name in FEWER_CHANNELS else ""
        row = {
            "method": f"`{name}`{fewer}",
            "seconds": shown(mine),
            "passes": str(rows or "1, and the tail's"),
            "over bare passes": f"{median(mine) / (rows * bare):.2f}" if rows > 8 else "",
            "torchcam": next((shown(peers[peer]) for peer in peers if peer.startswith("torchcam")), ""),
            "grad-cam": next((shown(peers[peer]) for peer in peers if peer.startswith("pytorch")), ""),
            "faster peer over ours": compared(peers, mine),
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
        "One image of 224 x 224, one class, random weights. Seconds are medians, with the least and the most. Passes "
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
