"""Tasks as targets: each score by plain numbers, and a map where the right answer is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam, LayerUnionCam, metrics
from captum_unioncam.targets import DetectionTarget, EmbeddingTarget, PairTarget, SegmentationTarget, overlaps
from tests.attr.test_tasks import OneShotDetector, bright_block, bright_features, is_within, peak

BLOCK = (slice(8, 12), slice(4, 8))
PICTURE = bright_block(16, 12, at=BLOCK)


def test_segmentation_by_numbers():
    output = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[0.0, 1.0], [3.0, 5.0]]]])  # (1, 2, 2, 2)
    of_first = [math.exp(a) / (math.exp(a) + math.exp(b)) for a, b in ((0, 0), (2, 1), (1, 3), (0, 5))]
    mask = torch.tensor([[True, False], [True, True]])
    images = torch.zeros(1, 3, 2, 2)
    made = SegmentationTarget(0, mask)(lambda x: {"out": output, "aux": output})(images)
    assert made.tolist() == pytest.approx([(of_first[0] + of_first[2] + of_first[3]) / 3])
    # Without a mask: where class 1 is the largest.
    made = SegmentationTarget(1)(lambda x: output)(images)
    assert made.tolist() == pytest.approx([(2 - of_first[2] - of_first[3]) / 2])


def test_detection_by_numbers():
    assert overlaps(
        torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]]), torch.tensor([0.0, 0, 2, 2])
    ).tolist() == (pytest.approx([1, 1 / 7, 0]))
    found = [
        {
            "boxes": torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 2, 2]]),
            "scores": torch.tensor([0.1, 0.9, 0.99]),
            "labels": torch.tensor([3, 3, 4]),
        },
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    images = torch.zeros(2, 3, 4, 4)
    assert DetectionTarget([0, 0, 2, 2], 3)(lambda x: found)(images).tolist() == pytest.approx([0.9 / 7, 0])
    assert DetectionTarget([0, 0, 2, 2], 3, iou=0.5)(lambda x: found)(images).tolist() == pytest.approx([0.1, 0])
    queries = SimpleNamespace(
        logits=torch.tensor([[[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]]),
        pred_boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]]]),
    )
    made = DetectionTarget([0, 0, 1, 1], 0)(lambda x: vars(queries))(images[:1])
    first, second = 1 / (2 + math.e), math.e**2 / (math.e**2 + 2)
    assert made.tolist() == pytest.approx([max(first, second / 4)])


def test_pairs_and_embeddings_by_numbers():
    output, images = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 0.0]]), torch.zeros(2, 1)
    assert PairTarget(1, 2)(lambda x: {"logits": output})(images).tolist() == [[2], [0]]
    made = EmbeddingTarget(torch.tensor([1.0, 0.0, 0.0]))(lambda x: output)(images)
    assert made.tolist() == pytest.approx([(1 + 1 / math.sqrt(21)) / 2, 1])


def test_what_does_not_fit_is_refused():
    for make, argument in (
        (lambda: SegmentationTarget(0, torch.ones(2, 2)), "mask"),
        (lambda: SegmentationTarget(0, torch.zeros(2, 2, dtype=torch.bool)), "mask"),
        (lambda: DetectionTarget([2, 0, 1, 4], 1), "box"),
        (lambda: DetectionTarget([0, 0, 1, 4], 1, iou=1), "iou"),
        (lambda: PairTarget(1, 1), "other"),
        (lambda: EmbeddingTarget(torch.zeros(4)), "reference"),
    ):
        with pytest.raises(ValueError, match=f"^{argument}: "):
            make()
    other = SegmentationTarget(0, torch.ones(2, 2, dtype=torch.bool))(lambda x: torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match=r"^mask: has shape \(2, 2\)"):
        other(torch.zeros(1, 3, 3, 3))


class Labelled(OneShotDetector):
    def forward(self, images):
        found = super().forward(images)
        return [{**one, "labels": torch.ones(len(one["scores"]), dtype=torch.int64)} for one in found]


class Yolo(nn.Module):
    """A head in the style of YOLO: (N, 4 + classes, cells), centres and sizes in pixels, and a score for each class."""

    def __init__(self):
        super().__init__()
        self.detector = OneShotDetector()

    def forward(self, images):
        found = self.detector(images)
        boxes = torch.stack([one["boxes"] for one in found]).mT
        centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        scores = torch.stack([one["scores"] for one in found])[:, None]
        return torch.cat([centres, sizes, 0 * scores, scores], 1)


def as_detections(yolo):
    """What YOLO returns in torchvision's form: the best class of each cell, without suppression of its neighbours."""

    def detect(images):
        centres, sizes, scores = yolo(images).split([2, 2, 2], dim=1)
        corners = torch.cat([centres - sizes / 2, centres + sizes / 2], 1).mT
        best = scores.max(1)
        parts = zip(corners, best.values, best.indices, strict=True)
        return [{"boxes": boxes, "scores": values, "labels": labels} for boxes, values, labels in parts]

    return detect


@pytest.mark.parametrize("kind", ["torchvision", "yolo"])
def test_the_box_of_a_detector(kind):
    detector = Labelled().eval() if kind == "torchvision" else Yolo().eval()
    layer = detector.backbone if kind == "torchvision" else detector.detector.backbone
    forward = DetectionTarget([4, 8, 8, 12], 1)(detector if kind == "torchvision" else as_detections(detector))
    attr = LayerUnionCam(forward, layer).attribute(PICTURE)
    assert is_within(tuple(2 * i for i in peak(attr)), BLOCK)
    assert forward(PICTURE).item() > 0.4
    assert metrics.deletion(forward, PICTURE, attr, None, steps=4).item() < forward(PICTURE).item()


@pytest.mark.parametrize(
    ("target", "confidence_fn"),
    [
        (SegmentationTarget(1), None),
        (PairTarget(1, 2), torch.sigmoid),
        (EmbeddingTarget(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)), None),
    ],
)
def test_maps_of_the_other_targets(target, confidence_fn):
    features, head = bright_features(), nn.Conv2d(4, 3, 1).double()
    with torch.no_grad():
        head.weight[:, 0, 0, 0] = torch.tensor([0.0, 5.0, -5.0])  # class 1 is bright
    segment = nn.Sequential(features, head)
    model = (
        segment
        if isinstance(target, SegmentationTarget)
        else nn.Sequential(segment, nn.AdaptiveMaxPool2d(1), nn.Flatten())
    )
    for method in (LayerScoreCam, LayerUnionCam):
        attr = method(target(model), features, confidence_fn=confidence_fn).attribute(
            PICTURE, None if confidence_fn is None else 0
        )
        assert is_within(tuple(2 * i for i in peak(attr)), BLOCK)
