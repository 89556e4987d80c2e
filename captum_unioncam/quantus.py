"""This package's methods in Quantus, and Quantus' metrics in this package's table.

Quantus (https://github.com/understandable-machine-intelligence-lab/Quantus) is installed by the extra ``[quantus]``;
:func:`explain_func` works without it. Imports methods, metrics, attr and what is below them.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.attr.find_layer import find_spatial_layer, named_layers
from captum_unioncam.engine.maps import minmax, spatial_range
from captum_unioncam.engine.model_state import evaluation_mode
from captum_unioncam.engine.randomization import seeded
from captum_unioncam.methods.registry import create, gradients_and_seeds
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.metrics.attributions import one_channel, undisturbed
from captum_unioncam.metrics.table import metric as listed
from captum_unioncam.system.errors import Failure, WrongArgument, one_line
from captum_unioncam.system.imports import suggestion

__all__ = ["ConstantMapWarning", "explain_func", "metric"]

Array = npt.NDArray[Any]


class ConstantMapWarning(UserWarning):
    """A map is the same everywhere, so it ranks no pixel. Shown at every call, unless a filter says otherwise."""


# By Python's own rule a warning is shown once for a line of code, and Quantus calls from one line for each batch.
warnings.simplefilter("always", ConstantMapWarning, append=True)


def explain_func(
    name: str,
    layer: str | None = None,
    *,
    baselines: float | Array | Tensor = 0.0,
    settings: MethodSettings | None = None,
    seed: int = 0,
) -> Callable[..., Array]:
    """A method as the ``explain_func`` of Quantus' metrics.

    The layer is looked up in each model that the function gets, because Quantus also passes copies with reinitialised
    layers.

    Args:
        name (str): As ``captum_unioncam.methods`` knows it.
        layer (str or None): Dotted name of the layer to explain. Default: None, the last layer with a spatial output
        baselines (float, numpy.ndarray or Tensor): The black image: a number or (1 or N, C, H, W). Default: 0
        settings (MethodSettings or None): The method's settings. Default: None, the defaults
        seed (int): Seed of methods that draw random numbers, set at each call. Default: 0

    Returns:
        *Callable*: ``(model, inputs, targets, **kwargs)`` to the maps. It takes inputs (N, C, H, W) and targets (N,),
        as NumPy arrays, and computes on the model's device; ``kwargs``, such as Quantus' ``device``, are ignored. It
        returns a NumPy array (N, 1, H, W) of maps that are not negative, and warns about constant maps by
        :class:`ConstantMapWarning`. It raises ``ValueError`` if the model has no such layer.

    Examples::

        >>> explain = explain_func("union_cam", layer="layer4")
        >>> maps = explain(model, images.numpy(), labels.numpy())  # (N, 1, H, W)
    """

    def explain(model: Module, inputs: Array | Tensor, targets: Array | Tensor, **_kwargs: Any) -> Array:
        like = next(model.parameters(), torch.zeros(()))
        images = torch.as_tensor(inputs, dtype=like.dtype, device=like.device)
        classes = torch.as_tensor(targets, device=like.device).long().reshape(-1)
        black = torch.as_tensor(baselines, dtype=like.dtype, device=like.device)
        if black.dim() < images.dim():
            black = black.expand(1, *images.shape[1:])
        explained = find_spatial_layer(model, images)[1] if layer is None else named_layers(layer, model)
        assert isinstance(explained, Module)
        with seeded(seed):
            maps = create(name, model, explained, settings)(images, classes, black)
        _warn_of_constant(name, maps)
        return maps.cpu().numpy()

    return explain


def _warn_of_constant(name: str, maps: Tensor) -> None:
    examples = (spatial_range(maps).flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    if examples:
        warnings.warn(
            f"{name}: its map is the same everywhere for the examples {examples} of this call, so it ranks no pixel; "
            "leave their scores out, or explain another layer or class.",
            ConstantMapWarning,
            stacklevel=3,
        )


def metric(name: str, **arguments: Any) -> None:
    """Adds a metric of Quantus to the table of metrics, as "quantus_" and its name in lower case.

    From then on ``compare`` and ``evaluate`` compute it in this process. For the command, call this function in a
    module that is an entry point of the group "captum_unioncam.metrics". The metric gets the map as others do,
    upsampled to the input and scaled to [0, 1].

    Args:
        name (str): A class of Quantus, such as "Sparseness". Not one that explains other inputs or models: call those
            in Quantus, with :func:`explain_func`.
        **arguments: Arguments of its constructor.

    Raises:
        WrongArgument: Quantus has no such metric, or it is one of robustness or randomisation.
        Failure: Quantus is not installed.
        ValueError: The table already has a metric of this name from elsewhere.

    Examples::

        >>> metric("Complexity")  # "quantus_complexity" in the tables of this process
    """
    metric_class = _metric_class(name)

    def scores(forward_func: Any, inputs: Tensor, attributions: Tensor, target: Any, objects: Any = None) -> Tensor:
        maps = minmax(one_channel(attributions, inputs.shape[2:]))
        quantus_metric = metric_class(**{"disable_warnings": True, **arguments})
        with undisturbed(), evaluation_mode(forward_func), gradients_and_seeds():
            computed = quantus_metric(
                model=forward_func,
                x_batch=inputs.cpu().numpy(),
                y_batch=torch.as_tensor(target).reshape(-1).expand(len(inputs)).cpu().numpy(),
                a_batch=maps.cpu().numpy(),
                s_batch=None if objects is None else objects.cpu().numpy(),
                device=str(inputs.device),
            )
        values = np.asarray(computed, dtype=np.float64)
        if values.shape != (len(inputs),):
            raise WrongArgument(
                f"quantus.{name}: returned numbers of shape {values.shape} for {len(inputs)} examples; give arguments "
                "with which it returns one for each, such as return_aggregate=False."
            )
        return torch.from_numpy(values)

    needs_objects = metric_class.evaluation_category.name == "LOCALISATION"
    scores.__qualname__ = f"metric.{name}"
    listed(
        f"quantus_{name.lower()}",
        f"Quantus' {name}",
        larger_is_better=metric_class.score_direction.name == "HIGHER",
        needs_objects=needs_objects,
        defaults=() if needs_objects else ("objects",),
        description=f"{metric_class.name} as Quantus computes it.",
    )(scores)


def _metric_class(name: str) -> Any:
    """The metric of Quantus."""
    try:
        import quantus
    except ImportError as error:
        raise Failure(
            f"quantus.{name}: cannot import quantus ({one_line(error)}); pip install 'captum-unioncam[quantus]'."
        ) from error
    classes: dict[str, Any] = {
        key: value
        for key, value in vars(quantus).items()
        if isinstance(value, type) and issubclass(value, quantus.Metric) and value is not quantus.Metric
    }
    if name not in classes:
        raise WrongArgument(f"name: Quantus has no metric {name!r}{suggestion(name, classes)}")
    if classes[name].evaluation_category.name in ("ROBUSTNESS", "RANDOMISATION"):
        raise WrongArgument(
            f"name: Quantus' {name} explains other inputs or models; call it in Quantus, with explain_func."
        )
    return classes[name]
