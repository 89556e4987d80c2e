"""Group-CAM: groups of weighted channels, each weighted by what it adds to the confidence in the blurred input."""

from math import ceil

import torch
from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT, PerturbationCam
from captum_unioncam.engine._captum import BaselineType
from captum_unioncam.engine.blur import blurred
from captum_unioncam.engine.checks import check_count, check_finite, check_number
from captum_unioncam.engine.maps import weighted
from captum_unioncam.engine.scoring import TargetPasses

BLUR_PIXELS, BLUR_SIGMA = 51, 50.0
"""Of the published code."""


class LayerGroupCam(GradientCam[LayerT], PerturbationCam[LayerT]):
    r"""
    Group-CAM: sums of Grad-CAM's terms over groups of channels, weighted by scores of masked inputs.

    With :math:`A` the layer's output, :math:`w_k` the mean of :math:`\partial y_c / \partial A_k` over space, the
    channels split in their order into groups :math:`G_l`, :math:`I` the input and :math:`\tilde I` the blurred input,

    .. math::
        M_l = \text{ReLU}\Big(\sum_{k \in G_l} w_k A_k\Big), \qquad m_l = \text{minmax}(\text{up}(M_l)), \\
        s_l = \text{ReLU}\big(\text{conf}_c(m_l I + (1 - m_l) \tilde I) - \text{conf}_c(\tilde I)\big), \qquad
        L = \sum_l s_l M_l

    (Zhang et al., *Group-CAM: Group Score-Weighted Visual Explanations for Deep Convolutional Networks*, 2021,
    https://arxiv.org/abs/2103.13859, as in its published code, which omits the denoising of the abstract; give
    ``denoise_percentile`` for it). A group whose map is constant gets weight 0.

    It needs a forward and a backward pass, a masked pass for each group, and one pass of the blurred input, for any
    number of channels. Which channels share a group depends on their order in the layer, which is arbitrary. Use it for
    maps close to Score-CAM's in much less time.
    """

    name = "group_cam"
    has_own_baselines = True

    def check(self, groups: int, denoise_percentile: float | None) -> None:
        check_count("groups", groups)
        if denoise_percentile is not None:
            check_number("denoise_percentile", denoise_percentile, 0, 100, "a percentile from 0 to 100, or None")

    def default_baselines(self, inputs: tuple[Tensor, ...]) -> BaselineType:
        for x in inputs:
            check_finite(x, "inputs")
        return tuple(blurred(x, BLUR_PIXELS, BLUR_SIGMA, "reflect") if x.dim() > 2 else 0 for x in inputs)

    def terms(
        self,
        activations: Tensor,
        gradients: Tensor,
        passes: TargetPasses,
        *,
        groups: int = 32,
        denoise_percentile: float | None = None,
    ) -> Tensor:
        """
        Args:
            baselines (number, Tensor, tuple or None): Values of masked pixels, in the space of ``inputs``. Default:
                None, the blurred input, as in the published code (a Gaussian of 50 pixels, 51 wide or as wide as the
                input's shortest side allows, reflected at the border)
            groups (int): Number of groups. Each has ceil(K / groups) channels, the last one the rest; there are at most
                K groups. Default: 32, the paper's
            denoise_percentile (float or None): Set the values of each group's map up to this percentile to 0, in
                [0, 100]. The paper's is 70. Default: None, no denoising, as in the published code

        Raises:
            ValueError: ``groups`` below 1, a ``denoise_percentile`` outside [0, 100].

        Examples::

            >>> group_cam = LayerGroupCam(model, model.layer4)
            >>> attr = group_cam.attribute(images, target=3)  # (N, 1, 7, 7)
        """
        terms = weighted(gradients.flatten(2).mean(2), activations)
        size = ceil(terms.shape[1] / groups)
        maps = torch.stack([of_group.sum(1).relu() for of_group in torch.split(terms, size, 1)], 1)
        if denoise_percentile is not None:
            threshold = maps.flatten(2).quantile(denoise_percentile / 100, dim=2)
            maps = maps * (maps.flatten(2) > threshold.unsqueeze(2)).reshape(maps.shape)
        scores, representatives = passes.channel_scores(maps)
        # What a mask of zeros shows is the baseline.
        baseline = passes.confidences(torch.zeros_like(maps[:, :1]))
        gains = (scores - baseline).relu() * (representatives >= 0)
        of_channels = (weighted(gains, (maps > 0).to(maps))).repeat_interleave(size, 1)
        return terms * of_channels[:, : terms.shape[1]]
