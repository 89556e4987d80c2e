"""After FIMF Score-CAM: each channel weighted by the output of all channels seen through it, at the layer."""

from torch import Tensor

from captum_unioncam.attr.base import ConfidenceTailCam, LayerT
from captum_unioncam.attr.score_cam import CHANNEL_WEIGHTS, region_weights
from captum_unioncam.engine.checks import check_choice
from captum_unioncam.engine.maps import minmax, spatial_range, weighted
from captum_unioncam.engine.tail import TailPasses


class LayerFimfScoreCam(ConfidenceTailCam[LayerT]):
    r"""
    After FIMF Score-CAM: a CAM without gradients whose masks multiply the layer's output instead of the input.

    With :math:`A` the layer's output and :math:`y_c(A)` the target's output of the part behind the layer,

    .. math::
        T_k = \text{minmax}(\text{ReLU}(A_k)), \qquad
        w = \text{softmax}_k \, y_c(A \, T_k), \qquad
        L = \text{ReLU}\Big(\sum_k w_k \, \text{ReLU}(A_k)\Big)

    (after Li et al., *FIMF Score-CAM: fast Score-CAM based on local multi-feature integration for visual interpretation
    of CNNs*, IET Image Processing 17(3), 2023, https://doi.org/10.1049/ipr2.12670). Only the paper's abstract was
    available: weights "directly by using the feature template", with one pass of the convolutions. The formula is that
    of a third-party implementation. This package's choices are ``channel_weights="score"``, and that constant channels
    get weight 0. The maps that the paper integrates in place of :math:`A_k` are not known: do not compare the results
    with the paper's.

    Use it as a cheap approximation of Score-CAM: it needs 1 pass of the model and up to :math:`K` passes of the part
    behind the layer, for any number of targets.
    """

    name = "fimf_score_cam"
    relu = True

    def check(self, channel_weights: str) -> None:
        check_choice("channel_weights", channel_weights, CHANNEL_WEIGHTS)

    def terms(self, activations: Tensor, tail: TailPasses, *, channel_weights: str = "softmax") -> Tensor:
        """
        Args:
            channel_weights (str): "softmax" weights each channel by the softmax of the raw target outputs, "score" by
                its confidence. Default: "softmax"

        Raises:
            ValueError: An unknown ``channel_weights``.

        Examples::

            >>> fimf = LayerFimfScoreCam(model, model.features[28])
            >>> attr = fimf.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        positive = activations.relu()

        def seen_through(rows: Tensor, examples: Tensor, numbers: Tensor) -> Tensor:
            return rows * minmax(positive.to(rows.device)[examples, numbers].unsqueeze(1))

        raw = channel_weights == "softmax"
        scored = spatial_range(positive).flatten(1) > 0
        scores = tail.scores(activations, "templates", seen_through, scored, raw=raw)
        return weighted(region_weights(scores, scored, channel_weights), positive)
