"""Layers whose outputs are tokens or have their channels last, and the families of torchvision's classifiers."""

import functools
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from captum_unioncam import (
    LayerDenoisedGradCam,
    LayerScoreCam,
    LayerUnionCam,
    channels_last_to_maps,
    find_spatial_layer,
    tokens_to_maps,
)
from captum_unioncam.engine.layouts.with_maps import WithMaps
from captum_unioncam.evaluation.explain import Explainer, Settings
from captum_unioncam.methods.registry import create
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import WrongArgument
from tests.attr import OF_ANY_NETWORK, few_passes, reference
from tests.networks import CLASSES, CONVOLUTIONS, SIZES, TinyNet, same, tiny_inputs

models = pytest.importorskip("torchvision.models")


class TokenNet(nn.Module):
    """A transformer of one block: ``tokens`` puts out tokens, and ``maps`` what they are as maps, made in loops."""

    def __init__(self, ndim=2, class_tokens=1):
        super().__init__()
        torch.manual_seed(0)
        self.patches = CONVOLUTIONS[ndim](2, 6, 2, stride=2)
        self.class_token = nn.Parameter(torch.randn(class_tokens, 6))
        self.tokens, self.maps = nn.LayerNorm(6), nn.Identity()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, CLASSES)
        self.grid = [size // 2 for size in SIZES[ndim]]
        with torch.no_grad():
            self.head.weight *= 8
            self.attention.in_proj_weight *= 3
        self.double().eval()

    def forward(self, x):
        patches = self.patches(x)
        rows = [patches[(slice(None), slice(None), *position)] for position in self._positions()]
        first = len(self.class_token)
        tokens = self.tokens(torch.stack([*self.class_token.expand(len(x), -1, -1).unbind(1), *rows], dim=1))
        maps = torch.zeros_like(patches)
        for number, position in enumerate(self._positions()):
            maps[(slice(None), slice(None), *position)] = tokens[:, first + number]
        maps = self.maps(maps)
        rows = [maps[(slice(None), slice(None), *position)] for position in self._positions()]
        tokens = torch.stack([*tokens[:, :first].unbind(1), *rows], dim=1)
        attended = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(attended[:, 0] if first else attended.mean(1))

    def _positions(self):
        return torch.cartesian_prod(*map(torch.arange, self.grid)).reshape(-1, len(self.grid)).tolist()


class LastNet(TinyNet):
    """The same network with the channels of ``last`` last."""

    def __init__(self, ndim=2):
        super().__init__(ndim)
        self.last = nn.Identity()

    def forward(self, x):
        return self.head(self.last(self.features(x).movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize(("ndim", "class_tokens"), [(1, 1), (2, 1), (2, 0), (2, 2), (3, 1)])
def test_tokens_agree_with_the_reference_and_with_the_same_network_in_maps(ndim, class_tokens):
    # For other inputs, a denominator of Smooth Grad-CAM++ nearly cancels, which magnifies rounding errors 300 times.
    net, inputs = TokenNet(ndim, class_tokens), tiny_inputs(ndim, seed=3)
    transform = tokens_to_maps(*net.grid, class_tokens=class_tokens)
    for method in OF_ANY_NETWORK:
        few = few_passes(method)
        attr = method(net, net.tokens, reshape_transform=transform).attribute(inputs, [0, 2, 3], **few)
        assert same(attr, method(net, net.maps).attribute(inputs, [0, 2, 3], **few))
        assert attr.abs().max() > 0
    attr = LayerUnionCam(net, net.tokens, reshape_transform=transform).attribute(inputs, [0, 2, 3])
    for i, (example, target) in enumerate(zip(inputs.split(1), [0, 2, 3], strict=True)):
        expected = reference.union_cam(net, net.maps, example, target).attribution
        assert torch.allclose(attr[i : i + 1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ndim", SIZES)
def test_channels_last_equal_the_same_network_with_channels_first(ndim):
    net, first, inputs = LastNet(ndim), TinyNet(ndim), tiny_inputs(ndim)
    for method in OF_ANY_NETWORK:
        further = {"attribute_to_layer_input": True}, {"attr_dim_summation": not method.has_terms}
        for form in ({}, *(further if ndim == 2 else ())):
            settings = {**form, **few_passes(method)}
            last = method(net, net.last, reshape_transform=channels_last_to_maps).attribute(inputs, 1, **settings)
            settings = settings | {"attribute_to_layer_input": False}
            assert same(last, method(net, net.features).attribute(inputs, 1, **settings))
        assert same(
            method(net, net.last, reshape_transform=channels_last_to_maps).attribute(inputs, 1, **few_passes(method)),
            method(first, first.features).attribute(inputs, 1, **few_passes(method)),
        )


def test_targets_details_lists_and_functions_with_a_transform():
    net, inputs, targets = TokenNet(), tiny_inputs(), [[0, 3], [2, 2], [1, 0]]
    tokens = LayerUnionCam(lambda x: net(x), [net.tokens, net.tokens], reshape_transform=tokens_to_maps(4, 3))
    attr, details = tokens.attribute_targets(inputs, targets, return_details=True)
    expected, expected_details = LayerUnionCam(net, net.maps).attribute_targets(inputs, targets, return_details=True)
    assert all(same(of_layer, expected) for of_layer in attr)
    assert same(details[1].channel_scores, expected_details.channel_scores)


def test_each_output_of_a_layer_goes_through_the_transform():
    net, inputs = LastNet(), tiny_inputs()

    class Doubled(nn.Module):
        def forward(self, x):
            return x * 2, x.square()

    doubled = Doubled()

    def forward(x, doubled):
        first, second = doubled(net.features(x).movedim(1, -1))
        return net.head((first + second).movedim(-1, 1))

    union_cam = LayerUnionCam(forward, doubled, reshape_transform=channels_last_to_maps)
    attr = union_cam.attribute(inputs, 1, additional_forward_args=doubled)
    for number, in_maps in enumerate((_each_in_maps(first=True), _each_in_maps(first=False))):
        expected = LayerUnionCam(forward, in_maps[0]).attribute(inputs, 1, additional_forward_args=in_maps)
        assert same(attr[number], expected)


def _each_in_maps(first):
    """Both outputs of the layer; one passes through an identity with its channels first."""

    class Seen(nn.ModuleList):
        def forward(self, x):
            one, other = x * 2, x.square()
            if first:
                return self[0](one.movedim(-1, 1)).movedim(1, -1), other
            return one, self[0](other.movedim(-1, 1)).movedim(1, -1)

    return Seen([nn.Identity()])


def test_what_the_transforms_make():
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)
    maps = tokens_to_maps(2, 3)(tokens)
    assert maps.shape == (2, 3, 2, 3)
    for n in range(2):
        for k in range(3):
            for y in range(2):
                for x in range(3):
                    assert maps[n, k, y, x] == tokens[n, 1 + 3 * y + x, k]
    last = torch.rand(2, 4, 5, 3)
    assert torch.equal(channels_last_to_maps(last), last.permute(0, 3, 1, 2))


@pytest.mark.parametrize("method", OF_ANY_NETWORK)
def test_transforms_that_do_not_fit_are_refused(method):
    net, inputs = TokenNet(), tiny_inputs()
    with pytest.raises(ValueError, match=r"^reshape_transform: the layer has shape \(3, 13, 6\), not \(N, 1 \+ 4 x 4"):
        method(net, net.tokens, reshape_transform=tokens_to_maps(4, 4)).attribute(inputs, 1)
    with pytest.raises(ValueError, match=r"^reshape_transform: made shape \(3, 6\) of the layer's .* \(3, 13, 6\)"):
        method(net, net.tokens, reshape_transform=lambda x: x[:, 0]).attribute(inputs, 1)
    with pytest.raises(ValueError, match=r"^reshape_transform: made NoneType of the layer's"):
        method(net, net.tokens, reshape_transform=lambda x: None).attribute(inputs, 1)


def vision_transformer(image_size=32):
    torch.manual_seed(0)
    net = models.VisionTransformer(
        image_size, image_size // 4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=5
    )
    # torchvision's last layer begins with zeros, which have no gradient.
    nn.init.normal_(net.heads[-1].weight)
    return net


def swin_transformer():
    torch.manual_seed(0)
    # Patches, channels, blocks, heads and windows.
    return models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [2, 2], num_classes=5)


def pictures(size=32, dtype=torch.float64):
    return torch.rand(2, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def in_a_function(model):
    return lambda x: model(x)


FORWARDS = {
    "module": lambda net: net,
    "method": lambda net: net.forward,
    "function": lambda net: lambda x: 2 * net(x),
    "function of a function": lambda net: lambda x: functools.partial(net)(x),
    "within": lambda net: nn.Sequential(nn.Identity(), net),
    "data parallel": nn.DataParallel,
    "function of data parallel": lambda net: in_a_function(nn.DataParallel(net)),
}


@pytest.mark.parametrize("kind", FORWARDS)
@pytest.mark.parametrize("method", [LayerScoreCam, LayerDenoisedGradCam])
def test_torchvisions_transformers_are_known(method, kind):
    net, swin, images = vision_transformer().double(), swin_transformer().double(), pictures()
    forward, layer = FORWARDS[kind](net), net.encoder.layers[-1].ln_1
    attr = method(forward, layer).attribute(images, 1)
    assert attr.shape == (2, 1, 4, 4)
    assert same(attr, method(forward, layer, reshape_transform=tokens_to_maps(4, 4)).attribute(images, 1))
    assert attr.abs().max() > 0
    forward = FORWARDS[kind](swin)
    attr = method(forward, swin.norm).attribute(images, 1)
    assert same(attr, method(forward, swin.permute).attribute(images, 1))
    assert attr.abs().max() > 0


def test_every_layer_of_a_vision_transformer():
    net, images = vision_transformer().double(), pictures()
    block, tokens = net.encoder.layers[0], tokens_to_maps(4, 4)
    for layer in (net.encoder.dropout, net.encoder.layers, block, block.ln_2, block.mlp, block.mlp[0]):
        for settings in ({}, {"attribute_to_layer_input": True}):
            attr = LayerUnionCam(net, layer).attribute(images, 1, **settings)
            assert same(attr, LayerUnionCam(net, layer, reshape_transform=tokens).attribute(images, 1, **settings))
    # In front of the encoder are maps, and the embedding adds to them alone.
    convolution, embedded = (
        LayerScoreCam(net, layer).attribute(images, 1, attribute_to_layer_input=of_input)
        for layer, of_input in ((net.conv_proj, False), (net.encoder, True))
    )
    assert same(convolution, embedded)
    for layer in (net.heads, net.heads[-1]):
        with pytest.raises(ValueError, match=r"layer: its \w+ have shape \(2, 5\)"):
            LayerUnionCam(net, layer).attribute(images, 1)


def test_every_layer_of_a_swin_transformer():
    net, images = swin_transformer().double(), pictures()

    def explained(layer, of_input=False):
        return LayerUnionCam(net, layer).attribute(images, 1, attribute_to_layer_input=of_input)

    stem = net.features[0]
    assert same(explained(stem[0]), explained(stem[1]))
    assert same(explained(stem[0]), explained(stem[1], of_input=True))
    assert same(explained(stem[1]), explained(stem[2], of_input=True))
    assert same(explained(stem), explained(net.features[1], of_input=True))
    assert same(explained(net.features), explained(net.norm, of_input=True))
    assert same(explained(net.norm), explained(net.permute, of_input=True))
    assert same(explained(net.permute), explained(net.avgpool, of_input=True))
    assert same(explained(net.features, of_input=True), explained(stem[0], of_input=True))
    shapes = [explained(layer).shape[2:] for layer in (stem[0], net.features[1][0].mlp, net.features[2], net.norm)]
    assert shapes == [(8, 8), (8, 8), (4, 4), (4, 4)]


def test_every_layer_of_a_convnext_block():
    net, images = _convnext().double(), pictures()
    block = net.features[1][0].block

    def explained(layer, of_input=False):
        return LayerUnionCam(net, layer).attribute(images, 1, attribute_to_layer_input=of_input)

    inner = range(1, 6)  # between the permutations
    for number in inner:
        known = LayerUnionCam(net, block[number], reshape_transform=channels_last_to_maps).attribute(images, 1)
        assert same(explained(block[number]), known)
        assert same(explained(block[number]), explained(block[number + 1], of_input=True))
        assert known.shape == (2, 1, 8, 8)
    assert same(explained(block[0]), explained(block[1]))
    assert same(explained(block[0]), explained(block[1], of_input=True))
    assert same(explained(block[5]), explained(block[6]))
    assert same(explained(block[6]), explained(block))


def test_the_windows_of_a_maxvit_are_refused():
    net, images = _maxvit().double(), pictures(64)
    attention = net.blocks[0].layers[0].layers.grid_attention
    for layer in (attention.partition_op, attention.attn_layer[0], attention.mlp_layer, attention.departition_swap):
        with pytest.raises(ValueError, match=r"^layer: its shape \(2, 16, 16, \d+\) is that of MaxViT's windows"):
            LayerDenoisedGradCam(net, layer).attribute(images, 1)

    def explained(layer, of_input=False):
        return LayerUnionCam(net, layer).attribute(images, 1, attribute_to_layer_input=of_input, max_channels=2)

    assert same(explained(attention), explained(attention.departition_op))
    assert same(explained(attention, of_input=True), explained(net.blocks[0].layers[0].layers.window_attention))
    name = "blocks.0.layers.0.layers.grid_attention.mlp_layer"
    with pytest.raises(WrongArgument, match=rf"^layer={name!r}: has \(1, 196, 16, 8\) as output"):
        ExplainedModel("tests.attr.test_architectures:command_maxvit", layer=name, device="cpu")


def test_one_position_with_channels_last_has_no_space():
    net, images = swin_transformer().double(), pictures(8)
    assert net.norm(net.features(images)).shape == (2, 1, 1, 16)
    assert find_spatial_layer(net, images) == ("features.1", net.features[1])


def test_a_transform_of_ones_own_goes_before_the_known_one():
    net, images = vision_transformer().double(), pictures()
    layer, turned = net.encoder.layers[-1].ln_1, lambda x: tokens_to_maps(4, 4)(x).transpose(2, 3)
    attr = LayerDenoisedGradCam(net, layer, reshape_transform=turned).attribute(images, 1)
    assert same(attr, LayerDenoisedGradCam(net, layer).attribute(images, 1).transpose(2, 3))


# Small ones, reduced where their constructors allow.
FAMILIES = {
    "convnext": (lambda: _convnext(), 64, "features"),
    "densenet": (lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5), 64, "features"),
    "efficientnet": (lambda: _efficientnet(), 64, "features"),
    "googlenet": (lambda: models.googlenet(num_classes=5, init_weights=False), 64, "inception5b"),
    "inception": (lambda: models.inception_v3(num_classes=5, init_weights=False), 107, "Mixed_7c"),
    "maxvit": (lambda: _maxvit(), 64, "blocks.1"),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=5), 64, "features"),
    "regnet": (lambda: models.regnet_y_400mf(num_classes=5), 64, "trunk_output"),
    "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5), 64, "layer4"),
    "shufflenet": (lambda: models.shufflenet_v2_x0_5(num_classes=5), 64, "conv5"),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=5), 64, "classifier.2"),
    "swin": (swin_transformer, 32, "permute"),
    "vgg": (lambda: _vgg(), 64, "avgpool"),
    "vit": (vision_transformer, 32, "encoder.layers.encoder_layer_1.ln_1"),
}


def _convnext():
    settings = [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(settings, layer_scale=1.0, num_classes=5)


def _efficientnet():
    block = models.efficientnet.MBConvConfig
    return models.EfficientNet([block(4, 3, 2, 16, 8, 2), block(4, 3, 2, 8, 16, 1)], dropout=0.2, num_classes=5)


def _maxvit(size=64):
    return models.MaxVit((size, size), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=5)


def _vgg():
    with torch.device("meta"):  # its head has 119 million weights
        net = models.VGG(nn.Identity(), num_classes=5, init_weights=False)
    net.features = models.vgg.make_layers([8, "M", 8, "M", 8, "M"], batch_norm=False)
    net.classifier[0], net.classifier[3], net.classifier[6] = nn.Linear(8 * 49, 16), nn.Linear(16, 16), nn.Linear(16, 5)
    return net


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_of_torchvision(name):
    """As it is made: in training mode, with auxiliary outputs and layers that write into their inputs."""
    torch.manual_seed(0)
    make, size, expected_name = FAMILIES[name]
    net, image = make().double(), pictures(size)[:1]
    assert net.training
    state = {key: value.clone() for key, value in net.state_dict().items()}
    layer_name, layer = find_spatial_layer(net, image)
    assert layer_name == expected_name
    confidence_fn = clear_confidences(net, image)
    union_cam = LayerUnionCam(net, layer, confidence_fn=confidence_fn)
    attr, details = union_cam.attribute(image, 3, max_channels=8, channel_selection="deviation", return_details=True)
    assert attr.shape[:2] == (1, 1)
    assert attr.shape[2:].numel() > 1
    assert same(attr, details.union_map if details.union_selected.item() else details.region_map)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())

    net.eval()
    a, w = reference.activation_and_gradient(lambda: net(image), layer, 3)
    if a.dim() == 3:
        a, w = (x[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2) for x in (a, w))
    with torch.no_grad():
        expected = explained_by_the_strongest(lambda x: confidence_fn(net(x))[0, 3], image, a[0], w[0], 8)
    assert expected.pop("union_selected") == details.union_selected.item()
    assert expected["denoised_map"].max() == 1
    for field, value in expected.items():
        assert torch.allclose(getattr(details, field)[0].squeeze(0), value, rtol=0, atol=1e-9), field


def clear_confidences(net, image):
    """A softmax that tells the image from black even where an untrained network's outputs hardly do."""
    with torch.no_grad():
        net.eval()
        black = net(0 * image)
        scale = (net(image) - black).abs().max()
        net.train()
    return lambda output: ((output - black) / scale).softmax(1)


def explained_by_the_strongest(model, image, a, w, channels):
    """UnionCAM of one image as in the reference, but with no more channels scored than those that vary most."""

    def confidence(m):
        return model(reference.blend(reference.mask_of(m[None, None], image.shape[2:]), image, 0 * image))

    scores, region_sum = torch.zeros(len(a)).to(a), torch.zeros_like(a[0])
    for k in sorted(range(len(a)), key=lambda k: a[k].std())[-channels:]:
        scores[k] = 0 if reference.is_constant(a[k]) else confidence(a[k])
        region_sum += scores[k] * a[k]
    denoised = reference.minmax(reference.denoised_sum(a, w, 10.0))
    # All zeros where negative features outweigh the others everywhere, as they may in front of no ReLU.
    region = reference.minmax(region_sum.clamp(min=0))
    baseline = confidence(torch.zeros_like(region))
    union = (confidence(denoised) - baseline) * denoised + (confidence(region) - baseline) * region
    return {
        "denoised_map": denoised,
        "region_map": region,
        "union_map": reference.minmax(union),
        "channel_scores": scores,
        "baseline_confidence": baseline,
        "denoised_confidence": confidence(denoised),
        "region_confidence": confidence(region),
        "union_confidence": confidence(union),
        "union_selected": bool(confidence(union) > confidence(region)),
    }


def test_a_layer_with_maps_is_what_it_was_and_has_its_gradients():
    net, images = vision_transformer().double().eval(), pictures()
    output, layer = net(images), net.encoder.layers[0].ln_2
    expected = LayerUnionCam(net, layer).attribute(images, 1)
    with_maps = WithMaps(layer, tokens_to_maps(4, 4))
    net.set_submodule("encoder.layers.encoder_layer_0.ln_2", with_maps)
    assert torch.equal(net(images), output)
    attr = LayerUnionCam(net, with_maps.maps).attribute(images, 1)
    assert same(attr, expected)
    for i, image in enumerate(images.split(1)):
        assert torch.allclose(
            attr[i : i + 1], reference.union_cam(net, with_maps.maps, image, 1).attribution, rtol=0, atol=1e-9
        )


def command_vision_transformer():
    return vision_transformer(224)


def command_swin_transformer():
    return swin_transformer()


def command_maxvit():
    return _maxvit(224)


def picture():
    return Image.effect_mandelbrot((80, 60), (-3, -2.5, 2, 2.5), 100).convert("RGB")


@pytest.mark.parametrize(
    ("function", "layer", "expected"),
    [
        ("command_vision_transformer", None, "encoder.layers.encoder_layer_1.ln_1"),
        ("command_vision_transformer", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_0"),
        ("command_swin_transformer", None, "permute"),
        ("command_swin_transformer", "features.1", "features.1"),
        ("command_swin_transformer", "features.0", "features.0"),
    ],
)
def test_the_command_explains_transformers_with_gradcam_beside(function, layer, expected):
    settings = Settings(model=f"tests.attr.test_architectures:{function}", layer=layer, max_channels=3)
    explainer = Explainer(settings)
    (explanation,) = explainer.explain(picture(), target=2)
    assert explanation.settings == replace(settings, device=explanation.settings.device, layer=expected)
    net = globals()[function]().eval()
    image, black = explainer.subject.input_and_baseline(explanation.photo)
    device = image.device
    known = net.to(device).get_submodule(expected)
    attr = LayerUnionCam(net, known).attribute(image, 2, baselines=black, max_channels=3)
    assert torch.allclose(explanation.map, attr, rtol=0, atol=1e-4)
    a, w = reference.activation_and_gradient(lambda: net(image), known, 2)
    if a.dim() == 3:
        a, w = (x[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2) for x in (a, w))
    elif expected != "permute":
        a, w = (x.permute(0, 3, 1, 2) for x in (a, w))
    grad_cam = (w.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu()
    assert torch.allclose(explanation.grad_cam, grad_cam, rtol=1e-4, atol=1e-6 * float(grad_cam.max()))


@pytest.mark.parametrize("name", ["grad_cam", "union_cam", "torchcam:LayerCAM"])
def test_other_methods_explain_a_transformer_of_the_command(name):
    subject = ExplainedModel("tests.attr.test_architectures:command_vision_transformer", device="cpu")
    image, black = subject.input_and_baseline(subject.shown(picture()))
    method = create(name, subject.model, subject.layer)
    maps = torch.cat([method(image, torch.tensor([target]), black) for target in range(5)])
    assert maps.shape == (5, 1, 224, 224)
    # The map of a class may be negative everywhere.
    assert maps.max() > 0


def test_a_layer_of_a_transformer_without_maps_is_refused_by_the_command():
    with pytest.raises(WrongArgument, match=r"^layer='heads': has \(1, 5\) as output"):
        ExplainedModel("tests.attr.test_architectures:command_vision_transformer", layer="heads")
    with pytest.raises(WrongArgument, match=r"^layer='encoder\S*: has tuple as output"):
        ExplainedModel(
            "tests.attr.test_architectures:command_vision_transformer",
            layer="encoder.layers.encoder_layer_0.self_attention",
        )
