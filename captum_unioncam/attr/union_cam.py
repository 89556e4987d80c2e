"""UnionCAM: the denoised and the region map united (AMU), and the better of union and region selected (AMS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from captum_unioncam.attr.base import CamDetails, CamResult, GradientCam, Inputs, LayerT, PerturbationCam
from captum_unioncam.attr.denoised_grad_cam import LayerDenoisedGradCam, check_theta, denoised_terms
from captum_unioncam.attr.find_layer import Layer
from captum_unioncam.attr.score_cam import LayerScoreCam, check_region_settings, region_weights
from captum_unioncam.engine.checks import check_choice
from captum_unioncam.engine.maps import broadcast_over, clipped, divide_or_zero, minmax, spatial_range, weighted
from captum_unioncam.engine.representatives import REPRESENTATIVES, scored_channels
from captum_unioncam.engine.scoring import TargetPasses

_Without = Literal[False]
PAPER, BEST = "paper", "best"
CONFIDENCE_PASSES = 4
"""Of the baseline, and of the denoised, the region and the union map."""


@dataclass(frozen=True)
class UnionCamDetails(CamDetails):
    r"""Intermediate results of ``LayerUnionCam``. Every tensor has one row per example.

    Args:
        denoised_map (Tensor): :math:`D = \text{minmax}(L_D)`, (N, 1, \*spatial), in [0, 1].
        region_map (Tensor): :math:`R = \text{minmax}(L_R)`, the same shape and range.
        union_map (Tensor): :math:`\text{minmax}(U)`, the same shape and range.
        baseline_confidence (Tensor): Class confidence of the baseline, (N,).
        denoised_confidence (Tensor): Class confidence of the input masked by :math:`D`, (N,).
        region_confidence (Tensor): The same for :math:`R`.
        union_confidence (Tensor): The same for :math:`U`.
        union_selected (Tensor): Whether the attribution is the union map; (N,), bool.
        denoised_selected (Tensor): Whether it is the denoised map, only with ``selection="best"``; (N,), bool. If
            neither is selected, it is the region map.
        channel_scores (Tensor): The score of the input masked by each channel, (N, K): class confidences, or raw target
            outputs with ``channel_weights="softmax"``; 0 for channels that were not scored.
        representatives (Tensor): The channel whose score weights each channel, (N, K), int64: itself if it was scored,
            -1 for weight 0.
        forward_passes (Tensor): Number of masked forward passes for the example: its scored channels, plus four for the
            confidences; (N,), int64, also for several targets.
    """

    denoised_map: Tensor
    region_map: Tensor
    union_map: Tensor
    baseline_confidence: Tensor
    denoised_confidence: Tensor
    region_confidence: Tensor
    union_confidence: Tensor
    union_selected: Tensor
    denoised_selected: Tensor
    channel_scores: Tensor
    representatives: Tensor
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

    @classmethod
    def stacked(cls, of_targets: Sequence[UnionCamDetails]) -> UnionCamDetails:
        """The details of T targets as one, each tensor (N, T, ...), and all passes of an example (N,)."""
        # The channels' passes are shared: each target adds its own confidences alone.
        shared = of_targets[0].forward_passes - CONFIDENCE_PASSES
        return replace(super().stacked(of_targets), forward_passes=shared + CONFIDENCE_PASSES * len(of_targets))

    def of_target(self, t: int) -> UnionCamDetails:
        """The details of target number ``t`` of ``attribute_targets``."""
        per_target = {f.name: getattr(self, f.name)[:, t] for f in fields(self) if f.name != "forward_passes"}
        return replace(self, **per_target)


def unite(denoised_map: Tensor, region_map: Tensor, denoised_beta: Tensor, region_beta: Tensor) -> Tensor:
    r"""Eq. 6: :math:`U = \beta_D D + \beta_R R`, of maps or of the terms that sum to them, with betas (N,)."""
    return weighted(denoised_beta, denoised_map) + weighted(region_beta, region_map)


def select(details: UnionCamDetails, denoised: Tensor, region: Tensor, union: Tensor) -> Tensor:
    """Eq. 8: of each example that of the three maps, or of the terms that sum to them, which is selected."""
    united = union.where(broadcast_over(details.union_selected, region), region)
    return denoised.where(broadcast_over(details.denoised_selected, region), united)


def unite_and_select(
    passes: TargetPasses,
    denoised_sum: Tensor,
    region_sum: Tensor,
    scores: Tensor,
    representatives: Tensor,
    selection: str,
) -> UnionCamDetails:
    """AMU and AMS, Eq. 4-8, of ``L_D`` and ``L_R``, both (N, 1, *spatial)."""
    scored = scored_channels(representatives)
    denoised_map, region_map = minmax(denoised_sum), minmax(region_sum)
    # The baseline is what a mask of zeros shows.
    masks = torch.cat([torch.zeros_like(denoised_map), denoised_map, region_map], dim=1)
    baseline, denoised, region = passes.confidences(masks).unbind(1)
    union = unite(denoised_map, region_map, denoised - baseline, region - baseline)
    united = passes.confidences(union).squeeze(1)
    union_selected = united - baseline > region - baseline
    denoised_selected = torch.zeros_like(union_selected)
    if selection == BEST:
        denoised_selected = denoised - baseline > torch.maximum(united, region) - baseline
        union_selected = union_selected & ~denoised_selected
    return UnionCamDetails(
        denoised_map=denoised_map,
        region_map=region_map,
        union_map=minmax(union),
        baseline_confidence=baseline,
        denoised_confidence=denoised,
        region_confidence=region,
        union_confidence=united,
        union_selected=union_selected,
        denoised_selected=denoised_selected,
        channel_scores=scores.masked_fill(~scored, 0),
        representatives=representatives,
        forward_passes=scored.sum(1) + CONFIDENCE_PASSES,
    )


def selected_terms(details: UnionCamDetails, denoised_terms: Tensor, region_terms: Tensor) -> Tensor:
    """The terms (N, K, *spatial) of the sum that makes the selected map, up to a constant an example."""
    denoised_terms, region_terms = (
        divide_or_zero(terms, spatial_range(terms.sum(1, keepdim=True))) for terms in (denoised_terms, region_terms)
    )
    betas = details.denoised_beta, details.region_beta
    union = unite(details.denoised_map, details.region_map, *betas)
    union_terms = unite(denoised_terms, region_terms, *betas)
    return select(details, denoised_terms, region_terms, divide_or_zero(union_terms, spatial_range(union)))


class LayerUnionCam(GradientCam[LayerT], PerturbationCam[LayerT]):
    r"""
    UnionCAM: a class activation map that combines a denoised gradient map with a region map.

    With :math:`L_D` the map of ``LayerDenoisedGradCam`` (AMD, Eq. 1-3), :math:`L_R` that of ``LayerScoreCam``,
    :math:`D` and :math:`R` the two scaled to [0, 1], and
    :math:`\beta(m) = \text{conf}_c(\text{input masked by } m) - \text{conf}_c(\text{baseline})`,

    .. math::
        U = \beta(D) \, D + \beta(R) \, R \quad \text{(AMU, Eq. 4-6)}, \qquad
        \text{map} = \begin{cases} \text{minmax}(U) & \beta(U) > \beta(R) \\ R & \text{otherwise} \end{cases}
        \quad \text{(AMS, Eq. 7-8)}

    ``selection="best"`` also selects :math:`D`, if :math:`\beta(D)` is the largest of the three. It needs no extra
    pass.

    (Hu et al., *UnionCAM: enhancing CNN interpretability through denoising, weighted fusion, and selective high-quality
    class activation mapping*, Frontiers in Neurorobotics 18, 2024, https://doi.org/10.3389/fnbot.2024.1490198).

    It needs a forward and a backward pass, a masked pass for each live channel (``max_channels`` of them if given), and
    four more for the betas. Choose it for maps under which the model keeps its confidence: that is what it selects by.

    It replaces ``LayerGradCam``: the constructor and the positional arguments of ``attribute`` are the same. Maps are
    in [0, 1]. Results do not depend on batch composition. The model runs in evaluation mode and is restored afterwards.
    """

    name = "union_cam"
    variants: ClassVar = {
        "union_cam_softmax": {"channel_weights": "softmax"},
        "union_cam_best": {"selection": BEST},
    }
    made_of = (LayerDenoisedGradCam, LayerScoreCam)
    gives_details = True

    if TYPE_CHECKING:

        @overload
        def attribute(
            self: LayerUnionCam[Layer], inputs: Inputs, *args: Any, return_details: _Without = False, **options: Any
        ) -> Tensor: ...

        @overload
        def attribute(
            self: LayerUnionCam[Layer], inputs: Inputs, *args: Any, return_details: Literal[True], **options: Any
        ) -> tuple[Tensor, UnionCamDetails]: ...

        @overload
        def attribute(
            self, inputs: Inputs, *args: Any, return_details: _Without = False, **options: Any
        ) -> list[Tensor]: ...

        @overload
        def attribute(
            self, inputs: Inputs, *args: Any, return_details: Literal[True], **options: Any
        ) -> tuple[list[Tensor], list[UnionCamDetails]]: ...

        @overload
        def attribute(self, inputs: Inputs, *args: Any, return_details: bool, **options: Any) -> Any: ...

        def attribute(self, *args: Any, **options: Any) -> Any: ...

    def check(
        self, theta: float, channel_weights: str, max_channels: int | None, channel_selection: str, selection: str
    ) -> None:
        check_theta(theta)
        check_choice("selection", selection, (PAPER, BEST))
        check_region_settings(channel_weights, max_channels, channel_selection)

    def cam(
        self,
        activations: Tensor,
        gradients: Tensor,
        passes: TargetPasses,
        summed: bool,
        *,
        theta: float = 10.0,
        channel_weights: str = "score",
        max_channels: int | None = None,
        channel_selection: str = REPRESENTATIVES,
        selection: str = PAPER,
    ) -> CamResult:
        r"""
        Args:
            selection (str): "paper" selects the better of the union and the region map. "best" selects the map with the
                largest :math:`\beta` of all three; if equal, the region map, then the union map. Default: "paper", Eq.
                8
            attr_dim_summation (bool): Return the map. If False, return its terms, one per channel, scaled so that they
                sum to the map plus a constant per example. Default: True
            return_details (bool): Return ``(attributions, UnionCamDetails)``. Default: False

        Raises:
            ValueError: An unknown ``selection``.

        Examples::

            >>> union_cam = LayerUnionCam(model, model.features[28])
            >>> attr = union_cam.attribute(images, target=labels)  # (N, 1, 14, 14)
            >>> heat = LayerAttribution.interpolate(attr, images.shape[2:], "bilinear")
        """
        raw = channel_weights == "softmax"
        scores, representatives = passes.channel_scores(activations, max_channels, channel_selection, raw=raw)
        region = clipped(weighted(region_weights(scores, representatives >= 0, channel_weights), activations))
        denoised = denoised_terms(gradients, activations, theta)
        denoised_sum, region_sum = (terms.sum(1, keepdim=True) for terms in (denoised, region))
        details = unite_and_select(passes, denoised_sum, region_sum, scores, representatives, selection)
        if summed:
            return select(details, details.denoised_map, details.region_map, details.union_map), details
        return selected_terms(details, denoised, region), details
