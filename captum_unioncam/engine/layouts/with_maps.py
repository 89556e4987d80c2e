"""A layer with maps behind one without, for methods that know no transforms."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Identity, Module

from captum_unioncam.engine.layouts.base import ReshapeTransform


class Maps(Identity):
    """Where a ``WithMaps`` shows the maps of its layer."""


class WithMaps(Module):
    """A layer whose output passes through ``maps``, a layer with maps, and is what it was.

    Captum's methods and other packages' can explain ``maps``: they know no ``reshape_transform``.

    Args:
        layer (torch.nn.Module): With one output tensor.
        transform (Callable): Its output to maps, a view of it.
    """

    def __init__(self, layer: Module, transform: ReshapeTransform) -> None:
        super().__init__()
        self.layer = layer
        self.transform = transform
        self.maps = Maps()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.layer(*args, **kwargs)
        with_maps = torch.clone(output)
        self.transform(with_maps).copy_(self.maps(self.transform(output).contiguous()))
        return with_maps
