"""Methods that replace a layer's output, timed beside grad-cam's and beside one LayerGradCam.

ResNet-18 with random weights, ``layer4``, one image of 224 x 224, all in one process. Prints medians, least and most
of the repetitions' seconds, and the ratios of the medians:

    python benchmarks/tail.py [--repetitions 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from statistics import median

import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import AblationCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor
from torchvision.models import resnet18

from captum_unioncam import LayerAblationCam, LayerReciproCam
from captum_unioncam.engine.maps import minmax, up


def seconds(call: Callable[[], Tensor], repetitions: int) -> list[float]:
    """Of each repetition, after one that is not counted."""
    call()
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten().double(), other.flatten().double()]))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model, picture = resnet18().eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        target = int(model(picture).argmax())

    def of_grad_cam() -> Tensor:
        # Its progress bar would stand between the lines.
        with AblationCAM(model, [model.layer4]) as cam, redirect_stderr(StringIO()):
            return torch.as_tensor(cam(picture, [ClassifierOutputTarget(target)]))

    ablation_cam, recipro_cam = LayerAblationCam(model, model.layer4), LayerReciproCam(model, model.layer4)
    grad_cam = LayerGradCam(model, model.layer4)
    ours, theirs = ablation_cam.attribute(picture, target), of_grad_cam()
    print(f"Ablation-CAM: correlation with grad-cam's map {correlation(minmax(up(ours, (224, 224))), theirs):.6f}")
    timed = {
        "LayerAblationCam": seconds(lambda: ablation_cam.attribute(picture, target), given.repetitions),
        "grad-cam's AblationCAM": seconds(of_grad_cam, 3),
        "LayerReciproCam": seconds(lambda: recipro_cam.attribute(picture, target), given.repetitions),
        "LayerGradCam": seconds(lambda: grad_cam.attribute(picture, target), given.repetitions),
    }
    for name, found in timed.items():
        print(f"{name:24} {median(found):8.4f} s ({min(found):.4f} to {max(found):.4f}, {len(found)} times)")
    medians = {name: median(found) for name, found in timed.items()}
    faster = medians["grad-cam's AblationCAM"] / medians["LayerAblationCam"]
    print(f"Ablation-CAM is {faster:.1f} times as fast as grad-cam's (bar: 50)")
    print(f"Recipro-CAM takes {medians['LayerReciproCam'] / medians['LayerGradCam']:.2f} of LayerGradCam (bar: 2)")


if __name__ == "__main__":
    main()
