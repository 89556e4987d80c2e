"""Tasks other than one class of an image. Each test is an example: a network, how to explain it, and what must hold.

The networks are untrained, except one filter that responds to what is bright, so that the right answer is known.
"""

import pytest
import torch
from torch import nn

from captum_unioncam import LayerUnionCam, UpsampledAttribution
from tests.attr import reference

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLINGS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def bright_features(ndim=2, channels=1, seed=0):
    """Maps (N, 4, *spatial / 2): the first of what is bright, the others of little."""
    torch.manual_seed(seed)
    convolution = CONVOLUTIONS[ndim](channels, 4, 3, padding=1)
    with torch.no_grad():
        convolution.weight *= 0.1
        convolution.bias *= 0.1
        convolution.weight[0] = 1 / convolution.weight[0].numel()
        convolution.bias[0] = -0.3
    return nn.Sequential(convolution, nn.ReLU(), POOLINGS[ndim](2)).double()


def bright_block(*size, at):
    """Faint noise (1, 1, *size), and 1 in the block ``at``, a slice for each dimension."""
    inputs = 0.05 * torch.rand(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs[(0, 0, *at)] = 1
    return inputs


def peak(heat):
    """Where the map of the first example is largest."""
    return tuple(int(i) for i in torch.unravel_index(heat[0, 0].argmax(), heat.shape[2:]))


def is_within(position, block):
    return all(part.start <= i < part.stop for i, part in zip(position, block, strict=True))


def agrees(attr, expected):
    return attr.shape == expected.attribution.shape and torch.allclose(attr, expected.attribution, rtol=0, atol=1e-9)


def test_semantic_segmentation_a_class_over_its_region():
    features, head = bright_features(), nn.Conv2d(4, 3, 1).double()
    with torch.no_grad():
        head.weight[:, 0, 0, 0] = torch.tensor([0.0, 5.0, -5.0])  # class 1 is bright
    segment = nn.Sequential(features, head, nn.Upsample(scale_factor=2))  # (N, 3, H, W)
    block = (slice(8, 14), slice(2, 8))
    images = bright_block(16, 12, at=block)

    # The region is the one that the model sees in the whole image, in the masked ones as well.
    region = segment(images).argmax(1, keepdim=True) == 1  # (N, 1, H, W)

    def class_over_region(images, region):
        # Divided by the region's size: the softmax of sums would be 0 or 1.
        return (segment(images) * region).sum((2, 3)) / region.sum((2, 3))  # (N, 3)

    union_cam = LayerUnionCam(class_over_region, features)
    attr = union_cam.attribute(images, target=1, additional_forward_args=region)
    heat = UpsampledAttribution(union_cam).attribute(images, target=1, additional_forward_args=region)

    assert region.sum() >= 20
    assert is_within(peak(heat), block)
    expected = reference.union_cam(class_over_region, features, images, 1, additional_forward_args=(region,))
    assert agrees(attr, expected)


def test_multi_label_classification():
    features = bright_features()
    model = nn.Sequential(features, nn.Flatten(), nn.Linear(4 * 8 * 6, 5)).double()  # five yes-no questions
    images = bright_block(16, 12, at=(slice(8, 14), slice(2, 8)))

    # Labels do not exclude each other: each has a confidence of its own.
    union_cam = LayerUnionCam(model, features, confidence_fn=torch.sigmoid)
    attr, details = union_cam.attribute(images, target=3, return_details=True)
    every = union_cam.attribute_targets(images, [[0, 1, 2, 3, 4]])  # (N, 5, 1, h, w)

    assert details.baseline_confidence.item() == pytest.approx(model(0 * images)[0, 3].sigmoid().item(), abs=1e-9)
    assert agrees(attr, reference.union_cam(model, features, images, 3, confidence_fn=torch.sigmoid))
    assert torch.allclose(every[:, 3], attr, rtol=0, atol=1e-9)


class OneShotDetector(nn.Module):
    """A box (left, top, right, bottom) for each cell of 4x4 pixels, in the form of torchvision's detectors."""

    def __init__(self):
        super().__init__()
        self.backbone = bright_features()
        self.score = nn.Conv2d(4, 1, 2, stride=2).double()
        with torch.no_grad():
            self.score.weight[:, 0] = 3
            self.score.bias.fill_(-3)

    def forward(self, images):
        scores = self.score(self.backbone(images)).sigmoid()  # (N, 1, H / 4, W / 4)
        y, x = torch.meshgrid(*(4 * torch.arange(side) for side in scores.shape[2:]), indexing="ij")
        boxes = torch.stack([x, y, x + 4, y + 4], dim=-1).reshape(-1, 4).double()
        return [{"boxes": boxes, "scores": of_image.flatten()} for of_image in scores]


def overlap(boxes, box):
    """Intersection over union of boxes (M, 4) with one (4,)."""
    width, height = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0).unbind(1)
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (boxes, box)]
    return width * height / (areas[0] + areas[1] - width * height)


def test_the_score_of_a_detectors_box():
    detector = OneShotDetector().eval()
    block = (slice(8, 12), slice(4, 8))
    images = bright_block(16, 12, at=block)
    found = detector(images)[0]
    boxes = found["boxes"][found["scores"].argmax()][None]  # one for each image, (N, 4)

    def box_score(images, boxes):
        # A masked image's boxes are others: what counts is how sure the detector is of one in the same place.
        detected = detector(images)
        return torch.stack([(d["scores"] * overlap(d["boxes"], b)).max() for d, b in zip(detected, boxes, strict=True)])

    union_cam = LayerUnionCam(box_score, detector.backbone)
    attr = union_cam.attribute(images, additional_forward_args=boxes)  # one score an image: no target
    heat = UpsampledAttribution(union_cam).attribute(images, additional_forward_args=boxes)

    assert boxes.tolist() == [[4, 8, 8, 12]]
    assert is_within(peak(heat), block)
    assert agrees(
        attr, reference.union_cam(box_score, detector.backbone, images, None, additional_forward_args=(boxes,))
    )


def test_a_signal_such_as_an_electrocardiogram():
    features = bright_features(ndim=1, channels=2)  # two leads
    model = nn.Sequential(features, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[-1].weight[:, 0] = torch.tensor([-4.0, 4.0])  # class 1: there is a beat out of turn
    beat = (slice(40, 46),)
    signals = bright_block(64, at=beat).repeat(1, 2, 1)  # (N, leads, samples)

    union_cam = LayerUnionCam(model, features)
    attr = union_cam.attribute(signals, target=1)  # (N, 1, 32)
    heat = UpsampledAttribution(union_cam, "linear").attribute(signals, target=1)  # (N, 1, 64)

    assert heat.shape == (1, 1, 64)
    assert is_within(peak(heat), beat)
    assert agrees(attr, reference.union_cam(model, features, signals, 1))


def test_a_volume_such_as_a_scan():
    features = bright_features(ndim=3)
    model = nn.Sequential(features, nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[-1].weight[:, 0] = torch.tensor([-4.0, 4.0])  # class 1: there is a nodule
    nodule = (slice(2, 6), slice(4, 8), slice(6, 10))
    scans = bright_block(8, 12, 12, at=nodule)  # (N, 1, D, H, W)

    union_cam = LayerUnionCam(model, features)
    attr = union_cam.attribute(scans, target=1)  # (N, 1, 4, 6, 6)
    heat = UpsampledAttribution(union_cam, "trilinear").attribute(scans, target=1)  # (N, 1, 8, 12, 12)

    assert heat.shape == (1, 1, 8, 12, 12)
    assert is_within(peak(heat), nodule)
    assert agrees(attr, reference.union_cam(model, features, scans, 1))


class PictureAndRecord(nn.Module):
    """Judges an image together with numbers known of it."""

    def __init__(self):
        super().__init__()
        self.features = bright_features()
        self.head = nn.Linear(4 + 3, 2).double()
        with torch.no_grad():
            self.head.weight[:, 0] = torch.tensor([-4.0, 4.0])

    def forward(self, images, records):
        return self.head(torch.cat([self.features(images).amax((2, 3)), records], dim=1))


def test_two_inputs_a_picture_and_a_record():
    model = PictureAndRecord().eval()
    block = (slice(8, 14), slice(2, 8))
    images = bright_block(16, 12, at=block)  # (N, 1, H, W)
    records = torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64)  # (N, 3): goes in with every mask as it is

    union_cam = LayerUnionCam(model, model.features)
    attr = union_cam.attribute((images, records), target=1)
    heat, of_records = UpsampledAttribution(union_cam).attribute((images, records), target=1)

    assert is_within(peak(heat), block)
    assert (of_records == 0).all()  # a map of the layer says nothing of the record
    assert agrees(attr, reference.union_cam(model, model.features, (images, records), 1))


def test_two_inputs_a_picture_from_before_and_one_from_after():
    features = bright_features(channels=2)

    def change(before, after):
        return features(torch.cat([before, after], dim=1)).flatten(1).sum(1)  # (N,): one score, no target

    block = (slice(8, 14), slice(2, 8))
    before, after = bright_block(16, 12, at=(slice(0, 0), slice(0, 0))), bright_block(16, 12, at=block)

    union_cam = LayerUnionCam(change, features)
    attr = union_cam.attribute((before, after))  # both have space: the same mask goes on both
    expected = reference.union_cam(change, features, (before, after), None)

    assert is_within(peak(UpsampledAttribution(union_cam).attribute((before, after))[0]), block)
    assert agrees(attr, expected)
