"""What a layer computed is a map, or an error says which layer is none and what to do."""

import copy
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, find_spatial_layer
from tests.networks import TinyNet, same, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam]
OF_GRADIENTS = [LayerDenoisedGradCam, LayerUnionCam]


class Branches(TinyNet):
    """With a branch that goes nowhere, one that is detached, and one that does not run."""

    def __init__(self):
        super().__init__()
        self.side, self.detached, self.spare = (nn.Conv2d(5, 5, 1).double() for _ in range(3))

    def forward(self, x):
        maps = self.features(x)
        self.side(maps)
        return self.head(maps) + self.detached(maps).detach().sum()


@pytest.mark.parametrize("method", OF_GRADIENTS)
@pytest.mark.parametrize("name", ["side", "detached"])
def test_a_layer_on_which_the_output_does_not_depend_is_named(method, name):
    net = Branches()
    for layer in (getattr(net, name), [net.features, getattr(net, name)]):
        for options in ({}, {"grad_kwargs": {"allow_unused": True}}):
            with pytest.raises(ValueError, match=f"^layer: the output does not depend on '{name}' .*LayerScoreCam"):
                method(net, layer).attribute(tiny_inputs(), 1, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_not_run_is_named(method):
    net = Branches()
    for layer in (net.spare, [net.features, net.spare]):
        with pytest.raises(ValueError, match=r"^layer: 'spare' \(Conv2d\) is not run by forward_func.*'features'"):
            method(net, layer).attribute(tiny_inputs(), 1)
    with pytest.raises(ValueError, match=r"^layer: Conv2d is not run by forward_func"):
        method(net.forward, nn.Conv2d(5, 5, 1)).attribute(tiny_inputs(), 1)


class CalledTwice(TinyNet):
    def __init__(self):
        super().__init__()
        self.twice = nn.ReLU()

    def forward(self, x):
        return self.head(self.twice(self.twice(self.features(x)) + 1))


def faulty_layers():
    """Models whose ``features`` would do, each with a layer that cannot be explained, and what is wrong with it."""
    return {
        "not run": (net := Branches(), net.spare),
        "does not depend": (net := Branches(), net.side),
        "called 2 times": (net := CalledTwice(), net.twice),
        "shape": (net := TinyNet(), net.head[2]),
        "no tensor of real": (net := Wrapped(lambda x: {"maps": x}, lambda made: made["maps"]), net.form),
        "hold 6 examples": (net := Wrapped(lambda x: torch.cat([x, x]), lambda made: made[:3]), net.form),
    }


@pytest.mark.parametrize(
    "fault", ["not run", "does not depend", "called 2 times", "shape", "no tensor of real", "hold 6 examples"]
)
def test_an_error_names_a_layer_that_would_do(fault):
    net, layer = faulty_layers()[fault]
    for forward_func in (net, net.forward, nn.DataParallel(net)):
        with pytest.raises(ValueError, match=rf"^layer: .*{fault}.*; choose .*, such as 'features'(, or take|\.$)"):
            LayerUnionCam(forward_func, layer).attribute(tiny_inputs(), 1)
    # What other functions run is not known.
    for forward_func in (lambda x: net(x), MethodType(lambda net, x: net(x), net)):
        with pytest.raises(ValueError, match=rf"^layer: .*{fault}.*, such as the one that .*find_spatial_layer finds"):
            LayerUnionCam(forward_func, layer).attribute(tiny_inputs(), 1)


def test_an_error_names_no_layer_where_none_is_found():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(96, 3)).double()
    with pytest.raises(ValueError, match=r"such as the one that captum_unioncam.find_spatial_layer finds\.$"):
        LayerUnionCam(flat, flat[1]).attribute(tiny_inputs(), 1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("compiled", [lambda net: torch.jit.trace(net, tiny_inputs()), torch.jit.script])
def test_layers_of_torchscript_are_named_and_it_may_lie_around_the_layer(method, compiled):
    net = compiled(TinyNet())
    for forward_func in (net, lambda x: net(x)):
        with pytest.raises(ValueError, match=r"^layer: 'features' .* is TorchScript, which hooks do not see; explain"):
            method(forward_func, net.features).attribute(tiny_inputs(), 1)
    with pytest.raises(ValueError, match=r"^layer: Sequential is not run .*, or is within TorchScript"):
        method(net, TinyNet().features).attribute(tiny_inputs(), 1)
    mixed = TinyNet()
    expected = method(mixed, mixed.features).attribute(tiny_inputs(), 1)
    mixed.head = torch.jit.script(mixed.head)
    assert same(method(mixed, mixed.features).attribute(tiny_inputs(), 1), expected)


@pytest.mark.parametrize("method", METHODS)
def test_models_made_in_inference_mode_are_explained_or_say_how(method):
    with torch.inference_mode():
        net = TinyNet()
    expected = method(TinyNet(), "features").attribute(tiny_inputs(), 1)
    if method is LayerScoreCam:
        assert same(method(net, net.features).attribute(tiny_inputs(), 1), expected)
    else:
        with pytest.raises(ValueError, match=r"^forward_func: .* torch.inference_mode\(\).*copy.deepcopy\(model\)"):
            method(net, net.features).attribute(tiny_inputs(), 1)
    assert same(method(copy.deepcopy(net), "features").attribute(tiny_inputs(), 1), expected)


def frozen_backbone(net, context):
    def forward(x):
        with context():
            maps = net.features(x)
        return net.head(maps)

    return forward


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_methods_of_gradients_say_that_there_are_none_and_score_cam_needs_none(context):
    net, inputs = TinyNet(), tiny_inputs()
    expected = LayerScoreCam(net, net.features).attribute(inputs, 1)
    functions = [frozen_backbone(net, context)] if context is torch.no_grad else []
    for forward_func in (*functions, context()(lambda x: net(x)), context()(net.forward)):
        for method in OF_GRADIENTS:
            with pytest.raises(ValueError, match=r"layer: .* under torch.no_grad\(\).*take LayerScoreCam"):
                method(forward_func, net.features).attribute(inputs, 1)
        assert same(LayerScoreCam(forward_func, net.features).attribute(inputs, 1), expected)


@pytest.mark.parametrize("method", OF_GRADIENTS)
def test_an_output_that_is_detached_is_no_fault_of_the_layer(method):
    net = TinyNet()
    with pytest.raises(ValueError, match=r"^forward_func: its output has no gradient, since it detaches it"):
        method(lambda x: net(x).detach(), net.features).attribute(tiny_inputs(), 1)


class CalledByKeyword(TinyNet):
    def forward(self, x):
        return self.head[2](self.head[1](self.head[0](input=self.features(x))))


@pytest.mark.parametrize("method", METHODS)
def test_the_input_of_a_layer_that_is_called_by_keyword_is_not_seen(method):
    net, inputs = CalledByKeyword(), tiny_inputs()
    with pytest.raises(ValueError, match=r"^layer: 'head.0' \(Flatten\) is called with keyword arguments alone \(in"):
        method(net, net.head[0]).attribute(inputs, 1, attribute_to_layer_input=True)
    assert same(method(net, net.features).attribute(inputs, 1), method(TinyNet(), "features").attribute(inputs, 1))


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_the_network_calls_at_several_depths_is_named(method):
    net = TinyNet()
    net.features[1] = net.features[4] = nn.ReLU()
    with pytest.raises(ValueError, match=r"^layer: 'features.1' \(ReLU\) is called 2 times in a pass"):
        method(net, net.features[4]).attribute(tiny_inputs(), 1)


class Wrapped(TinyNet):
    """Whose layer ``form`` returns the maps in something."""

    def __init__(self, into, out_of):
        super().__init__()
        self.form, self.out_of = SimpleModule(into), out_of

    def forward(self, x):
        return self.head(self.out_of(self.form(self.features(x))))


class SimpleModule(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("into", "out_of", "described"),
    [
        (lambda x: {"maps": x}, lambda made: made["maps"], "dict"),
        (lambda x: SimpleNamespace(maps=x), lambda made: made.maps, "SimpleNamespace"),
        (lambda x: torch.complex(x, x), lambda made: made.real, "torch.complex128"),
        (lambda x: ((x,), None), lambda made: made[0][0], "tuple, NoneType"),
    ],
)
def test_what_is_no_tensor_of_real_numbers_is_described(method, into, out_of, described):
    net = Wrapped(into, out_of)
    with pytest.raises(ValueError, match=rf"^layer: 'form' \(SimpleModule\) has {described}, and no tensor"):
        method(net, net.form).attribute(tiny_inputs(), 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("beside", [None, 3, (1, 2), torch.arange(3)])
def test_what_lies_beside_the_maps_is_passed_on(method, beside):
    net = Wrapped(lambda x: (x, beside), lambda made: made[0] if made[1] is beside else made)
    expected = method(TinyNet(), "features").attribute(tiny_inputs(), 1)
    assert same(method(net, net.form).attribute(tiny_inputs(), 1), expected)


def test_quantised_models_have_score_cams():
    import torch.ao.quantization as quantization

    net, x = TinyNet().float(), tiny_inputs().float()
    net = nn.Sequential(quantization.QuantStub(), net.features, net.head, quantization.DeQuantStub())
    net[1][1] = nn.ReLU()
    net.qconfig = quantization.get_default_qconfig("fbgemm")
    quantization.prepare(net, inplace=True)
    net(x)
    quantization.convert(net, inplace=True)
    assert find_spatial_layer(net, x)[0] == "1"
    plain = LayerScoreCam(net, net[1]).attribute(x, 1)
    assert torch.equal(plain, LayerScoreCam(net, net[1], reshape_transform=lambda o: o).attribute(x, 1))
    assert plain.shape == (3, 1, 4, 3)
    assert plain.std() > 0
    with pytest.raises(ValueError, match=r"^layer: '1' .* is quantised.*take LayerScoreCam"):
        LayerUnionCam(net, net[1]).attribute(x, 1)


def checkpointed(net, use_reentrant, features=False):
    def forward(x):
        maps = checkpoint(net.features, x, use_reentrant=use_reentrant) if features else net.features(x)
        return checkpoint(net.head, maps, use_reentrant=use_reentrant)

    return forward


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_models_are_explained_or_say_how(method, features, frozen):
    net, inputs = TinyNet().requires_grad_(not frozen), tiny_inputs()
    expected = method(net, net.features).attribute(inputs, 1)
    for layer in (net.features, [net.features[2], net.features]):
        made = method(checkpointed(net, False, features), layer).attribute(inputs, 1)
        assert same(made[1] if isinstance(made, list) else made, expected)
    reentrant = method(checkpointed(net, True, features), net.features)
    if method is LayerScoreCam:
        assert same(reentrant.attribute(inputs, 1), expected)
    else:
        with pytest.raises(ValueError, match=r"use_reentrant=True"):
            reentrant.attribute(inputs, 1)


class CudnnLike(nn.LSTM):
    """The rule of cuDNN where there is none."""

    def forward(self, x, hx=None):
        out, hidden = super().forward(x, hx)
        if not self.training and out.requires_grad:

            def refuse(_):
                raise RuntimeError("cudnn RNN backward can only be called in training mode")

            out.register_hook(refuse)
        return out, hidden


class Recurrent(TinyNet):
    def __init__(self, lstm):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.last = lstm(5, 4, num_layers=2, dropout=0.5, batch_first=True).double(), nn.Dropout(0.5)

    def forward(self, x):
        return self.last(self.lstm(self.features(x).flatten(2).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("train", [False, True])
def test_recurrent_modules_have_gradients_without_their_dropout(method, train):
    inputs = tiny_inputs()
    usual, cudnn_like = Recurrent(nn.LSTM).eval(), Recurrent(CudnnLike).train(train)
    expected = method(usual, usual.features).attribute(inputs, 1)
    for forward_func in (cudnn_like, lambda x: cudnn_like(x)):
        assert same(method(forward_func, cudnn_like.features).attribute(inputs, 1), expected)
        assert {module.training for module in cudnn_like.modules()} == {train}
        assert cudnn_like.lstm.dropout == 0.5


@pytest.mark.parametrize("scale", [1e-8, 1.0, 300.0])
def test_gradients_of_half_precision_neither_underflow_nor_overflow(scale):
    net = TinyNet(seed=3)
    half = copy.deepcopy(net).half()
    inputs = tiny_inputs()
    expected = LayerDenoisedGradCam(lambda x: net(x) * scale, net.features).attribute(inputs, 1)
    made = LayerDenoisedGradCam(lambda x: half(x) * scale, half.features).attribute(inputs.half(), 1)
    assert made.dtype == torch.float32
    assert torch.allclose(made.double(), expected, rtol=0, atol=0.05 * expected.abs().max().item())
    each = [
        LayerDenoisedGradCam(lambda x: half(x) * scale, half.features).attribute(inputs[i : i + 1].half(), 1)
        for i in range(3)
    ]
    assert torch.allclose(torch.cat(each), made, rtol=0, atol=1e-2 * made.abs().max().item())


def test_a_graph_is_recorded_behind_the_first_layer_alone():
    net, recorded = TinyNet(), {}

    def record(name, output):
        # Of the first pass: others may check the layer.
        recorded.setdefault(name, output.requires_grad)

    for name, module in net.named_modules():
        module.register_forward_hook(lambda _module, _args, output, name=name: record(name, output))
    for layers in ([net.features[3], net.features[2]], net.features[2]):
        recorded.clear()
        LayerDenoisedGradCam(net, layers).attribute(tiny_inputs(examples=1), 1)
        assert [recorded[f"features.{i}"] for i in range(5)] == [False, False, False, True, True]
        assert recorded["head"]
    assert torch.is_grad_enabled()


class NeedsWholeGraph(TinyNet):
    """Does what it may only do where the first layers record a graph too, and what changes nothing."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        return getattr(self, self.way)(x)

    def hook_on_a_tensor(self, x):
        early = self.features[0](x)
        early.register_hook(lambda gradient: None)
        return self.head(self.features[1:](early))

    def gradient_within(self, x):
        early = self.features[0](x)
        (gradient,) = torch.autograd.grad(early.sum(), self.features[0].bias, retain_graph=True)
        return self.head(self.features[1:](early)) + 0 * gradient.sum()

    def written_view(self, x):
        early = self.features[0](x)
        first = early.clone().narrow(1, 0, 1)
        maps = self.features[1:](early)
        return self.head(maps) + 0 * first.mul_(maps.mean()).sum()

    def own_mode(self, x):
        with torch.enable_grad():
            maps = self.features(x)
        return self.head(maps)


@pytest.mark.parametrize("in_a_function", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("way", ["hook_on_a_tensor", "gradient_within", "written_view", "own_mode"])
def test_models_that_need_the_whole_graph_have_it(way, in_a_function):
    net, inputs = NeedsWholeGraph(way), tiny_inputs(examples=1)
    forward_func = (lambda x: net(x)) if in_a_function else net
    layers = [net.features[2], net.features[4]]
    expected = [LayerDenoisedGradCam(TinyNet(), f"features.{i}").attribute(inputs, 1) for i in (2, 4)]
    made = LayerDenoisedGradCam(forward_func, layers).attribute(inputs, 1)
    assert all(map(same, made, expected))


@pytest.mark.parametrize("in_a_function", [False, True], ids=["module", "function"])
def test_a_backward_hook_of_the_layer_is_not_reached_by_its_gradients(in_a_function):
    net, inputs, calls = TinyNet(), tiny_inputs(examples=1), []
    expected = LayerDenoisedGradCam(net, net.features[2]).attribute(inputs, 1)
    net.features[2].register_full_backward_hook(lambda *gradients: calls.append(1) or gradients[1])
    forward_func = (lambda x: net(x)) if in_a_function else net
    assert same(LayerDenoisedGradCam(forward_func, net.features[2]).attribute(inputs, 1), expected)
    assert not calls


@pytest.mark.usefixtures("rows_tried")
def test_several_targets_take_one_forward_pass():
    net, passes = TinyNet(), []
    net.features.register_forward_pre_hook(lambda *_: passes.append(1))
    LayerDenoisedGradCam(net, net.features).attribute_targets(tiny_inputs(), [[0, 1, 2]] * 3)
    assert len(passes) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_writes_into_its_input_leaves_the_callers_as_they_were(method):
    net, inputs = TinyNet(), tiny_inputs()
    given = inputs.clone()
    made = method(lambda x: net(x.mul_(0.5)), net.features).attribute(given, 1)
    assert torch.equal(given, inputs)
    # A copy in each pass: an input halved twice gives another map.
    assert same(made, method(lambda x: net(x * 0.5), net.features).attribute(inputs, 1))
    method(net, net.features[0]).attribute(given, 1, attribute_to_layer_input=True)
    assert not given.requires_grad


@pytest.mark.usefixtures("rows_tried")
def test_a_function_without_parameters_is_called_without_inputs():
    net, inputs = TinyNet(), tiny_inputs()
    made = LayerDenoisedGradCam(lambda: net(inputs), net.features).attribute(inputs, 1)
    assert same(made, LayerDenoisedGradCam(net, net.features).attribute(inputs, 1))
