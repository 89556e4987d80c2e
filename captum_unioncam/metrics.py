r"""How faithful an attribution is to the model, and how well it finds the object; one value for each example.

The functions are called as those of ``captum.metrics``, and take any attributions that can be upsampled to the inputs:
a layer method's (N, K, \*spatial) at any resolution, or an input method's; channels are summed. With
:math:`m = \text{minmax}(\text{up}(\text{attribution}))`, the class confidence is that of UnionCAM itself.

Example::

    >>> from captum_unioncam import LayerUnionCam, metrics
    >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
    >>> average_drop = 100 * metrics.confidence_drop(model, images, attr, labels).mean()
    >>> area = metrics.insertion(model, images, attr, labels)  # (N,)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam._captum import (
    BaselineType,
    TargetType,
    format_additional_forward_args,
    format_tensor_into_tuples,
    log_usage,
)
from captum_unioncam.layer_evaluation import check_finite, check_inputs, evaluation_mode
from captum_unioncam.maps import divide_or_zero, full_precision, minmax, up
from captum_unioncam.masked_scoring import Chunk, ConfidenceFunction, MaskedScorer, Masks, check_positive
from captum_unioncam.pass_tuning import PassTuner

# RISE's substrate: https://github.com/eclique/RISE, evaluation.py.
_BLUR_PIXELS, _BLUR_SIGMA = 11, 5.0

# What was learnt of each function's passes, for as long as the function lives.
_tuners: WeakKeyDictionary[Callable[..., Any], dict[Hashable, PassTuner]] = WeakKeyDictionary()

Attributions = Tensor | tuple[Tensor, ...]


class Curve(NamedTuple):
    """Class confidences as pixels are inserted or deleted, most important first.

    Args:
        area (Tensor): Under the curve, by the trapezoid rule, (N,).
        fractions (Tensor): Of the pixels inserted or deleted, from 0 to 1, (steps + 1,).
        confidences (Tensor): (N, steps + 1).
    """

    area: Tensor
    fractions: Tensor
    confidences: Tensor


@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def confidence_drop(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    r"""
    The share of its confidence that the model loses when it sees the input through the attribution.

    .. math::
        \frac{\max(0, y - o)}{y}, \qquad y = \text{conf}_c(I), \quad o = \text{conf}_c(m I + (1 - m) I_b)

    Smaller is better; times 100 and averaged over examples it is the average drop (Chattopadhay et al., Grad-CAM++,
    WACV 2018, https://arxiv.org/abs/1710.11063).

    Args:
        forward_func (Callable): The model, or a function of it, run in evaluation mode.
        inputs (Tensor or tuple[Tensor, ...]): The examples, along dimension 0 of each tensor. Those with as many
            dimensions as the attributions are masked.
        attributions (Tensor or tuple[Tensor, ...]): (N, K, \*spatial), at the inputs' resolution or any other. One for
            all masked inputs, or a tuple of one for each input, of which only the masked inputs' are used.
        target (int, tuple, Tensor, list or None): The output that was explained, as in Captum. Default: None
        baselines (number, Tensor, tuple or None): What masked-out places show, as Captum's ``baselines``.
            Default: None, which is 0, black
        additional_forward_args (Any): Further arguments of ``forward_func``. Default: None
        confidence_fn (Callable or None): The output of ``forward_func`` to confidences, not negative, of the same
            shape. Default: softmax over dimension 1 where there are several classes, the output itself otherwise
        internal_batch_size (int or None): Rows in a forward pass; halved when memory runs out. Default: None, the
            fastest, learnt from the passes and remembered for ``forward_func`` and inputs of this shape

    Returns:
        *Tensor* (N,), in [0, 1]; 0 where there is no confidence to lose.

    Raises:
        ValueError: No input has the attributions' dimensions, an empty batch, attributions of other examples or not
            finite, confidences that are negative or not finite, or a batch size below 1.
        AssertionError: A target or baseline that does not fit, as in Captum.

    Examples::

        >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
        >>> average_drop = 100 * confidence_drop(model, images, attr, labels).mean()
    """
    judged = _Judged(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    whole, seen = judged.whole_and_seen(baselines)
    return divide_or_zero((whole - seen).clamp(min=0), whole)


@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def confidence_increase(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    r"""
    Whether the model is more confident when it sees the input through the attribution: :math:`[o > y]`.

    Larger is better; times 100 and averaged over examples it is the average increase. :math:`y` and :math:`o`, the
    arguments and the errors are those of :func:`confidence_drop`.

    Returns:
        *Tensor* (N,), 1 or 0.

    Examples::

        >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
        >>> average_increase = 100 * confidence_increase(model, images, attr, labels).mean()
    """
    judged = _Judged(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    whole, seen = judged.whole_and_seen(baselines)
    return (seen > whole).to(seen.dtype)


@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def insertion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    steps: int = 100,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
    return_curve: bool = False,
) -> Tensor | Curve:
    r"""
    The area under the curve of the class confidence as the input's pixels are inserted, most important first.

    Larger is better (Petsiuk et al., RISE, BMVC 2018, https://arxiv.org/abs/1806.07421). After step :math:`s` of
    :math:`S`, the :math:`s / S` of the pixels with the largest attributions show the input, and the others the
    baseline; of equal attributions the first in row-major order comes first. Arguments not listed, and the errors,
    are those of :func:`confidence_drop`.

    Args:
        baselines (number, Tensor, tuple or None): What shows where nothing is inserted yet. Default: None, the blurred
            input, as in RISE (Gaussian of 5 pixels, 11 wide; the border is repeated, where RISE pads with 0)
        steps (int): S, at least 1; there are S + 1 forward passes an example. Default: 100, where RISE inserts a row's
            worth of pixels at a time
        return_curve (bool): Return the curve too. Default: False

    Returns:
        *Tensor* (N,), or the *Curve*, a named tuple of the area (N,), the fractions (S + 1,), and the confidences
        (N, S + 1).

    Examples::

        >>> area, fractions, confidences = insertion(model, images, attr, labels, return_curve=True)
    """
    judged = _Judged(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    curve = judged.curve(judged.blurred() if baselines is None else baselines, steps, torch.lt)
    return curve if return_curve else curve.area


@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def deletion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Attributions,
    target: TargetType = None,
    baselines: BaselineType = None,
    additional_forward_args: Any = None,
    *,
    steps: int = 100,
    confidence_fn: ConfidenceFunction | None = None,
    internal_batch_size: int | None = None,
    return_curve: bool = False,
) -> Tensor | Curve:
    r"""
    The area under the curve of the class confidence as the input's pixels are deleted, most important first.

    Smaller is better. As :func:`insertion`, but pixels go from the input to the baseline, by default 0, black.

    Args:
        baselines (number, Tensor, tuple or None): What shows where pixels are deleted. Default: None, which is 0, black
        steps (int): S, at least 1; there are S + 1 forward passes an example. Default: 100
        return_curve (bool): Return the curve too. Default: False

    Returns:
        *Tensor* (N,), or the *Curve*, as :func:`insertion`.

    Examples::

        >>> area = deletion(model, images, attr, labels)  # (N,)
    """
    judged = _Judged(
        forward_func, inputs, attributions, target, additional_forward_args, confidence_fn, internal_batch_size
    )
    curve = judged.curve(baselines, steps, torch.ge)
    return curve if return_curve else curve.area


@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def pointing_game(attributions: Tensor, objects: Tensor, tolerance: float = 0) -> Tensor:
    r"""
    Whether the attribution's maximum lies on the object.

    Averaged over examples it is the accuracy of the pointing game (Zhang et al., Excitation Backprop, IJCV 2018,
    https://arxiv.org/abs/1608.00507). Of several maxima the first in row-major order counts; an attribution that is the
    same everywhere points nowhere.

    Args:
        attributions (Tensor): (N, K, \*spatial), upsampled to the objects' size; channels are summed.
        objects (Tensor): Where the object is, bool, (N, 1, \*spatial) or (N, \*spatial), of the inputs' size.
            :func:`box_masks` makes it of boxes.
        tolerance (float): Distance in pixels from the object that still counts, at least 0. The paper takes 15 at its
            photos' full size. Default: 0

    Returns:
        *Tensor* (N,), 1 or 0.

    Raises:
        ValueError: The shapes do not fit, attributions are not finite, or the tolerance is negative.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> hit = pointing_game(attr, masks)  # (4,)
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance}; give a distance of at least 0 pixels.")
    attributions, objects = _fitted(attributions, objects)
    size = attributions.shape[2:]
    axes = [torch.arange(length, device=attributions.device) for length in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    flat = attributions.flatten(1)
    maximum = grid[:, flat.argmax(1)].T.unsqueeze(-1)
    near = (grid - maximum).square().sum(1) <= tolerance**2
    hit = (near & objects.flatten(1)).any(1) & (flat.amax(1) > flat.amin(1))
    return hit.to(attributions.dtype)


@log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
def energy_pointing_game(attributions: Tensor, objects: Tensor) -> Tensor:
    r"""
    The share of the attribution that lies on the object: its sum there over its sum everywhere, negative values as 0.

    Larger is better (Wang et al., Score-CAM, CVPR Workshops 2020, https://arxiv.org/abs/1910.01279).

    Args:
        attributions (Tensor): (N, K, \*spatial), upsampled to the objects' size; channels are summed.
        objects (Tensor): Where the object is, bool, (N, 1, \*spatial) or (N, \*spatial), of the inputs' size.
            :func:`box_masks` makes it of boxes.

    Returns:
        *Tensor* (N,), in [0, 1]; 0 where nothing is positive.

    Raises:
        ValueError: The shapes do not fit, or attributions are not finite.

    Examples::

        >>> images, labels, masks = demo.generate(4, seed=0)
        >>> share = energy_pointing_game(attr, masks)  # (4,)
    """
    attributions, objects = _fitted(attributions, objects)
    energy = attributions.clamp(min=0).flatten(1)
    return divide_or_zero((energy * objects.flatten(1)).sum(1), energy.sum(1))


def box_masks(boxes: Sequence[Tensor | Sequence[Sequence[float]]], size: Sequence[int]) -> Tensor:
    """Masks of boxes, as the pointing games take them.

    Args:
        boxes (Sequence): For each of N examples its object's boxes, (B, 4): left, top, right, bottom, in pixels from
            the input's upper left corner. A pixel belongs to a box if its centre does.
        size (Sequence[int]): Height and width of the inputs.

    Returns:
        *Tensor* (N, 1, height, width), bool.

    Raises:
        ValueError: Boxes are not of four numbers.

    Examples::

        >>> masks = box_masks([[(10, 20, 50, 80)], [(0, 0, 30, 30), (60, 60, 90, 90)]], images.shape[2:])
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    masks = torch.zeros((len(boxes), 1, height, width), dtype=torch.bool)
    for mask, of_example in zip(masks, boxes, strict=True):
        for box in of_example:
            if len(box) != 4:
                raise ValueError(f"boxes: got {box}; give left, top, right and bottom.")
            left, top, right, bottom = (float(value) for value in box)
            mask |= (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    return masks


class _Judged:
    """Attributions with all that it takes to judge them; the arguments are those of :func:`confidence_drop`."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensor | tuple[Tensor, ...],
        attributions: Attributions,
        target: TargetType,
        additional_forward_args: Any,
        confidence_fn: ConfidenceFunction | None,
        internal_batch_size: int | None,
    ) -> None:
        self.forward_func = forward_func
        self.inputs = check_inputs(format_tensor_into_tuples(inputs))
        self.target = target
        self.additional_forward_args = format_additional_forward_args(additional_forward_args)
        self.confidence_fn = confidence_fn
        self.internal_batch_size = internal_batch_size
        given = format_tensor_into_tuples(attributions)
        if len(given) not in (1, len(self.inputs)):
            raise ValueError(f"attributions: got {len(given)} for {len(self.inputs)} inputs; give one for all or each.")
        self.dims = next((attribution.dim() for attribution in given if attribution.dim() > 2), 0)
        if len(given) == 1:
            given *= len(self.inputs)
        self.attributions = {
            i: self._upsampled(attribution, x)
            for i, (x, attribution) in enumerate(zip(self.inputs, given, strict=True))
            if x.dim() == self.dims
        }
        if not self.attributions:
            shapes, wanted = ([tuple(x.shape) for x in values] for values in (given, self.inputs))
            raise ValueError(
                f"attributions: got the shapes {shapes} for inputs of shape {wanted}; give (N, K, *spatial), of any "
                "resolution, with as many dimensions as an input."
            )

    def _upsampled(self, attribution: Tensor, inputs: Tensor) -> Tensor:
        examples = inputs.shape[0]
        if attribution.dim() != self.dims or attribution.shape[0] != examples:
            raise ValueError(
                f"attributions: got the shape {tuple(attribution.shape)} for an input of shape {tuple(inputs.shape)}; "
                f"give (N, K, *spatial) of its {examples} examples."
            )
        return _one_channel(attribution, inputs.shape[2:]).to(inputs.device)

    def blurred(self) -> tuple[Tensor | float, ...]:
        """RISE's substrate for each input that is masked."""
        return tuple(_blurred(x) if i in self.attributions else 0.0 for i, x in enumerate(self.inputs))

    def whole_and_seen(self, baselines: BaselineType) -> tuple[Tensor, Tensor]:
        """``y`` and ``o``, each (N,)."""
        masks = {i: minmax(attribution) for i, attribution in self.attributions.items()}

        def make(chunk: Chunk, inputs: Tensor, i: int) -> Tensor:
            return torch.where(_column(chunk.numbers == 0, inputs), 1.0, masks[i][chunk.examples.to(inputs.device)])

        confidences = self._confidences(make, 2, baselines)
        negative = (confidences < 0).any(1)
        if negative.any():
            raise ValueError(
                f"confidences: negative for the examples {negative.nonzero().flatten().tolist()}, so no share of them "
                "can drop; give confidence_fn, such as torch.sigmoid for a model of one logit."
            )
        return confidences[:, 0], confidences[:, 1]

    def curve(self, baselines: BaselineType, steps: int, shown: Callable[[Tensor, Tensor], Tensor]) -> Curve:
        """The curve of inputs whose pixels are shown where ``shown(rank, pixels of the step)``."""
        check_positive("steps", steps)
        ranks = {i: _ranks(attribution) for i, attribution in self.attributions.items()}

        counts = {
            i: torch.linspace(0, rank[0].numel(), steps + 1, dtype=torch.float64).round().to(rank)
            for i, rank in ranks.items()
        }

        def make(chunk: Chunk, inputs: Tensor, i: int) -> Tensor:
            examples, step = (index.to(inputs.device) for index in (chunk.examples, chunk.numbers))
            return shown(ranks[i][examples], _column(counts[i][step], inputs)).to(inputs.dtype)

        confidences = self._confidences(make, steps + 1, baselines)
        pixels = next(iter(counts.values()))
        fractions = pixels.to(confidences) / pixels[-1]
        return Curve(torch.trapezoid(confidences, fractions, dim=1), fractions, confidences)

    def _confidences(self, make: Callable[[Chunk, Tensor, int], Tensor], count: int, baselines: BaselineType) -> Tensor:
        """Of ``count`` masks for each example, (N, count)."""
        with evaluation_mode(self.forward_func) as (forward_func,):
            scorer = MaskedScorer(
                forward_func,
                self.inputs,
                baselines,
                [self.target],
                self.additional_forward_args,
                confidence_fn=self.confidence_fn,
                internal_batch_size=self.internal_batch_size,
                tuners=_tuners_of(self.forward_func),
            )
            return scorer.masked_confidences(Masks(self.dims, make), count)


def _tuners_of(forward_func: Callable[..., Any]) -> dict[Hashable, PassTuner]:
    try:
        return _tuners.setdefault(forward_func, {})
    except TypeError:
        # It cannot be hashed or referred to weakly: nothing is remembered.
        return {}


def _fitted(attributions: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Attributions of one channel at the objects' size, and the objects, both (N, 1, *spatial)."""
    if objects.dim() == attributions.dim() - 1:
        objects = objects.unsqueeze(1)
    if objects.dim() != attributions.dim() or objects.shape[:2] != (attributions.shape[0], 1):
        raise ValueError(
            f"objects: got the shape {tuple(objects.shape)} for attributions of shape {tuple(attributions.shape)}; "
            "give bool (N, 1, *spatial) or (N, *spatial), of the inputs' size."
        )
    return _one_channel(attributions, objects.shape[2:]), objects.to(attributions.device, torch.bool)


def _one_channel(attributions: Tensor, size: torch.Size) -> Tensor:
    """The sum of the channels at ``size``, (N, 1, *spatial)."""
    check_finite(attributions, "attributions")
    summed = full_precision(attributions.detach()).sum(1, keepdim=True)
    return summed if summed.shape[2:] == size else up(summed, size)


def _ranks(attributions: Tensor) -> Tensor:
    """Each pixel's place among its example's, 0 for the largest; of equal ones the first comes first."""
    order = attributions.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).reshape(attributions.shape)


def _column(values: Tensor, inputs: Tensor) -> Tensor:
    """Values of the rows (R,), to be broadcast over masks of ``inputs``."""
    return values.to(inputs.device).reshape((-1,) + (1,) * (inputs.dim() - 1))


def _blurred(inputs: Tensor) -> Tensor:
    reach = _BLUR_PIXELS // 2
    kernel = torch.arange(-reach, reach + 1, device=inputs.device, dtype=inputs.dtype)
    kernel = (-(kernel**2) / (2 * _BLUR_SIGMA**2)).exp()
    kernel /= kernel.sum()
    blurred = F.pad(inputs.detach(), (reach, reach) * (inputs.dim() - 2), mode="replicate")
    for dim in range(2, inputs.dim()):
        blurred = blurred.unfold(dim, _BLUR_PIXELS, 1) @ kernel
    return blurred
