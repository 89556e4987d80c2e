"""The CAM classes of torchcam: https://github.com/frgfm/torch-cam."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module

from captum_unioncam.methods.adapters.peers import Peer
from captum_unioncam.methods.settings import Attribute, MethodSettings


def _torchcam(cam_class: Any, model: Module, layer: Module, settings: MethodSettings) -> Attribute:
    linear = [module for module in model.modules() if isinstance(module, Linear)]
    # CAM takes the weights of the only fully connected layer. torchcam finds it too, but logs it at each call.
    arguments = {"fc_layer": linear[0]} if cam_class.__name__ == "CAM" and len(linear) == 1 else {}

    def attribute(inputs: Tensor, target: Tensor, _baselines: Tensor) -> Tensor:
        cam = cam_class(model, layer, **arguments)
        if settings.internal_batch_size is not None:
            cam.bs = settings.internal_batch_size
        maps = []
        for example, index in zip(torch.split(inputs, 1), target.tolist(), strict=True):
            scores = model(example.requires_grad_())
            maps += cam(index, scores, normalized=False)
        return torch.stack(maps)

    return attribute


TORCHCAM = Peer("torchcam", "torchcam.methods", "target_layer", _torchcam)
