"""UnionCAM against the clock: the cost of a map over that of its bare forward passes, and beside other Score-CAMs.

``python -m benchmarks.speed`` prints a table for each model and writes them to ``benchmarks/results/``.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
import typer
from captum.attr import LayerGradCam
from torch import Tensor, nn

from benchmarks.imagenet_sample import sample
from benchmarks.machine import describe, markdown, write_result
from captum_unioncam import LayerUnionCam, demo
from captum_unioncam.engine.accelerators import has_streams, module_of, release_memory, synchronize
from captum_unioncam.engine.scoring import COMPILED_ROWS

LAYERS = {"resnet18": "layer4", "mobilenet_v2": "features.18", "vgg16": "features.29"}
SIZES_ON_CPU, SIZES_ON_GPU = (2, 4, 8, 16, 32), (16, 32, 64, 128, 256, 512)
PAPER = "The paper's own figures (VGG16, RTX A6000): 1.16 s and 2.22 GB an image."


@dataclass
class Subject:
    """A model in evaluation mode, the layer to explain, and photos for it."""

    name: str
    model: nn.Module
    layer: nn.Module
    photos: Tensor
    targets: Tensor


@dataclass
class Variant:
    """A way to compute maps."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    tf32: bool = False


@dataclass
class Measurement:
    """What one way to compute maps took: seconds and passes an image, and bytes above a bare forward pass."""

    name: str
    seconds: list[float]
    seconds_of_first: list[float]
    attr: Tensor | None = None
    passes: float = 0
    over_floor: list[float] = field(default_factory=list)
    memory: float = 0


CHEAP = {"score_dtype": torch.bfloat16}
VARIANTS_ON_CPU = [
    Variant("UnionCAM, float32"),
    Variant("bfloat16", CHEAP),
    Variant("bfloat16 compiled", CHEAP, compiled=True),
    Variant("bfloat16 compiled, max_channels=256", {**CHEAP, "max_channels": 256}, compiled=True),
    Variant("bfloat16 compiled, max_channels=128", {**CHEAP, "max_channels": 128}, compiled=True),
    Variant("max_channels=32", {"max_channels": 32}),
    Variant("bfloat16 compiled, max_channels=32", {**CHEAP, "max_channels": 32}, compiled=True),
]
VARIANTS_ON_GPU = [
    Variant("UnionCAM, float32 without TF32"),
    Variant("TF32", tf32=True),
    Variant("bfloat16", CHEAP),
    Variant("bfloat16, max_channels=128", {**CHEAP, "max_channels": 128}),
]
NOTES = """The floor is the time of as many bare forward passes as the method ran, in the same precision, at the best
batch size and memory format (a compiled model has one), run before and after it. UnionCAM has its default, the fixed
batch size. Seconds an image are of a batch of two; the peers, and what is compared with them, run on the first photo.
Compiling is not counted. Medians, with the least and the most of the repetitions.
"""


def subject(name: str, device: torch.device) -> Subject:
    """ResNet-18 and VGG16 with random weights; MobileNetV2 with trained ones where the sample is at hand."""
    torch.manual_seed(0)
    trained = sample()
    if trained:
        photos = trained.load_samples(8)[0]
    else:
        photos = nn.functional.interpolate(demo.generate(8, seed=0)[0], (224, 224), mode="bilinear")
    model = torchvision.models.get_model(name, weights=None).eval()
    layer, weights = model.get_submodule(LAYERS[name]), "random weights"
    if name == "mobilenet_v2" and trained:
        model = trained.load_model()
        layer, weights = model[1].get_submodule(LAYERS[name]), "trained"
    model, photos = model.to(device), photos.to(device)
    with torch.no_grad():
        targets = model(photos).argmax(1)
    return Subject(f"{name}, {weights}", model, layer, photos, targets)


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds until the device has done its work, or those between two events where it has streams."""
    if has_streams(device):
        start, end = (module_of(device).Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


class PeakMemory:
    """Peak bytes while the context lasts: allocated on a GPU, resident on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type != "cpu":
            synchronize(self.device)
            release_memory(self.device)
            self.module = module_of(self.device)
            self.module.reset_peak_memory_stats()
        else:
            _release_free_memory()
            self.bytes, self.stop = 0, threading.Event()
            self.thread = threading.Thread(target=self._sample)
            self.thread.start()
        return self

    def _sample(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.stop.wait(0.002):
            self.bytes = max(self.bytes, int(Path("/proc/self/statm").read_text().split()[1]) * page)

    def __exit__(self, *_: object) -> None:
        if self.device.type != "cpu":
            synchronize(self.device)
            self.bytes = self.module.max_memory_allocated()
        else:
            self.stop.set()
            self.thread.join()


def _release_free_memory() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak(run: Callable[[], Any], device: torch.device) -> int:
    with PeakMemory(device) as memory:
        run()
    return memory.bytes


def arithmetic(device: torch.device) -> str:
    """About what bfloat16 can gain on this device, whatever the batch size and the compiler."""
    torch.backends.cudnn.allow_tf32 = False
    rows, rates = 8 if device.type == "cpu" else 256, []
    for dtype in (torch.float32, torch.bfloat16):
        conv = nn.Conv2d(128, 128, 3, padding=1, bias=False).eval().to(device, dtype, memory_format=torch.channels_last)
        batch = torch.rand(rows, 128, 56, 56).to(device, dtype, memory_format=torch.channels_last)
        with torch.no_grad():
            fastest = min(seconds(partial(conv, batch), device) for _ in range(20))
        rates.append(2 * batch.numel() * conv.weight[0].numel() / fastest / 1e9)
    return (
        f"A 3x3 convolution of 128 channels runs at {rates[0]:.0f} GFLOP/s in float32, {rates[1]:.0f} in bfloat16: "
        f"{rates[1] / rates[0]:.1f} times faster."
    )


@torch.no_grad()
def memory_of_bare_pass(of: Subject) -> int:
    """Peak bytes of one photo in the model."""
    return peak(partial(of.model, of.photos[:1]), of.photos.device)


class Floor:
    """Bare forward passes: the best batch size and memory format, and what a number of rows takes in it."""

    def __init__(self, forward: Callable[[Tensor], Any], photo: Tensor, sizes: tuple[int, ...], compiled: bool) -> None:
        self.forward = forward
        formats = [torch.contiguous_format] if compiled else [torch.contiguous_format, torch.channels_last]
        batches = [photo.repeat(n, 1, 1, 1).contiguous(memory_format=kind) for n in sizes for kind in formats]
        for batch in batches:
            self._passes(batch, 1)
        self.batch = min(batches, key=lambda batch: min(self._seconds(batch, 1) for _ in range(3)) / len(batch))

    def seconds(self, rows: int) -> float:
        """Seconds of ``rows`` rows; a third of them are run."""
        passes = -(-rows // (3 * len(self.batch)))
        return self._seconds(self.batch, passes) * rows / (passes * len(self.batch))

    def _seconds(self, batch: Tensor, passes: int) -> float:
        return seconds(lambda: self._passes(batch, passes), batch.device)

    @torch.no_grad()
    def _passes(self, batch: Tensor, passes: int) -> None:
        for _ in range(passes):
            self.forward(batch)


def compiled(model: nn.Module) -> Callable[..., Any]:
    if next(model.parameters()).device.type == "cpu":
        # As TORCHINDUCTOR_FREEZING=1 does: among torch.compile's options it comes too late, and does nothing.
        torch._inductor.config.freezing = True
    return torch.compile(model)


def measure(of: Subject, variant: Variant, repeats: int) -> Measurement:
    """One variant on two photos: against its floor, run before and after it each time."""
    device, photos, targets = of.photos.device, of.photos[:2], of.targets[:2]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = variant.tf32
    score_func = compiled(of.model) if variant.compiled else None
    method = LayerUnionCam(of.model, of.layer, score_func=score_func)
    dtype = variant.settings.get("score_dtype")

    def run(n: int = 2) -> Any:
        return method.attribute(photos[:n], targets[:n], return_details=True, **variant.settings)

    @torch.no_grad()
    def bare(batch: Tensor) -> Any:
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            return (of.model if score_func is None else score_func)(batch)

    attr, details = run()  # compiles
    rows = int(details.forward_passes.sum())
    of_device = SIZES_ON_CPU if device.type == "cpu" else SIZES_ON_GPU
    sizes = (COMPILED_ROWS[device.type],) if variant.compiled else of_device
    floor = Floor(bare, photos[:1], sizes, variant.compiled)
    times, ratios = [], []
    for _ in range(repeats):
        before = floor.seconds(rows)
        taken = seconds(run, device)
        times.append(taken / 2)
        ratios.append(2 * taken / (before + floor.seconds(rows)))
    memory = peak(run, device) - memory_of_bare_pass(of)
    print(f"{variant.name}: {shown(times, '.3g')} s an image, {shown(ratios)} over the floor", file=sys.stderr)
    return Measurement(
        name=variant.name,
        seconds=times,
        seconds_of_first=[seconds(lambda: run(1), device) for _ in range(repeats)],
        attr=attr,
        passes=rows / 2,
        over_floor=ratios,
        memory=memory,
    )


def measure_five_classes(of: Subject, repeats: int) -> list[float]:
    """The time of five classes over that of one, run in turns; sorted."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    method, photos, device = LayerUnionCam(of.model, of.layer), of.photos[:2], of.photos.device
    with torch.no_grad():
        targets = of.model(photos).topk(5).indices

    def one() -> float:
        return seconds(lambda: method.attribute(photos, targets[:, 0]), device)

    one()
    return sorted(seconds(lambda: method.attribute_targets(photos, targets), device) / one() for _ in range(repeats))


def measure_fixed(of: Subject, repeats: int) -> list[float]:
    """The time with the fixed batch size over that with the learnt one, run in turns; sorted."""
    method, device = LayerUnionCam(of.model, of.layer), of.photos.device

    def run(rows: str | None) -> float:
        return seconds(lambda: method.attribute(of.photos[:1], of.targets[:1], internal_batch_size=rows), device)

    run(None)
    run("auto")
    return sorted(run(None) / run("auto") for _ in range(repeats))


def memory_of_eight_in_a_process_of_its_own(name: str, device: torch.device) -> float:
    """Where nothing that ran before has left memory behind that is free to be used again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_memory_of_eight, name, device).result()


def measure_memory_of_eight(name: str, device: torch.device) -> float:
    """Peak bytes above ``LayerGradCam``'s on the same eight photos."""
    of = subject(name, device)

    def grad_cam() -> Any:
        return LayerGradCam(of.model, of.layer).attribute(of.photos, of.targets)

    def union_cam() -> Any:
        return LayerUnionCam(of.model, of.layer).attribute(of.photos, of.targets)

    grad_cam()
    return peak(union_cam, device) - peak(grad_cam, device)


def measure_peers(of: Subject, repeats: int) -> list[Measurement]:
    """Score-CAM of the other packages, on the first photo, and ``LayerGradCam``."""
    device, photo, target = of.photos.device, of.photos[:1], int(of.targets[0])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def grad_cam_package() -> Any:
        from pytorch_grad_cam import ScoreCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with ScoreCAM(model=of.model, target_layers=[of.layer]) as cam:
            cam.batch_size = 16
            return cam(input_tensor=photo, targets=[ClassifierOutputTarget(target)])

    def torchcam_package() -> Any:
        from torchcam.methods import ScoreCAM

        with ScoreCAM(of.model, of.layer) as cam:
            return cam(target, of.model(photo))

    def layer_grad_cam() -> Any:
        return LayerGradCam(of.model, of.layer).attribute(photo, target)

    measurements = []
    for name, run in (
        ("grad-cam's Score-CAM, float32", grad_cam_package),
        ("torchcam's Score-CAM, float32", torchcam_package),
        ("LayerGradCam, float32", layer_grad_cam),
    ):
        memory = peak(run, device) - memory_of_bare_pass(of)
        taken = [seconds(run, device) for _ in range(repeats)]
        measurements.append(Measurement(name, taken, taken, memory=memory))
    return measurements


def table(ours: list[Measurement], peers: list[Measurement]) -> str:
    score_cams = (m.seconds for m in peers if "Score-CAM" in m.name)
    fastest = min(score_cams, key=median, default=[float("nan")])
    reference = ours[0].attr

    def correlation(attr: Tensor) -> float:
        return torch.corrcoef(torch.stack([attr.flatten(), reference.flatten()]))[0, 1].item()

    rows = [
        {
            "method": m.name,
            "s an image": shown(m.seconds, ".3g"),
            "passes an image": f"{m.passes:.0f}" if m.passes else "",
            "time over floor": shown(m.over_floor) if m.over_floor else "",
            "times faster than the faster peer": faster(m.seconds_of_first, fastest),
            "peak MB above a bare pass": f"{m.memory / 1e6:.0f}",
            "correlation with float32": f"{correlation(m.attr):.4f}" if m.attr is not None else "",
        }
        for m in (*ours, *peers)
    ]
    return markdown(rows)


def faster(ours: list[float], peers: list[float]) -> str:
    """How many times, by the medians, and at least and at most."""
    least, most = min(peers) / max(ours), max(peers) / min(ours)
    return f"{median(peers) / median(ours):.1f} ({least:.1f} to {most:.1f})"


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def shown(values: list[float], spec: str = ".2f") -> str:
    """The median, the least and the most."""
    return f"{median(values):{spec}} ({min(values):{spec}} to {max(values):{spec}})"


def main(
    models: Annotated[list[str] | None, typer.Option("--model", show_default="all three")] = None,
    device: str = "cpu",
    repeats: int = 3,
    peers: bool = True,
    output: str = "",
) -> None:
    """Print a table for each model, and write them to benchmarks/results/."""
    on = torch.device(device)
    allocator = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("MALLOC_")]
    command = " ".join([*sorted(allocator), "python -m benchmarks.speed", *sys.argv[1:]])
    sections = [f"# Speed\n\n`{command}`\n\n{describe(on)}. {arithmetic(on)}\n"]
    for name in models or LAYERS:
        of = subject(name, on)
        ours = [measure(of, variant, repeats) for variant in (VARIANTS_ON_CPU if on.type == "cpu" else VARIANTS_ON_GPU)]
        five, fixed = measure_five_classes(of, repeats), measure_fixed(of, repeats)
        memory = memory_of_eight_in_a_process_of_its_own(name, on)
        others = measure_peers(of, repeats) if peers else []
        sections.append(f"## {of.name}\n\n{table(ours, others)}\n")
        sections.append(
            f"The fixed batch size takes {shown(fixed)} times the time of the learnt one. Five classes take "
            f"{shown(five)} times the time of one; the peak memory of eight photos is {memory / 1e6:+.0f} MB from "
            "LayerGradCam's.\n"
        )
        print(sections[-2], sections[-1], sep="\n", flush=True)
    if on.type != "cpu":
        sections.append(PAPER + "\n")
    sections.append(NOTES)
    print(write_result(output or f"speed-{on.type}.md", "\n".join(sections)))


if __name__ == "__main__":
    typer.run(main)
