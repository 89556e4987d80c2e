"""Boxes and masks follow an image through its preprocessing: judged pixel by pixel, in the image's coordinates."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from captum_unioncam.datasets.open import open_data_set
from captum_unioncam.models.preprocessing import Preprocessing, own_preprocessing
from captum_unioncam.models.zoo import preprocessing_of
from tests.datasets.test_layouts import HEADER, write_table


def expected(boxes, size, shape, to_picture):
    """For each pixel of the input, whether its centre's place in the image lies in a box."""
    marked = torch.zeros(shape, dtype=torch.bool)
    for y in range(shape[0]):
        for x in range(shape[1]):
            px, py = to_picture(x + 0.5, y + 0.5)
            marked[y, x] = any(
                max(x0, 0) <= px < min(x1, size[0]) and max(y0, 0) <= py < min(y1, size[1]) for x0, y0, x1, y1 in boxes
            )
    return marked


def squeezed(size, to):
    return lambda x, y: (x * size[0] / to, y * size[1] / to)


def cropped(size, resize, crop):
    """As torchvision does: the longer side is cut to whole pixels, half a pixel beside the crop to even ones."""
    shorter = min(size)
    width, height = (resize if side == shorter else int(resize * side / shorter) for side in size)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return lambda x, y: ((x + left) * size[0] / width, (y + top) * size[1] / height)


def boxes_of(size, seed):
    """Whose edges are not at the centres of any input's pixels."""
    generator = np.random.default_rng(seed)
    boxes = []
    for _ in range(3):
        (x0, x1), (y0, y1) = (np.sort(generator.uniform(-5, side + 5, 2)) for side in size)
        boxes.append((float(x0), float(y0), float(max(x1, x0 + 30)), float(max(y1, y0 + 30))))
    return boxes


@pytest.mark.parametrize("size", [(50, 37), (31, 64), (23, 23)])
def test_boxes_are_resized_and_cropped_with_their_picture(size):
    mask = Image.new("L", size)
    resized = v2.Compose([v2.Resize(24), v2.CenterCrop(20), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    for fit, to_picture, shape in (
        (own_preprocessing("size=24").fit, squeezed(size, 24), (24, 24)),
        (ImageClassification(crop_size=20, resize_size=24), cropped(size, 24, 20), (20, 20)),
        (resized, cropped(size, 24, 20), (20, 20)),
    ):
        seen = [Preprocessing(fit).objects_seen(mask, boxes_of(size, seed)) for seed in range(4)]
        for seed, found in enumerate(seen):
            assert torch.equal(found, expected(boxes_of(size, seed), size, shape, to_picture))


def test_a_box_smaller_than_a_pixel_of_the_input_marks_one():
    mask = Image.new("L", (200, 100))
    mask.paste(255, (101, 51, 104, 53))
    preprocessing = own_preprocessing("size=10")
    assert not preprocessing.objects_seen(mask).any()
    assert preprocessing.objects_seen(mask, [(101, 51, 104, 53)]).nonzero().tolist() == [[5, 5]]
    assert preprocessing.objects_seen(mask, [(197, 98, 200, 100)]).nonzero().tolist() == [[9, 9]]


def test_a_box_outside_the_crop_marks_nothing():
    mask = Image.new("L", (96, 24))
    assert (
        not Preprocessing(ImageClassification(crop_size=20, resize_size=24)).objects_seen(mask, [(0, 0, 9, 24)]).any()
    )


@pytest.mark.parametrize("name", ["demo", "vgg16", "vit_b_16"])
@pytest.mark.parametrize("preprocess", ["auto", "paper"])
def test_boxes_and_the_mask_of_them_lose_the_same_pixels_but_for_corners(name, preprocess):
    """A corner is a matter of both edges: there, resizing the mask rounds the product of what they cover."""
    preprocessing = preprocessing_of(name, preprocess)
    boxes = [(37, 21, 203, 150), (150, 100, 290, 215)]
    mask = Image.new("L", (301, 233))
    for box in boxes:
        mask.paste(255, box)
    found, by_mask = preprocessing.objects_seen(mask, boxes), preprocessing.objects_seen(mask)
    assert found.sum() > 1000
    assert (found != by_mask).sum() <= 4 * len(boxes)


def test_an_own_fit_takes_the_mask_as_a_picture():
    def mirrored(picture):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).flip(2) / 255

    mask = Image.new("L", (9, 5))
    mask.paste(255, (0, 1, 2, 4))
    seen = Preprocessing(mirrored).objects_seen(mask, [(0, 1, 2, 4)])
    assert seen.nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (7, 8)]


def test_data_sets_with_boxes_hand_them_on(tmp_path):
    rows = "a.png,dog,1,2,3.5,4\na.png,dog,0,0,1,1\na.png,cat,0,0,10,6\nsub/b.png,cat,0,0,1,1\n"
    sample = open_data_set(write_table(tmp_path, HEADER + rows), ["cat", "dog"], 2).sample("a.png")
    assert sample.boxes == {0: [(0, 0, 10, 6)], 1: [(1, 2, 3.5, 4), (0, 0, 1, 1)]}
