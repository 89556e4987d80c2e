import pytest
import torch
from torch import nn

from captum_unioncam import LayerUnionCam, find_spatial_layer, tokens_to_maps
from captum_unioncam.attr.find_layer import spatial_layers
from captum_unioncam.engine.layouts.with_maps import WithMaps
from tests.networks import SIZES, PooledNet, TinyNet, tiny_inputs


@pytest.mark.parametrize("ndim", SIZES)
def test_finds_the_outermost_module_with_the_last_map(ndim):
    net = TinyNet(ndim)
    name, layer = find_spatial_layer(net, tiny_inputs(ndim))
    assert name == "features"
    assert layer is net.features


def test_a_map_of_one_position_has_no_space():
    net = PooledNet()
    assert find_spatial_layer(net, tiny_inputs())[0] == "features"


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("resnet18", "layer4"),
        ("mobilenet_v3_small", "features"),
        ("squeezenet1_1", "classifier.2"),
        ("vgg11", "avgpool"),
    ],
)
def test_torchvision_models(architecture, expected):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        net = models.get_model(architecture, weights=None)
        assert find_spatial_layer(net, torch.zeros(1, 3, 96, 96))[0] == expected


def test_a_layer_that_runs_again_behind_the_flattening_is_not_taken():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.activation = nn.Conv2d(2, 5, 3), nn.ReLU()
            self.hidden, self.head = nn.Linear(5, 6), nn.Linear(6, 4)

        def forward(self, x):
            x = self.activation(self.convolution(x)).mean((2, 3))
            return self.head(self.activation(self.hidden(x)))

    net = Reused().double()
    name, layer = find_spatial_layer(net, tiny_inputs())
    assert name == "convolution"
    assert LayerUnionCam(net, layer).attribute(tiny_inputs(), 1).shape == (3, 1, 6, 4)
    with pytest.raises(ValueError, match=r"layer: 'activation' \(ReLU\) is called 2 times in a pass"):
        LayerUnionCam(net, net.activation).attribute(tiny_inputs(), 1)


def test_a_layer_that_runs_again_in_space_is_not_taken():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.activation, self.second = nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3)

        def forward(self, x):
            return self.activation(self.second(self.activation(self.first(x)))).mean((2, 3))

    net = Reused().double()
    name, layer = find_spatial_layer(net, tiny_inputs())
    assert name == "second"
    assert LayerUnionCam(net, layer).attribute(tiny_inputs(), 1).shape == (3, 1, 4, 2)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("compiled", [lambda net: torch.jit.trace(net, tiny_inputs()), torch.jit.script])
def test_layers_of_torchscript_are_not_looked_for(compiled):
    with pytest.raises(ValueError, match=r"^model: is TorchScript, whose layers hooks do not see"):
        find_spatial_layer(compiled(TinyNet()), tiny_inputs())


def test_several_inputs_and_the_map_that_is_made_of_it():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = TinyNet()

        def forward(self, image, vector):
            return self.net(image) + vector

    net, inputs = Two(), (tiny_inputs(), torch.zeros(3, 4, dtype=torch.float64))
    name, layer = find_spatial_layer(net, inputs)
    assert name == "net.features"
    assert LayerUnionCam(net, layer).attribute(inputs, 1).shape == (3, 1, 4, 3)


def test_a_model_without_space_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(96, 3)).double()
    with pytest.raises(ValueError, match=r"no layer has an output of shape \(N, K, \*spatial\)"):
        find_spatial_layer(net, tiny_inputs())


class Mixed(nn.Module):
    """Tokens that do not follow the image place by place: each is of all places."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(96, 17 * 8), nn.Linear(8, 3)
        self.tokens = nn.Identity()

    def forward(self, images):
        tokens = self.mix(images.flatten(1))
        return self.head(self.tokens(tokens.unflatten(1, (17, 8))).mean(1))


def test_where_none_is_found_the_error_names_a_layer_and_its_transform():
    net = Mixed().double()
    images = torch.rand(2, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advice = r"such as 'tokens', whose output has shape \(2, 17, 8\), with "
    with pytest.raises(ValueError, match=advice + r"reshape_transform=tokens_to_maps\(4, 4, class_tokens=1\)\)"):
        find_spatial_layer(net, images)
    attr = LayerUnionCam(net, "tokens", reshape_transform=tokens_to_maps(4, 4, class_tokens=1)).attribute(images, 1)
    assert attr.shape == (2, 1, 4, 4)


def test_a_model_that_tells_nothing_of_gradients():
    net = TinyNet()

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).detach()

    assert find_spatial_layer(Detached(), tiny_inputs()) == ("net.features", net.features)


def test_what_was_put_around_a_layer_is_not_found():
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(120, 4)).double()
    net[0] = WithMaps(net[0], lambda output: output)
    assert find_spatial_layer(net, tiny_inputs()) == ("0", net[0])
    assert list(spatial_layers(net, tiny_inputs())) == ["0"]


def test_what_the_model_raises_is_raised():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(2, 5, 3).double()

        def forward(self, x):
            raise KeyError(f"behind {self.features(x).shape[1]} channels")

    with pytest.raises(KeyError, match="behind 5 channels"):
        find_spatial_layer(Failing(), tiny_inputs())
