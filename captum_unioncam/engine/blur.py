"""Gaussian blur of inputs, which some methods and metrics show in place of what is masked out."""

import torch
import torch.nn.functional as F
from torch import Tensor


def blurred(inputs: Tensor, pixels: int, sigma: float, border: str) -> Tensor:
    """Inputs (N, C, *spatial) under a Gaussian window; whole numbers are rounded.

    Args:
        inputs (Tensor): Of any dtype.
        pixels (int): The window's width, odd. Where the border is reflected, at most twice the shortest side less one.
        sigma (float): Standard deviation in pixels.
        border (str): "reflect" without repeating the border, or "replicate" it.
    """
    if border == "reflect":
        pixels = min(pixels, 2 * min(inputs.shape[2:]) - 1)
    reach = pixels // 2
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    places = torch.arange(-reach, reach + 1, device=inputs.device, dtype=dtype)
    window = (-(places**2) / (2 * sigma**2)).exp()
    window /= window.sum()
    result = inputs.detach().to(dtype)
    for dim in range(2, inputs.dim()):
        lines = result.movedim(dim, -1)
        length = lines.shape[-1]
        padded = F.pad(lines.reshape(-1, 1, length), (reach, reach), mode=border)
        # A convolution would be in TF32 on many GPUs, and in half precision under autocast.
        summed = torch.zeros_like(padded[..., :length])
        for i, weight in enumerate(window):
            summed += weight * padded[..., i : i + length]
        result = summed.reshape(lines.shape).movedim(-1, dim)
    return (result if inputs.is_floating_point() else result.round()).to(inputs.dtype)
