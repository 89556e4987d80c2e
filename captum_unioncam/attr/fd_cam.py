"""FD-CAM: gradients weighted by what groups of similar channels do to the output, switched on and off."""

import torch
from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT, TailCam
from captum_unioncam.attr.denoised_grad_cam import gradient_percentile
from captum_unioncam.engine.checks import check_number
from captum_unioncam.engine.maps import minmax, weighted
from captum_unioncam.engine.tail import TailPasses, every


class LayerFDCam(GradientCam[LayerT], TailCam[LayerT]):
    r"""
    FD-CAM: a CAM whose weights combine gradients with scores of groups of similar channels, switched on and off.

    With :math:`A` the layer's output, :math:`W = \partial y_c / \partial A`, :math:`C` the cosine similarities of the
    channels and :math:`y_c(A)` the target's output of the part behind the layer, channel :math:`k` is in the group
    :math:`G_k = \{j : C_{kj} > \text{quantile}_\theta(C_{k \cdot})\}`, and

    .. math::
        s_k = y_c(A \, [G_k]) + y_c(A) - y_c(A \, [\text{not } G_k]), \qquad
        w_k = \exp(\hat s_k) \, \hat g_k - \tfrac{1}{2}, \qquad
        L = \text{ReLU}\Big(\sum_k w_k A_k\Big)

    where :math:`\hat s` and :math:`\hat g` are :math:`s` and the mean of :math:`W` over space, both scaled to [0, 1]
    over the channels (Li et al., *FD-CAM: improving faithfulness and discriminability of visual explanation for CNNs*,
    ICPR 2022, https://arxiv.org/abs/2206.08792), as in the authors' code. A channel that is 0 everywhere is not similar
    to any channel: its group is empty, and its score is included in the scaling, as in that code.

    Use it to combine gradients with perturbations, for a layer after a ReLU, where 0 means that a channel is absent. It
    needs 1 forward and 1 backward pass of the model, and :math:`2 K + 1` passes of the part behind the layer for any
    number of targets. Memory grows with the square of the channels: the similarity of each two.
    """

    name = "fd_cam"
    relu = True

    def check(self, quantile: float) -> None:
        check_number("quantile", quantile, 0, 1, "a number from 0 to 1 (the authors' is 0.95)")

    def weights(self, activations: Tensor, gradients: Tensor, tail: TailPasses, *, quantile: float = 0.95) -> Tensor:
        r"""
        Args:
            quantile (float): :math:`\theta`, in [0, 1]: a channel's group is the channels more similar to it than this
                quantile. Default: 0.95, the authors'

        Raises:
            ValueError: A ``quantile`` outside [0, 1].

        Examples::

            >>> fd_cam = LayerFDCam(model, model.features[28])
            >>> attr = fd_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        groups = similar_channels(activations, quantile)
        channels = activations.shape[1]

        def switched(rows: Tensor, examples: Tensor, numbers: Tensor) -> Tensor:
            on = groups.to(rows.device)[examples, numbers % channels]
            # First each group alone, then all others, and last the whole.
            on = (on ^ (numbers >= channels).unsqueeze(1)) | (numbers == 2 * channels).unsqueeze(1)
            return weighted(on.to(rows.dtype), rows)

        scored = every(activations, 2 * channels + 1)
        scores = tail.scores(activations, f"switched {quantile}", switched, scored, raw=True)
        alone, others, whole = scores[:, :channels], scores[:, channels:-1], scores[:, -1:]
        mean_gradients = gradients.flatten(2).mean(2)
        scaled = (minmax(values.unsqueeze(1)).squeeze(1) for values in (alone + whole - others, mean_gradients))
        scores, gains = scaled
        return scores.exp() * gains - 0.5


def similar_channels(activations: Tensor, quantile: float) -> Tensor:
    """Which channels (N, K, K), bool, are in the group of each: more similar to it than the quantile of all."""
    vectors = torch.nn.functional.normalize(activations.flatten(2), dim=2, eps=torch.finfo(activations.dtype).tiny)
    similarities = vectors @ vectors.transpose(1, 2)
    return similarities > gradient_percentile(similarities, 100 * quantile)
