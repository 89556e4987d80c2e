"""Sanity checks of methods: does a map change when the model, or the class, is another?

After Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018, https://arxiv.org/abs/1810.03292. A map that
stays the same when the model's layers are reinitialised does not depend on what the model has learnt. One that stays
the same for another class does not depend on the class.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.find_layer import Layer, find_spatial_layer, named_layers
from captum_unioncam.engine._captum import progress
from captum_unioncam.engine.confidence import output_tensor
from captum_unioncam.engine.maps import minmax, spatial_range
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.randomization import CASCADING, randomized_copies, seeded
from captum_unioncam.methods.registry import create
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics.similarity import rank_correlation, structural_similarity
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import without_name

__all__ = ["Similarity", "model_randomization", "random_logit", "similarity_table"]

RANDOM_LOGIT = "random_logit"


@dataclass(frozen=True)
class Similarity:
    """How alike a method's map is to the one that it gives after a change.

    Args:
        method (str): Its name.
        check (str): "cascading" or "independent" randomisation of layers, or "random_logit".
        step (int): Number of the change, from 1.
        changed (str): The layer that was reinitialised last, or the other class's index.
        example (int): Number of the example.
        ssim (float): Structural similarity of the absolute maps, each scaled to [0, 1]; 1 for equal maps.
        rank_correlation (float): Spearman's, of the absolute maps.
        signed_rank_correlation (float): Of the maps with their signs. Equal to the other for maps without negative
            values, as those of class activation maps.
        constant (bool): Whether the map after the change is the same everywhere. Its rank correlations are 0.
    """

    method: str
    check: str
    step: int
    changed: str
    example: int
    ssim: float
    rank_correlation: float
    signed_rank_correlation: float
    constant: bool


def model_randomization(
    model: Module,
    methods: str | Sequence[str],
    inputs: Tensor,
    target: int | Tensor,
    layer: Layer | None = None,
    *,
    order: str = CASCADING,
    max_layers: int | None = None,
    baselines: Tensor | float = 0.0,
    settings: MethodSettings | None = None,
    seed: int = 0,
) -> list[Similarity]:
    """Compares maps with those of copies of the model whose layers are reinitialised, from the output's side down.

    Layers are the modules with parameters of their own that run in a pass. Each is initialised by its
    ``reset_parameters``. Parameters of a module without that, or that it leaves as they are, are drawn from the normal
    distribution of their own mean and standard deviation. Normalisations forget their running statistics too.

    The model, and the state of random generators, are left as they were. A method that draws random numbers draws the
    same ones for all maps.

    Args:
        model (torch.nn.Module): (N, 3, H, W) to (N, classes). ``copy.deepcopy`` has to take it.
        methods (str or Sequence[str]): As ``captum_unioncam.methods`` knows them.
        inputs (Tensor): The examples, (N, 3, H, W).
        target (int or Tensor): The explained output, one for all examples or (N,).
        layer (torch.nn.Module, str or None): The layer to explain, or its dotted name. Default: None, the last layer
            with a spatial output
        order (str): "cascading": all layers from the output down to the named one are reinitialised. "independent":
            that one alone. Default: "cascading"
        max_layers (int or None): Compare at most so many times, evenly spread over the layers, the lowest included.
            Default: None, once for each layer
        baselines (Tensor or float): What the methods take for black, a number or (1 or N, 3, H, W). Default: 0
        settings (MethodSettings or None): The methods' settings. Default: None, the defaults
        seed (int): Of the initial values, and of methods that draw random numbers. Default: 0

    Returns:
        *list[Similarity]*: One for each method, step and example, in this order. Small similarities are good.

    Raises:
        ValueError: An unknown order or layer, a model without parameters or that cannot be copied, a map that is
            constant before any change, or not finite.
        WrongArgument, Failure: As ``captum_unioncam.methods.create``.

    Examples::

        >>> names = ["union_cam", "grad_cam"]
        >>> rows = model_randomization(model, names, images[:1], 3, layer, max_layers=2)
        >>> similarity_table(rows)  # a row for each step, a column for each method
    """
    explained = _Explained(model, inputs, target, layer, baselines, settings, seed)
    found: list[Similarity] = []
    for method in _names(methods):
        original = explained.original(method)
        copies = randomized_copies(model, explained.layer, inputs, order, max_layers, seed)
        for step, (name, copied, layer_of_copy) in enumerate(copies, 1):
            maps = explained.maps(method, copied, layer_of_copy)
            found += _compared(original, maps, method, order, step, [name] * len(inputs))
    return found


def random_logit(
    model: Module,
    methods: str | Sequence[str],
    inputs: Tensor,
    target: int | Tensor,
    layer: Layer | None = None,
    *,
    baselines: Tensor | float = 0.0,
    settings: MethodSettings | None = None,
    seed: int = 0,
) -> list[Similarity]:
    """Compares maps with those of another class, drawn at random (Sixt et al., ICML 2020,
    https://arxiv.org/abs/1912.09818).

    Args:
        model, methods, inputs, target, layer, baselines, settings: As :func:`model_randomization` takes them.
        seed (int): Of the other classes, the same for all methods, and of methods that draw random numbers. Default: 0

    Returns:
        *list[Similarity]*: One for each method and example. Small similarities are good.

    Raises:
        ValueError: As :func:`model_randomization`; a model with one output.
        WrongArgument, Failure: As ``captum_unioncam.methods.create``.

    Examples::

        >>> (row,) = random_logit(model, "union_cam", images[:1], 3, layer)
        >>> row.changed, row.rank_correlation  # the other class, and how alike its map is
    """
    explained = _Explained(model, inputs, target, layer, baselines, settings, seed)
    others = explained.other_classes()
    found: list[Similarity] = []
    for method in _names(methods):
        maps = explained.maps(method, model, explained.layer, others)
        found += _compared(explained.original(method), maps, method, RANDOM_LOGIT, 1, map(str, others.tolist()))
    return found


def similarity_table(rows: Sequence[Similarity], value: str = "rank_correlation") -> pd.DataFrame:
    """A value's means over the examples, with a row for each change, in their order, and a column for each method.

    Args:
        rows (Sequence[Similarity]): Of one check or several. ``pandas.DataFrame(rows)`` has all of each.
        value (str): "ssim", "rank_correlation" or "signed_rank_correlation". Default: "rank_correlation"

    Examples::

        >>> similarity_table(random_logit(model, "union_cam", images[:1], 3, layer), "ssim")
    """
    every = pd.DataFrame(rows)
    # The other class may differ between the examples.
    every.loc[every.check == RANDOM_LOGIT, "changed"] = "another class"
    means = every.pivot_table(value, ["check", "step", "changed"], "method", sort=False)
    return means.reset_index("step", drop=True).rename_axis(columns=None)


@dataclass(frozen=True)
class SanityChecks:
    """The checks of several methods, for one class of an image.

    Args:
        picture (str): Its name.
        class_index (int): The explained output of the model.
        class_name (str): Its name.
        layer (str): The explained layer.
        rows (list[Similarity]): Of the methods that did not fail.
        failures (dict[str, str]): The error of each method that failed. Default: none
    """

    picture: str
    class_index: int
    class_name: str
    layer: str
    rows: list[Similarity]
    failures: dict[str, str] = field(default_factory=dict)

    def csv(self) -> bytes:
        """The rows as a CSV file."""
        return pd.DataFrame(self.rows).to_csv(index=False).encode(errors="replace")

    def json(self, settings: Mapping[str, Any]) -> bytes:
        """All of it, with the settings, which are JSON values, as a JSON file."""
        return (json.dumps({**asdict(self), "settings": settings}, indent=2) + "\n").encode(errors="replace")


def check_sanity(
    subject: ExplainedModel,
    methods: Sequence[str],
    name: str,
    picture: Image.Image,
    target: int | None = None,
    *,
    orders: Sequence[str] = (CASCADING,),
    max_layers: int | None = None,
    settings: MethodSettings | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> SanityChecks:
    """Runs :func:`model_randomization` and :func:`random_logit` on one class of an image, method by method.

    Args:
        subject (ExplainedModel): The model and the layer.
        methods (Sequence[str]): As ``captum_unioncam.methods`` knows them.
        name (str): The image's.
        picture (PIL.Image.Image): In mode RGB, of any size.
        target (int or None): The class. Default: None, the most probable
        orders (Sequence[str]): Of the layers, each as ``model_randomization`` takes it. Default: ("cascading",)
        max_layers, settings, seed: As ``model_randomization`` takes them.
        show_progress (bool): Show a progress bar on the standard error stream. Default: False

    Returns:
        *SanityChecks*: Also of the other methods if one fails.
    """
    inputs, black = subject.input_and_baseline(subject.shown(picture))
    if target is None:
        target = int(subject.confidences(inputs).argmax())
    settings = replace(settings or MethodSettings(), confidence_fn=subject.confidence_fn)
    how: dict[str, Any] = {"baselines": black, "settings": settings, "seed": seed}

    def checks(method: str) -> list[Similarity]:
        given = subject.model, method, inputs, target, subject.layer
        found = [
            row for order in orders for row in model_randomization(*given, order=order, max_layers=max_layers, **how)
        ]
        return found if subject.classes < 2 else [*found, *random_logit(*given, **how)]

    rows: list[Similarity] = []
    failures = {}
    for method in progress(methods, desc="methods") if show_progress else methods:
        try:
            rows += checks(method)
        except Exception as error:
            # A method may raise anything.
            failures[method] = without_name(error, method)
    class_name = subject.classifier.class_name(target)
    return SanityChecks(name, target, class_name, subject.layer_name, rows, failures)


class _Explained:
    """Examples with all that it takes to explain them, by a method, on a model or a copy of it."""

    def __init__(
        self,
        model: Module,
        inputs: Tensor,
        target: int | Tensor,
        layer: Layer | None,
        baselines: Tensor | float,
        settings: MethodSettings | None,
        seed: int,
    ) -> None:
        self.model, self.inputs, self.settings, self.seed = model, inputs, settings, seed
        self.target = torch.as_tensor(target, device=inputs.device).expand(len(inputs))
        self.baselines = torch.as_tensor(baselines, dtype=inputs.dtype, device=inputs.device)
        if self.baselines.dim() < inputs.dim():
            self.baselines = self.baselines.expand(1, *inputs.shape[1:])
        found = find_spatial_layer(model, inputs)[1] if layer is None else named_layers(layer, model)
        assert isinstance(found, Module)
        self.layer = found

    def maps(self, method: str, model: Module, layer: Module, target: Tensor | None = None) -> Tensor:
        """The method's maps with their signs, (N, 1, H, W)."""
        target = self.target if target is None else target
        with seeded(self.seed):
            return create(method, model, layer, self.settings)(self.inputs, target, self.baselines, signed=True)

    def original(self, method: str) -> Tensor:
        """The maps before any change."""
        maps = self.maps(method, self.model, self.layer)
        if examples := _constant(maps).nonzero().flatten().tolist():
            raise ValueError(
                f"{method}: its map is constant for the examples {examples}, so nothing can be said of changes; "
                "explain another layer or class."
            )
        return maps

    def other_classes(self) -> Tensor:
        """For each example, one of the classes that is not its target."""
        with torch.no_grad(), evaluation_mode(self.model) as (forward,):
            classes = output_tensor(forward(self.inputs.clone()), len(self.inputs)).shape[1]
        if classes < 2:
            raise ValueError("model: has one output, so there is no other class; give a model of several.")
        generator = torch.Generator().manual_seed(self.seed)
        offsets = torch.randint(1, classes, self.target.shape, generator=generator)
        return (self.target + offsets.to(self.target.device)) % classes


def _names(methods: str | Sequence[str]) -> list[str]:
    return [methods] if isinstance(methods, str) else list(methods)


def _constant(maps: Tensor) -> Tensor:
    """Whether each map is the same everywhere, (N,)."""
    return spatial_range(maps).flatten(1).amax(1) == 0


def _compared(
    original: Tensor, maps: Tensor, method: str, check: str, step: int, changed: Iterable[str]
) -> Iterator[Similarity]:
    """The similarities of two maps of each example."""
    absolute = original.abs(), maps.abs()
    numbers = (
        structural_similarity(*map(minmax, absolute)).tolist(),
        rank_correlation(*absolute).tolist(),
        rank_correlation(original, maps).tolist(),
        _constant(maps).tolist(),
    )
    for example, (name, *of_example) in enumerate(zip(changed, *numbers, strict=True)):
        yield Similarity(method, check, step, name, example, *of_example)
