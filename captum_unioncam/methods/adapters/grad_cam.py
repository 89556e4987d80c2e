"""The CAM classes of grad-cam: https://github.com/jacobgil/pytorch-grad-cam."""

import io
from contextlib import redirect_stderr
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.methods.adapters.peers import Peer
from captum_unioncam.methods.settings import Attribute, MethodSettings


def _grad_cam(cam_class: Any, model: Module, layer: Module, settings: MethodSettings) -> Attribute:
    # FullGrad takes every layer with a bias, and prints a warning when given one.
    layers = [] if cam_class.__name__ == "FullGrad" else [layer]

    def attribute(inputs: Tensor, target: Tensor, _baselines: Tensor) -> Tensor:
        cam = cam_class(model, layers)
        if settings.internal_batch_size is not None:
            cam.batch_size = settings.internal_batch_size
        each = zip(torch.split(inputs, 1), target.tolist(), strict=True)
        try:
            # Score-CAM and Ablation-CAM draw a progress bar for each example.
            with redirect_stderr(io.StringIO()):
                maps = [cam(example.requires_grad_(), **_grad_cam_target(cam_class, index)) for example, index in each]
        finally:
            if hasattr(cam, "activations_and_grads"):
                # Shapley-CAM's gradients are views, at which its destructor fails.
                cam.activations_and_grads.gradients = []
        return torch.from_numpy(np.stack(maps))

    return attribute


def _grad_cam_target(cam_class: Any, index: int) -> dict[str, Any]:
    if cam_class.__name__ == "FinerCAM":
        # Given targets, it compares the class with no others.
        return {"target_idx": index}
    # A target picks the score from an output with or without a batch dimension.
    return {"targets": [itemgetter((..., index))]}


GRAD_CAM = Peer("grad-cam", "pytorch_grad_cam", "target_layers", _grad_cam)
