import math

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from captum_unioncam import LayerAugmentedGradCam
from captum_unioncam.attr import augmented_grad_cam as module
from captum_unioncam.testing import Traits
from tests.attr.reference import activation_and_gradient, up
from tests.networks import TinyNet, same, tiny_inputs

COPIES = 3
TRAITS = Traits(
    spatial_dims=(2,),
    terms="none",
    at_input_size=True,
    masked_passes=lambda live: COPIES,
    # Hundreds of steps of Adam in every check take too long; tests below are of those.
    arguments={"aggregation": "mean", "n_augmentations": COPIES},
    # The mirror image is turned to the same side.
    without=("flips",),
)


def moves_of(count, seed=0):
    """Turn, and shift in y and x, of each copy."""
    uniform = 2 * torch.rand(count - 1, 3, generator=torch.Generator().manual_seed(seed)).double() - 1
    return [(0.0, 0.0, 0.0), *((0.5 * t, 30 / 224 * y, 30 / 224 * x) for t, y, x in uniform.tolist())]


def value_at(picture, y, x):
    """Bilinear, of (H, W), with 0 outside."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * picture[row, column].item()
    return total


def turned_and_shifted(picture, move, back=False):
    """The turn about the centre and then the shift, or the two undone, of (H, W)."""
    height, width = picture.shape
    cy, cx = (height - 1) / 2, (width - 1) / 2
    angle, dy, dx = move[0], move[1] * height, move[2] * width
    made = torch.zeros_like(picture)
    for row in range(height):
        for column in range(width):
            y, x = (row - cy, column - cx) if back else (row - dy - cy, column - dx - cx)
            turn = -angle if back else angle
            y, x = math.cos(turn) * y + math.sin(turn) * x, math.cos(turn) * x - math.sin(turn) * y
            y, x = (y + cy + dy, x + cx + dx) if back else (y + cy, x + cx)
            made[row, column] = value_at(picture, y, x)
    return made


def grad_cams(forward_func, layer, example, target, moves, black=0.0):
    maps = []
    for move in moves:
        cover = turned_and_shifted(torch.ones_like(example[0, 0]), move)
        copy = torch.stack([turned_and_shifted(channel, move) + (1 - cover) * black for channel in example[0]])[None]
        activations, gradients = activation_and_gradient(lambda x=copy: forward_func(x), layer, target)
        total = torch.zeros_like(activations[0, 0])
        for a, g in zip(activations[0], gradients[0], strict=True):
            total += g.sum() / g.numel() * a
        maps.append(total.clamp(min=0))
    return maps


def reference(forward_func, layer, example, target, aggregation, n_augmentations, seed=0, black=0.0):
    moves = moves_of(n_augmentations, seed)
    maps = grad_cams(forward_func, layer, example, target, moves, black)
    if aggregation == "super_resolution":
        return descended(maps, moves, tuple(example.shape[2:]))[None, None]
    back = [
        turned_and_shifted(up(g[None, None], tuple(example.shape[2:]))[0, 0], move, back=True)
        for g, move in zip(maps, moves, strict=True)
    ]
    every = torch.stack(back)
    return (every.mean(0) if aggregation == "mean" else every.max(0).values)[None, None]


def descended(maps, moves, size):
    """Adam's steps, of the gradient worked out by hand."""
    height, width = size
    matrices = []
    for move in moves:
        # What each pixel does to each position of the reduced copy.
        columns = []
        for pixel in range(height * width):
            single = torch.zeros(height * width, dtype=torch.float64)
            single[pixel] = 1
            copy = turned_and_shifted(single.reshape(size), move)[None, None]
            small = F.interpolate(copy, maps[0].shape, mode="bilinear", align_corners=False)
            columns.append(small.flatten())
        matrices.append(torch.stack(columns, 1))
    wanted = [g / g.max() if g.max() > 0 else g for g in maps]
    h, m, v = (torch.zeros(height * width, dtype=torch.float64) for _ in range(3))
    for t in range(1, 201):
        gradient = len(maps) * 2 * 0.0001 * h
        for matrix, g in zip(matrices, wanted, strict=True):
            gradient = gradient + 2 * matrix.T @ (matrix @ h - g.flatten())
        picture, slopes = h.reshape(size), torch.zeros(size, dtype=torch.float64)
        for row in range(height):
            for column in range(width):
                for y, x in ((row + 1, column), (row, column + 1)):
                    if y < height and x < width:
                        sign = torch.sign(picture[y, x] - picture[row, column])
                        slopes[y, x] += sign
                        slopes[row, column] -= sign
        gradient = gradient + len(maps) * 0.002 * slopes.flatten()
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        h = h - 0.001 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return h.reshape(size)


@pytest.fixture
def net():
    return TinyNet(activation=nn.SiLU())


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize(("aggregation", "examples"), [("super_resolution", 1), ("mean", 3), ("max", 3)])
def test_agrees_with_the_reference(net, aggregation, examples, seed):
    inputs, targets = tiny_inputs(examples=examples), [1, 2, 3][:examples]
    settings = {"aggregation": aggregation, "n_augmentations": 3, "baselines": 0.4}
    generator = torch.Generator().manual_seed(seed)
    made = LayerAugmentedGradCam(net, net.features).attribute(inputs, targets, generator=generator, **settings)
    for i, target in enumerate(targets):
        expected = reference(net, net.features, inputs[i : i + 1], target, aggregation, 3, seed, 0.4)
        assert torch.allclose(made[i : i + 1], expected, rtol=0, atol=1e-9)


def test_what_is_moved_is_moved_back():
    picture = torch.zeros(1, 1, 21, 31, dtype=torch.float64)
    picture[..., 9:13, 12:19] = 1
    size = picture.shape[2:]
    places = module.every_place(picture, size)
    for move in module.drawn_moves(5, None):
        there = module.sampled(picture, module.moved(places, move, size))
        back = module.sampled(there, module.moved_back(places, move, size))
        assert abs(there.sum() / picture.sum() - 1) < 0.05
        assert torch.corrcoef(torch.stack([back.flatten(), picture.flatten()]))[0, 1] > 0.9
    assert not torch.allclose(there, picture, atol=0.1)
    twice = module.moved_back(module.moved(places, move, size), move, size)
    assert torch.allclose(twice, places, atol=1e-12)


@pytest.mark.parametrize("size", [(12, 9), (7, 7), (5, 3), (2, 2)])
def test_reducing_is_interpolation(size):
    picture = tiny_inputs(2)[:, :1]
    places, weights = module.reducing(torch.zeros(1, 1, *size, dtype=torch.float64), (8, 6))
    parts = module.sampled(picture, places).reshape(3, 1, size[0], 2, size[1], 2)
    expected = F.interpolate(picture, size, mode="bilinear", align_corners=False)
    assert torch.allclose((parts * weights).sum((3, 5)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_one_augmentation_is_grad_cam_upsampled(net, aggregation):
    inputs = tiny_inputs()
    made = LayerAugmentedGradCam(net, net.features).attribute(inputs, 1, aggregation=aggregation, n_augmentations=1)
    captums = LayerGradCam(net, net.features).attribute(inputs, 1, relu_attributions=True)
    assert same(made, up(captums.detach(), (8, 6)))


def test_super_resolution_does_not_depend_on_the_batch(net):
    inputs = tiny_inputs()
    cam, settings = LayerAugmentedGradCam(net, net.features), {"n_augmentations": 4}
    whole = cam.attribute(inputs, 1, **settings)
    assert whole.shape == (3, 1, 8, 6)
    assert 0.1 < whole.max() < 0.21
    for i in range(3):
        assert same(cam.attribute(inputs[i : i + 1], 1, **settings), whole[i : i + 1])


def test_a_map_of_zeros_stays_one(net):
    made = module.super_resolution(torch.zeros(2, 3, 4, 3), module.drawn_moves(3, None).float(), (8, 6))
    assert (made == 0).all()


@pytest.mark.usefixtures("rows_tried")
def test_pictures_are_moved_and_other_inputs_and_the_first_copy_are_not():
    net, seen, vector = TinyNet(), [], torch.ones(3, 4, dtype=torch.float64)

    def forward(x, y):
        seen.append((x.clone(), y.clone()))
        return net(x.double()) + y

    inputs = (tiny_inputs() * 20).round().to(torch.int32)
    LayerAugmentedGradCam(forward, net.features).attribute((inputs, vector), 1, aggregation="max", n_augmentations=2)
    assert [x.dtype for x, _ in seen] == [torch.int32] * 3
    assert torch.equal(seen[1][0], inputs)
    assert not torch.equal(seen[2][0], inputs)
    assert all(torch.equal(y, vector) for _, y in seen)


def test_layers_of_other_dimensions_are_refused():
    net = TinyNet(1)
    with pytest.raises(ValueError, match=r"^layer: its output has 1 spatial dimensions, and turns are in two"):
        LayerAugmentedGradCam(net, net.features).attribute(tiny_inputs(1), 1)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        *(("n_augmentations", value, ValueError) for value in (0, -1, 2.5, None, True, "3")),
        *(("aggregation", value, ValueError) for value in ("median", None, 1)),
        *(("generator", value, TypeError) for value in (0, "a")),
    ],
)
def test_wrong_arguments_are_refused_before_any_pass(net, argument, value, error):
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=f"^{argument}: "):
        LayerAugmentedGradCam(net, net.features).attribute(tiny_inputs(), 1, **{argument: value})
    assert calls == []
