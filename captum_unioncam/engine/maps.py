"""Pure functions of maps, tensors of shape (N, K, *spatial): nothing here knows a model.

Every function treats each example and channel on its own and keeps dtype and device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_INTERPOLATION_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
MAX_SPATIAL_DIMS = max(_INTERPOLATION_MODES)


def spatial_dims(maps: Tensor) -> tuple[int, ...]:
    """The dimensions of ``maps`` that are neither example nor channel."""
    return tuple(range(2, maps.dim()))


def spatial_range(maps: Tensor) -> Tensor:
    """Maximum minus minimum over the spatial dimensions, which are kept with size 1."""
    dims = spatial_dims(maps)
    return maps.amax(dims, keepdim=True) - maps.amin(dims, keepdim=True)


def divide_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is not positive.

    There is no epsilon: saturated networks have gradients of 1e-12 and below, which one would wipe out.
    """
    positive = denominator > 0
    return torch.where(positive, numerator / denominator.where(positive, 1.0), 0.0)


def divide_unless_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0, without an epsilon."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / denominator.where(~zero, 1.0))


def minmax(maps: Tensor) -> Tensor:
    """``(m - min) / (max - min)`` over the spatial dimensions: in [0, 1], all zeros for a constant map."""
    dims = spatial_dims(maps)
    above = maps - maps.amin(dims, keepdim=True)
    highest = above.amax(dims, keepdim=True)
    return above / highest.where(highest > 0, 1.0)


def up(maps: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Interpolates linearly, bilinearly or trilinearly to ``size``, with ``align_corners=False``."""
    # Of what is above the minimum: the rounding of a constant map would vary, and minmax make much of it.
    lowest = maps.amin(spatial_dims(maps), keepdim=True)
    mode = _INTERPOLATION_MODES[len(size)]
    return lowest + F.interpolate(maps - lowest, tuple(size), mode=mode, align_corners=False)


def broadcast_over(values: Tensor, maps: Tensor) -> Tensor:
    """Values of the first dimensions of ``maps``, such as (N,) or (N, K), with size 1 in the others."""
    return values.reshape(values.shape + (1,) * (maps.dim() - values.dim()))


def weighted(weights: Tensor, activations: Tensor) -> Tensor:
    """The terms ``w_k A_k`` (N, K, *spatial) of a class activation map, with weights (N, K) or (N,)."""
    return broadcast_over(weights, activations) * activations


def clipped(terms: Tensor) -> Tensor:
    """The terms (N, K, *spatial), 0 where their sum is negative: they sum to its ReLU."""
    return terms * (terms.sum(1, keepdim=True) > 0)


def blend(mask: Tensor, inputs: Tensor, baselines: Tensor | float) -> Tensor:
    """``m * I + (1 - m) * I_b``: the input where the mask is 1, the baseline where it is 0."""
    dtype = torch.promote_types(torch.promote_types(mask.dtype, inputs.dtype), torch.float32)
    baselines = torch.as_tensor(baselines, dtype=dtype, device=inputs.device)
    # One pass over memory, and exact at both ends.
    return torch.lerp(baselines, inputs.to(dtype), mask.to(dtype))


def full_precision(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, other dtypes as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
