"""Captum's infidelity and sensitivity, for attributions at any resolution."""

from typing import Any

import captum.metrics
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam.engine.checks import check_count, check_generator, check_number
from captum_unioncam.engine.maps import divide_or_zero
from captum_unioncam.engine.perturbations import Chunk, Placed, as_inputs, drawing
from captum_unioncam.metrics.attributions import WHOLE, ExplanationFunction, JudgedAttributions, judged
from captum_unioncam.metrics.table import metric


@metric(
    "infidelity",
    "infidelity",
    larger_is_better=False,
    form=".3g",
    on_request=True,
    description="The mean squared error of predicting the confidence lost by hiding a square from the map's sum within "
    "it.",
)
@judged
def infidelity(
    attr: JudgedAttributions,
    *,
    samples: int = 20,
    side: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""
    The error of predicting the confidence lost by hiding a square from the attribution's sum within the square.

    .. math::
        \frac{1}{S} \sum_{s=1}^S (\beta \, a_s - (y - o_s))^2, \qquad
        \beta = \frac{\sum_s a_s \, (y - o_s)}{\sum_s a_s^2}

    with :math:`a_s` the sum of the attribution within square s, and :math:`o_s` the confidence in the input with the
    baseline in that square. Smaller is better (Yeh et al., *On the (in)fidelity and sensitivity of explanations*,
    NeurIPS 2019, https://arxiv.org/abs/1901.09392). It is ``captum.metrics.infidelity`` with ``normalize=True``,
    because maps have no unit, and with squares as the perturbation. All examples get the same squares.

    Args:
        samples (int): S, the number of squares. Default: 20
        side (float): Side of the squares as a share of the input's, above 0 and at most 1. Default: 0.25
        generator (torch.Generator or None): Draws the positions, on the CPU. Default: None, a new one with seed 0

    Returns:
        *Tensor* (N,), at least 0.

    Raises:
        ValueError: ``samples`` below 1, a ``side`` that is not above 0 and at most 1.
        TypeError: A ``generator`` that is not a torch.Generator.

    Examples::

        >>> error = infidelity(model, images, attr, labels)  # (N,)
    """
    check_count("samples", samples)
    check_number("side", side, 1e-9, 1, "a number above 0 and at most 1")
    check_generator(generator)
    drawn = drawing(generator)
    corners = torch.rand((samples, attr.dims - 2), generator=drawn, dtype=torch.float64)
    squares = {i: _squares(corners, side, attr.inputs[i].shape[2:]) for i in attr.attributions}
    # Number 0 hides nothing.
    shown = {i: Placed(~F.pad(hidden, (0, 0) * (attr.dims - 2) + (1, 0))) for i, hidden in squares.items()}

    def make(chunk: Chunk, inputs: Tensor, i: int) -> Tensor:
        numbers = chunk.on(inputs.device)[1]
        return shown[i].on(inputs.device)[numbers].unsqueeze(1).to(inputs.dtype)

    confidences = attr.confidences(make, 1 + samples, attr.baselines, {0: WHOLE})
    lost = confidences[:, :1] - confidences[:, 1:]
    sums = torch.zeros_like(lost)
    for i, attribution in attr.attributions.items():
        inside = squares[i].flatten(1).to(attribution)
        sums += (attribution.flatten(1) @ inside.T).to(sums)
    beta = divide_or_zero((sums * lost).sum(1, keepdim=True), sums.square().sum(1, keepdim=True))
    return (beta * sums - lost).square().mean(1)


def _squares(corners: Tensor, side: float, size: torch.Size) -> Tensor:
    """Bool (S, *spatial): squares, or intervals or cubes, at corners (S, dims) between 0 and 1."""
    inside = torch.ones((len(corners), *size), dtype=torch.bool)
    for dim, length in enumerate(size):
        extent = max(1, round(side * length))
        first = (corners[:, dim] * (length - extent + 1)).long().reshape(-1, *[1] * len(size))
        places = torch.arange(length).reshape(-1, *[1] * (len(size) - dim - 1))
        inside &= (first <= places) & (places < first + extent)
    return inside


@metric(
    "sensitivity_max",
    "sensitivity",
    larger_is_better=False,
    on_request=True,
    description="The largest change of the map, divided by its norm, when a little noise is added to the image.",
)
@judged
def sensitivity_max(
    attr: JudgedAttributions,
    *,
    explanation_func: ExplanationFunction | None = None,
    samples: int = 10,
    radius: float = 0.02,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""
    The largest relative change of the attribution under small noise, as in ``captum.metrics.sensitivity_max``.

    .. math::
        \max_{\delta} \frac{\|\Phi(x + \delta) - \Phi(x)\|}{\|\Phi(x)\|}, \qquad
        \delta \sim \text{Uniform}[-\text{radius}, \text{radius}]

    with :math:`\Phi` the attribution at the inputs' size, channels summed. Smaller is better (Yeh et al., *On the
    (in)fidelity and sensitivity of explanations*, NeurIPS 2019, https://arxiv.org/abs/1901.09392). All examples get the
    same noise. The method runs again for each sample.

    Args:
        explanation_func (Callable): As for :func:`coherency`.
        samples (int): Number of noise samples. Default: 10
        radius (float): Largest noise, at least 0, in the inputs' unit. Default: 0.02
        generator (torch.Generator or None): Draws the noise, on the CPU. Default: None, a new one with seed 0

    Returns:
        *Tensor* (N,); the absolute change if the attribution is 0 everywhere.

    Raises:
        ValueError: No ``explanation_func``, or it returns attributions that do not fit the inputs; ``samples`` below 1,
            a ``radius`` below 0.
        TypeError: A ``generator`` that is not a torch.Generator.

    Examples::

        >>> cam = LayerUnionCam(model, layer)
        >>> attr = cam.attribute(images, target=labels)
        >>> explain = lambda x: cam.attribute(x, target=labels)
        >>> change = sensitivity_max(
        ...     model, images, attr, labels, explanation_func=explain
        ... )  # (N,)
    """
    check_count("samples", samples)
    check_number("radius", radius, 0, float("inf"), "a number of at least 0")
    check_generator(generator)
    drawn = drawing(generator)

    def perturbed(inputs: Any) -> tuple[Tensor, ...]:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        return tuple(_with_noise(x, radius, drawn) if i in attr.attributions else x for i, x in enumerate(given))

    def explained(inputs: Any) -> tuple[Tensor, ...]:
        if inputs is attr.inputs:
            return tuple(attr.attributions.values())
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        return tuple(attr.explained(explanation_func, given).values())

    examples = attr.inputs[0].shape[0]
    found: Tensor = captum.metrics.sensitivity_max(
        explained, attr.inputs, perturbed, n_perturb_samples=samples, max_examples_per_batch=examples
    )
    return found


def _with_noise(inputs: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    noise = radius * (2 * torch.rand((1, *inputs.shape[1:]), generator=generator, dtype=torch.float64) - 1)
    # On the CPU first: not every device has float64.
    return as_inputs(inputs + noise.to(torch.promote_types(inputs.dtype, torch.float32)).to(inputs.device), inputs)
