"""RISE: the average of random masks, each weighted by the model's confidence in what it shows."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from captum_unioncam.attr.base import Inputs, RemembersPasses, Targets, explain_targets
from captum_unioncam.engine._captum import (
    BaselineType,
    NullProgress,
    PerturbationAttribution,
    TargetType,
    format_additional_forward_args,
    format_output,
    format_tensor_into_tuples,
    log_usage,
    progress,
)
from captum_unioncam.engine.accelerators import wide_dtype
from captum_unioncam.engine.checks import check_count, check_function, check_generator, check_inputs, check_number
from captum_unioncam.engine.confidence import ConfidenceFunction, OutputFunction
from captum_unioncam.engine.maps import MAX_SPATIAL_DIMS, full_precision
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.outputs import Outputs
from captum_unioncam.engine.perturbations import Masks, drawing
from captum_unioncam.engine.scoring import MaskedScorer

MASKS_AT_ONCE = 64
"""Masks that are drawn and held at a time. Part of the definition: another number draws other masks."""


class Rise(RemembersPasses, PerturbationAttribution):
    r"""
    RISE: the average of random masks, each weighted by the confidence in the input masked by it.

    With :math:`N` masks :math:`M_i`,

    .. math::
        S_c = \frac{1}{N p_1} \sum_{i=1}^N \text{conf}_c(M_i I + (1 - M_i) I_b) \, M_i

    A mask is a grid of :math:`s` cells along each dimension, each 1 with probability :math:`p_1` and 0 otherwise. It is
    upsampled linearly to one cell more than the input, and cropped to its size at a random position (Petsiuk et al.,
    *RISE: Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018, https://arxiv.org/abs/1806.07421,
    with the details of its published code).

    It explains the input and takes no layer, so it works for any model. It needs no gradients, and ``n_masks`` forward
    passes per example. All examples and targets share the same masks. Memory does not grow with the number of masks.
    Use it if a model has no layer with a spatial output; otherwise, Score-CAM needs fewer passes.

    Args:
        forward_func (Callable): The model, or a function of it.
        confidence_fn (Callable or None): Converts the output of ``forward_func`` to confidences of the same shape. Give
            ``torch.sigmoid`` for several labels, ``lambda output: output`` for a model that ends in a sigmoid. Default:
            softmax over dimension 1 for several classes, the output itself otherwise
        output_fn (Callable or None): Maps what ``forward_func`` returns to the tensor from which ``target`` selects, as
            ``LayerScoreCam`` takes it. Default: None
    """

    name: ClassVar = "rise"
    variants: ClassVar[dict[str, dict[str, Any]]] = {}
    gives_details: ClassVar = False
    has_own_baselines: ClassVar = True
    """The mean colour of normalised images, as in the published code."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        confidence_fn: ConfidenceFunction | None = None,
        output_fn: OutputFunction | None = None,
    ) -> None:
        check_function("forward_func", forward_func, optional=False)
        check_function("confidence_fn", confidence_fn)
        check_function("output_fn", output_fn)
        super().__init__(forward_func)
        self.confidence_fn = confidence_fn
        self.output_fn = output_fn

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Inputs,
        target: TargetType = None,
        baselines: BaselineType = None,
        additional_forward_args: Any = None,
        *,
        n_masks: int = 4000,
        grid_size: int = 7,
        p1: float = 0.5,
        generator: torch.Generator | None = None,
        internal_batch_size: int | Literal["auto"] | None = None,
        show_progress: bool = False,
    ) -> Any:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): The examples (N, C, \*spatial) with one to three spatial dimensions.
                In a tuple, those with as many dimensions as the first spatial input are masked.
            target (int, tuple, Tensor, list or None): The output to explain, as in Captum. Default: None
            baselines (number, Tensor, tuple or None): Values of masked pixels, in the space of ``inputs``. Default:
                None, which is 0: the mean colour of normalised images, as in the published code
            additional_forward_args (Any): Further arguments of ``forward_func``. A tensor of N rows is split into
                one row per example. Default: None
            n_masks (int): Number of masks, and of forward passes per example. The paper uses 4000 for VGG16 and 8000
                for ResNet-50. Default: 4000
            grid_size (int): :math:`s`, the cells of a mask along each dimension, at least 2. Default: 7, the paper's
            p1 (float): The probability with which a cell shows the input, in (0, 1]. Default: 0.5, the paper's
            generator (torch.Generator or None): Draws the masks. Default: None, a new one with seed 0, so that two
                calls draw the same masks
            internal_batch_size (int, "auto" or None): Batch size of the masked forward passes. Halved automatically
                when memory runs out. "auto" measures the fastest during the passes. Default: None, a fixed rule based
                on the inputs' size and the device
            show_progress (bool): Show Captum's progress bar over the masks. Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]*: (N, 1, \*spatial) at the inputs' size, not negative where confidences are
            not, float32 for half-precision models. A tuple for a tuple of inputs: zeros for those without a mask.

        Raises:
            ValueError: Inputs without spatial dimensions, an argument out of its range, confidences that are not
                finite.
            TypeError: A ``generator`` that is not a torch.Generator.
            AssertionError: A target or baseline that does not fit, as in Captum.

        Examples::

            >>> rise = Rise(model)
            >>> attr = rise.attribute(images, target=3, n_masks=400)  # (N, 1, 224, 224)
        """
        return self._explain(
            [target],
            lambda of_targets: of_targets[0],
            inputs=inputs,
            baselines=baselines,
            additional_forward_args=additional_forward_args,
            internal_batch_size=internal_batch_size,
            show_progress=show_progress,
            n_masks=n_masks,
            grid_size=grid_size,
            p1=p1,
            generator=generator,
        )

    def attribute_targets(
        self,
        inputs: Inputs,
        targets: Targets,
        baselines: BaselineType = None,
        additional_forward_args: Any = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Explains several targets of each example with the passes of a single one.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As in ``attribute``.
            targets (Tensor or list): T targets of each of the N examples: an int64 tensor (N, T), or N lists of T
                integers, or of T tuples for outputs of more dimensions.
            baselines (number, Tensor, tuple or None): As in ``attribute``. Default: None
            additional_forward_args (Any): As in ``attribute``. Default: None
            **kwargs: Any other argument of ``attribute``.

        Returns:
            *Tensor* or *tuple[Tensor, ...]*: What T calls of ``attribute`` would return, stacked along dimension 1:
            (N, T, 1, \*spatial).

        Raises:
            ValueError: ``targets`` that are not T for each of the N examples; and as ``attribute``.
            AssertionError: As ``attribute``.

        Examples::

            >>> top = model(images).topk(5).indices  # (N, 5)
            >>> rise = Rise(model)
            >>> attr = rise.attribute_targets(images, top, n_masks=400)  # (N, 5, 1, 224, 224)
        """
        kwargs |= {"baselines": baselines, "additional_forward_args": additional_forward_args}
        return explain_targets(self, lambda sums: sums.transpose(0, 1), inputs, targets, kwargs)

    def _explain(
        self,
        targets: Sequence[TargetType],
        join: Callable[[Tensor], Tensor],
        *,
        inputs: Inputs,
        baselines: BaselineType,
        additional_forward_args: Any,
        internal_batch_size: int | str | None,
        show_progress: bool,
        argument: str = "target",
        **drawing: Any,
    ) -> Any:
        """``join`` brings the sums (T, N, 1, *spatial) into the form of the result."""
        check_drawing(**drawing)
        tensors = check_inputs(format_tensor_into_tuples(inputs))
        masked = _masked(tensors)
        dims = next(iter(masked.values())).dim()
        sums = {i: _zeros(len(targets), len(x), 1, *x.shape[2:], like=x) for i, x in masked.items()}
        n_masks = drawing["n_masks"]
        bar = progress(desc=f"{self.get_name()} masks", total=n_masks) if show_progress else NullProgress()
        functions = evaluation_mode(self.forward_func, output_fn=self.output_fn)
        with functions as (forward_func,), torch.no_grad(), bar:
            scorer = MaskedScorer(
                forward_func,
                tensors,
                baselines,
                targets,
                format_additional_forward_args(additional_forward_args),
                confidence_fn=self.confidence_fn,
                internal_batch_size=internal_batch_size,
                tuners=self._tuners,
                outputs=Outputs(targets, tensors[0].shape[0], argument),
            )
            for masks in random_masks(masked, **drawing):
                count = len(next(iter(masks.values())))
                scores = scorer.masked_scores(_shared(masks, dims), count)
                for i, of_input in masks.items():
                    sums[i] += torch.einsum("tnm,m...->tn...", scores.to(of_input), of_input)
                bar.update(count)
        of_inputs = (sums[i] if i in sums else _zeros(len(targets), *x.shape, like=x) for i, x in enumerate(tensors))
        maps = tuple(join(total / (n_masks * drawing["p1"])) for total in of_inputs)
        return format_output(isinstance(inputs, tuple), maps)


def check_drawing(n_masks: int, grid_size: int, p1: float, generator: torch.Generator | None) -> None:
    """Raises ``ValueError`` or ``TypeError`` for masks that cannot be drawn."""
    check_count("n_masks", n_masks)
    check_count("grid_size", grid_size)
    if grid_size < 2:
        raise ValueError(f"grid_size: got {grid_size}; give at least 2 cells.")
    # With 0, no mask shows anything.
    check_number("p1", p1, math.nextafter(0, 1), 1, "a probability above 0, at most 1")
    check_generator(generator)


def random_masks(
    inputs: dict[int, Tensor], n_masks: int, grid_size: int, p1: float, generator: torch.Generator | None
) -> Iterator[dict[int, Tensor]]:
    """Masks (M, 1, *spatial) of each input by its number, at most ``MASKS_AT_ONCE`` at a time."""
    generator = drawing(generator)
    dims = next(iter(inputs.values())).dim() - 2
    for start in range(0, n_masks, MASKS_AT_ONCE):
        count = min(MASKS_AT_ONCE, n_masks - start)
        grids = torch.rand(count, *[grid_size] * dims, generator=generator, device=generator.device) < p1
        # The place, as a share of a cell: the inputs of an example may have several sizes.
        places = torch.rand(count, dims, generator=generator, device=generator.device, dtype=torch.float64)
        yield {i: grids_at(grids, places, x) for i, x in inputs.items()}


def grids_at(grids: Tensor, places: Tensor, inputs: Tensor) -> Tensor:
    """Grids (M, s, ...) stretched linearly to s + 1 cells of the inputs', and cut at the places (M, dims)."""
    masks = grids.to(_zeros(like=inputs))
    for dim, length in enumerate(inputs.shape[2:]):
        weights = _linear_weights(
            grids.shape[1], length, places[:, dim].to(inputs.device, wide_dtype(inputs.device))
        ).to(masks)
        masks = torch.einsum("mls,ms...->m...l", weights, masks)
    return masks.unsqueeze(1)


def _linear_weights(cells: int, length: int, places: Tensor) -> Tensor:
    """Of each cell of a grid at each of ``length`` positions, (M, length, cells): a hat around the cell's centre."""
    cell = math.ceil(length / cells)
    offsets = (places * cell).floor().unsqueeze(1)
    positions = torch.arange(length, device=places.device, dtype=places.dtype) + offsets + 0.5
    # Mirrored at the centres of the outer cells, as the published code's skimage.transform.resize does.
    centres = (positions * cells / ((cells + 1) * cell) - 0.5).abs()
    centres = (cells - 1) - ((cells - 1) - centres).abs()
    numbers = torch.arange(cells, device=places.device, dtype=places.dtype)
    return (1 - (centres.unsqueeze(-1) - numbers).abs()).clamp(min=0)


def _zeros(*shape: int, like: Tensor) -> Tensor:
    dtype = full_precision(like).dtype if like.is_floating_point() else torch.float32
    return torch.zeros(shape, dtype=dtype, device=like.device)


def _masked(inputs: tuple[Tensor, ...]) -> dict[int, Tensor]:
    """The inputs that take masks, by number: those with as many dimensions as the first with spatial ones."""
    dims = next((x.dim() for x in inputs if 3 <= x.dim() <= 2 + MAX_SPATIAL_DIMS), 0)
    if not dims:
        raise ValueError(
            f"inputs: none of the shapes {[tuple(x.shape) for x in inputs]} has one to three spatial dimensions; give "
            "(N, C, *spatial)."
        )
    return {i: x for i, x in enumerate(inputs) if x.dim() == dims}


def _shared(masks: dict[int, Tensor], dims: int) -> Masks:
    """The same masks for every example."""
    return Masks(dims, lambda chunk, inputs, i: masks[i][chunk.on(inputs.device)[1]])
