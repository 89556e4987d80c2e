"""ViT-ReciproCAM: each patch scored by what the model says of its neighbourhood alone."""

from torch import Tensor

from captum_unioncam.attr.base import ConfidenceTailCam, LayerT
from captum_unioncam.attr.recipro_cam import positions, smoothed
from captum_unioncam.engine.tail import TailPasses, every


class LayerVitReciproCam(ConfidenceTailCam[LayerT]):
    r"""
    ViT-ReciproCAM: Recipro-CAM for vision transformers, whose class token is kept and whose patches are masked.

    With :math:`A` the layer's patches as maps, :math:`G^{(p)}` a mask that is 1/4 at patch :math:`p`, 1/8
    and 1/16 at its neighbours, and 0 elsewhere, and :math:`\text{conf}_c(A)` the class confidence of the part behind
    the layer, with the class token and other tokens unchanged,

    .. math::
        L_p = \text{conf}_c(G^{(p)} A)

    (Byun and Lee, *ViT-ReciproCAM: gradient and attention-free visual explanations for vision transformer*, 2023,
    https://arxiv.org/abs/2310.02588), as in the authors' code. Its layer is the first normalisation of the second last
    block, ``encoder.layers[-2].ln_1`` in torchvision's transformers. As in the authors' code, only the attention branch
    of that block is masked, not its skip connection. To mask both, explain the output of the block before. Each
    neighbour keeps its own features; the Gaussian of ``LayerReciproCam`` copies the centre's. The map is not a sum over
    channels: with ``attr_dim_summation=False``, each channel gets an equal share of it.

    Use it for transformers without gradients: it needs 1 pass of the model and :math:`h \cdot w` passes (196 for 14x14
    patches) of the part behind the layer, for any number of targets.
    """

    name = "vit_recipro_cam"

    def terms(self, activations: Tensor, tail: TailPasses, *, gaussian: bool = True) -> Tensor:
        """
        Args:
            gaussian (bool): Show the neighbourhood of a patch. If False, show the patch alone. Default: True

        Examples::

            >>> recipro_cam = LayerVitReciproCam(model, model.encoder.layers[-2].ln_1)
            >>> attr = recipro_cam.attribute(images, target=3)  # (N, 1, 14, 14)
        """
        size = activations.shape[2:]

        def neighbourhood(rows: Tensor, _examples: Tensor, numbers: Tensor) -> Tensor:
            masks = positions(numbers, size, rows.dtype)
            return rows * (smoothed(masks) if gaussian else masks)

        scores = tail.scores(activations, f"patches {gaussian}", neighbourhood, every(activations, size.numel()))
        share = scores.reshape(-1, 1, *size) / activations.shape[1]
        return share.expand(activations.shape).clone()
