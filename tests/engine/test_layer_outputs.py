"""Layers that return several tensors: the maps among them are explained, and the map is that of the layer alone."""

import pytest
import torch
from torch import nn

from captum_unioncam import LayerAblationCam, LayerGradCamPlusPlus, LayerUnionCam

pytestmark = pytest.mark.usefixtures("one_thread")


def tokens(maps):
    return maps.flatten(2).mT


def attention(maps):
    return tokens(maps) @ tokens(maps).mT


def untokened(values):
    return values.mT.unflatten(2, (4, 4))


# What the layer makes of its maps, and what the model does with it to have them back.
RETURNED = {
    "maps behind a vector": (lambda maps: (maps.mean((2, 3)), maps), lambda output: output[1]),
    "maps and nothing": (lambda maps: (maps, None), lambda output: output[0]),
    "maps and attention": (lambda maps: (maps, attention(maps)), lambda output: output[0]),
    "tokens and a vector": (lambda maps: (tokens(maps), maps.mean((2, 3))), lambda output: untokened(output[0])),
    "tokens and attention": (lambda maps: (tokens(maps), attention(maps)), lambda output: untokened(output[0])),
    "tokens and heads": (lambda maps: [tokens(maps), attention(maps)[:, None]], lambda output: untokened(output[0])),
}


class Layer(nn.Module):
    def __init__(self, returned):
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 4, 4)
        self.returned = returned

    def forward(self, images):
        return self.returned(self.convolution(images).relu())


class Net(nn.Module):
    def __init__(self, returned, taken):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = Layer(returned), nn.Linear(5, 3)
        self.taken = taken
        self.double().eval()

    def forward(self, images):
        return self.head(self.taken(self.layer(images)).square().mean((2, 3)))


@pytest.mark.parametrize("method", [LayerUnionCam, LayerGradCamPlusPlus, LayerAblationCam])
@pytest.mark.parametrize("returned", RETURNED)
def test_the_only_maps_among_several_tensors_are_explained(method, returned):
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    several, alone = Net(*RETURNED[returned]), Net(lambda maps: maps, lambda output: output)
    attr = method(several, several.layer).attribute(images, 1)
    expected = method(alone, alone.layer).attribute(images, 1)
    assert expected.std() > 0
    assert torch.allclose(attr, expected, rtol=0, atol=1e-9)


def test_two_maps_give_two():
    net = Net(lambda maps: (maps, 2 * maps), lambda output: output[0] + output[1])
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert [len(maps) for maps in LayerAblationCam(net, "layer").attribute((images,), 1)] == [1, 1]


def test_a_layer_without_a_tensor_is_refused_with_another():
    net = Net(lambda maps: {"maps": maps}, lambda output: output["maps"])
    with pytest.raises(ValueError, match=r"^layer: 'layer' \(Layer\) has dict, .* such as 'layer.convolution'"):
        LayerUnionCam(net, net.layer).attribute(torch.rand(1, 3, 16, 16, dtype=torch.float64), 1)
