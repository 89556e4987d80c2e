"""Smooth Grad-CAM++: Grad-CAM++ with the gradients' powers averaged over noisy inputs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT
from captum_unioncam.engine.accelerators import widened
from captum_unioncam.engine.checks import check_count, check_generator, check_number, inputs_with_mask
from captum_unioncam.engine.copies import CopyPasses
from captum_unioncam.engine.maps import broadcast_over, divide_unless_zero, full_precision, spatial_dims
from captum_unioncam.engine.perturbations import as_inputs, check_maskable, drawing

NOISE_OF_RANGE = 0.15
"""The standard deviation of the noise, as a part of an example's range: SmoothGrad's."""


class LayerSmoothGradCamPlusPlus(GradientCam[LayerT]):
    r"""
    Smooth Grad-CAM++: Grad-CAM++ whose gradients, and their powers, are means over noisy inputs.

    With :math:`A` the layer's output for the input without noise, :math:`g` the gradients
    :math:`\partial y_c / \partial A` at the input with noise, and :math:`D_p` the mean of :math:`g^p` over the samples,

    .. math::
        \alpha_{kij} = \frac{D_{2,kij}}{2 D_{2,kij} + D_{3,kij} \sum_{ab} A_{kab}}, \qquad
        w_k = \sum_{ij} \alpha_{kij} \, \text{ReLU}(D_{1,kij}), \qquad
        L = \text{ReLU}\Big(\sum_k w_k \, A_k\Big)

    after Omeiza et al., *Smooth Grad-CAM++*, 2019, https://arxiv.org/abs/1908.01224. The authors published no code. The
    paper is quoted with :math:`D_1` as the numerator; :math:`D_2` follows from the derivation of Grad-CAM++, and is
    used by torchcam. If the denominator is 0, the coefficient is 0. All samples explain the same class.

    Passes per image: n_samples + 1 forward, n_samples backward; memory does not grow with the samples. Use it if
    Grad-CAM++'s map changes considerably with small changes of the input.

    torchcam 0.5.0 uses the activations and the positive gradients of its last noisy pass only.
    """

    name = "smooth_grad_cam_plus_plus"
    relu = True
    at_copies = True

    def check(
        self, n_samples: int, stdevs: float | tuple[float, ...] | None, generator: torch.Generator | None
    ) -> None:
        check_count("n_samples", n_samples)
        check_generator(generator)
        for stdev in () if stdevs is None else stdevs if isinstance(stdevs, tuple) else (stdevs,):
            what = "a finite number of at least 0, a tuple of one for each input, or None"
            check_number("stdevs", stdev, 0, torch.finfo(torch.float32).max, what)

    def check_for(self, inputs: tuple[Tensor, ...], *, stdevs: float | tuple[float, ...] | None, **_: object) -> None:
        if isinstance(stdevs, tuple) and len(stdevs) != len(inputs):
            raise ValueError(f"stdevs: got {len(stdevs)} for {len(inputs)} inputs; give one for each, or one for all.")

    def weights(
        self,
        activations: Tensor,
        copies: CopyPasses,
        *,
        n_samples: int = 25,
        stdevs: float | tuple[float, ...] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """
        Args:
            n_samples (int): Number of noisy inputs per example. Default: 25
            stdevs (float, tuple[float, ...] or None): The standard deviation of the Gaussian noise, in the units of
                ``inputs``; a tuple has one for each input. Noise is added to every input with as many spatial
                dimensions as the layer's output. Default: None, 0.15 of each example's range (maximum minus minimum) in
                that input, as in SmoothGrad
            generator (torch.Generator or None): Draws the noise, sample by sample: the same for all examples, layers
                and targets. Default: None, a new one with seed 0, so that two calls give the same map

        Raises:
            ValueError: ``n_samples`` below 1, ``stdevs`` that are negative or not one for each input.
            TypeError: A ``generator`` that is not a torch.Generator.

        Examples::

            >>> smooth = LayerSmoothGradCamPlusPlus(model, model.features[29])
            >>> attr = smooth.attribute(images, target=3, n_samples=8)  # (N, 1, 14, 14)
        """
        noisy = noisy_copies(copies.inputs, activations.dim(), n_samples, stdevs, generator)
        mean, mean_square, mean_cube = (power / n_samples for power in copies.folded(noisy, add_powers))
        dims = spatial_dims(activations)
        total = activations.sum(dims, keepdim=True).to(mean)
        alpha = divide_unless_zero(mean_square, 2 * mean_square + total * mean_cube)
        weights: Tensor = (alpha * mean.relu()).sum(dims).to(activations)
        return weights


def add_powers(sums: list[Tensor] | None, _activations: Tensor, gradients: Tensor) -> list[Tensor]:
    """The sums of the gradients, their squares and their cubes."""
    # In float32, the squares of a saturated network's would be 0.
    wide = widened(gradients)
    powers = [wide, wide**2, wide**3]
    return powers if sums is None else [one + other for one, other in zip(sums, powers, strict=True)]


def noisy_copies(
    inputs: tuple[Tensor, ...],
    dims: int,
    n_samples: int,
    stdevs: float | tuple[float, ...] | None,
    generator: torch.Generator | None,
) -> Iterator[tuple[Tensor, ...]]:
    """Samples of the inputs, those of so many dimensions with noise, which is the same for all examples."""
    takes_noise = inputs_with_mask(inputs, dims)
    check_maskable(inputs, takes_noise)
    source = drawing(generator)
    given = stdevs if isinstance(stdevs, tuple) else (stdevs,) * len(inputs)
    for _ in range(n_samples):
        yield tuple(
            _noisy(x, stdev, source) if noisy else x for x, stdev, noisy in zip(inputs, given, takes_noise, strict=True)
        )


def _noisy(inputs: Tensor, stdev: float | None, generator: torch.Generator) -> Tensor:
    values = full_precision(inputs) if inputs.is_floating_point() else inputs.float()
    noise = torch.randn(1, *inputs.shape[1:], generator=generator, device=generator.device).to(values)
    if stdev is not None:
        return as_inputs(values + stdev * noise, inputs)
    each = values.flatten(1)
    ranges = broadcast_over(each.amax(1) - each.amin(1), inputs)
    return as_inputs(values + NOISE_OF_RANGE * ranges * noise, inputs)
