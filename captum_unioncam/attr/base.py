"""What the attribution methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine._captum import format_output


def format_attributions(
    layer: Module | list[Module], attributions: Sequence[Sequence[Tensor]], relu_attributions: bool
) -> Any:
    """The attributions of each layer and its outputs as Captum returns them.

    One tensor for a layer of one output, and a tuple for several; a list of those for a list of layers.
    """
    if relu_attributions:
        attributions = [[attribution.relu() for attribution in of_layer] for of_layer in attributions]
    return for_layers(layer, [format_output(len(of_layer) > 1, tuple(of_layer)) for of_layer in attributions])


def for_layers(layer: Module | list[Module], results: list[Any]) -> Any:
    """The results of the layers, a list for a list of them, and the only one for a layer alone."""
    return results[0] if isinstance(layer, Module) else results
