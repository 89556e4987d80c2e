"""Activation map denoising (AMD), the gradient half of UnionCAM: Eq. 1-3 as functions, and as a Captum method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.base import format_attributions
from captum_unioncam.engine._captum import (
    TargetType,
    format_additional_forward_args,
    format_tensor_into_tuples,
    log_usage,
)
from captum_unioncam.engine.capture import layer_gradients_and_activations
from captum_unioncam.engine.checks import check_inputs
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.maps import divide_or_zero, spatial_dims
from captum_unioncam.engine.model_state import evaluation_mode


def gradient_percentile(gradients: Tensor, theta: float) -> Tensor:
    """Eq. 1: ``p_k``, the theta-th percentile of each channel's gradients over space, interpolated linearly.

    Args:
        gradients (Tensor): (N, K, *spatial).
        theta (float): In [0, 100].

    Returns:
        *Tensor* (N, K, 1, ...), as ``numpy.percentile`` gives.
    """
    # Not torch.quantile, which refuses more than 16 million values.
    ordered = gradients.flatten(2).sort(dim=-1).values
    rank = theta * (ordered.shape[-1] - 1) / 100
    below, above = ordered[..., math.floor(rank)], ordered[..., math.ceil(rank)]
    percentile = torch.lerp(below, above, rank - math.floor(rank))
    return percentile.reshape(gradients.shape[:2] + (1,) * len(spatial_dims(gradients)))


def denoised_gradients(gradients: Tensor, theta: float) -> Tensor:
    """Eq. 2: ``W'_k = W_k`` where ``W_k >= p_k``, and 0 elsewhere."""
    return gradients.where(gradients >= gradient_percentile(gradients, theta), 0.0)


def gradient_weights(denoised: Tensor) -> Tensor:
    """Eq. 3: ``alpha_k ReLU(W'_k)``, each channel's positive gradients scaled to a sum of 1 over space."""
    positive = denoised.relu()
    return divide_or_zero(positive, positive.sum(spatial_dims(positive), keepdim=True))


def denoised_terms(gradients: Tensor, activations: Tensor, theta: float) -> Tensor:
    """The terms ``alpha_k ReLU(W'_k) A_k`` (N, K, *spatial), whose sum over the channels is ``L_D``."""
    return gradient_weights(denoised_gradients(gradients, theta)) * activations


def check_theta(theta: float) -> None:
    """Raises ``ValueError`` unless ``theta`` is a percentage."""
    if not 0 <= theta <= 100:
        raise ValueError(f"theta: got {theta}; give a percentile from 0 to 100 (the paper's is 10).")


class LayerDenoisedGradCam(LayerAttribution, GradientAttribution):  # type: ignore[misc]
    r"""
    The denoised gradient map of UnionCAM: a CAM whose channel weights vary over space.

    With :math:`A` the layer's output and :math:`W_k = \partial y_c / \partial A_k`,

    .. math::
        p_k = \text{percentile}_\theta(W_k), \qquad
        W'_k = W_k \, [W_k \ge p_k], \qquad
        L_D = \sum_k \frac{\text{ReLU}(W'_k)}{\sum \text{ReLU}(W'_k)} \, A_k

    (Eq. 1-3 of Hu et al., *UnionCAM*, Frontiers in Neurorobotics 2024, https://doi.org/10.3389/fnbot.2024.1490198).
    Each channel's positive gradients become weights that sum to 1, so the map does not depend on the gradients' scale.

    Theta changes a channel only where :math:`p_k > 0`, since negative gradients count for nothing anyway. Behind global
    average pooling every :math:`W_k` is constant over space: there theta has no effect, and each channel with a
    positive gradient has the same weight. Nor has it in front of a 2x2 max pooling up to theta = 75, since three of
    four gradients there are 0.

    Args:
        forward_func (Callable): The model, or a function of it, run in evaluation mode.
        layer (torch.nn.Module or list[torch.nn.Module]): The layer to explain, with an output of shape
            (N, K, \*spatial), or several of them.
        device_ids (list[int] or None): The devices of a ``DataParallel`` model that ``forward_func`` wraps.
            Default: None
        reshape_transform (Callable or None): The layer's output, each tensor of it, to (N, K, \*spatial). Gradients
            pass through it as well, so it may only move values and leave some out: ``tokens_to_maps(14, 14)``,
            ``channels_last_to_maps``, or your own. Default: None, the known one where the layer is within torchvision's
            ViT, Swin transformer or ConvNeXt, and the output as it is elsewhere
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | list[Module],
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)
        self.reshape_transform = reshape_transform

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        theta: float = 10.0,
    ) -> Any:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): The examples, along dimension 0 of each tensor.
            target (int, tuple, Tensor, list or None): The output to explain, as in ``LayerGradCam``. Default: None
            additional_forward_args (Any): Further arguments of ``forward_func``. Default: None
            attribute_to_layer_input (bool): Explain the layer's input in place of its output. Default: False
            relu_attributions (bool): Set negative attributions to 0. Default: False
            attr_dim_summation (bool): Sum over the channels. Default: True
            grad_kwargs (dict or None): Further arguments of ``torch.autograd.grad``. Default: None
            theta (float): Percentile in [0, 100] of each channel's gradients below which they are noise.
                Default: 10, the paper's

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: :math:`L_D` (N, 1, \*spatial), or its terms (N, K, \*spatial)
            without ``attr_dim_summation``; a tuple where the layer has several output tensors; a list of those, one a
            layer, for a list of layers.

        Raises:
            ValueError: theta outside [0, 100], a layer without spatial dimensions or with another number of them than
                every input, an empty batch or list of layers, or activations or gradients that are not finite.
            AssertionError: A target that does not fit the output, as in Captum.

        Examples::

            >>> amd = LayerDenoisedGradCam(model, model.features[28])
            >>> attr = amd.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        check_theta(theta)
        inputs = check_inputs(format_tensor_into_tuples(inputs))
        with evaluation_mode(self.forward_func) as (forward_func,), torch.no_grad():
            gradients, activations = layer_gradients_and_activations(
                forward_func,
                self.layer,
                inputs,
                target,
                format_additional_forward_args(additional_forward_args),
                self.device_ids,
                attribute_to_layer_input,
                grad_kwargs,
                self.reshape_transform,
            )
            attributions = []
            for of_layer in zip(gradients, activations, strict=True):
                terms = [denoised_terms(w, a, theta) for w, a in zip(*of_layer, strict=True)]
                attributions.append([x.sum(1, keepdim=True) for x in terms] if attr_dim_summation else terms)
            return format_attributions(self.layer, attributions, relu_attributions)
