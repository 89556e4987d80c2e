"""What is taken for a map, in look-alikes of other libraries' networks: names do not matter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_unioncam import LayerLayerCam, LayerScoreCam, LayerUnionCam, channels_last_to_maps, find_spatial_layer
from captum_unioncam.attr.find_layer import layer_names, spatial_layers


class Heads(nn.Module):
    """Attention with identities on queries, keys and weights, and a bias of positions, as libraries have them."""

    def __init__(self, tokens, heads=2, width=16):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm, self.weights, self.mixed = (nn.Identity() for _ in range(4))
        self.bias = nn.Identity()
        self.table = nn.Parameter(torch.randn(1, heads, tokens, tokens)) if tokens else None

    def forward(self, t):
        n, length, width = t.shape
        q, k, v = self.qkv(t).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = self.q_norm(q) @ self.k_norm(k).transpose(2, 3)
        if self.table is not None:
            scores = scores + self.bias(self.table)
        return self.out(self.mixed(self.weights(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """A vision transformer of 8 x 8 patches of images 32 x 32, with as many tokens as a head has numbers or not."""

    def __init__(self, *, class_token, fixed_size, heads=2, blocks=2, side=32):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.fixed_size, self.side = nn.Conv2d(3, 16, 8, 8), fixed_size, side
        tokens = (side // 8) ** 2 + class_token
        self.token = nn.Parameter(torch.randn(1, 1, 16)) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, tokens, 16)) if fixed_size else 0
        self.blocks = nn.ModuleList([Heads(tokens if fixed_size else 0, heads) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        if self.fixed_size and x.shape[-1] != self.side:
            raise AssertionError("size of the input does not match that of the model")
        t = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            t = torch.cat([self.token.expand(len(x), -1, -1), t], 1)
        t = t + self.positions
        for block in self.blocks:
            t = t + block(self.norm(t))
        return self.head(self.norm(t).mean(1))


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("examples", [1, 2, 3])
def test_nothing_within_attention_is_a_map(fixed_size, class_token, heads, examples):
    # With one head and no class token, queries are 16 x 16: as square as the image.
    # Its tokens are, but they mix so well without training that they may not show it.
    net = Transformer(class_token=class_token, fixed_size=fixed_size, heads=heads).eval()
    pictures = torch.rand(examples, 3, 32, 32)
    tokens = {f"blocks.{i}{part}" for i in (0, 1) for part in ("", ".out", ".qkv")}
    found = spatial_layers(net, pictures)
    assert set(found) - tokens == {"patches"}
    assert find_spatial_layer(net, pictures)[0] in {"patches", "blocks.0", "blocks.1"}
    attrs = LayerLayerCam(net, list(found)).attribute(pictures, 1)
    assert {attr.shape for attr in attrs} == {(examples, 1, 4, 4)}
    assert LayerUnionCam(net, net.patches).attribute(pictures, 1).shape == (examples, 1, 4, 4)


def test_a_black_picture_tells_as_well():
    net = Transformer(class_token=True, fixed_size=True).eval()
    assert find_spatial_layer(net, torch.zeros(1, 3, 32, 32))[0] == "patches"


class ChannelsLast(nn.Module):
    """A stage with its channels last behind the stem, as many libraries' Swin and ConvNeXt."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.mlp, self.head = (
            nn.Conv2d(3, 8, 4, 4),
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.mlp(self.norm(x))
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_channels_last_are_made_maps(size):
    net, pictures = ChannelsLast(), torch.rand(2, 3, *size)
    assert find_spatial_layer(net, pictures) == ("norm", net.norm)
    attr = LayerLayerCam(net, "norm").attribute(pictures, 1)
    assert torch.equal(attr, LayerLayerCam(net, "norm", reshape_transform=channels_last_to_maps).attribute(pictures, 1))


def test_tokens_of_a_signal_are_no_maps():
    class Signal(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.convolution, self.norm, self.head = nn.Conv1d(2, 6, 3, padding=1), nn.LayerNorm(6), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.norm(self.convolution(x).transpose(1, 2)).mean(1))

    assert find_spatial_layer(Signal(), torch.rand(3, 2, 12))[0] == "convolution"


class WithSides(nn.Module):
    """Behind the features a head, and convolutions that count for nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 4)
        self.side, self.cut, self.spare = (nn.Conv2d(6, 5, 1) for _ in range(3))
        self.shared = nn.Identity()
        self.table = nn.Parameter(torch.randn(1, 6, 4, 4))

    def forward(self, x):
        f = self.features(x)
        y = self.head(f.mean((2, 3))) + self.shared(self.table).mean()
        self.side(f)
        return y + self.cut(f.detach()).detach().mean()


@pytest.mark.parametrize("examples", [1, 2])
def test_a_layer_on_which_nothing_depends_or_without_a_row_an_example_is_not_taken(examples):
    net, pictures = WithSides(), torch.rand(examples, 3, 16, 12)
    assert find_spatial_layer(net, pictures)[0] == "features"
    with torch.no_grad():
        assert list(spatial_layers(net, pictures)) == ["features"]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_pooling_to_a_fixed_size_is_a_map():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 4))
    assert find_spatial_layer(net, torch.rand(2, 3, 16, 12))[0] == "2"


def test_a_model_of_one_size_and_number_of_rows():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x):
            if x.shape != (2, 3, 16, 12):
                raise ValueError("another shape")
            return self.head(self.features(x).mean((2, 3)))

    assert find_spatial_layer(Fixed(), torch.rand(2, 3, 16, 12))[0] == "features"


def test_without_any_map_the_error_says_what_to_do():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.embed = Heads(0), nn.Linear(12, 16)

        def forward(self, x):
            return self.heads(self.embed(x.flatten(1, 2))).mean(1)

    with pytest.raises(ValueError, match="name the layer to explain, with a reshape_transform"):
        find_spatial_layer(Tokens(), torch.rand(2, 3, 8, 12))


class HeldTwice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU()), nn.Flatten())
        self.features = nn.Sequential(*list(self.backbone.children())[:1])
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("name", ["backbone.0", "features.0", "features.0.1"])
def test_a_layer_that_is_held_twice_has_two_names(name):
    net, inputs = HeldTwice(), torch.rand(2, 2, 8, 6)
    assert layer_names(net)[name] is net.get_submodule(name)
    attr = LayerUnionCam(net, name).attribute(inputs, 1)
    assert torch.equal(attr, LayerUnionCam(net, net.get_submodule(name)).attribute(inputs, 1))


def test_heads_are_what_they_look_like():
    """The look-alike computes attention."""
    torch.manual_seed(0)
    heads, t = Heads(0), torch.randn(2, 5, 16)
    q, k, v = heads.qkv(t).reshape(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
    assert torch.allclose(heads(t), heads.out(expected), atol=1e-5)


def test_positions_of_a_signal_that_are_added_are_no_map():
    """They do not answer at all."""

    class Signal(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.convolution, self.positions, self.head = nn.Conv1d(2, 6, 3, padding=1), nn.Identity(), nn.Linear(6, 4)
            self.table = nn.Parameter(torch.randn(1, 6, 12))

        def forward(self, x):
            x = self.convolution(x)
            return self.head((x * self.positions(self.table.expand(x.shape))).mean(2))

    assert find_spatial_layer(Signal(), torch.rand(3, 2, 12))[0] == "convolution"


def test_what_a_linear_layer_makes_is_no_map_at_two_positions_either():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(840, 24), nn.Unflatten(1, (6, 2, 2)), nn.Flatten()),
        nn.Linear(24, 4),
    )
    assert find_spatial_layer(net, torch.rand(2, 3, 16, 12))[0] == "0"


class Weights(nn.Module):
    """A module of no library around weights of attention."""

    def forward(self, weights):
        return weights


@pytest.mark.parametrize("kind", [Weights, nn.Identity, nn.Dropout])
@pytest.mark.parametrize("fixed_size", [False, True])
def test_weights_of_attention_whose_sides_fit_a_stride_are_no_maps(kind, fixed_size):
    # 16 patches: weights of 16 x 16 look like maps of an image 32 x 32 at a stride of 2.
    net = Transformer(class_token=False, fixed_size=fixed_size).eval()
    net.blocks[1].weights = kind()
    for cls in (LayerUnionCam, LayerLayerCam, LayerScoreCam):
        with pytest.raises(ValueError, match=r"^layer: 'blocks.1.weights' .* that is not maps .*place by place"):
            cls(net, "blocks.1.weights").attribute(torch.rand(2, 3, 32, 32), 1)


class ToMaps(nn.Module):
    def forward(self, t):
        return t.transpose(1, 2).unflatten(2, (4, 4))


def test_maps_that_a_model_of_one_size_makes_of_tokens_itself_are_maps():
    class WithMaps(Transformer):
        def __init__(self):
            super().__init__(class_token=False, fixed_size=True)
            self.made = ToMaps()

        def forward(self, x):
            if x.shape[-1] != self.side:
                raise AssertionError("size of the input does not match that of the model")
            t = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            for block in self.blocks:
                t = t + block(self.norm(t))
            return self.head(self.made(t).mean((2, 3)))

    net = WithMaps().eval()
    assert LayerUnionCam(net, "made").attribute(torch.rand(2, 3, 32, 32), 1).shape == (2, 1, 4, 4)


class FewerKeys(nn.Module):
    """Attention to a quarter of the places, as in networks whose maps are too large for all."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 8, 2, 2))
        self.weights = nn.Dropout(0)

    def forward(self, x):
        q, k, v = (
            make(x).flatten(2).unflatten(1, (2, 4)).transpose(2, 3) for make in (self.query, self.key, self.value)
        )
        mixed = self.weights((q @ k.transpose(2, 3)).softmax(-1)) @ v
        return mixed.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])


def test_weights_of_queries_by_fewer_keys_are_no_map():
    """They grow with the input along both sides, by more than a map does."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), FewerKeys(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    inputs = torch.rand(2, 3, 64, 96)
    found = spatial_layers(net, inputs)
    assert {"0", "1"} <= {*found}
    assert "1.weights" not in found
    with pytest.raises(ValueError, match=r"^layer: '1.weights' .* of shape \(2, 2, 384, 96\) that is not maps"):
        LayerLayerCam(net, "1.weights").attribute(inputs, 1)


class ManyHeads(nn.Module):
    """A window of all places, with as many heads as channels, in a network of one size."""

    def __init__(self):
        super().__init__()
        self.softmax = nn.Softmax(-1)

    def forward(self, x):
        if x.shape[2:] != (2, 2):
            raise AssertionError("size of the input does not match that of the model")
        t = x.flatten(2).unsqueeze(-1)
        return (self.softmax(t @ t.transpose(2, 3)) @ t).squeeze(-1).unflatten(2, (2, 2))


def test_a_softmax_over_the_last_side_of_a_square_is_no_map():
    torch.manual_seed(0)
    head = nn.Linear(96, 4)
    net = nn.Sequential(nn.Conv2d(3, 24, 16, 16), ManyHeads(), nn.Flatten(), head)
    with pytest.raises(ValueError, match=r"^layer: '1.softmax' .* of shape \(2, 24, 4, 4\) that is not maps"):
        LayerLayerCam(net, "1.softmax").attribute(torch.rand(2, 3, 32, 32), 1)


class Positions(nn.Module):
    """An embedding of positions for maps of any size, a row for each example, as detectors have it."""

    def __init__(self, width):
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.randn(width, 9, 1)), nn.Parameter(torch.randn(width, 1, 9))

    def forward(self, maps):
        places = self.rows[:, : maps.shape[2]] + self.columns[:, :, : maps.shape[3]]
        return places.expand(len(maps), -1, -1, -1)


class PlacedMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.positions, self.head = nn.Conv2d(3, 4, 8, 8), Positions(4), nn.Linear(4, 5)

    def forward(self, x):
        maps = self.conv(x)
        return self.head((maps * self.positions(maps)).mean((2, 3)))


@pytest.mark.parametrize("examples", [1, 2, 3])
def test_positions_of_images_are_no_maps(examples):
    torch.manual_seed(0)
    net, images = PlacedMaps(), torch.rand(examples, 3, 32, 24)
    assert [*spatial_layers(net, images)] == ["conv"]
    with pytest.raises(ValueError, match="that is not maps"):
        LayerLayerCam(net, "positions").attribute(images, 1)


def test_zeros_are_maps_of_a_layer_that_shows_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    nn.init.constant_(net[0].bias, -1e3)
    assert find_spatial_layer(net, torch.rand(1, 3, 32, 32))[0] == "1"
