"""The contract of a layer method: the method under test, its traits, and the list of checks."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from captum_unioncam.testing.networks import TinyNet

Reference = Callable[..., Tensor]

TOLERANCE = 1e-12
"""Of maps of at most 1 in float64: rounding, which the number of rows in a pass changes; of larger ones, relative."""

REFERENCE_TOLERANCE = 1e-9
"""Of maps whose sums are in another order."""


@dataclass(frozen=True)
class Traits:
    """What a method is like, where methods differ.

    Args:
        spatial_dims (tuple[int, ...]): The numbers of spatial dimensions that it works for. Default: 1 to 3
        terms (str): What its terms, the result without ``attr_dim_summation``, sum to: "map", or
            "map plus a constant", one for each example; or "none", where it refuses to give any. Default: "map"
        at_input_size (bool): Whether its maps have the input's size, and not the layer's. Default: False
        uses_gradients (bool): Whether the model has to be differentiable. Default: True
        masked_passes (Callable or None): How many masked passes an example takes, given how many of its channels are
            not constant over space; 0 for a method without. Default: None, not known
        half_precision (float): The least correlation of half-precision models' maps with those in float64.
            Default: 0.98
        network (type): What is explained in most checks: a ``TinyNet``. Default: ``TinyNet`` itself
        arguments (Mapping): Further arguments of ``attribute`` in each call, and of the reference. Default: none
        without (tuple[str, ...]): Checks, of those that ``LAYER_CHECKS`` names, that do not apply. Default: none
    """

    spatial_dims: tuple[int, ...] = (1, 2, 3)
    terms: Literal["map", "map plus a constant", "none"] = "map"
    at_input_size: bool = False
    uses_gradients: bool = True
    masked_passes: Callable[[int], int] | None = None
    half_precision: float = 0.98
    network: type[TinyNet] = TinyNet
    arguments: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """The method under test, and how it is called."""

    cls: Any
    reference: Reference | None
    traits: Traits

    def net(self, *args: Any, **kwargs: Any) -> TinyNet:
        """A new network of the traits' kind."""
        return self.traits.network(*args, **kwargs)

    def explain(
        self,
        forward_func: Callable[..., Any],
        layer: Any,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        *args: Any,
        **settings: Any,
    ) -> Any:
        """What a new method object attributes to the layer."""
        return self.cls(forward_func, layer).attribute(inputs, target, *args, **self.traits.arguments, **settings)

    def require_reference(
        self, made: Tensor, forward_func: Callable[..., Any], layer: Any, inputs: Tensor, targets: Sequence[Any]
    ) -> None:
        """Compares maps with those of the reference, one example at a time, if there is one."""
        if self.reference is None:
            return
        for i, target in enumerate(targets):
            example = inputs[i : i + 1]
            expected = self.reference(forward_func, layer, example, target, **self.traits.arguments)
            require_same(made[i : i + 1], expected, f"of the reference for example {i}", REFERENCE_TOLERANCE)

    def takes(self, argument: str) -> bool:
        """Whether ``attribute`` has an argument of this name."""
        return argument in inspect.signature(self.cls.attribute).parameters

    @property
    def summations(self) -> tuple[bool, ...]:
        """The values of ``attr_dim_summation`` that it takes."""
        return (True,) if self.traits.terms == "none" else (True, False)

    @property
    def ndim(self) -> int:
        """Where one number of spatial dimensions is enough: 2, or the first of those that the method works for."""
        return 2 if 2 in self.traits.spatial_dims else self.traits.spatial_dims[0]


Check = Callable[[Subject], None]

LAYER_CHECKS: dict[str, Check] = {}
"""The checks of a layer method by name, each a function of the ``Subject``."""


def layer_check(check: Check) -> Check:
    """Lists a check under its function's name."""
    LAYER_CHECKS[check.__name__] = check
    return check


def check_layer_method(
    cls: Any, reference: Reference | None = None, traits: Traits | None = None, checks: Iterable[str] | None = None
) -> None:
    """Checks that a layer attribution method keeps what this package promises of each of its own.

    Args:
        cls (type): A ``LayerAttribution`` whose ``attribute`` takes the positional arguments of ``LayerGradCam``'s.
        reference (Callable or None): The method in plain loops,
            ``reference(forward_func, layer, example, target, **arguments)``, which gives the map (1, 1, *spatial) of a
            batch of one. Default: None, values are compared with no other code's
        traits (Traits or None): What the method is like. Default: None, ``Traits()``
        checks (Iterable[str] or None): Names of checks, of ``LAYER_CHECKS``. Default: None, all that apply

    Raises:
        AssertionError: The first check that fails: what was given, and what was wrong with the result.

    Examples::

        >>> check_layer_method(LayerUnionCam, traits=Traits(terms="map plus a constant"))
    """
    traits = traits or Traits()
    subject = Subject(cls, reference, traits)
    for name in LAYER_CHECKS if checks is None else checks:
        if name not in traits.without:
            with torch.random.fork_rng(devices=[]), given(f"{cls.__name__}, {name}"):
                LAYER_CHECKS[name](subject)


@contextmanager
def given(situation: str) -> Iterator[None]:
    """Puts the situation in front of what is found wrong in it, errors included."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{situation}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{situation}: {type(error).__name__} was raised: {error}") from error


def require(condition: bool, complaint: str) -> None:
    """Raises ``AssertionError`` with the complaint unless the condition holds."""
    if not condition:
        raise AssertionError(complaint)


def require_same(made: Any, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raises ``AssertionError`` unless a map is the expected one; ``what`` says whose that is."""
    require(isinstance(made, Tensor), f"a {type(made).__name__} came back, not a tensor, the map {what}")
    require(
        made.shape == expected.shape,
        f"the result has shape {tuple(made.shape)}, and the map {what} has {tuple(expected.shape)}",
    )
    difference = (made.double() - expected.double()).abs().max().item()
    largest = max(1.0, expected.abs().max().item())
    require(difference <= tolerance * largest, f"the map differs by up to {difference:.3g} from that {what}")


def raised_by(call: Callable[[], Any]) -> Exception | None:
    """What ``call`` raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None
