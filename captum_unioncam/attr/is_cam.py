"""IS-CAM: Score-CAM whose scores are means over steps of the masks' strength."""

from functools import partial
from itertools import accumulate

from torch import Tensor

from captum_unioncam.attr.base import LayerT, PerturbationCam
from captum_unioncam.attr.score_cam import LayerScoreCam
from captum_unioncam.engine.checks import check_choice, check_count
from captum_unioncam.engine.perturbations import Change
from captum_unioncam.engine.representatives import REPRESENTATIVES, check_channel_selection
from captum_unioncam.engine.scoring import TargetPasses

CUMULATIVE, LINEAR = "cumulative", "linear"


class LayerISCam(PerturbationCam[LayerT]):
    r"""
    IS-CAM: Score-CAM whose channel scores are means over masks of increasing strength.

    With :math:`A` the layer's output, :math:`I` the input, :math:`I_b` the baseline and
    :math:`M_k = \text{minmax}(\text{up}(A_k))`,

    .. math::
        s_k = \frac{1}{n} \sum_{i=1}^n \text{conf}_c(I_b + c_i M_k (I - I_b)), \qquad
        c_i = \sum_{j=1}^i \frac{j}{n}, \qquad
        L = \text{ReLU}\Big(\sum_k s_k A_k\Big)

    (Naidu et al., *IS-CAM: Integrated Score-CAM for axiomatic-based explanations*, 2020,
    https://arxiv.org/abs/2010.03023, as in a co-author's notebook). **The coefficients exceed 1**: with 10 steps, they
    reach 5.5, so the later passes see images up to 5.5 times as bright. The notebook and two other implementations
    agree on that. For the path that the paper describes, from 0 to the mask, give ``coefficients="linear"``:
    :math:`c_i = i / n`.

    It needs a forward pass and ``n_steps`` masked passes for each live channel, 10 times as many as Score-CAM. Use
    ``max_channels`` to limit the time. Choose it to average over how strongly a mask shows the input; Score-CAM is its
    last linear step alone.
    """

    name = "is_cam"
    relu = True
    made_of = (LayerScoreCam,)

    def check(self, n_steps: int, coefficients: str, max_channels: int | None, channel_selection: str) -> None:
        check_count("n_steps", n_steps)
        check_choice("coefficients", coefficients, (CUMULATIVE, LINEAR))
        check_channel_selection(max_channels, channel_selection)

    def weights(
        self,
        activations: Tensor,
        passes: TargetPasses,
        *,
        n_steps: int = 10,
        coefficients: str = CUMULATIVE,
        max_channels: int | None = None,
        channel_selection: str = REPRESENTATIVES,
    ) -> Tensor:
        """
        Args:
            n_steps (int): Number of steps; each is one masked pass per channel. Default: 10, the published code's
            coefficients (str): "cumulative" multiplies the masks by the sums of steps, as published code does; "linear"
                by the steps themselves. Default: "cumulative"

        Raises:
            ValueError: ``n_steps`` below 1, unknown ``coefficients``.

        Examples::

            >>> is_cam = LayerISCam(model, model.features[28])
            >>> attr = is_cam.attribute(images, target=3, max_channels=32)  # (N, 1, 14, 14)
        """
        kept_as = (self.name, n_steps, coefficients)
        strengths = [i / n_steps for i in range(1, n_steps + 1)]
        if coefficients == CUMULATIVE:
            strengths = list(accumulate(strengths))
        changes = [Change(mask=partial(_scaled, strength)) for strength in strengths]
        return passes.mean_channel_scores(kept_as, activations, lambda: changes, max_channels, channel_selection)


def _scaled(strength: float, mask: Tensor, _i: int) -> Tensor:
    return strength * mask
