"""Tokens and channels-last outputs as maps (N, K, *spatial)."""

import math
from collections.abc import Callable

from torch import Tensor

ReshapeTransform = Callable[[Tensor], Tensor]


def unchanged(output: Tensor) -> Tensor:
    """The transform of what is maps already."""
    return output


def channels_last_to_maps(output: Tensor) -> Tensor:
    r"""Turns a layer's output with the channels last, as Swin transformers have it, into maps.

    Args:
        output (Tensor): (N, \*spatial, K).

    Returns:
        *Tensor* (N, K, \*spatial), a view.

    Examples::

        >>> union_cam = LayerUnionCam(
        ...     model, model.norm, reshape_transform=channels_last_to_maps
        ... )
    """
    return output.movedim(-1, 1)


def tokens_to_maps(*grid: int, class_tokens: int = 1) -> ReshapeTransform:
    r"""Makes the transform that turns a layer's tokens, as vision transformers have them, into maps.

    Args:
        *grid (int): Patches along each spatial dimension: height and width for images.
        class_tokens (int): Tokens in front of the patches', which no map shows. Default: 1

    Returns:
        *Callable*: Tokens (N, class_tokens + patches, K), the patches row by row, to maps (N, K, \*grid), a view.
        It raises ``ValueError`` for another number of tokens.

    Examples::

        >>> layer = model.encoder.layers[-1].ln_1  # the last with gradients of patches
        >>> to_maps = tokens_to_maps(14, 14)
        >>> union_cam = LayerUnionCam(model, layer, reshape_transform=to_maps)
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
