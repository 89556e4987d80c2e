"""Integrated Grad-CAM: the mean of Grad-CAM's maps on the way from the baseline to the input."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.attr.base import GradientCam, LayerT
from captum_unioncam.engine._captum import BaselineType, format_baseline
from captum_unioncam.engine.checks import check_baselines, check_count, inputs_with_mask
from captum_unioncam.engine.copies import CopyPasses
from captum_unioncam.engine.maps import clipped, spatial_dims, weighted
from captum_unioncam.engine.perturbations import check_maskable, masked_as


class LayerIntegratedGradCam(GradientCam[LayerT]):
    r"""
    Integrated Grad-CAM: the mean of Grad-CAM's maps on the path from the baseline to the input.

    With :math:`A(X)` the layer's output for an input, :math:`\bar g_k(X)` the mean over space of
    :math:`\partial y_c / \partial A_k` there, :math:`I` the input and :math:`I_b` the baseline,

    .. math::
        X_t = I_b + \frac{t}{m} (I - I_b), \qquad
        L = \frac{1}{m} \sum_{t=0}^{m-1} \text{ReLU}\Big(\sum_k \bar g_k(X_t) \, A_k(X_t)\Big)

    (Sattarzadeh et al., *Integrated Grad-CAM: Sensitivity-Aware Visual Explanation of Deep Convolutional Networks via
    Integrated Gradient-Based Scoring*, ICASSP 2021, https://arxiv.org/abs/2102.07805), as in the authors' published
    notebook: the sum starts with the baseline and ends before the input. The notebook omits the factor :math:`1/m`. The
    paper has :math:`A_k(X_t) - A_k(I_b)` instead of :math:`A_k(X_t)`: give ``difference=True`` for it.

    Passes per image: n_steps + 1 forward, n_steps backward; memory does not grow with the steps. Use it for models that
    are saturated at the input, where Grad-CAM's gradients are close to 0.
    """

    name = "integrated_grad_cam"
    at_copies = True

    def check(self, n_steps: int, baselines: BaselineType, difference: bool) -> None:
        check_count("n_steps", n_steps)

    def check_for(self, inputs: tuple[Tensor, ...], *, baselines: BaselineType, **_: Any) -> None:
        check_baselines(baselines, inputs)

    def terms(
        self,
        activations: Tensor,
        copies: CopyPasses,
        *,
        n_steps: int = 50,
        baselines: BaselineType = None,
        difference: bool = False,
    ) -> Tensor:
        """
        Args:
            n_steps (int): m, the number of inputs on the path, starting with the baseline. With 1, the map is
                Grad-CAM's map of the baseline. Default: 50
            baselines (number, Tensor, tuple or None): Start of the path, in the space of ``inputs``: a number, a tensor
                of one or N examples, or a tuple of those for a tuple of inputs. Inputs with another number of spatial
                dimensions than the layer's output are not changed. Default: None, which is 0
            difference (bool): Subtract the baseline's activations, as in the paper. If False, use the activations
                themselves, as in the published code. Default: False

        Raises:
            ValueError: ``n_steps`` below 1.
            AssertionError: A baseline that does not fit the inputs.

        Examples::

            >>> integrated = LayerIntegratedGradCam(model, model.features[29])
            >>> attr = integrated.attribute(images, target=3, n_steps=20)  # (N, 1, 14, 14)
        """

        def step(known: tuple[Tensor, Tensor] | None, a: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
            total, of_baseline = known or (torch.zeros_like(a), a)
            weights = gradients.mean(spatial_dims(gradients))
            return total + clipped(weighted(weights, a - of_baseline if difference else a)), of_baseline

        total, _ = copies.folded(path(copies.inputs, activations.dim(), baselines, n_steps), step)
        terms: Tensor = total / n_steps
        return terms


def path(inputs: tuple[Tensor, ...], dims: int, baselines: BaselineType, n_steps: int) -> Iterator[tuple[Tensor, ...]]:
    """Inputs from the baseline on, those of so many dimensions altered; the inputs themselves are not among them."""
    moves = inputs_with_mask(inputs, dims)
    check_maskable(inputs, moves)
    starts = format_baseline(baselines, inputs)
    for t in range(n_steps):
        yield tuple(
            masked_as(x, _part(t / n_steps, x), x, start) if moved else x
            for x, start, moved in zip(inputs, starts, moves, strict=True)
        )


def _part(value: float, inputs: Tensor) -> Tensor:
    # Filled on the device: a copy to it would wait for the passes before.
    return torch.full((), value, dtype=torch.promote_types(inputs.dtype, torch.float32), device=inputs.device)
