"""SS-CAM: Score-CAM whose scores are means over noise."""

import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from captum_unioncam.attr.base import LayerT, PerturbationCam
from captum_unioncam.attr.score_cam import LayerScoreCam
from captum_unioncam.engine.checks import check_choice, check_count, check_generator, check_number
from captum_unioncam.engine.maps import divide_or_zero
from captum_unioncam.engine.perturbations import Change, drawing
from captum_unioncam.engine.representatives import REPRESENTATIVES, check_channel_selection
from captum_unioncam.engine.scoring import TargetPasses

INPUT, ACTIVATION = "input", "activation"
SQUARED, PLAIN = "squared", "plain"


class LayerSSCam(PerturbationCam[LayerT]):
    r"""
    SS-CAM, Smooth Score-CAM: Score-CAM whose channel scores are means over noise on the masked inputs.

    With :math:`A` the layer's output, :math:`I` the input, :math:`I_b` the baseline,
    :math:`M_k = \text{minmax}(\text{up}(A_k))` and :math:`x_k = M_k I + (1 - M_k) I_b`,

    .. math::
        s_k = \frac{1}{n} \sum_{i=1}^n \text{conf}_c(x_k + d_k \epsilon_i), \qquad
        d_k = \Big(\frac{\sigma}{\max x_k - \min x_k}\Big)^2, \qquad
        L = \text{ReLU}\Big(\sum_k s_k A_k\Big)

    with standard normal :math:`\epsilon_i`, the same for every channel, example and target, so that scores differ only
    because of the masks (Wang et al., *SS-CAM: Smoothed Score-CAM for Sharper Visual Feature
    Localization*, 2020, https://arxiv.org/abs/2006.14255, as in code of a co-author's group). The square comes from
    that code, which passes a variance instead of a standard deviation; ``stdev_rule="plain"`` omits it.
    ``variant="activation"``, the paper's other form, adds the noise to the mask: :math:`M_k + \sigma \epsilon_i`, which
    is not clamped to [0, 1]. A masked input that is constant gets no noise.

    It needs a forward pass and ``n_samples`` masked passes for each live channel, 35 times as many as Score-CAM. Use
    ``max_channels`` to limit the time. Memory does not grow with the samples. Choose it where single scores are too
    noisy to rank channels, and time matters little.
    """

    name = "ss_cam"
    relu = True
    made_of = (LayerScoreCam,)

    def check(
        self,
        n_samples: int,
        stdevs: float,
        variant: str,
        stdev_rule: str,
        generator: torch.Generator | None,
        max_channels: int | None,
        channel_selection: str,
    ) -> None:
        check_count("n_samples", n_samples)
        check_number("stdevs", stdevs, 0, sys.float_info.max, "a finite number of at least 0")
        check_choice("variant", variant, (INPUT, ACTIVATION))
        check_choice("stdev_rule", stdev_rule, (SQUARED, PLAIN))
        check_generator(generator)
        check_channel_selection(max_channels, channel_selection)

    def weights(
        self,
        activations: Tensor,
        passes: TargetPasses,
        *,
        n_samples: int = 35,
        stdevs: float = 2.0,
        variant: str = INPUT,
        stdev_rule: str = SQUARED,
        generator: torch.Generator | None = None,
        max_channels: int | None = None,
        channel_selection: str = REPRESENTATIVES,
    ) -> Tensor:
        r"""
        Args:
            n_samples (int): Number of noise samples; each is one masked pass per channel. Default: 35, the published
                code's
            stdevs (float): :math:`\sigma`, at least 0. Default: 2, the published code's. Not passed on by
                Captum's ``NoiseTunnel``, which has an argument of the same name
            variant (str): "input" adds noise to the masked input, "activation" to the mask. Default: "input"
            stdev_rule (str): With ``variant="input"``, the standard deviation of the noise: "squared" for
                :math:`(\sigma / (\max x_k - \min x_k))^2`, as in published code, "plain" for the same without the
                square. Default: "squared"
            generator (torch.Generator or None): Draws the noise. Default: None, a new one with seed 0, so that two
                calls draw the same noise

        Raises:
            ValueError: ``n_samples`` below 1, ``stdevs`` below 0, an unknown ``variant`` or ``stdev_rule``.
            TypeError: A ``generator`` that is not a torch.Generator.

        Examples::

            >>> ss_cam = LayerSSCam(model, model.features[28])
            >>> attr = ss_cam.attribute(images, target=3, max_channels=32)  # (N, 1, 14, 14)
        """
        power = 2 if stdev_rule == SQUARED else 1

        def changes() -> Iterator[Change]:
            drawn = drawing(generator)
            for _ in range(n_samples):
                masked = {i: x for i, x in enumerate(passes.inputs) if x.dim() == activations.dim()}
                noise = {i: _drawn(x, variant, drawn) for i, x in masked.items()}
                if variant == INPUT:
                    yield Change(shown=partial(_noisy_input, noise, stdevs, power))
                else:
                    yield Change(mask=partial(_noisy_mask, noise, stdevs))

        kept_as = (self.name, n_samples, stdevs, variant, stdev_rule)
        return passes.mean_channel_scores(kept_as, activations, changes, max_channels, channel_selection)


def _drawn(inputs: Tensor, variant: str, generator: torch.Generator) -> Tensor:
    """Standard normal noise of an input's shape, for all examples; for masks, of one channel."""
    channels = inputs.shape[1] if variant == INPUT else 1
    # Of one dtype, so that models of other precisions see the same noise.
    noise = torch.randn(1, channels, *inputs.shape[2:], generator=generator, device=generator.device)
    return noise.to(inputs.device)


def _noisy_input(noise: dict[int, Tensor], stdevs: float, power: int, shown: Tensor, i: int) -> Tensor:
    dims = tuple(range(1, shown.dim()))
    spread = shown.amax(dims, keepdim=True) - shown.amin(dims, keepdim=True)
    return shown + divide_or_zero(torch.full_like(spread, stdevs), spread) ** power * noise[i].to(shown)


def _noisy_mask(noise: dict[int, Tensor], stdevs: float, mask: Tensor, i: int) -> Tensor:
    return mask + stdevs * noise[i].to(mask)
