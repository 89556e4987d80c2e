"""The region half of UnionCAM, which is Score-CAM: each channel weighted by the score of the input seen through it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from captum.attr import LayerAttribution, PerturbationAttribution
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.base import format_attributions
from captum_unioncam.engine._captum import (
    BaselineType,
    TargetType,
    format_additional_forward_args,
    format_tensor_into_tuples,
    log_usage,
)
from captum_unioncam.engine.capture import layer_activations
from captum_unioncam.engine.checks import check_inputs, check_positive
from captum_unioncam.engine.confidence import ConfidenceFunction
from captum_unioncam.engine.layouts.base import ReshapeTransform
from captum_unioncam.engine.maps import spatial_dims, spatial_range
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.scoring import MaskedScorer
from captum_unioncam.engine.tuning import PassTuner

CHANNEL_WEIGHTS = ("score", "softmax")


def channels_to_score(activations: Tensor, max_channels: int | None) -> Tensor:
    """Which channels (N, K) get a masked pass: the live ones, or the ``max_channels`` of them that vary most.

    A channel that is constant over space has no mask. Variation is the standard deviation over space.
    """
    live = spatial_range(activations).flatten(1) > 0
    if max_channels is None or max_channels >= live.shape[1]:
        return live
    deviation = activations.flatten(2).std(-1).masked_fill(~live, -1)
    kept = torch.zeros_like(live).scatter(1, deviation.topk(max_channels).indices, True)
    return live & kept


def region_weights(scores: Tensor, scored: Tensor, channel_weights: str) -> Tensor:
    """``w_k`` (N, K): the scores as they are, or their softmax over the scored channels; 0 for the others.

    Score-CAM's equation subtracts the baseline's score before the softmax, which changes nothing: it is the same for
    every channel.
    """
    if channel_weights == "score":
        return scores
    weights = scores.masked_fill(~scored, -torch.inf).softmax(1)
    return weights.masked_fill(~scored, 0)


def score_channels(
    scorer: MaskedScorer, activations: Tensor, channel_weights: str, max_channels: int | None
) -> tuple[Tensor, Tensor]:
    """The scores (T, N, K) of the channels of ``activations`` (N, K, *spatial), and which were scored (N, K)."""
    scored = channels_to_score(activations, max_channels)
    return scorer.channel_scores(activations, scored, raw=channel_weights == "softmax"), scored


def region_terms(activations: Tensor, weights: Tensor) -> Tensor:
    """The terms ``w_k A_k`` (N, K, *spatial) that sum to ``L_R``: 0 where its ReLU clips the sum."""
    terms = weights.reshape(weights.shape + (1,) * len(spatial_dims(activations))) * activations
    return terms * (terms.sum(1, keepdim=True) > 0)


def check_region_settings(channel_weights: str, max_channels: int | None) -> None:
    """Raises ``ValueError`` for unknown ``channel_weights``, or ``max_channels`` below 1."""
    if channel_weights not in CHANNEL_WEIGHTS:
        known = ", ".join(map(repr, CHANNEL_WEIGHTS))
        raise ValueError(f"channel_weights: got {channel_weights!r}; give one of {known}.")
    check_positive("max_channels", max_channels)


class LayerScoreCam(LayerAttribution, PerturbationAttribution):  # type: ignore[misc]
    r"""
    Score-CAM: a CAM without gradients, whose channel weights are scores of masked inputs.

    With :math:`A` the layer's output, :math:`I` the input, :math:`I_b` the baseline and
    :math:`M_k = \text{minmax}(\text{up}(A_k))`,

    .. math::
        s_k = \text{conf}_c(M_k I + (1 - M_k) I_b), \qquad
        L_R = \text{ReLU}\Big(\sum_k w_k A_k\Big)

    with :math:`w_k = s_k`, as in Score-CAM's published code and in UnionCAM, or the softmax of the raw target outputs,
    as in Score-CAM's equation (Wang et al., CVPR Workshops 2020, https://arxiv.org/abs/1910.01279). A channel that is
    constant over space has no mask: it gets weight 0 and costs no forward pass.

    Args:
        forward_func (Callable): The model, or a function of it, run in evaluation mode.
        layer (torch.nn.Module or list[torch.nn.Module]): The layer to explain, with an output of shape
            (N, K, \*spatial), or several of them.
        device_ids (list[int] or None): The devices of a ``DataParallel`` model that ``forward_func`` wraps.
            Default: None
        confidence_fn (Callable or None): The output of ``forward_func`` to confidences of the same shape.
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
        PerturbationAttribution.__init__(self, forward_func)
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
        *,
        baselines: BaselineType = None,
        channel_weights: str = "score",
        max_channels: int | None = None,
        internal_batch_size: int | None = None,
        score_dtype: torch.dtype | None = None,
        show_progress: bool = False,
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
            attr_dim_summation (bool): Sum over the channels. Default: True
            baselines (number, Tensor, tuple or None): What masked-out places show: a number, a tensor of one or N
                examples, or a tuple of those for a tuple of inputs. Default: None, which is 0, black
            channel_weights (str): "score" or "softmax". Default: "score"
            max_channels (int or None): Score only so many live channels, those of largest standard deviation over
                space. Default: None, all
            internal_batch_size (int or None): Rows in a masked forward pass; halved when memory runs out.
                Default: None, the fastest, learnt from the passes and remembered for inputs of this shape
            score_dtype (torch.dtype or None): ``torch.bfloat16`` or ``torch.float16``: autocast the masked passes.
                Weights that are frozen are cast again for each pass. Default: None, the model's own precision
            show_progress (bool): Show Captum's progress bar over the masked passes. Default: False

        Returns:
            *Tensor*, *tuple[Tensor, ...]* or *list*: :math:`L_R` (N, 1, \*spatial), or its terms (N, K, \*spatial)
            without ``attr_dim_summation``; a tuple where the layer has several output tensors; a list of those, one a
            layer, for a list of layers.

        Raises:
            ValueError: An unknown ``channel_weights`` or ``score_dtype``, a limit below 1, a layer without spatial
                dimensions, inputs none of which has the layer's, an empty batch or list of layers, or activations
                or confidences that are not finite.
            AssertionError: A target or baseline that does not fit, as in Captum.

        Examples::

            >>> score_cam = LayerScoreCam(model, model.features[28])
            >>> attr = score_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        check_region_settings(channel_weights, max_channels)
        inputs = check_inputs(format_tensor_into_tuples(inputs))
        additional_forward_args = format_additional_forward_args(additional_forward_args)
        functions = evaluation_mode(self.forward_func, self.score_func)
        with functions as (forward_func, score_func), torch.no_grad():
            scorer = MaskedScorer(
                forward_func,
                inputs,
                baselines,
                [target],
                additional_forward_args,
                confidence_fn=self.confidence_fn,
                score_func=score_func,
                internal_batch_size=internal_batch_size,
                score_dtype=score_dtype,
                progress_name=f"{self.get_name()} masked passes" if show_progress else None,
                tuners=self._tuners,
            )
            attributions: list[list[Tensor]] = []
            for of_layer in layer_activations(
                forward_func,
                self.layer,
                inputs,
                additional_forward_args,
                self.device_ids,
                attribute_to_layer_input,
                self.reshape_transform,
            ):
                attributions.append([])
                for activations in of_layer:
                    (scores,), scored = score_channels(scorer, activations, channel_weights, max_channels)
                    terms = region_terms(activations, region_weights(scores, scored, channel_weights))
                    attributions[-1].append(terms.sum(1, keepdim=True) if attr_dim_summation else terms)
            return format_attributions(self.layer, attributions, relu_attributions)
