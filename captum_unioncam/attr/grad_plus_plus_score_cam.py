"""After Grad++-ScoreCAM: the weights of Grad-CAM++ times those of Score-CAM."""

from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT, PerturbationCam
from captum_unioncam.attr.grad_cam_plus_plus import LayerGradCamPlusPlus, grad_cam_plus_plus_weights
from captum_unioncam.attr.score_cam import LayerScoreCam
from captum_unioncam.engine.maps import weighted
from captum_unioncam.engine.representatives import REPRESENTATIVES, check_channel_selection
from captum_unioncam.engine.scoring import TargetPasses


class LayerGradPlusPlusScoreCam(GradientCam[LayerT], PerturbationCam[LayerT]):
    r"""
    After Grad++-ScoreCAM: Grad-CAM++'s weights, each times the score of the input masked by the channel.

    With :math:`w_k^{++}` the weights of ``LayerGradCamPlusPlus`` and :math:`s_k` the scores of ``LayerScoreCam``,

    .. math::
        L = \text{ReLU}\Big(\sum_k w_k^{++} s_k A_k\Big)

    **Not exactly the paper's method**: only the abstract of the paper was available (Soomro et al., *Grad++ScoreCAM*,
    IEEE Access 2024, https://doi.org/10.1109/ACCESS.2024.3392853), which says that Score-CAM refines Grad-CAM++'s
    coarse map. The product of the weights is this package's choice. Do not compare the results with the paper's.

    It needs a forward and a backward pass, and a masked pass for each live channel whose weight :math:`w_k^{++}` is not
    0, usually fewer than Score-CAM. Choose it for Score-CAM's idea with signed weights; where a citable definition
    matters, take Score-CAM or Grad-CAM++.
    """

    name = "grad_plus_plus_score_cam"
    relu = True
    made_of = (LayerGradCamPlusPlus, LayerScoreCam)

    def check(self, normalize_alpha: bool, max_channels: int | None, channel_selection: str) -> None:
        check_channel_selection(max_channels, channel_selection)

    def weights(
        self,
        activations: Tensor,
        gradients: Tensor,
        passes: TargetPasses,
        *,
        normalize_alpha: bool = False,
        max_channels: int | None = None,
        channel_selection: str = REPRESENTATIVES,
    ) -> Tensor:
        """
        Examples::

            >>> cam = LayerGradPlusPlusScoreCam(model, model.features[28])
            >>> attr = cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        of_gradients = grad_cam_plus_plus_weights(activations, gradients, normalize_alpha)
        # A channel of zeros is not scored.
        counting = weighted((of_gradients != 0).to(activations), activations)
        scores, _ = passes.channel_scores(counting, max_channels, channel_selection)
        return of_gradients * scores
