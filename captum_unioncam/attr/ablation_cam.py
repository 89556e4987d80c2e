"""Ablation-CAM: each channel weighted by what the model's output loses without it."""

import math

import torch
from torch import Tensor

from captum_unioncam.attr.base import LayerT, TailCam
from captum_unioncam.engine.checks import check_number
from captum_unioncam.engine.maps import broadcast_over, divide_or_zero
from captum_unioncam.engine.tail import TailPasses


def check_layer_baseline(layer_baseline: float) -> None:
    """Raises ``ValueError`` unless ``layer_baseline`` is a finite number."""
    largest = math.nextafter(math.inf, 0)
    check_number("layer_baseline", layer_baseline, -largest, largest, "a finite number, what an absent channel holds")


class LayerAblationCam(TailCam[LayerT]):
    r"""
    Ablation-CAM: a CAM without gradients. A channel's weight is the drop of the output if the channel is removed.

    With :math:`A` the layer's output, :math:`y_c(A)` the target's output of the part of the model behind the
    layer, and :math:`A^{(k)}` equal to :math:`A` with channel :math:`k` set to 0,

    .. math::
        w_k = y_c(A) - y_c(A^{(k)}), \qquad L = \text{ReLU}\Big(\sum_k w_k A_k\Big)

    (Ramaswamy and others, *Ablation-CAM: visual explanations for deep convolutional network via gradient-free
    localization*, WACV 2020, https://doi.org/10.1109/WACV45572.2020.9093360). The paper divides the
    weights by :math:`y_c(A)`, which is the same for all channels: the map is equal up to a factor if it is positive,
    and has the wrong sign if it is negative. ``normalize_weights=True`` divides too. No official code is known: the
    formula is taken from other implementations, and from papers that cite it.

    Use it if gradients saturate or are not available. It needs 1 pass of the model and at most :math:`K + 1` passes of
    the part behind the layer, for any number of targets. A channel that is 0 everywhere needs no pass. A removed
    channel is 0, as after a ReLU; for a layer with negative outputs, another ``layer_baseline`` may be suitable.
    """

    name = "ablation_cam"
    relu = True

    def check(self, normalize_weights: bool, layer_baseline: float) -> None:
        check_layer_baseline(layer_baseline)

    def weights(
        self,
        activations: Tensor,
        tail: TailPasses,
        *,
        normalize_weights: bool = False,
        layer_baseline: float = 0.0,
    ) -> Tensor:
        """
        Args:
            normalize_weights (bool): Divide the weights by the output, as in the paper; they are 0 if it is 0.
                Default: False
            layer_baseline (float): The value of a removed channel, in the layer's units. Default: 0

        Raises:
            ValueError: A ``layer_baseline`` that is not a finite number.

        Examples::

            >>> ablation_cam = LayerAblationCam(model, model.layer4)
            >>> attr = ablation_cam.attribute(images, target=3)  # (N, 1, 7, 7)
        """
        present = (activations != layer_baseline).flatten(2).any(2)
        whole = torch.ones_like(present[:, :1])
        scores = tail.scores(
            activations,
            f"ablation {layer_baseline}",
            lambda rows, _examples, numbers: without(rows, numbers, layer_baseline),
            torch.cat([present, whole], 1),
            raw=True,
        )
        output = scores[:, -1:]
        weights = (output - scores[:, :-1]).masked_fill(~present, 0)
        return divide_or_zero(weights * output.sign(), output.abs()) if normalize_weights else weights


def without(activations: Tensor, channels: Tensor, value: float) -> Tensor:
    """The activations with ``value`` in one channel of each row; in none of a row whose number is K.

    Args:
        activations (Tensor): (R or 1, K, *spatial).
        channels (Tensor): (R,).
        value (float): What an absent channel holds.
    """
    ablated = channels.unsqueeze(1) == torch.arange(activations.shape[1], device=activations.device)
    return activations.masked_fill(broadcast_over(ablated, activations), value)
