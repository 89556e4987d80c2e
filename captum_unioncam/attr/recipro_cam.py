"""Recipro-CAM: each position scored by what the model says of it alone."""

import torch
from torch import Tensor

from captum_unioncam.attr.base import ConfidenceTailCam, LayerT
from captum_unioncam.engine.maps import weighted
from captum_unioncam.engine.tail import TailPasses, every


class LayerReciproCam(ConfidenceTailCam[LayerT]):
    r"""
    Recipro-CAM: a CAM without gradients. The value of a position is the class confidence for that position alone.

    With :math:`A` the layer's output, :math:`\text{conf}_c(A)` the class confidence of the part behind the layer, and
    :math:`A^{(p)}` equal to :math:`A` at position :math:`p`, in all channels, and 0 elsewhere,

    .. math::
        L_p = \text{conf}_c(A^{(p)})

    (Byun and Lee, *Recipro-CAM: gradient-free reciprocal class activation map*, 2022,
    https://arxiv.org/abs/2209.14074), as in the authors' code; ``gaussian`` is its Gaussian option. The map is not a
    sum over channels: with ``attr_dim_summation=False``, each channel gets an equal share of it.

    Use it for speed without gradients: it needs 1 pass of the model and :math:`h \cdot w` passes of the part behind the
    layer, for any number of channels and targets. For a layer close to the output, these take little time. It assumes
    that 0 means absent, as after a ReLU.
    """

    name = "recipro_cam"

    def terms(self, activations: Tensor, tail: TailPasses, *, gaussian: bool = False) -> Tensor:
        r"""
        Args:
            gaussian (bool): Also copy the position's values to its neighbours, weighted by :math:`(1, 2, 1) / 4` along
                each dimension. Default: False

        Examples::

            >>> recipro_cam = LayerReciproCam(model, model.layer4)
            >>> attr = recipro_cam.attribute(images, target=3)  # (N, 1, 7, 7)
        """
        size = activations.shape[2:]

        def alone(rows: Tensor, _examples: Tensor, numbers: Tensor) -> Tensor:
            if not gaussian:
                return rows * positions(numbers, size, rows.dtype)
            own = (
                rows.flatten(2)
                .expand(len(numbers), -1, -1)
                .gather(2, numbers.reshape(-1, 1, 1).expand(-1, rows.shape[1], 1))
            )
            return weighted(own.squeeze(2), smoothed(positions(numbers, size, rows.dtype)))

        scores = tail.scores(activations, f"recipro {gaussian}", alone, every(activations, size.numel()))
        share = scores.reshape(-1, 1, *size) / activations.shape[1]
        return share.expand(activations.shape).clone()


def positions(numbers: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Masks (R, 1, *size) that are 1 at one position each, and 0 elsewhere."""
    at = numbers.unsqueeze(1) == torch.arange(size.numel(), device=numbers.device)
    return at.reshape(-1, 1, *size).to(dtype)


def smoothed(masks: Tensor) -> Tensor:
    """Masks (R, 1, *spatial), each convolved with (1, 2, 1) / 4 along each dimension, 0 around them."""
    for dim in range(2, masks.dim()):
        length = masks.shape[dim]
        result = masks / 2
        if length > 1:
            result.narrow(dim, 1, length - 1).add_(masks.narrow(dim, 0, length - 1) / 4)
            result.narrow(dim, 0, length - 1).add_(masks.narrow(dim, 1, length - 1) / 4)
        masks = result
    return masks
