"""Imports Captum's private helpers, here only, where a test watches them; and its classes for type checkers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from captum._utils import common, gradient
from captum._utils.progress import NullProgress as NullProgress
from captum._utils.progress import progress as progress
from captum._utils.typing import BaselineType as BaselineType
from captum._utils.typing import TargetType as TargetType
from captum.log import log_usage as log_usage

if TYPE_CHECKING:
    # Captum ships no types. With Any as a base, overloads could not be told apart.
    class Attribution:
        forward_func: Callable[..., Any]

        def __init__(self, forward_func: Callable[..., Any]) -> None: ...
        def get_name(self) -> str: ...

    class GradientAttribution(Attribution): ...

    class PerturbationAttribution(Attribution): ...

    class LayerAttribution(Attribution):
        layer: Any
        device_ids: list[int] | None

        def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None) -> None: ...

else:
    from captum.attr import Attribution as Attribution
    from captum.attr import GradientAttribution as GradientAttribution
    from captum.attr import LayerAttribution as LayerAttribution
    from captum.attr import PerturbationAttribution as PerturbationAttribution

extract_device_ids = gradient._extract_device_ids
format_additional_forward_args = common._format_additional_forward_args
format_baseline = common._format_baseline
format_output = common._format_output
format_tensor_into_tuples = common._format_tensor_into_tuples
forward_layer_distributed_eval = gradient._forward_layer_distributed_eval
gather_distributed_tensors = gradient._gather_distributed_tensors
run_forward = common._run_forward
select_targets = common._select_targets
