"""What fewer passes lose: maps of representatives and of largest deviations against those of all channels.

``python -m benchmarks.representatives`` scores every channel of each image once, makes the maps of 16 to 128 passes
from those scores, and writes correlations and average drops to ``benchmarks/results/representatives.md``. It needs the
folders that IMAGENET_SAMPLE and BRAIN_MRI name.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.imagenet_sample import sample
from benchmarks.machine import describe, markdown, write_result
from captum_unioncam import LayerDenoisedGradCam
from captum_unioncam.attr.score_cam import region_weights
from captum_unioncam.attr.union_cam import PAPER, UnionCamDetails, unite_and_select
from captum_unioncam.engine.maps import weighted
from captum_unioncam.engine.representatives import CHANNEL_SELECTIONS, channel_representatives, scored_channels
from captum_unioncam.engine.scoring import MaskedScorer, TargetPasses

PASSES = (16, 32, 64, 128)
REGION, SOFTMAX, UNION, DROP = "region map", 'region map, "softmax"', "union map", "average drop, %"
NOTES = """Each image is explained for its predicted class. The full map is that of all live channels. Mean / worst are
over the images: of the correlation of the region map (`LayerScoreCam`) and of the union map with the full ones. The
average drop is the mean of that of the selected map (`LayerUnionCam`). Scores are computed once, one pass a live
channel, and the maps of fewer passes are made from them; the confidences of whole maps are computed anew, in float32.
"""


@dataclass
class Subject:
    """A network, its layer, and the images to explain, black being 0."""

    name: str
    model: nn.Module
    layer: nn.Module
    images: Tensor


def subjects(photos: int, slices: int) -> list[Callable[[], Subject]]:
    """MobileNetV2 with photos of ImageNet, and VGG16 with MRI slices at two layers; those whose folders are named."""

    def mobilenet() -> Subject:
        images = sample().load_samples(60)[0]
        spread = torch.linspace(0, len(images) - 1, photos).round().long()
        model = sample().load_model()
        return Subject("MobileNetV2, features.18", model, model[1].features[18], images[spread])

    def vgg(number: int) -> Callable[[], Subject]:
        def load() -> Subject:
            model, images = brain_mri().load_model(), brain_mri().load_slices(slices)[0]
            return Subject(f"VGG16, features.{number}", model, model.features[number], images)

        return load

    known = [mobilenet] if sample() else []
    return [*known, *([vgg(30), vgg(29)] if os.environ.get("BRAIN_MRI") else [])]


def brain_mri() -> Any:
    """The module beside the slices, which loads them and their network."""
    spec = importlib.util.spec_from_file_location("brain_mri", Path(os.environ["BRAIN_MRI"]) / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def swept(of: Subject, image: Tensor, dtype: torch.dtype | None) -> dict[str, Any]:
    """All that the maps of an image are made from: its scores cost one pass for each live channel."""
    seen: list[Tensor] = []
    handle = of.layer.register_forward_hook(lambda _module, _args, output: seen.append(output.detach()))
    with torch.no_grad():
        logits = of.model(image)
    handle.remove()
    (activations,) = seen
    target = int(logits.argmax(1))
    scorer = MaskedScorer(of.model, (image,), None, [target], None, score_dtype=dtype)
    outputs: list[Tensor] = []
    handle = of.model.register_forward_hook(lambda _module, _args, output: outputs.append(output.float()))
    scores, representatives = TargetPasses(scorer, 0).channel_scores(activations)
    handle.remove()
    live = scored_channels(representatives)
    raw = torch.zeros_like(scores)
    raw[live] = torch.cat(outputs)[: int(live.sum()), target]
    denoised = LayerDenoisedGradCam(of.model, of.layer).attribute(image, target)
    return {"acts": activations, "t": target, "logits": logits, "D": denoised, "conf": scores, "raw": raw}


def region_sum(kept: dict[str, Any], weights: str, representatives: Tensor) -> tuple[Tensor, Tensor]:
    """The region map before scaling, where each channel has its representative's score; and those scores."""
    own = kept["conf" if weights == "score" else "raw"]
    scores = own.gather(1, representatives.clamp(min=0)).masked_fill(representatives < 0, 0)
    terms = weighted(region_weights(scores, representatives >= 0, weights), kept["acts"])
    return terms.sum(1, keepdim=True).relu(), scores


def union_details(
    of: Subject, image: Tensor, kept: dict[str, Any], region: tuple[Tensor, Tensor], representatives: Tensor
) -> UnionCamDetails:
    """UnionCAM's details with that region map: four passes."""
    passes = TargetPasses(MaskedScorer(of.model, (image,), None, [kept["t"]], None), 0)
    return unite_and_select(passes, kept["D"], *region, representatives, PAPER)


def average_drop(kept: dict[str, Any], details: UnionCamDetails) -> float:
    """The average drop of the selected map, in per cent of the image's confidence."""
    confidence = kept["logits"].softmax(1)[0, kept["t"]]
    seen = details.union_confidence.where(details.union_selected, details.region_confidence)[0]
    return float(100 * (confidence - seen).clamp(min=0) / confidence)


def correlation(one: Tensor, other: Tensor) -> float:
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


class Table:
    """Rows of one network: a line for each selection and number of passes."""

    def __init__(self) -> None:
        self.columns: dict[str, dict[str, list[float]]] = {REGION: {}, SOFTMAX: {}, UNION: {}, DROP: {}}

    def add(self, of: Subject, image: Tensor, kept: dict[str, Any]) -> None:
        """What each selection makes of an image."""
        every = channel_representatives(kept["acts"])
        full = {weights: region_sum(kept, weights, every) for weights in ("score", "softmax")}
        full_details = union_details(of, image, kept, full["score"], every)
        self._note("all", **{DROP: average_drop(kept, full_details)})
        for selection, passes in product(CHANNEL_SELECTIONS, PASSES):
            chosen = channel_representatives(kept["acts"], passes, selection)
            made = {weights: region_sum(kept, weights, chosen) for weights in full}
            details = union_details(of, image, kept, made["score"], chosen)
            of_region, of_softmax = (correlation(made[weights][0], full[weights][0]) for weights in full)
            of_union = correlation(details.union_map, full_details.union_map)
            found = {REGION: of_region, SOFTMAX: of_softmax, UNION: of_union, DROP: average_drop(kept, details)}
            self._note(f"{selection}, {passes}", **found)

    def _note(self, row: str, **found: float) -> None:
        for column, value in found.items():
            self.columns[column].setdefault(row, []).append(value)

    def markdown(self) -> str:
        def shown(column: str, values: list[float] | None) -> str:
            if not values:
                return ""
            mean = sum(values) / len(values)
            return f"{mean:.2f}" if column == DROP else f"{mean:.4f} / {min(values):.4f}"

        return markdown(
            [
                {"channels, passes": row, **{name: shown(name, of.get(row)) for name, of in self.columns.items()}}
                for row in self.columns[DROP]
            ]
        )


def measure(of: Subject, folder: Path, dtype: torch.dtype | None, kept_only: bool) -> str:
    """The section of one network; sweeps are kept in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    table, counts, seconds = Table(), [], []
    for number, image in enumerate(torch.split(of.images, 1)):
        path = folder / f"{number}.pt"
        if not path.is_file():
            if kept_only:
                continue
            torch.save(swept(of, image, dtype), path)
        kept = torch.load(path)
        print(f"{of.name}: image {number}", file=sys.stderr, flush=True)
        counts.append(int((channel_representatives(kept["acts"]) >= 0).sum()))
        begin = time.thread_time()
        channel_representatives(kept["acts"], 32)
        seconds.append(time.thread_time() - begin)
        table.add(of, image, kept)
    milliseconds = 1000 * sorted(seconds)[len(seconds) // 2]
    head = (
        f"## {of.name}\n\n{len(counts)} images, {min(counts)} to {max(counts)} live channels of "
        f"{kept['acts'].shape[1]}, scored in {'float32' if dtype is None else 'bfloat16'}. Choosing 32 "
        f"representatives takes {milliseconds:.0f} ms of one core (median).\n"
    )
    return f"{head}\n{table.markdown()}\n"


def main(
    photos: int = 24,
    slices: int = 24,
    keep: Annotated[
        Path | None, typer.Option(help="A folder for the sweeps, which another start goes on with.")
    ] = None,
    kept_only: Annotated[bool, typer.Option(help="Leave out images that are not in the folder.")] = False,
    half: Annotated[bool, typer.Option(help="Score VGG16's channels in bfloat16.")] = False,
) -> None:
    """Print a section for each network, and write them to benchmarks/results/representatives.md."""
    options = [
        f"--photos {photos}",
        f"--slices {slices}",
        *["--keep FOLDER --kept-only"] * kept_only,
        *["--half"] * half,
    ]
    command = " ".join(["python -m benchmarks.representatives", *options])
    sections = [f"# Representatives\n\n`{command}`\n\n{describe(torch.device('cpu'))}.\n\n{NOTES}"]
    with TemporaryDirectory() as temporary:
        for load in subjects(photos, slices):
            of = load()
            dtype = torch.bfloat16 if half and of.name.startswith("VGG16") else None
            folder = (keep or Path(temporary)) / of.name.rpartition(" ")[2]
            sections.append(measure(of, folder, dtype, kept_only))
            print(sections[-1], flush=True)
    print(write_result("representatives.md", "\n".join(sections)))


if __name__ == "__main__":
    typer.run(main)
