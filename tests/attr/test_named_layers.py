"""Layers named by hand: what has a map's number of dimensions and is none is refused, with a layer that would do."""

import re

import pytest
import torch
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, channels_last_to_maps
from tests.attr import METHODS, OF_ANY_NETWORK, few_passes
from tests.attr.test_map_probe import ChannelsLast, Transformer


class Windows(nn.Module):
    """Attention of 4 x 4 positions within windows, over channels-last maps, as a Swin transformer has it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.cut = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Identity()
        self.qkv, self.split, self.weights, self.head = nn.Linear(8, 24), nn.Identity(), nn.Softmax(-1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        n, h, w, k = x.shape
        windows = self.cut(x.unflatten(1, (h // 4, 4)).unflatten(3, (w // 4, 4)).transpose(2, 3).reshape(-1, 4, 4, k))
        q, key, v = self.qkv(windows.flatten(1, 2)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = self.weights(self.split(q) @ key.transpose(2, 3)) @ v
        return self.head(x.transpose(1, 2).flatten(2).unflatten(0, (n, -1)).mean((1, 2)))


class OneToken(nn.Module):
    """A signal's convolution, and a linear layer over its transposed tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.mlp, self.head = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.mlp(self.convolution(x).transpose(1, 2)).relu().mean(1))


NO_MAPS = {
    "queries": (lambda: Transformer(class_token=True, fixed_size=False), "blocks.0.q_norm", (3, 64, 64)),
    "keys of one size": (lambda: Transformer(class_token=True, fixed_size=True), "blocks.1.k_norm", (3, 32, 32)),
    "as many tokens as a head has numbers": (
        lambda: Transformer(class_token=False, fixed_size=False, heads=1),
        "blocks.0.q_norm",
        (3, 32, 32),
    ),
    "weights": (lambda: Transformer(class_token=True, fixed_size=False), "blocks.0.weights", (3, 32, 32)),
    "weights of one size": (lambda: Transformer(class_token=True, fixed_size=True), "blocks.0.weights", (3, 32, 32)),
    "mixed values": (lambda: Transformer(class_token=False, fixed_size=True), "blocks.0.mixed", (3, 32, 32)),
    "heads of a window": (Windows, "split", (3, 16, 16)),
    "weights of a window": (Windows, "weights", (3, 16, 16)),
}
# The tokens of an untrained transformer may show their places or not; the only window of an image is a map.
MAPS_BEFORE = {Transformer: r"(patches|blocks\.[01])", Windows: "(stem|cut)", OneToken: "convolution"}
METHODS_2D = [*OF_ANY_NETWORK, *(cls for cls in METHODS if cls.name == "augmented_grad_cam")]


def refusal(method, net, layer, inputs, **kwargs):
    with pytest.raises(ValueError, match=r"^layer: ") as caught:
        method(net, layer).attribute(inputs, 1, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("examples", [1, 2, 3])
@pytest.mark.parametrize("case", NO_MAPS)
def test_what_is_within_attention_is_refused(case, examples):
    make, layer, size = NO_MAPS[case]
    net = make().eval()
    said = refusal(LayerUnionCam, net, layer, torch.rand(examples, *size))
    assert said.startswith(f"layer: {layer!r} (")
    assert "is not maps (N, K, *spatial)" in said
    assert re.search(f"choose another, such as '{MAPS_BEFORE[type(net)]}', or give a reshape_transform", said)


@pytest.mark.parametrize("method", METHODS_2D, ids=lambda method: method.name)
def test_every_method_refuses_heads(method):
    net, pictures = Transformer(class_token=True, fixed_size=False).eval(), torch.rand(2, 3, 32, 32)
    said = refusal(method, net, "blocks.0.k_norm", pictures)
    assert said.startswith("layer: 'blocks.0.k_norm' (Identity) has an output of shape (2, 2, 17, 8) that is not maps")
    assert re.search(f"such as '{MAPS_BEFORE[Transformer]}'", said)


@pytest.mark.parametrize("method", METHODS_2D, ids=lambda method: method.name)
@pytest.mark.parametrize(("layer", "size"), [("norm", (32, 32)), ("mlp", (32, 16))])
def test_every_method_takes_channels_last_as_maps(method, layer, size):
    net, pictures = ChannelsLast().eval(), torch.rand(2, 3, *size)
    attr, given = (
        method(net, layer, reshape_transform=transform).attribute(pictures, 1, **few_passes(method))
        for transform in (None, channels_last_to_maps)
    )
    assert torch.allclose(attr, given, rtol=0, atol=1e-6)
    of_input = method.name in ("feature_cam", "augmented_grad_cam")
    assert attr.shape == (2, 1, *(side if of_input else side // 4 for side in size))


@pytest.mark.parametrize("examples", [2, 8])
def test_as_many_examples_as_another_dimension_has(examples):
    net = Transformer(class_token=False, fixed_size=False, heads=2).eval()
    for layer in ("blocks.0.q_norm", "blocks.1.weights"):
        assert "is not maps" in refusal(LayerScoreCam, net, layer, torch.rand(examples, 3, 32, 32))
    assert LayerScoreCam(ChannelsLast(), "norm").attribute(torch.rand(examples, 3, 32, 32), 1).shape[2:] == (8, 8)


def test_several_windows_have_no_row_for_each_example():
    net, pictures = Windows().eval(), torch.rand(2, 3, 32, 16)
    said = refusal(LayerUnionCam, net, "split", pictures)
    assert "hold 4 examples where the inputs hold 2" in said
    assert "such as 'norm'" in said
    assert LayerUnionCam(net, "norm").attribute(pictures, 1).shape == (2, 1, 8, 4)


def test_channels_of_flat_pictures_are_no_tokens():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(2), nn.Linear(196, 4), nn.Flatten(), nn.Linear(20, 5)).eval()
    said = r"^inputs: none of the shapes \(2, 3, 16, 16\) has the 1 spatial dimension of '1' \(Flatten\), whose output "
    with pytest.raises(ValueError, match=rf"{said}of shape \(2, 5, 196\) .* choose another, such as '0', or give a"):
        LayerUnionCam(net, "1").attribute(torch.rand(2, 3, 16, 16), 1)


@pytest.mark.parametrize(
    ("table", "size"), [((1, 2, 49, 49), (16, 16)), ((1, 2, 8, 8), (16, 16)), ((2, 2, 8, 8), (16, 16))]
)
def test_a_bias_of_positions_is_refused_for_as_many_examples_as_it_has_rows(table, size):
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features, self.bias, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Identity(), nn.Linear(6, 5)
            self.table = nn.Parameter(torch.rand(table))

        def forward(self, x):
            return self.head(self.features(x).relu().mean((2, 3))) + self.bias(self.table).mean()

    said = refusal(LayerUnionCam, Biased().eval(), "bias", torch.rand(table[0], 3, *size))
    assert "'bias' (Identity) has an output" in said


class Activated(nn.Module):
    """What a function makes of images, behind an activation function of any network."""

    def __init__(self, made):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.made, self.activation, self.head = nn.Conv2d(3, 8, 4, 4), made, nn.GELU(), nn.LazyLinear(5)

    def forward(self, x):
        return self.head(self.activation(self.made(self.stem(x))).flatten(1))


def weights(x):
    """Of attention between 17 tokens."""
    t = torch.cat([x.mean((2, 3)).unsqueeze(2), x.flatten(2)], 2)
    return (t.transpose(1, 2) @ t).softmax(-1).unsqueeze(1)


@pytest.mark.parametrize(
    ("made", "size", "shape"),
    [
        (weights, (16, 16), (2, 1, 17, 17)),
        (lambda x: x.flatten(2).transpose(1, 2).unsqueeze(1), (64, 64), (2, 1, 256, 8)),
    ],
    ids=["weights", "a head"],
)
def test_an_activation_function_of_what_is_no_maps_is_refused(made, size, shape):
    net, pictures = Activated(made).eval(), torch.rand(2, 3, *size)
    net(pictures)
    said = refusal(LayerUnionCam, net, "activation", pictures)
    assert f"layer: 'activation' (GELU) has an output of shape {shape}" in said
    assert "such as 'stem'" in said


def test_what_a_given_transform_returns_is_taken_for_maps():
    net, pictures = Transformer(class_token=True, fixed_size=False).eval(), torch.rand(2, 3, 32, 32)
    attr = LayerUnionCam(net, "blocks.0.q_norm", reshape_transform=lambda heads: heads).attribute(pictures, 1)
    assert attr.shape == (2, 1, 17, 8)


def test_a_layer_whose_output_is_written_into_is_looked_at_before():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features, self.head = nn.Conv2d(1, 6, 3, (1, 2), 1), nn.Linear(6, 5)

        def forward(self, x):
            if x.shape[2:] != (12, 24):
                raise ValueError("another size")
            maps = self.features(x)
            means = maps.mean((2, 3))
            maps.zero_()
            return self.head(means)

    assert LayerDenoisedGradCam(Written().eval(), "features").attribute(torch.rand(2, 1, 12, 24), 1).shape[2:] == (
        12,
        12,
    )


def test_tokens_of_a_signal_are_refused():
    said = refusal(LayerUnionCam, OneToken().eval(), "mlp", torch.rand(2, 2, 12))
    assert "of shape (2, 12, 6) with its channels last" in said
    assert "such as 'convolution'" in said


@pytest.mark.parametrize(
    ("make", "layer", "size"), [(ChannelsLast, "norm", (3, 32, 32)), (OneToken, "mlp", (2, 12))], ids=["cube", "tokens"]
)
def test_channels_last_of_a_model_of_one_size_that_have_the_sizes_of_maps(make, layer, size):
    def check(_net, args):
        if args[0].shape[1:] != size:
            raise ValueError("another size")

    net, inputs = make().eval(), torch.rand(2, *size)
    net.register_forward_pre_hook(check)
    if len(size) == 2:
        assert "with its channels last" in refusal(LayerUnionCam, net, layer, inputs)
    else:
        given = LayerUnionCam(net, layer, reshape_transform=channels_last_to_maps).attribute(inputs, 1)
        assert torch.allclose(LayerUnionCam(net, layer).attribute(inputs, 1), given, rtol=0, atol=1e-6)


def test_inputs_of_layers_are_looked_at_too():
    net, pictures = ChannelsLast().eval(), torch.rand(2, 3, 32, 16)
    attr, given = (
        LayerUnionCam(net, "norm", reshape_transform=transform).attribute(pictures, 1, attribute_to_layer_input=True)
        for transform in (None, channels_last_to_maps)
    )
    assert torch.allclose(attr, given, rtol=0, atol=1e-6)
    heads = Transformer(class_token=True, fixed_size=False).eval()
    said = refusal(LayerUnionCam, heads, "blocks.0.k_norm", torch.rand(2, 3, 32, 32), attribute_to_layer_input=True)
    assert "has an input of shape (2, 2, 17, 8) that is not maps" in said


def test_one_of_several_layers_is_refused():
    net, pictures = Transformer(class_token=True, fixed_size=False).eval(), torch.rand(2, 3, 32, 32)
    assert "'blocks.1.mixed'" in refusal(LayerUnionCam, net, ["patches", "blocks.1.mixed"], pictures)


def test_arguments_that_go_with_the_examples_go_with_the_copies_too():
    class Scaled(Transformer):
        def forward(self, x, scale):
            assert len(scale) == len(x)
            return super().forward(x * scale[:, None, None, None])

    net, pictures = Scaled(class_token=True, fixed_size=False).eval(), torch.rand(3, 3, 32, 32)
    said = refusal(LayerUnionCam, net, "blocks.0.q_norm", pictures, additional_forward_args=torch.ones(3))
    assert "is not maps" in said


class Ends(nn.Module):
    """Layers with maps; behind them the mean, or for one size alone all positions."""

    def __init__(self, features, channels, positions=None):
        super().__init__()
        self.features = features
        self.head = nn.Linear(channels * (positions or 1), 5)
        self.flat = positions is not None

    def forward(self, x):
        x = self.features(x)
        return self.head(x.flatten(1) if self.flat else x.flatten(2).mean(2))


def sequence(*layers):
    return nn.Sequential(*layers, nn.Tanh())


MAPS = {
    "a spectrogram's stride": (sequence(nn.Conv2d(1, 6, 3, (2, 1), 1)), 6, (1, 40, 24)),
    "a stride that makes a square": (sequence(nn.Conv2d(1, 6, 3, (1, 2), 1)), 6, (1, 64, 128)),
    "a stride that makes a square of small images": (sequence(nn.Conv2d(1, 6, 3, (1, 2), 1)), 6, (1, 12, 24)),
    "a long stride": (sequence(nn.Conv2d(1, 6, (64, 5), (64, 2), (0, 2))), 6, (1, 128, 40)),
    "a dimension pooled away": (sequence(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d((1, None))), 6, (1, 40, 24)),
    "7 x 7": (sequence(nn.Conv2d(3, 6, 32, 32)), 6, (3, 224, 224)),
    "odd sizes": (sequence(nn.Conv2d(3, 6, 8, 8, 2)), 6, (3, 100, 130)),
    "dilated, without padding": (sequence(nn.Conv2d(3, 6, 5, dilation=4)), 6, (3, 60, 40)),
    "a decoder": (sequence(nn.Conv2d(3, 6, 3), nn.Upsample(scale_factor=2)), 6, (3, 20, 14)),
    "as many channels as positions": (sequence(nn.Conv2d(3, 8, 4, 4)), 8, (3, 32, 32)),
    "a signal": (sequence(nn.Conv1d(2, 6, 9)), 6, (2, 30)),
    "a volume": (sequence(nn.Conv3d(1, 6, 3, (1, 2, 2), 1)), 6, (1, 8, 16, 12)),
    "an identity": (nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Identity()), 6, (3, 20, 14)),
}


@pytest.mark.parametrize("one_size", [False, True])
@pytest.mark.parametrize("examples", [1, 2, 6])
@pytest.mark.parametrize("case", MAPS)
def test_maps_of_every_form_are_explained(case, examples, one_size):
    torch.manual_seed(0)
    features, channels, size = MAPS[case]
    inputs = torch.rand(examples, *size)
    expected = features(inputs).shape[2:]
    net = Ends(features, channels, expected.numel() if one_size else None).eval()
    for layer in (net.features, net.features[-1]):
        assert LayerDenoisedGradCam(net, layer).attribute(inputs, 1).shape == (examples, 1, *expected)


class OfOneSize(Ends):
    """Raises in front of the layers for inputs of any other size; and of another number of rows, if fixed."""

    rows = None

    def forward(self, x):
        if x.shape[1:] != self.size or (self.rows and len(x) != self.rows):
            raise ValueError("another shape")
        return super().forward(x)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("case", MAPS)
def test_maps_of_a_model_of_one_size_are_explained(case, rows):
    torch.manual_seed(0)
    features, channels, size = MAPS[case]
    net = OfOneSize(features, channels).eval()
    net.size, net.rows = size, rows
    inputs = torch.rand(2, *size)
    assert LayerDenoisedGradCam(net, net.features).attribute(inputs, 1).shape == (2, 1, *features(inputs).shape[2:])


def test_tokens_that_a_model_of_one_size_has_made_maps_of_are_explained():
    class WithGrid(Transformer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.grid = nn.Identity()

        def forward(self, x):
            t = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            t = self.blocks[0](self.norm(t))
            return self.head(self.grid(t.transpose(1, 2).unflatten(2, (4, 4))).relu().mean((2, 3)))

    net, pictures = WithGrid(class_token=False, fixed_size=True).eval(), torch.rand(2, 3, 32, 32)
    assert LayerUnionCam(net, "grid").attribute(pictures, 1).shape == (2, 1, 4, 4)


def test_inputs_of_other_dimensions_beside_the_pictures():
    """The first input is a text, of one size alone."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.features, self.text, self.head = nn.Conv2d(1, 6, 3, (1, 2), 1), nn.Linear(12, 6), nn.Linear(6, 5)

        def forward(self, text, x):
            if x.shape[2:] != (12, 24):
                raise ValueError("another size")
            return self.head(self.text(text.flatten(1)) + self.features(x).tanh().mean((2, 3)))

    inputs = torch.rand(2, 4, 3), torch.rand(2, 1, 12, 24)
    assert LayerDenoisedGradCam(Two().eval(), "features").attribute(inputs, 1).shape == (2, 1, 12, 12)


@pytest.mark.usefixtures("rows_tried")
@pytest.mark.parametrize(
    ("size", "layer", "passes"),
    [((40, 24), "features", 1), ((64, 64), "features", 1), ((40, 24), "features.1", 2)],
)
def test_what_has_the_inputs_aspect_costs_no_pass(size, layer, passes):
    torch.manual_seed(0)
    net, calls = Ends(nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Identity(), nn.Tanh()), 6).eval(), []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    LayerDenoisedGradCam(net, layer).attribute(torch.rand(2, 3, *size), 1)
    assert len(calls) == passes


def test_the_model_is_left_as_it_was_found():
    net = Transformer(class_token=True, fixed_size=True).train()
    refusal(LayerUnionCam, net, "blocks.0.q_norm", torch.rand(2, 3, 32, 32))
    assert all(module.training and not module._forward_hooks for module in net.modules())
