"""Remove and debias (ROAD): the confidence after the most or the least relevant pixels are imputed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.engine.checks import check_generator, check_number, check_numbers
from captum_unioncam.engine.maps import full_precision
from captum_unioncam.engine.perturbations import Chunk, Masks, as_inputs, drawing
from captum_unioncam.engine.sharing import kept
from captum_unioncam.metrics.attributions import WHOLE, JudgedAttributions, judged_with, ranked
from captum_unioncam.metrics.imputation import impute
from captum_unioncam.metrics.table import metric

PERCENTILES = (20, 40, 60, 80)
NOISE = 0.01

# Of images that are imputed together.
_VALUES_AT_ONCE = 2**24


def _after(
    attr: JudgedAttributions,
    is_most: bool,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = NOISE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """
    The mean confidence after the most, or the least, relevant pixels are imputed, (N,).

    Args:
        percentiles (Sequence[float]): Percentiles of the attributions above which the most relevant pixels are removed;
            the same number of the least relevant pixels is removed. Each above 0 and below 100. Default: 20, 40, 60, 80
        noise (float): Standard deviation of the noise, at least 0, in the inputs' unit. Default: 0.01
        generator (torch.Generator or None): Draws the noise, on the CPU. Default: None, a new one with seed 0

    Raises:
        ValueError: Inputs that are not images (N, C, H, W), percentiles that are not above 0 and below 100, or
            ``noise`` below 0.
        TypeError: A ``generator`` that is not a torch.Generator.
    """
    check_numbers("percentiles", percentiles, 1e-9, 100 - 1e-9, "numbers above 0 and below 100")
    check_number("noise", noise, 0, float("inf"), "a number of at least 0")
    check_generator(generator)
    if attr.dims != 4:
        raise ValueError(f"inputs: have {attr.dims - 2} spatial dimensions; give images (N, C, H, W).")

    def compute() -> Tensor:
        drawn = drawing(generator)
        copies = {
            i: _copies(attr.inputs[i], attribution, is_most, percentiles, noise, drawn)
            for i, attribution in attr.attributions.items()
        }
        return attr.run(_Copies(attr.dims, _whole, copies=copies), len(percentiles), None).mean(1)

    if generator is not None:
        return compute()
    parts = is_most, tuple(percentiles), noise, tuple(attr.attributions.values())
    return kept(lambda: ("road", attr.key(), *parts), compute)


@metric(
    "road",
    "ROAD",
    larger_is_better=True,
    on_request=True,
    description="Half of the difference between the confidences after the least and after the most relevant pixels are "
    "imputed.",
)
@judged_with(_after)
def road(attr: JudgedAttributions, **how: Any) -> Tensor:
    r"""
    ROAD's two curves in one number: half their difference, averaged over the percentiles.

    .. math::
        \frac{1}{2 |P|} \sum_{p \in P} \big(o^\text{least}_p - o^\text{most}_p\big)

    with :math:`o_p` the confidence after the share :math:`1 - p / 100` of the pixels is removed, those with the largest
    ("most") or the smallest ("least") attributions. Larger is better. A removed pixel becomes the weighted mean of its
    neighbours, including removed ones, plus noise. This reveals less of the shape of the removed region than black does
    (Rong et al., *A consistent and efficient evaluation strategy for attribution methods*, ICML
    2022, https://arxiv.org/abs/2202.00449). The number is grad-cam's ``ROADCombined``, computed from confidences.

    Returns:
        *Tensor* (N,), in [-0.5, 0.5].

    Examples::

        >>> score = road(model, images, attr, labels, percentiles=[50, 90])  # (N,)
    """
    least, most = (_after(attr, is_most, **how) for is_most in (False, True))
    return (least - most) / 2


@metric(
    "road_most_relevant_first",
    "ROAD, most relevant first",
    larger_is_better=False,
    on_request=True,
    description="The change of the confidence after the most relevant pixels are imputed.",
)
@judged_with(_after)
def road_most_relevant_first(attr: JudgedAttributions, **how: Any) -> Tensor:
    r"""
    The change of the confidence after the most relevant pixels are imputed, averaged over the percentiles.

    Smaller is better; the minimum is -1. Pixels are chosen and imputed as in :func:`road`.

    Returns:
        *Tensor* (N,), in [-1, 1].

    Examples::

        >>> change = road_most_relevant_first(model, images, attr, labels)  # (N,)
    """
    return _after(attr, True, **how) - attr.of_uniform(WHOLE, None)


@metric(
    "road_least_relevant_first",
    "ROAD, least relevant first",
    larger_is_better=True,
    on_request=True,
    description="The change of the confidence after the least relevant pixels are imputed.",
)
@judged_with(_after)
def road_least_relevant_first(attr: JudgedAttributions, **how: Any) -> Tensor:
    r"""
    The change of the confidence after the least relevant pixels are imputed, averaged over the percentiles.

    Larger is better. Pixels are chosen and imputed as in :func:`road`.

    Returns:
        *Tensor* (N,), in [-1, 1].

    Examples::

        >>> change = road_least_relevant_first(model, images, attr, labels)  # (N,)
    """
    return _after(attr, False, **how) - attr.of_uniform(WHOLE, None)


def _copies(
    inputs: Tensor,
    attributions: Tensor,
    is_most: bool,
    percentiles: Sequence[float],
    noise: float,
    generator: torch.Generator,
) -> Tensor:
    """The inputs (N, C, H, W) with pixels imputed, for each percentile: (N, P, C, H, W)."""
    images = full_precision(inputs if inputs.is_floating_point() else inputs.float())
    count, pixels = len(percentiles), images.shape[2:].numel()
    # At least one stays.
    stay = torch.tensor([max(1, round(pixels * p / 100)) for p in percentiles], device=inputs.device).reshape(-1, 1, 1)
    ranks = ranked(attributions)
    stays = ranks >= pixels - stay if is_most else ranks < stay
    # The same for all examples; on the CPU first, since not every device has float64.
    drawn = torch.randn((count, *images.shape[1:]), generator=generator, dtype=torch.float64)
    added = (noise * drawn).to(images.dtype).to(inputs.device)
    examples = max(1, _VALUES_AT_ONCE // (count * images[0].numel()))
    copies = []
    for first in range(0, len(images), examples):
        some, stay_there = images[first : first + examples], stays[first : first + examples].unsqueeze(2)
        imputed = impute(some.repeat_interleave(count, 0), stay_there.flatten(0, 1))
        copies.append(imputed.reshape(-1, *added.shape) + added * ~stay_there)
    return as_inputs(torch.cat(copies), inputs)


@dataclass(frozen=True)
class _Copies(Masks):
    """Copies of the inputs in place of what masks show of them.

    Args:
        copies (Mapping[int, Tensor]): By the number of the input, each (N, M, C, H, W).
    """

    copies: Mapping[int, Tensor] = field(kw_only=True)

    def shown(self, chunk: Chunk, inputs: Tensor, i: int, rows: Tensor, baselines: Tensor) -> Tensor:
        """The copies of the chunk's rows."""
        examples, numbers = chunk.on(inputs.device)
        return self.copies[i][examples, numbers]


def _whole(chunk: Chunk, inputs: Tensor, _i: int) -> Tensor:
    """Masks that hide nothing."""
    return inputs.new_ones((len(chunk.example_numbers), 1, *inputs.shape[2:]))
