"""Tasks as targets: each score by plain numbers, and a map where the right answer is known."""

import copy
import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from captum_unioncam import LayerHiResCam, LayerScoreCam, LayerUnionCam, methods, metrics
from captum_unioncam.methods import MethodSettings
from captum_unioncam.methods.adapters.captum import CAPTUM_METHODS
from captum_unioncam.metrics.table import all_metrics, find_metrics
from captum_unioncam.targets import DetectionTarget, EmbeddingTarget, PairTarget, SegmentationTarget, overlaps
from captum_unioncam.testing import PretendedDevices
from tests.attr import METHODS
from tests.attr.test_tasks import OneShotDetector, bright_block, bright_features, is_within, peak

BLOCK = (slice(8, 12), slice(4, 8))
PICTURE = bright_block(16, 12, at=BLOCK)


def test_segmentation_by_numbers():
    output = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[0.0, 1.0], [3.0, 5.0]]]])  # (1, 2, 2, 2)
    of_first = [math.exp(a) / (math.exp(a) + math.exp(b)) for a, b in ((0, 0), (2, 1), (1, 3), (0, 5))]
    mask = torch.tensor([[True, False], [True, True]])
    images = torch.zeros(1, 3, 2, 2)
    made = SegmentationTarget(0, mask)(lambda x: {"out": output, "aux": output})(images)
    assert made.shape == (1, 1)
    assert made.item() == pytest.approx((of_first[0] + of_first[2] + of_first[3]) / 3)
    # Without a mask: where class 1 is the largest.
    made = SegmentationTarget(1)(lambda x: output)(images)
    assert made.item() == pytest.approx((2 - of_first[2] - of_first[3]) / 2)


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
    assert DetectionTarget([0, 0, 2, 2], 3)(lambda x: found)(images).flatten().tolist() == pytest.approx([0.9 / 7, 0])
    above = DetectionTarget([0, 0, 2, 2], 3, iou=0.5)(lambda x: found)(images)
    assert above.flatten().tolist() == pytest.approx([0.1, 0])
    queries = SimpleNamespace(
        logits=torch.tensor([[[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]]),
        pred_boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]]]),
    )
    made = DetectionTarget([0, 0, 1, 1], 0)(lambda x: vars(queries))(images[:1])
    first, second = 1 / (2 + math.e), math.e**2 / (math.e**2 + 2)
    assert made.item() == pytest.approx(max(first, second / 4))


def test_a_box_keeps_no_graph_and_no_device_without_float64():
    box = torch.tensor([0.0, 0, 2, 2], requires_grad=True) * 2
    target = copy.deepcopy(DetectionTarget(box, 3))
    assert target.box.grad_fn is None
    devices = PretendedDevices()
    with devices.active():
        there = devices.put(torch.tensor([0.0, 0, 4, 4]), "mps")
        assert there.device.type == "mps"
        assert DetectionTarget(there, 3).box.device.type == "cpu"
    found = [{"boxes": torch.tensor([[0.0, 0, 4, 2]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([3])}]
    assert target(lambda x: found)(torch.zeros(1, 3, 4, 4)).tolist() == [[0.25]]


@pytest.mark.parametrize("kind", ["Detr", "ConditionalDetr"])
def test_detectors_of_hugging_face(kind):
    """DETR's scores are a softmax, and Conditional DETR's a sigmoid."""
    hf = pytest.importorskip("transformers")
    backbone = hf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 8], depths=[1] * 4, layer_type="basic")
    sizes = {"d_model": 16, "num_queries": 5, "num_labels": 4, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = getattr(hf, f"{kind}Config")(backbone_config=backbone, use_timm_backbone=False, **sizes, **heads)
    torch.manual_seed(0)
    model = getattr(hf, f"{kind}ForObjectDetection")(config).eval()
    images, box = torch.rand(2, 3, 64, 64), [0.2, 0.3, 0.7, 0.9]
    activation = "softmax" if kind == "Detr" else "sigmoid"
    forward = DetectionTarget(box, 2, activation=activation)(model)
    with torch.no_grad():
        made, found = forward(images), model(images)
    for i in range(2):
        best = 0.0
        for logits, (x, y, w, h) in zip(found.logits[i].tolist(), found.pred_boxes[i].tolist(), strict=True):
            powers = [math.exp(each) for each in logits]
            score = powers[2] / sum(powers) if kind == "Detr" else powers[2] / (1 + powers[2])
            wide = min(x + w / 2, box[2]) - max(x - w / 2, box[0])
            high = min(y + h / 2, box[3]) - max(y - h / 2, box[1])
            common = max(wide, 0) * max(high, 0)
            best = max(best, score * common / (w * h + 0.5 * 0.6 - common))
        assert best > 0
        assert made[i].item() == pytest.approx(best, rel=1e-4)
    attr = LayerHiResCam(forward, "model.input_projection").attribute(images)
    assert attr.shape == (2, 1, 2, 2)
    assert attr.any()


def test_a_detector_of_torchvision():
    detection = pytest.importorskip("torchvision.models.detection")
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU())
    backbone.out_channels = 8
    anchors = detection.anchor_utils.AnchorGenerator(((16,),), ((1.0,),))
    torch.manual_seed(0)
    model = detection.RetinaNet(
        backbone, 3, min_size=64, max_size=64, score_thresh=0.0, topk_candidates=20, anchor_generator=anchors
    ).eval()
    images = torch.rand(2, 3, 64, 64)
    # The boxes of a detector that needs gradients have a graph.
    found = model(images)[0]
    forward = DetectionTarget(found["boxes"][0], int(found["labels"][0]))(model)
    assert forward(images)[0].item() == pytest.approx(found["scores"][0].item())
    assert LayerUnionCam(forward, "backbone.1").attribute(images, max_channels=2).shape == (2, 1, 8, 8)


def test_pictures_by_a_text_of_clip():
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    texts, pictures = {**sizes, "vocab_size": 9, "eos_token_id": 8}, {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=texts, vision_config=pictures, projection_dim=6)).eval()
    images, tokens = torch.rand(2, 3, 32, 32), {"input_ids": torch.tensor([[1, 5, 8]])}
    both = clip(pixel_values=images, **tokens)
    text = as_embedding(clip.get_text_features(**tokens))[0]
    forward = EmbeddingTarget(text)(clip.get_image_features, output_fn=as_embedding)
    cosines = both.logits_per_image[:, 0] / clip.logit_scale.exp()
    assert forward(images)[:, 0].tolist() == pytest.approx(((1 + cosines) / 2).tolist(), rel=1e-5)
    attr = LayerHiResCam(forward, clip.vision_model.encoder.layers[-1].layer_norm1).attribute(images)
    assert attr.shape == (2, 1, 4, 4)
    assert attr.any()


def as_embedding(output):
    """What ``get_image_features`` returned, of transformers 4 and 5."""
    return getattr(output, "pooler_output", output)


def test_pairs_and_embeddings_by_numbers():
    output, images = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 0.0]]), torch.zeros(2, 1)
    assert PairTarget(1, 2)(lambda x: {"logits": output})(images).tolist() == [[2], [0]]
    made = EmbeddingTarget(torch.tensor([1.0, 0.0, 0.0]))(lambda x: output)(images)
    assert made.flatten().tolist() == pytest.approx([(1 + 1 / math.sqrt(21)) / 2, 1])
    # Of two tensors, the error's advice can be followed.
    with pytest.raises(ValueError, match=r"^model: returned tuple .* give output_fn"):
        PairTarget(1, 2)(lambda x: (output, output + 1))(images)
    second = PairTarget(1, 2)(lambda x: (output, 2 * output), output_fn=lambda made: made[1])
    assert second(images).tolist() == [[4], [0]]


def test_what_does_not_fit_is_refused():
    for make, argument in (
        (lambda: SegmentationTarget(torch.ones(2, 2, dtype=torch.bool)), "class_index"),
        (lambda: SegmentationTarget(0, torch.ones(2, 2)), "mask"),
        (lambda: SegmentationTarget(0, torch.zeros(2, 2, dtype=torch.bool)), "mask"),
        (lambda: DetectionTarget([2, 0, 1, 4], 1), "box"),
        (lambda: DetectionTarget([0, 0, 1, 4], 1, iou=1), "iou"),
        (lambda: DetectionTarget([0, 0, 1, 4], 1, activation="tanh"), "activation"),
        (lambda: PairTarget(1, 1), "other"),
        (lambda: EmbeddingTarget(torch.zeros(4)), "reference"),
    ):
        with pytest.raises(ValueError, match=f"^{argument}: "):
            make()
    other = SegmentationTarget(0, torch.ones(2, 2, dtype=torch.bool))(lambda x: torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match=r"^mask: has shape \(2, 2\)"):
        other(torch.zeros(1, 3, 3, 3))


def bright_classes(pooled):
    """Logits of three classes, for each place or for the largest; class 1 is what is bright."""
    features, head = bright_features(), nn.Conv2d(4, 3, 1).double()
    with torch.no_grad():
        head.weight[:, 0, 0, 0] = torch.tensor([0.0, 5.0, -5.0])
    return nn.Sequential(features, head, *((nn.AdaptiveMaxPool2d(1), nn.Flatten()) if pooled else ()))


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


# Every method and metric, with each target: as of a model whose own output is that number, which is written out here.

REFERENCE = torch.tensor([0.1, 1.0, -0.2], dtype=torch.float64)
ONLY = torch.zeros(1, dtype=torch.int64)
EXPLAIN = "explanation_func", "randomized_func", "other_class_func"
LEFT = torch.arange(6) < torch.tensor([[2]] * 8)  # bool (8, 6)


def segmentation(output):
    total = sum(output[:, :, y, x].softmax(1)[:, 1] for y in range(8) for x in range(2))
    return total / 16


def detection(found):
    made = []
    for one in found:
        best = 0
        for (left, top, right, bottom), score in zip(one["boxes"].tolist(), one["scores"], strict=True):
            # Of the explained box, 4 to 8 by 8 to 12.
            common = max(0, min(right, 8) - max(left, 4)) * max(0, min(bottom, 12) - max(top, 8))
            overlap = common / (16 + (right - left) * (bottom - top) - common)
            best = max(best, score * overlap) if overlap > 0 else best
        made.append(best)
    return torch.stack(made)


def similarity(output):
    lengths = output.square().sum(1).sqrt() * REFERENCE.square().sum().sqrt()
    return (1 + (output * REFERENCE).sum(1) / lengths) / 2


class WrittenOut(nn.Module):
    def __init__(self, model, number):
        super().__init__()
        self.model, self.number = model, number

    def forward(self, images):
        return self.number(self.model(images))[:, None]


TASKS = {
    "segmentation": (SegmentationTarget(1, LEFT), segmentation, None),
    "detection": (DetectionTarget([4, 8, 8, 12], 1), detection, None),
    "pair": (PairTarget(1, 2), lambda output: output[:, 1] - output[:, 2], torch.sigmoid),
    "embedding": (EmbeddingTarget(REFERENCE), similarity, None),
}


@pytest.fixture(params=TASKS)
def task(request):
    """The model by the target, and by the number written out; the layer, and what makes confidences."""
    target, number, confidence_fn = TASKS[request.param]
    if request.param == "detection":
        model = Labelled().eval()
        layer = model.backbone
    else:
        model = bright_classes(pooled=request.param != "segmentation").eval()
        layer = model[0]
    return target(model), WrittenOut(model, number), layer, confidence_fn


# CAM needs the linear layer of classes.
NAMES = [*(cls.name for cls in METHODS if cls.name != "cam"), "rise", *CAPTUM_METHODS]
EACH = [*product(TASKS, NAMES)]


@pytest.mark.parametrize(("task", "name"), EACH, indirect=["task"])
def test_every_method_explains_every_target(name, task, one_thread):
    scored, written_out, layer, confidence_fn = task

    def explained(model):
        torch.manual_seed(1)
        method = methods.create(name, model, layer, MethodSettings(confidence_fn=confidence_fn))
        return method(PICTURE, ONLY, torch.zeros_like(PICTURE), signed=True)

    expected = explained(written_out)
    assert expected.abs().max() > 0
    assert torch.allclose(explained(scored), expected, rtol=0, atol=1e-9 * max(1, expected.abs().max().item()))
    if name in ("score_cam", "union_cam"):
        assert is_within(peak(expected), BLOCK)


@pytest.mark.parametrize("metric", find_metrics(all_metrics()), ids=lambda metric: metric.name)
def test_every_metric_judges_every_target(metric, task, one_thread):
    scored, written_out, _, confidence_fn = task
    given = {
        "inputs": PICTURE,
        "attributions": torch.rand(1, 1, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        "objects": PICTURE > 0.5,
        "steps": 4,
        "return_curve": False,
        "confidence_fn": confidence_fn,
    }

    def value(model):
        torch.manual_seed(1)
        saliency = methods.create("saliency", model, None)
        explain = dict.fromkeys(EXPLAIN, lambda inputs: saliency(inputs, ONLY, torch.zeros_like(PICTURE)))
        return metric.compute({**given, **explain, "forward_func": model})

    values = value(scored)
    assert values.isfinite().all()
    assert torch.allclose(values, value(written_out), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [LayerScoreCam, LayerUnionCam])
def test_a_function_of_a_model_in_training_is_explained_in_evaluation(method):
    features = bright_features()
    model = nn.Sequential(features, nn.Dropout(0.5), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    target = EmbeddingTarget(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    expected = method(target(model.eval()), "0").attribute(PICTURE)
    model.train()
    for given in (model, lambda images: model(images), model.forward):
        assert torch.allclose(method(target(given), features).attribute(PICTURE), expected, rtol=0, atol=1e-9)
    assert all(module.training for module in model.modules())
    assert is_within(tuple(2 * i for i in peak(expected)), BLOCK)
