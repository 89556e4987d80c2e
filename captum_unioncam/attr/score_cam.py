"""The region half of UnionCAM, which is Score-CAM: each channel weighted by the score of the input seen through it."""

import torch
from torch import Tensor

from captum_unioncam.attr.base import LayerT, PerturbationCam
from captum_unioncam.engine.checks import check_choice
from captum_unioncam.engine.representatives import REPRESENTATIVES, check_channel_selection
from captum_unioncam.engine.scoring import TargetPasses

CHANNEL_WEIGHTS = ("score", "softmax")


def region_weights(scores: Tensor, scored: Tensor, channel_weights: str) -> Tensor:
    """``w_k`` (N, K): the scores as they are, or their softmax over the channels that have one; 0 for the others.

    Score-CAM's equation subtracts the baseline's score before the softmax, which changes nothing: it is the same for
    every channel.
    """
    if channel_weights == "score":
        return scores
    weights = scores.masked_fill(~scored, -torch.inf).softmax(1)
    return weights.masked_fill(~scored, 0)


def check_region_settings(channel_weights: str, max_channels: int | None, channel_selection: str) -> None:
    """Raises ``ValueError`` for unknown ``channel_weights`` or ``channel_selection``, or ``max_channels`` below 1."""
    check_choice("channel_weights", channel_weights, CHANNEL_WEIGHTS)
    check_channel_selection(max_channels, channel_selection)


class LayerScoreCam(PerturbationCam[LayerT]):
    r"""
    Score-CAM: a CAM without gradients. Each channel is weighted by the score of the input masked by it.

    With :math:`A` the layer's output, :math:`I` the input, :math:`I_b` the baseline and
    :math:`M_k = \text{minmax}(\text{up}(A_k))`,

    .. math::
        s_k = \text{conf}_c(M_k I + (1 - M_k) I_b), \qquad
        L_R = \text{ReLU}\Big(\sum_k w_k A_k\Big)

    with :math:`w_k = s_k`, as in Score-CAM's published code and in UnionCAM, or the softmax of the raw target outputs,
    as in Score-CAM's equation (Wang et al., CVPR Workshops 2020, https://arxiv.org/abs/1910.01279). A channel that is
    constant over space gets weight 0 and needs no forward pass.

    It needs a forward pass, and a masked pass for each other channel (``max_channels`` of them if given). Choose it
    where gradients are missing, saturated or not trusted.
    """

    name = "score_cam"
    relu = True

    def check(self, channel_weights: str, max_channels: int | None, channel_selection: str) -> None:
        check_region_settings(channel_weights, max_channels, channel_selection)

    def weights(
        self,
        activations: Tensor,
        passes: TargetPasses,
        *,
        channel_weights: str = "score",
        max_channels: int | None = None,
        channel_selection: str = REPRESENTATIVES,
    ) -> Tensor:
        """
        Args:
            channel_weights (str): "score" weights each channel by its confidence, "softmax" by the softmax of the raw
                target outputs. Default: "score", the paper's
            max_channels (int or None): Maximum number of channels scored per example. Default: None, all channels that
                are not constant
            channel_selection (str): Which channels are scored if there are more than ``max_channels``.
                "representatives" groups channels by their masks, scores one of each group, and gives every other
                channel the score of the most similar scored one: 32 passes give nearly the full map. "deviation" scores
                the channels with the largest standard deviation over space; the others get weight 0. Default:
                "representatives"

        Raises:
            ValueError: An unknown ``channel_weights`` or ``channel_selection``, ``max_channels`` below 1.

        Examples::

            >>> score_cam = LayerScoreCam(model, model.features[28])
            >>> attr = score_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        raw = channel_weights == "softmax"
        scores, representatives = passes.channel_scores(activations, max_channels, channel_selection, raw=raw)
        return region_weights(scores, representatives >= 0, channel_weights)
