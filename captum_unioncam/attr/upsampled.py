"""Layer attributions at the input's size, which Captum's metrics need."""

from typing import Any

import torch
from captum.attr import Attribution, LayerAttribution
from torch import Tensor

from captum_unioncam.engine._captum import format_tensor_into_tuples, log_usage
from captum_unioncam.engine.checks import check_choice, check_inputs, described

MODES = {"linear": 3, "bilinear": 4, "bicubic": 4, "trilinear": 5, "nearest": None, "nearest-exact": None, "area": None}
"""Of ``torch.nn.functional.interpolate``, each with the dimensions of what it takes; None: any."""


class UpsampledAttribution(Attribution):  # type: ignore[misc]
    r"""
    Wraps a layer attribution method, so that ``attribute`` gives maps of the input's spatial size.

    Captum's metrics need attributions of the inputs' size, and a tuple for a tuple. The attributions of a layer method
    are smaller, and it returns a tensor for a tuple of inputs.

    Args:
        method (LayerAttribution): Any layer method, Captum's included, whose attributions are (N, K, \*spatial).
        interpolate_mode (str): Mode of ``torch.nn.functional.interpolate``: "linear" for 1-D, "bilinear" or "bicubic"
            for 2-D, "trilinear" for 3-D, "nearest" or "area" for any. Default: "bilinear"
    """

    def __init__(self, method: LayerAttribution, interpolate_mode: str = "bilinear") -> None:
        if not isinstance(method, Attribution):
            raise TypeError(f"method: got {described(method)}; give an attribution method, such as LayerUnionCam.")
        check_choice("interpolate_mode", interpolate_mode, tuple(MODES))
        Attribution.__init__(self, method.forward_func)
        self.method = method
        self.interpolate_mode = interpolate_mode

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(self, inputs: Tensor | tuple[Tensor, ...], *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): The examples, along dimension 0 of each tensor.
            *args, **kwargs: Passed on to the ``attribute`` of the wrapped method.

        Returns:
            *Tensor* (N, K, \*spatial) at the input's spatial size. For a tuple of inputs, a tuple with one for each:
            zeros for inputs with another number of spatial dimensions than the attribution.

        Raises:
            ValueError: The wrapped method did not return exactly one attribution, or no input has the mode's
                dimensions.

        Examples::

            >>> upsampled = UpsampledAttribution(LayerUnionCam(model, model.features[28]))
            >>> attr = upsampled.attribute(images, target=3)  # (N, 1, 224, 224)
            >>> sensitivity = captum.metrics.sensitivity_max(upsampled.attribute, images, target=3)
        """
        is_inputs_tuple = isinstance(inputs, tuple)
        inputs = check_inputs(format_tensor_into_tuples(inputs))
        dims = MODES[self.interpolate_mode]
        if dims is not None and all(x.dim() != dims for x in inputs):
            raise ValueError(
                f"interpolate_mode: {self.interpolate_mode!r} is for {dims - 2} spatial dimensions, which none of the "
                f"inputs of shape {[tuple(x.shape) for x in inputs]} has; give one of {', '.join(MODES)}."
            )
        attribution = self.method.attribute(inputs if is_inputs_tuple else inputs[0], *args, **kwargs)
        if isinstance(attribution, (tuple, list)):
            if len(attribution) != 1:
                raise ValueError(
                    f"method: {self.method.get_name()} returned {len(attribution)} values, not one attribution; wrap "
                    "one layer of one output, and ask the method itself for details."
                )
            (attribution,) = attribution
        upsampled = tuple(
            LayerAttribution.interpolate(attribution, tuple(x.shape[2:]), self.interpolate_mode)
            if x.dim() == attribution.dim()
            else torch.zeros_like(x)
            for x in inputs
        )
        return upsampled if is_inputs_tuple else upsampled[0]
