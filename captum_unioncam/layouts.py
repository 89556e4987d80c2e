"""Layouts of layer outputs that are not maps, tokens and channels last, and how they become maps (N, K, *spatial)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Identity, Module

ReshapeTransform = Callable[[Tensor], Tensor]


def channels_last_to_maps(output: Tensor) -> Tensor:
    r"""Turns a layer's output with the channels last, as Swin transformers have it, into maps.

    Args:
        output (Tensor): (N, \*spatial, K).

    Returns:
        *Tensor* (N, K, \*spatial), a view.

    Examples::

        >>> union_cam = LayerUnionCam(model, model.norm, reshape_transform=channels_last_to_maps)
    """
    return output.movedim(-1, 1)


def tokens_to_maps(*grid: int, class_tokens: int = 1) -> ReshapeTransform:
    r"""Makes the transform that turns a layer's tokens, as vision transformers have them, into maps.

    Args:
        *grid (int): Patches along each spatial dimension: height and width for pictures.
        class_tokens (int): Tokens in front of the patches', which no map shows. Default: 1

    Returns:
        *Callable*: Tokens (N, class_tokens + patches, K), the patches row by row, to maps (N, K, \*grid), a view.
        It raises ``ValueError`` for another number of tokens.

    Examples::

        >>> layer = model.encoder.layers[-1].ln_1  # behind it, only the class token has a gradient
        >>> union_cam = LayerUnionCam(model, layer, reshape_transform=tokens_to_maps(14, 14))
    """
    count = class_tokens + math.prod(grid)

    def transform(tokens: Tensor) -> Tensor:
        if tokens.dim() != 3 or tokens.shape[1] != count:
            patches = " x ".join(map(str, grid))
            raise ValueError(
                f"reshape_transform: the layer has shape {tuple(tokens.shape)}, not (N, {class_tokens} + {patches}, K);"
                " give tokens_to_maps the layer's own grid."
            )
        return tokens[:, class_tokens:].transpose(1, 2).view(tokens.shape[0], tokens.shape[2], *grid)

    return transform


class KnownTransforms:
    """The transforms for the layers of torchvision's networks whose outputs are not maps.

    Args:
        modules (Iterable[Module]): The networks, or what they are within.
        of_inputs (bool): Of the layers' inputs in place of their outputs. Default: False
    """

    def __init__(self, modules: Iterable[Module], of_inputs: bool = False) -> None:
        self._transforms: dict[Module, ReshapeTransform] = {}
        for module in {module for root in modules for module in root.modules()}:
            if _is_of_torchvision(module, "VisionTransformer"):
                self._add(module.modules(), _vision_transformer_maps(module))
            elif _is_of_torchvision(module, "SwinTransformer"):
                self._add(_channels_last_in_swin(module, of_inputs), channels_last_to_maps)
            elif _is_of_torchvision(module, "CNBlock"):
                self._add(_channels_last_in_convnext(module, of_inputs), channels_last_to_maps)
            elif _is_of_torchvision(module, "PartitionAttentionLayer"):
                self._add(_windows_in_maxvit(module, of_inputs), _refuse_windows)

    def __getitem__(self, layer: Module) -> ReshapeTransform:
        """The layer's transform, which raises ``ValueError`` if no maps can be made; any other's changes nothing."""
        return self._transforms.get(layer, _unchanged)

    def has_space(self, layer: Module, output: object, dims: Collection[int]) -> bool:
        """Whether the layer's output as maps has one of these numbers of dimensions, and more than one position."""
        try:
            maps = self[layer](output) if isinstance(output, Tensor) else None
        except ValueError:
            return False
        return maps is not None and maps.dim() in dims and maps.shape[2:].numel() > 1

    def _add(self, layers: Iterable[Module], transform: ReshapeTransform) -> None:
        self._transforms |= {layer: transform for layer in layers if not isinstance(layer, Maps)}


def last_token_layers(model: Module) -> set[Module]:
    """Of each of torchvision's vision transformers in the model, the last layer whose patches have a gradient.

    The last block's output goes on to the head by its class token alone.
    """
    transformers: list[Any] = [module for module in model.modules() if _is_of_torchvision(module, "VisionTransformer")]
    return {transformer.encoder.layers[-1].ln_1 for transformer in transformers}


def _is_of_torchvision(module: Module, name: str) -> bool:
    # By name, since torchvision need not be installed.
    return any(c.__name__ == name and c.__module__.startswith("torchvision.models.") for c in type(module).__mro__)


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
    raise ValueError(
        f"layer: its shape {tuple(output.shape)} is that of MaxViT's windows, which are no maps; choose the attention "
        "layer around it, or another layer in front of the partition or behind it."
    )


def _unchanged(output: Tensor) -> Tensor:
    return output


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
