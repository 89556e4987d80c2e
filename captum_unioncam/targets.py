"""Functions of a model's output for tasks other than one class of an image: one score for each example, to explain.

Each is called on a model and returns a function of inputs to scores (N, 1), which methods and metrics take as
``forward_func``, without a target. Only ``LayerLinearCam`` does not: it needs a linear layer of the classes.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from captum_unioncam.engine.checks import check_choice, described
from captum_unioncam.engine.confidence import OutputFunction, output_tensor

__all__ = ["DetectionTarget", "EmbeddingTarget", "PairTarget", "SegmentationTarget"]


class _Target:
    def __call__(self, model: Callable[..., Any], output_fn: OutputFunction | None = None) -> Callable[..., Tensor]:
        """The model as a function of its inputs to scores (N, 1); a module if it is one.

        Args:
            model (Callable): A module or any function, with an output as the class names it.
            output_fn (Callable or None): What the model returns to such an output. Default: None, as it is; of a tuple,
                dict or dataclass the tensor named "logits" or "out", or else the only one with a row for each example
        """
        scores = partial(self._scores, output_fn)
        return _Scored(model, scores) if isinstance(model, Module) else partial(scores, model)

    def _scores(self, output_fn: OutputFunction | None, model: Callable[..., Any], *inputs: Any) -> Tensor:
        output = model(*inputs)
        return self.score(output if output_fn is None else output_fn(output), inputs[0].shape[0]).unsqueeze(1)

    def score(self, output: Any, rows: int) -> Tensor:
        """The scores (N,) of what a model returned for N rows."""
        raise NotImplementedError


class _Scored(Module):
    def __init__(self, model: Module, scores: Callable[..., Tensor]) -> None:
        super().__init__()
        # A name that errors leave out in front of a layer's.
        self.module = model
        self.scores = scores

    def forward(self, *inputs: Any) -> Tensor:
        return self.scores(self.module, *inputs)


class SegmentationTarget(_Target):
    r"""
    How sure a model of segmentation is of a class, on average over a region: the mean of its softmax there, in [0, 1].

    The model returns (N, classes, H, W), by itself or by ``output_fn``.

    Args:
        class_index (int): The class.
        mask (Tensor or None): bool (H, W): the region, of the size of the model's output. Default: None, where each
            example's own output has the class as its largest, in each pass anew

    Examples::

        >>> region = model(images)["out"][0].argmax(0) == 15
        >>> forward = SegmentationTarget(15, region)(model)
        >>> attr = LayerUnionCam(forward, model.backbone.layer4).attribute(images[:1])
    """

    def __init__(self, class_index: int, mask: Tensor | None = None) -> None:
        try:
            self.class_index = operator.index(class_index)
        except TypeError as error:
            raise ValueError(
                f"class_index: got {described(class_index)}; give the number of a class, and the region as mask."
            ) from error
        if mask is not None and (mask.dtype != torch.bool or mask.dim() != 2):
            raise ValueError(
                f"mask: got {mask.dtype} of shape {tuple(mask.shape)}; give bool (H, W), such as "
                "output[0].argmax(0) == 15."
            )
        if mask is not None and not mask.any():
            raise ValueError("mask: has no place that is True; give a region that is not empty.")
        self.mask = mask

    def score(self, output: Any, rows: int) -> Tensor:
        output = output_tensor(output, rows, "model")
        region = self._region(output)
        confidences: Tensor = output.softmax(1)[:, self.class_index] * region
        return confidences.flatten(1).sum(1) / region.flatten(1).sum(1).clamp(min=1)

    def _region(self, output: Tensor) -> Tensor:
        if self.mask is None:
            return output.argmax(1) == self.class_index
        if self.mask.shape[-2:] != output.shape[-2:]:
            raise ValueError(
                f"mask: has shape {tuple(self.mask.shape)}, and the model's output {tuple(output.shape)}; give a mask "
                "of the output's size."
            )
        return self.mask.to(output.device).expand(output.shape[0], *output.shape[2:])


class DetectionTarget(_Target):
    r"""
    How sure a detector is of a box: over all boxes, the largest score of the label times the overlap, in [0, 1].

    A masked image has other boxes, in another order: what counts is one of the label in the same place (the
    similarity of D-RISE, Petsiuk et al., CVPR 2021, https://arxiv.org/abs/2006.03204).

    The detector returns torchvision's form, a list of N dicts with "boxes" (M, 4), "scores" (M,) and "labels" (M,); or
    DETR's, "logits" (N, M, classes) and "pred_boxes" (N, M, 4) of centre and size in shares of the image, as
    ``box`` is then.

    Args:
        box (Tensor or sequence of 4): Left, top, right and bottom, as the detector gives them.
        label (int): The class.
        iou (float): Boxes of a smaller intersection over union do not count, in [0, 1). Default: 0
        activation (str): Turns DETR's logits into scores: "softmax" for DETR, Table Transformer and YOLOS, whose
            last class is no object; "sigmoid" for Conditional and Deformable DETR and RT-DETR. torchvision's detectors
            return scores, which stay as they are. Default: "softmax"

    Examples::

        >>> found = detector(images[:1])[0]
        >>> forward = DetectionTarget(found["boxes"][0], int(found["labels"][0]))(detector)
        >>> attr = LayerUnionCam(forward, detector.backbone.body.layer4).attribute(images[:1])
    """

    def __init__(self, box: Any, label: int, iou: float = 0.0, activation: str = "softmax") -> None:
        # Without its graph, which holds all that the detector computed, and on the CPU: MPS has no float64.
        self.box = torch.as_tensor(box).detach().cpu().double()
        if self.box.shape != (4,) or not (self.box[2:] > self.box[:2]).all():
            raise ValueError(f"box: got {box}; give left, top, right and bottom.")
        if not 0 <= iou < 1:
            raise ValueError(f"iou: got {iou}; give a number from 0 to below 1.")
        check_choice("activation", activation, ("softmax", "sigmoid"))
        self.label, self.iou, self.activation = label, iou, activation

    def score(self, output: Any, rows: int) -> Tensor:
        is_list = isinstance(output, (list, tuple))
        of_images = map(self._of_label, output) if is_list else zip(*self._of_queries(output), strict=True)
        return torch.stack([self._best(boxes, scores) for boxes, scores in of_images])

    def _of_label(self, found: Any) -> tuple[Tensor, Tensor]:
        """The boxes (M, 4) of an image and what they have as the score of the label, (M,)."""
        return found["boxes"], found["scores"] * (found["labels"] == self.label)

    def _of_queries(self, found: Any) -> tuple[Tensor, Tensor]:
        """The same of N images, (N, M, 4) and (N, M)."""
        centre, size = found["pred_boxes"].chunk(2, -1)
        logits = found["logits"]
        scores = (logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid())[..., self.label]
        return torch.cat([centre - size / 2, centre + size / 2], -1), scores

    def _best(self, boxes: Tensor, scores: Tensor) -> Tensor:
        overlap = overlaps(boxes, self.box.to(boxes))
        made = scores * overlap * (overlap >= self.iou)
        # An image without boxes has the score 0, with a gradient to nothing.
        return torch.cat([made, made.new_zeros(1)]).max()


class PairTarget(_Target):
    """Why one class and not another: the difference of two of a model's outputs (N, classes).

    Give ``confidence_fn``: the sigmoid of the difference is the softmax of the two classes alone.

    Args:
        one (int): The class that is explained.
        other (int): The class that it is compared with.

    Examples::

        >>> forward = PairTarget(281, 282)(model)  # a tabby and no tiger cat
        >>> pair = LayerUnionCam(forward, model.layer4, confidence_fn=torch.sigmoid)
        >>> attr = pair.attribute(images)
    """

    def __init__(self, one: int, other: int) -> None:
        if one == other:
            raise ValueError(f"other: is {other}, as one is; give two classes.")
        self.one, self.other = one, other

    def score(self, output: Any, rows: int) -> Tensor:
        tensor = output_tensor(output, rows, "model")
        return tensor[:, self.one] - tensor[:, self.other]


class EmbeddingTarget(_Target):
    """How similar an embedding is to another, of a text (CLIP) or of an image (retrieval): half of 1 plus the cosine.

    The model returns (N, D), by itself or by ``output_fn``.

    Args:
        reference (Tensor): (D,).

    Examples::

        >>> # Those of transformers 4 return the embeddings themselves, and need no output_fn.
        >>> pooled = lambda output: output.pooler_output
        >>> text = pooled(clip.get_text_features(**tokens))[0]
        >>> forward = EmbeddingTarget(text)(clip.get_image_features, output_fn=pooled)
        >>> attr = LayerUnionCam(forward, layer).attribute(images)
    """

    def __init__(self, reference: Tensor) -> None:
        if reference.dim() != 1 or not reference.any():
            raise ValueError(f"reference: has shape {tuple(reference.shape)}; give one embedding (D,) that is not 0.")
        self.reference = reference.detach()

    def score(self, output: Any, rows: int) -> Tensor:
        output = output_tensor(output, rows, "model")
        return (1 + F.cosine_similarity(output, self.reference.to(output)[None], dim=1)) / 2


def overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of boxes (M, 4) with one (4,), each left, top, right and bottom."""
    sides = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0)
    areas = [(one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1]) for one in (boxes, box)]
    intersection = sides.prod(1)
    return intersection / (areas[0] + areas[1] - intersection)
