"""UnionCAM: the denoised and the region map united (AMU), and the better of union and region selected (AMS)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.base import for_layers
from captum_unioncam.attr.denoised_grad_cam import check_theta, denoised_terms
from captum_unioncam.attr.score_cam import check_region_settings, region_terms, region_weights, score_channels
from captum_unioncam.engine._captum import (
    BaselineType,
    TargetType,
    format_additional_forward_args,
    format_output,
    format_tensor_into_tuples,
    log_usage,
)
from captum_unioncam.engine.capture import layer_gradients_and_activations
from captum_unioncam.engine.checks import check_inputs
from captum_unioncam.engine.confidence import ConfidenceFunction
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.maps import divide_or_zero, minmax, spatial_range
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.scoring import MaskedScorer
from captum_unioncam.engine.tuning import PassTuner

CONFIDENCES = 4  # of the baseline, and of the denoised, the region and the union map


@dataclass(frozen=True)
class UnionCamDetails:
    r"""How ``LayerUnionCam`` came to its maps; every tensor has one row an example.

    Args:
        denoised_map (Tensor): :math:`D = \text{minmax}(L_D)`, (N, 1, \*spatial), in [0, 1].
        region_map (Tensor): :math:`R = \text{minmax}(L_R)`, the same shape and range.
        union_map (Tensor): :math:`\text{minmax}(U)`, the same shape and range.
        baseline_confidence (Tensor): Class confidence of the baseline, (N,).
        denoised_confidence (Tensor): Class confidence of the input seen through :math:`D`, (N,).
        region_confidence (Tensor): The same through :math:`R`.
        union_confidence (Tensor): The same through :math:`U`.
        union_selected (Tensor): Whether the attribution is the union map, and not the region map; (N,), bool.
        channel_scores (Tensor): The score of the input seen through each channel, (N, K): class confidences, or raw
            target outputs with ``channel_weights="softmax"``; 0 where the channel was not scored.
        forward_passes (Tensor): Masked forward passes run for the example: its scored channels and the four
            confidences; (N,), int64.
    """

    denoised_map: Tensor
    region_map: Tensor
    union_map: Tensor
    baseline_confidence: Tensor
    denoised_confidence: Tensor
    region_confidence: Tensor
    union_confidence: Tensor
    union_selected: Tensor
    channel_scores: Tensor
    forward_passes: Tensor

    @property
    def denoised_beta(self) -> Tensor:
        r""":math:`\beta_D` (Eq. 4): the confidence that the denoised map adds to the baseline's, (N,)."""
        return self.denoised_confidence - self.baseline_confidence

    @property
    def region_beta(self) -> Tensor:
        r""":math:`\beta_R` (Eq. 5): the confidence that the region map adds to the baseline's, (N,)."""
        return self.region_confidence - self.baseline_confidence

    @property
    def union_beta(self) -> Tensor:
        r""":math:`\beta_U` (Eq. 7): the confidence that the union map adds to the baseline's, (N,)."""
        return self.union_confidence - self.baseline_confidence

    def of_target(self, t: int) -> UnionCamDetails:
        """The details of target ``t``, where they are of the several targets of ``attribute_targets``."""
        per_target = {f.name: getattr(self, f.name)[:, t] for f in fields(self) if f.name != "forward_passes"}
        return replace(self, **per_target)


Explained = tuple[Tensor, UnionCamDetails]  # attributions, and how they came about


def unite(denoised_map: Tensor, region_map: Tensor, denoised_beta: Tensor, region_beta: Tensor) -> Tensor:
    r"""Eq. 6: :math:`U = \beta_D D + \beta_R R`, of maps or of the terms that sum to them, with betas (N,)."""
    shape = (-1,) + (1,) * (region_map.dim() - 1)
    return denoised_beta.reshape(shape) * denoised_map + region_beta.reshape(shape) * region_map


def select(union_selected: Tensor, union_map: Tensor, region_map: Tensor) -> Tensor:
    """Eq. 8: the union map of the examples where it is selected (N,), the region map of the others."""
    return union_map.where(union_selected.reshape((-1,) + (1,) * (union_map.dim() - 1)), region_map)


def unite_and_select(
    scorer: MaskedScorer, target: int, denoised_sum: Tensor, region_sum: Tensor, scores: Tensor, scored: Tensor
) -> UnionCamDetails:
    """AMU and AMS, Eq. 4-8, for one of the scorer's targets: of ``L_D`` and ``L_R``, both (N, 1, *spatial)."""
    denoised_map, region_map = minmax(denoised_sum), minmax(region_sum)
    # The baseline is what a mask of zeros shows.
    masks = torch.cat([torch.zeros_like(denoised_map), denoised_map, region_map], dim=1)
    baseline, denoised, region = scorer.confidences(masks, target).unbind(1)
    union = unite(denoised_map, region_map, denoised - baseline, region - baseline)
    united = scorer.confidences(union, target).squeeze(1)
    return UnionCamDetails(
        denoised_map=denoised_map,
        region_map=region_map,
        union_map=minmax(union),
        baseline_confidence=baseline,
        denoised_confidence=denoised,
        region_confidence=region,
        union_confidence=united,
        union_selected=united - baseline > region - baseline,
        channel_scores=scores,
        forward_passes=scored.sum(1) + CONFIDENCES,
    )


def selected_terms(details: UnionCamDetails, denoised_terms: Tensor, region_terms: Tensor) -> Tensor:
    """The terms (N, K, *spatial) of the sum that makes the selected map, up to a constant an example."""
    denoised_terms, region_terms = (
        divide_or_zero(terms, spatial_range(terms.sum(1, keepdim=True))) for terms in (denoised_terms, region_terms)
    )
    betas = details.denoised_beta, details.region_beta
    union = unite(details.denoised_map, details.region_map, *betas)
    union_terms = unite(denoised_terms, region_terms, *betas)
    return select(details.union_selected, divide_or_zero(union_terms, spatial_range(union)), region_terms)


class LayerUnionCam(LayerAttribution, GradientAttribution):  # type: ignore[misc]
    r"""
    UnionCAM, a class activation map that unites a denoised gradient map with a region map.

    With :math:`L_D` the map of ``LayerDenoisedGradCam`` (AMD, Eq. 1-3), :math:`L_R` that of ``LayerScoreCam``,
    :math:`D` and :math:`R` the two scaled to [0, 1], and
    :math:`\beta(m) = \text{conf}_c(\text{input seen through } m) - \text{conf}_c(\text{baseline})`,

    .. math::
        U = \beta(D) \, D + \beta(R) \, R \quad \text{(AMU, Eq. 4-6)}, \qquad
        \text{map} = \begin{cases} \text{minmax}(U) & \beta(U) > \beta(R) \\ R & \text{otherwise} \end{cases}
        \quad \text{(AMS, Eq. 7-8)}

    (Hu et al., *UnionCAM: enhancing CNN interpretability through denoising, weighted fusion, and selective high-quality
    class activation mapping*, Frontiers in Neurorobotics 18, 2024, https://doi.org/10.3389/fnbot.2024.1490198).

    It takes the place of ``LayerGradCam``: the same constructor, and the same arguments of ``attribute`` before the
    keyword-only ones. Each example is a problem of its own: its map does not depend on its batch. The model is left as
    it was found, and runs in evaluation mode meanwhile.

    Args:
        forward_func (Callable): The model, or a function of it.
        layer (torch.nn.Module or list[torch.nn.Module]): The layer to explain, with an output of shape
            (N, K, \*spatial) of one to three spatial dimensions; usually the last convolution, with its activation
            function. Of a list, each is explained, by one gradient pass for all; ``fuse`` makes one of the maps.
        device_ids (list[int] or None): The devices of a ``DataParallel`` model that ``forward_func`` wraps.
            Default: None
        confidence_fn (Callable or None): The output of ``forward_func`` to confidences of the same shape. Give
            ``torch.sigmoid`` for several labels, ``lambda output: output`` for a model that ends in a softmax.
            Default: softmax over dimension 1 where there are several classes, the output itself otherwise
        score_func (Callable or None): Run in place of ``forward_func`` in the channels' masked passes, always with
            ``internal_batch_size`` rows: a compiled copy of the model, or one exported in evaluation mode.
            Default: None
        reshape_transform (Callable or None): The layer's output, each tensor of it, to (N, K, \*spatial). Gradients
            pass through it as well, so it may only move values and leave some out: ``tokens_to_maps(14, 14)``,
            ``channels_last_to_maps``, or your own. Default: None, that of torchvision's ViT, Swin or ConvNeXt where the
            layer is within one, and the output as it is elsewhere
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | list[Module],
        device_ids: list[int] | None = None,
        *,
        confidence_fn: ConfidenceFunction | None = None,
        score_func: Callable[..., Any] | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)
        self.confidence_fn = confidence_fn
        self.score_func = score_func
        self.reshape_transform = reshape_transform
        self._tuners: dict[Hashable, PassTuner] = {}

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
        baselines: BaselineType = None,
        theta: float = 10.0,
        channel_weights: str = "score",
        max_channels: int | None = None,
        internal_batch_size: int | None = None,
        score_dtype: torch.dtype | None = None,
        show_progress: bool = False,
        return_details: bool = False,
    ) -> Any:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): The examples, along dimension 0 of each tensor. Those with as many
                spatial dimensions as the layer's output are masked.
            target (int, tuple, Tensor, list or None): The output to explain, as in ``LayerGradCam``. Default: None
            additional_forward_args (Any): Further arguments of ``forward_func``. A tensor of N rows goes row by row
                with the examples; share a value that happens to have N rows (one row, for one example) by a closure or
                as a number. Default: None
            attribute_to_layer_input (bool): Explain the layer's input in place of its output. Default: False
            relu_attributions (bool): Set negative attributions to 0; the summed map has none. Default: False
            attr_dim_summation (bool): Return the map; without, the terms of the sum that makes it, one a channel,
                scaled so that they sum to the map plus a constant per example. Default: True
            grad_kwargs (dict or None): Further arguments of ``torch.autograd.grad``. Default: None
            baselines (number, Tensor, tuple or None): What masked-out places show, in the space of ``inputs``: a
                number, a tensor of one or N examples, or a tuple of those for a tuple of inputs. The paper's is a
                black image: for normalised inputs, that is the normalised black. Default: None, which is 0
            theta (float): Percentile in [0, 100] of each channel's gradients below which they are noise (Eq. 1).
                Without effect behind global average pooling, and mostly before max pooling. Default: 10, the paper's
            channel_weights (str): "score" weights each channel by its confidence, "softmax" by the softmax of the raw
                target outputs. Default: "score", the paper's
            max_channels (int or None): Score only so many live channels, those of largest standard deviation over
                space. Default: None, all
            internal_batch_size (int or None): Rows in a masked forward pass; halved when memory runs out.
                Default: None, the fastest, learnt from the passes and remembered for inputs of this shape
            score_dtype (torch.dtype or None): ``torch.bfloat16`` or ``torch.float16``: autocast the channels' masked
                passes. The four confidences keep the model's precision. Weights that are frozen are cast again for
                each pass. Default: None, the model's own
            show_progress (bool): Show Captum's progress bar over the masked passes. Default: False
            return_details (bool): Return ``(attributions, UnionCamDetails)``. Default: False

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: The maps (N, 1, \*spatial), in [0, 1], float32 for half-precision
            models; (N, K, \*spatial) without ``attr_dim_summation``; a tuple where the layer has several output
            tensors; a list of those, one a layer, for a list of layers. With ``return_details``, a pair of that and the
            ``UnionCamDetails`` in the same form.

        Raises:
            ValueError: theta outside [0, 100], an unknown ``channel_weights`` or ``score_dtype``, a limit below 1, a
                layer without spatial dimensions, inputs none of which has the layer's, an empty batch or list of
                layers, or activations, gradients or confidences that are not finite.
            AssertionError: A target or baseline that does not fit, as in Captum.

        Examples::

            >>> union_cam = LayerUnionCam(model, model.features[28])
            >>> attr = union_cam.attribute(images, target=labels)  # (N, 1, 14, 14)
            >>> heat = LayerAttribution.interpolate(attr, images.shape[2:], "bilinear")
        """
        explained = self._explain(
            [target],
            inputs,
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
            grad_kwargs,
            baselines=baselines,
            theta=theta,
            channel_weights=channel_weights,
            max_channels=max_channels,
            internal_batch_size=internal_batch_size,
            score_dtype=score_dtype,
            show_progress=show_progress,
        )
        return self._format([[of_targets[0] for of_targets in of_layer] for of_layer in explained], return_details)

    def attribute_targets(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Tensor | list[list[int]] | list[list[tuple[int, ...]]],
        additional_forward_args: Any = None,
        *,
        return_details: bool = False,
        **kwargs: Any,
    ) -> Any:
        r"""
        Explains several targets of each example for little more than the price of one.

        The masks do not depend on the target, so the channels' masked passes are run once and serve every target.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As in ``attribute``.
            targets (Tensor or list): T targets of each of the N examples: an int64 tensor (N, T), or N lists of T
                integers, or of T tuples for outputs of more dimensions.
            additional_forward_args (Any): As in ``attribute``. Default: None
            return_details (bool): Return ``(attributions, UnionCamDetails)``. Default: False
            **kwargs: Any other argument of ``attribute``.

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: What T calls of ``attribute`` would return, stacked along
            dimension 1: (N, T, 1, \*spatial). So is every tensor of the details, but for ``forward_passes``, which
            stays (N,).

        Raises:
            ValueError: ``targets`` that are not T for each of the N examples; and as ``attribute``.
            AssertionError: As ``attribute``.

        Examples::

            >>> top = model(images).topk(5).indices  # (N, 5)
            >>> attr = LayerUnionCam(model, model.features[28]).attribute_targets(images, top)  # (N, 5, 1, 14, 14)
        """
        examples = check_inputs(format_tensor_into_tuples(inputs))[0].shape[0]
        explained = self._explain(_by_target(targets, examples), inputs, additional_forward_args, **kwargs)
        stacked = [[_stack_targets(of_targets) for of_targets in of_layer] for of_layer in explained]
        return self._format(stacked, return_details)

    def _explain(
        self,
        targets: Sequence[TargetType],
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        baselines: BaselineType = None,
        theta: float = 10.0,
        channel_weights: str = "score",
        max_channels: int | None = None,
        internal_batch_size: int | None = None,
        score_dtype: torch.dtype | None = None,
        show_progress: bool = False,
    ) -> list[list[list[Explained]]]:
        """The attributions and details of each layer, each of its outputs and each target."""
        check_theta(theta)
        check_region_settings(channel_weights, max_channels)
        inputs = check_inputs(format_tensor_into_tuples(inputs))
        additional_forward_args = format_additional_forward_args(additional_forward_args)
        functions = evaluation_mode(self.forward_func, self.score_func)
        with functions as (forward_func, score_func), torch.no_grad():
            scorer = MaskedScorer(
                forward_func,
                inputs,
                baselines,
                targets,
                additional_forward_args,
                confidence_fn=self.confidence_fn,
                score_func=score_func,
                internal_batch_size=internal_batch_size,
                score_dtype=score_dtype,
                progress_name=f"{self.get_name()} masked passes" if show_progress else None,
                tuners=self._tuners,
            )
            gradients = []
            for target in targets:
                of_target, activations = layer_gradients_and_activations(
                    forward_func,
                    self.layer,
                    inputs,
                    target,
                    additional_forward_args,
                    self.device_ids,
                    attribute_to_layer_input,
                    grad_kwargs,
                    self.reshape_transform,
                )
                gradients.append(of_target)
            return [
                [
                    _explain_output(
                        scorer,
                        [of_target[layer][output] for of_target in gradients],
                        output_activations,
                        relu_attributions,
                        attr_dim_summation,
                        theta,
                        channel_weights,
                        max_channels,
                    )
                    for output, output_activations in enumerate(of_layer)
                ]
                for layer, of_layer in enumerate(activations)
            ]

    def _format(self, explained: list[list[Explained]], return_details: bool) -> Any:
        attributions: list[Any] = []
        details: list[Any] = []
        for of_layer in explained:
            several = len(of_layer) > 1
            attributions.append(format_output(several, tuple(attribution for attribution, _ in of_layer)))
            details.append(tuple(details for _, details in of_layer) if several else of_layer[0][1])
        formatted = for_layers(self.layer, attributions)
        return (formatted, for_layers(self.layer, details)) if return_details else formatted


def _explain_output(
    scorer: MaskedScorer,
    gradients: list[Tensor],
    activations: Tensor,
    relu_attributions: bool,
    attr_dim_summation: bool,
    theta: float,
    channel_weights: str,
    max_channels: int | None,
) -> list[Explained]:
    """The attributions and details of one layer output for each of the targets, whose gradients are given."""
    explained = []
    scores, scored = score_channels(scorer, activations, channel_weights, max_channels)
    for t, of_target in enumerate(gradients):
        denoised = denoised_terms(of_target, activations, theta)
        region = region_terms(activations, region_weights(scores[t], scored, channel_weights))
        denoised_sum, region_sum = (terms.sum(1, keepdim=True) for terms in (denoised, region))
        details = unite_and_select(scorer, t, denoised_sum, region_sum, scores[t], scored)
        if attr_dim_summation:
            attribution = select(details.union_selected, details.union_map, details.region_map)
        else:
            attribution = selected_terms(details, denoised, region)
        explained.append((attribution.relu() if relu_attributions else attribution, details))
    return explained


def _by_target(targets: Any, examples: int) -> list[TargetType]:
    """N lists of T targets as T lists of N."""
    rows = targets.tolist() if isinstance(targets, Tensor) else targets
    if not isinstance(rows, list) or len(rows) != examples or not all(isinstance(row, list) and row for row in rows):
        raise ValueError(
            f"targets: got {targets!r}; give targets for each of the {examples} examples, as a tensor (N, T) or a list "
            "of lists."
        )
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"targets: {[len(row) for row in rows]} targets for the examples; give each the same number.")
    return [list(of_examples) for of_examples in zip(*rows, strict=True)]


def _stack_targets(explained: list[Explained]) -> Explained:
    attributions, details = zip(*explained, strict=True)
    stacked = {
        field.name: torch.stack([getattr(of_target, field.name) for of_target in details], dim=1)
        for field in fields(UnionCamDetails)
    }
    # The channels' passes are shared: each target adds its own confidences alone.
    scored = details[0].forward_passes - CONFIDENCES
    stacked["forward_passes"] = scored + CONFIDENCES * len(details)
    return torch.stack(attributions, dim=1), UnionCamDetails(**stacked)
