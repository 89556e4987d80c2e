"""Layouts of layer outputs that are not maps, tokens and channels last, and how they become maps (N, K, *spatial)."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.layouts.base import ReshapeTransform, channels_last_to_maps, tokens_to_maps, unchanged
from captum_unioncam.engine.layouts.with_maps import Maps, WithMaps
from captum_unioncam.engine.model_state import modules_within
from captum_unioncam.engine.seen import OTHER_LAYER, LayerError

_KNOWN = ("VisionTransformer", "SwinTransformer", "CNBlock", "PartitionAttentionLayer")


class KnownTransforms:
    """The transforms for the layers of torchvision's networks whose outputs are not maps.

    Args:
        modules (Iterable[Module]): The networks, or what they are within.
        of_inputs (bool): Of the layers' inputs in place of their outputs. Default: False
    """

    def __init__(self, modules: Iterable[Module], of_inputs: bool = False) -> None:
        self._transforms: dict[Module, ReshapeTransform] = {}
        within = modules_within(modules)
        # A model has hundreds of modules, of a few types.
        names = {kind: _name_in_torchvision(kind) for kind in {*map(type, within)}}
        for module in within:
            name = names[type(module)]
            if name == "VisionTransformer":
                self._add(module.modules(), _vision_transformer_maps(module))
            elif name == "SwinTransformer":
                self._add(_channels_last_in_swin(module, of_inputs), channels_last_to_maps)
            elif name == "CNBlock":
                self._add(_channels_last_in_convnext(module, of_inputs), channels_last_to_maps)
            elif name == "PartitionAttentionLayer":
                self._add(_windows_in_maxvit(module, of_inputs), _refuse_windows)

    def __getitem__(self, layer: Module) -> ReshapeTransform:
        """The layer's transform, which raises ``ValueError`` if no maps can be made; any other's changes nothing."""
        return self._transforms.get(layer, unchanged)

    def __contains__(self, layer: Module) -> bool:
        """Whether the layer is within a network that is known."""
        return layer in self._transforms

    def has_space(self, layer: Module, output: object, dims: Collection[int]) -> bool:
        """Whether the layer's output as maps has one of these numbers of dimensions, and more than one position."""
        try:
            maps = self[layer](output) if isinstance(output, Tensor) else None
        except ValueError:
            return False
        return maps is not None and maps.dim() in dims and maps.shape[2:].numel() > 1

    def _add(self, layers: Iterable[Module], transform: ReshapeTransform) -> None:
        self._transforms |= {layer: transform for layer in layers if not isinstance(layer, Maps)}


def last_token_layers(model: Module) -> dict[Module, Module]:
    """For each layer of the encoders of torchvision's vision transformers, the last whose patches have a gradient.

    The last block's output goes on to the head by its class token alone. The head of a new network is zero, so that
    gradients do not tell.
    """
    transformers: list[Any] = [m for m in model.modules() if _name_in_torchvision(type(m)) == "VisionTransformer"]
    return {layer: one.encoder.layers[-1].ln_1 for one in transformers for layer in one.encoder.modules()}


def _name_in_torchvision(kind: type) -> str | None:
    """The name of the class, or of that it is derived from, where it is one whose layouts are known."""
    # By name, since torchvision need not be installed.
    known = (
        c.__name__ for c in kind.__mro__ if c.__name__ in _KNOWN and c.__module__.startswith("torchvision.models.")
    )
    return next(known, None)


def _vision_transformer_maps(transformer: Any) -> ReshapeTransform:
    side = transformer.image_size // transformer.patch_size
    transform = tokens_to_maps(side, side)

    def maps(output: Tensor) -> Tensor:
        # The convolutions in front of the encoder have maps, the head has neither.
        return transform(output) if output.dim() == 3 and output.shape[1] == transformer.seq_length else output

    return maps


def _channels_last_in_swin(transformer: Any, of_inputs: bool) -> set[Module]:
    """Between the two permutations, behind the first convolution and in front of the pooling."""
    channels_last = {*transformer.features.modules(), transformer.norm}
    stem = _unwrapped(_unwrapped(transformer.features)[0])
    if of_inputs:
        return (channels_last | {transformer.permute}) - {transformer.features, stem, stem[0], stem[1]}
    return channels_last - {stem[0]}


def _unwrapped(layer: Any) -> Any:
    return layer.layer if isinstance(layer, WithMaps) else layer


def _channels_last_in_convnext(block: Any, of_inputs: bool) -> set[Module]:
    """Between the two permutations, behind the convolution and at the end of the block."""
    between = block.block[2:] if of_inputs else block.block[1:-1]
    return {module for layer in between for module in layer.modules()}


def _windows_in_maxvit(attention: Any, of_inputs: bool) -> set[Module]:
    """Between the partition into windows (N, windows, positions, K) and its end."""
    outside = attention.partition_op if of_inputs else attention.departition_op
    return {*attention.modules()} - {attention, outside}


def _refuse_windows(output: Tensor) -> Tensor:
    raise LayerError(
        f"layer: its shape {tuple(output.shape)} is that of MaxViT's windows, which are no maps; {OTHER_LAYER}."
    )
