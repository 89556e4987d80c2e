"""UnionCAM in plain loops, to judge the package by.

One example, one channel and one forward pass at a time, written from section 2 of the design alone:
it shares no code with the package or with Captum. Numbered comments name the equations (of the
paper) and steps (of the design). The model is assumed to be in evaluation mode.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Number = int | float
Target = int | tuple[int, ...] | None


@dataclass
class Reference:
    """Everything UnionCAM computes on the way to the map of one example."""

    attribution: Tensor  # (1, 1, *spatial): the selected map, minmax(U) or R
    denoised: Tensor  # (1, 1, *spatial): L_D, not normalised
    region: Tensor  # (1, 1, *spatial): L_R, not normalised
    denoised_map: Tensor  # D
    region_map: Tensor  # R
    union_map: Tensor  # minmax(U)
    channel_scores: Tensor  # (K,): conf_c ("score") or y_c ("softmax") of blend(M_k); 0 if constant
    channel_weights: Tensor  # (K,): w_k
    baseline_confidence: float
    denoised_confidence: float
    region_confidence: float
    union_confidence: float
    union_selected: bool
    forward_passes: int  # masked passes: live channels + the four confidences


def is_constant(m: Tensor) -> bool:
    return bool((m == m.reshape(-1)[0]).all())


def minmax(m: Tensor) -> Tensor:
    """`m`, one map, brought to [0, 1]; all zeros where it is constant."""
    if is_constant(m):
        return torch.zeros_like(m)
    return (m - m.min()) / (m.max() - m.min())


def up(m: Tensor, size: tuple[int, ...]) -> Tensor:
    """`m` of shape (1, 1, *spatial), interpolated to the input's spatial size."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(m, size=size, mode=mode, align_corners=False)


def blend(m: Tensor, image: Tensor, black_image: Tensor) -> Tensor:
    """The image where the mask is 1, the black image where it is 0."""
    return m * image + (1 - m) * black_image


def mask_of(m: Tensor, size: tuple[int, ...]) -> Tensor:
    """minmax(up(m)). A constant map is caught before `up`, whose rounding could make it vary."""
    if is_constant(m):
        return torch.zeros(1, 1, *size, dtype=m.dtype, device=m.device)
    return minmax(up(m, size))


def default_confidence(output: Tensor) -> Tensor:
    if output.dim() >= 2 and output.shape[1] > 1:
        return torch.softmax(output, dim=1)
    return output


def select(output: Tensor, target: Target) -> Tensor:
    """The one value of a batch of one that `target` names."""
    if target is not None:
        for index in target if isinstance(target, tuple) else (target,):
            output = output[0][index].unsqueeze(0)
    if output.numel() != 1:
        raise ValueError(f"target {target} leaves shape {tuple(output.shape)}, not one value")
    return output.reshape(())


def activation_and_gradient(call: Callable[[], Tensor], layer: nn.Module, target: Target) -> tuple[Tensor, Tensor]:
    """A, the layer's output, and W = dy_c / dA, both (1, K, *spatial)."""
    leaves: list[Tensor] = []

    def keep_leaf(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaf = output.detach().clone().requires_grad_(True)
        leaves.append(leaf)
        return leaf.clone()  # so that an in-place module after the layer cannot change the leaf

    handle = layer.register_forward_hook(keep_leaf)
    try:
        with torch.enable_grad():
            y_c = select(call(), target)
    finally:
        handle.remove()
    if len(leaves) != 1:
        raise ValueError(f"the layer ran {len(leaves)} times in one forward pass, not once")
    (gradient,) = torch.autograd.grad(y_c, leaves[0])
    return leaves[0].detach(), gradient


def denoised_sum(A: Tensor, W: Tensor, theta: float) -> Tensor:
    """Activation map denoising, Eq. 1-3: L_D from one example's A and W, both (K, *spatial)."""
    L_D = torch.zeros_like(A[0])
    for A_k, W_k in zip(A, W, strict=True):
        # Step 1: p_k, the theta-th percentile of W_k, linear interpolation.
        p_k = float(np.percentile(W_k.double().cpu().numpy(), theta))
        # Eq. 1, step 2: W'_k = W_k where W_k >= p_k, else 0.
        kept = torch.where(W_k.double() >= p_k, W_k, torch.zeros_like(W_k))
        positive = kept.clamp(min=0)
        total = positive.sum()
        if total == 0:
            continue  # alpha_k = 0 everywhere
        # Eq. 2, step 3: alpha_k = 1 / sum(ReLU(W'_k)) where W'_k > 0, else 0. Multiplied at once by
        # ReLU(W'_k), which is 0 just where alpha_k is: 1 / sum alone overflows for tiny gradients.
        alpha_times_positive = positive / total
        # Eq. 3, step 4: L_D = sum_k alpha_k * ReLU(W'_k) * A_k.
        L_D = L_D + alpha_times_positive * A_k
    return L_D


def union_cam(
    forward_func: Callable[..., Tensor],
    layer: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    target: Target,
    *,
    baseline: Number | Tensor | tuple[Number | Tensor, ...] = 0.0,
    theta: float = 10.0,
    channel_weights: str = "score",
    selection: str = "paper",
    confidence_fn: Callable[[Tensor], Tensor] | None = None,
    additional_forward_args: tuple[Any, ...] = (),
) -> Reference:
    """UnionCAM of one example, given as a batch of one (or a tuple of such inputs)."""
    if channel_weights not in ("score", "softmax"):
        raise ValueError(f"channel_weights is {channel_weights!r}, not 'score' or 'softmax'")
    images = example if isinstance(example, tuple) else (example,)
    baselines = baseline if isinstance(baseline, tuple) else (baseline,) * len(images)
    if len(baselines) != len(images):
        raise ValueError(f"{len(baselines)} baselines for {len(images)} inputs")
    confidence = confidence_fn if confidence_fn is not None else default_confidence

    batch_A, batch_W = activation_and_gradient(lambda: forward_func(*images, *additional_forward_args), layer, target)
    if batch_A.dim() < 3 or len(batch_A) != 1:
        raise ValueError(f"the layer's output is {tuple(batch_A.shape)}, not (1, K, *spatial)")
    A, W = batch_A[0], batch_W[0]
    masked = [image.dim() == batch_A.dim() for image in images]
    if not any(masked):
        raise ValueError("no input has as many spatial dimensions as the layer's output")

    def as_map(m: Tensor) -> Tensor:
        return m[None, None]

    def masks_of(m: Tensor) -> list[Tensor | None]:
        """minmax(up(m)) at the size of each input that takes a mask, None for the others."""
        return [
            mask_of(as_map(m), tuple(image.shape[2:])) if takes_mask else None
            for image, takes_mask in zip(images, masked, strict=True)
        ]

    passes = 0

    def score(masks: list[Tensor | None]) -> tuple[float, float]:
        """y_c and conf_c of blend(masks), by one forward pass."""
        nonlocal passes
        passes += 1
        blended = []
        for m, image, black in zip(masks, images, baselines, strict=True):
            if m is None:
                blended.append(image)
            else:
                black_image = black if isinstance(black, Tensor) else torch.full_like(image, black)
                blended.append(blend(m, image, black_image))
        with torch.no_grad():
            output = forward_func(*blended, *additional_forward_args)
            y_c = select(output, target).item()
            conf_c = select(confidence(output), target).item()
        return y_c, conf_c

    # I_b = blend(0), in the inputs that take a mask.
    baseline_y, baseline_confidence = score(masks_of(torch.zeros_like(A[0])))

    # Activation map denoising.
    L_D = denoised_sum(A, W, theta)

    # Region map, steps 1 and 2: M_k = minmax(up(A_k)), and what the model says of blend(M_k).
    live: list[int] = []
    scores = [0.0] * len(A)
    for k, A_k in enumerate(A):
        M_k = masks_of(A_k)
        if all(m is None or is_constant(m) for m in M_k):
            continue  # a constant channel: no mask, no forward pass, weight 0
        live.append(k)
        y_k, s_k = score(M_k)
        scores[k] = s_k if channel_weights == "score" else y_k

    # Region map, step 3: w_k.
    weights = [0.0] * len(A)
    if channel_weights == "score":
        for k in live:
            weights[k] = scores[k]  # w_k = s_k
    elif live:
        # w = softmax over the live channels of y_c(blend(M_k)) - y_c(I_b).
        gains = {k: scores[k] - baseline_y for k in live}
        largest = max(gains.values())
        total = sum(math.exp(gains[k] - largest) for k in live)
        for k in live:
            weights[k] = math.exp(gains[k] - largest) / total

    # Region map, step 4: L_R = ReLU(sum_k w_k * A_k).
    weighted_sum = torch.zeros_like(A[0])
    for w_k, A_k in zip(weights, A, strict=True):
        weighted_sum = weighted_sum + w_k * A_k
    L_R = weighted_sum.clamp(min=0)

    # Activation map union, Eq. 4-6.
    D = minmax(L_D)
    R = minmax(L_R)
    _, denoised_confidence = score(masks_of(D))
    _, region_confidence = score(masks_of(R))
    beta_D = denoised_confidence - baseline_confidence  # Eq. 4
    beta_R = region_confidence - baseline_confidence  # Eq. 5
    U = beta_D * D + beta_R * R  # Eq. 6

    # Activation map selection, Eq. 7-8.
    _, union_confidence = score(masks_of(U))
    beta_U = union_confidence - baseline_confidence  # Eq. 7
    union_selected = beta_U > beta_R  # Eq. 8
    selected = minmax(U) if union_selected else R
    if selection == "best":
        # The best of all three maps; of equal ones R before U before D.
        betas = {"R": beta_R, "U": beta_U, "D": beta_D}
        best = max(betas, key=lambda name: betas[name])
        union_selected = best == "U"
        selected = {"R": R, "U": minmax(U), "D": D}[best]

    return Reference(
        attribution=as_map(selected),
        denoised=as_map(L_D),
        region=as_map(L_R),
        denoised_map=as_map(D),
        region_map=as_map(R),
        union_map=as_map(minmax(U)),
        channel_scores=torch.tensor(scores, dtype=A.dtype, device=A.device),
        channel_weights=torch.tensor(weights, dtype=A.dtype, device=A.device),
        baseline_confidence=baseline_confidence,
        denoised_confidence=denoised_confidence,
        region_confidence=region_confidence,
        union_confidence=union_confidence,
        union_selected=union_selected,
        forward_passes=passes,
    )
