import copy
import importlib
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum import attr as captum_attr
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, Rise, methods
from captum_unioncam.system.errors import Failure, WrongArgument
from captum_unioncam.testing.contract import raised_by
from captum_unioncam.testing.state_checks import state_of
from tests.attr import OWN as CAMS

CLASSES, CHANNELS, SIZE = 4, 6, (14, 10)


def direct_call(cls, fixed):
    """A class called as people call it, with the black baseline where it masks inputs and has none of its own."""
    takes_black = "baselines" in inspect.signature(cls.attribute).parameters and not cls.has_own_baselines

    def call(net, x, t, b):
        method = cls(net) if cls is Rise else cls(net, net.features)
        return method.attribute(x, t, **({"baselines": b} if takes_black else {}), **fixed)

    return call


OWN = {name: direct_call(cls, cls.variants.get(name, {})) for name, cls in {**CAMS, "rise": Rise}.items()}
CAPTUM = {
    "grad_cam": lambda net, x, t, b: captum_attr.LayerGradCam(net, net.features).attribute(
        x, t, relu_attributions=True
    ),
    "layer_grad_x_activation": lambda net, x, t, b: captum_attr.LayerGradientXActivation(net, net.features).attribute(
        x, t
    ),
    "guided_grad_cam": lambda net, x, t, b: captum_attr.GuidedGradCam(net, net.features).attribute(
        x, t, interpolate_mode="bilinear"
    ),
    "guided_backprop": lambda net, x, t, b: captum_attr.GuidedBackprop(net).attribute(x, t),
    "deconvolution": lambda net, x, t, b: captum_attr.Deconvolution(net).attribute(x, t),
    "saliency": lambda net, x, t, b: captum_attr.Saliency(net).attribute(x, t),
    "input_x_gradient": lambda net, x, t, b: captum_attr.InputXGradient(net).attribute(x, t),
    "integrated_gradients": lambda net, x, t, b: captum_attr.IntegratedGradients(net).attribute(x, b, t),
    "occlusion": lambda net, x, t, b: captum_attr.Occlusion(net).attribute(
        x, sliding_window_shapes=(3, 2, 1), strides=(3, 1, 1), baselines=b, target=t
    ),
}


class Net(nn.Module):
    """ReLUs in place wherever there is one; ``features`` has half the input's resolution, ``pooled`` one head."""

    def __init__(self, pooled=False):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, CHANNELS, 2, stride=2),
            nn.ReLU(inplace=True),
        )
        positions = 1 if pooled else SIZE[0] // 2 * (SIZE[1] // 2)
        self.pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
        self.hidden = nn.Identity() if pooled else nn.Sequential(nn.Linear(CHANNELS * positions, 9), nn.Softplus())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(CHANNELS if pooled else 9, CLASSES))
        with torch.no_grad():
            self.head[1].weight *= 8
        self.passes, self.fails_at = 0, None
        self.eval()

    def forward(self, x):
        self.passes += 1
        if self.passes == self.fails_at:
            raise KeyError("stop")
        return self.head(self.hidden(self.pool(self.features(x)).flatten(1)))


def out_of_place(net):
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net


def data(examples=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(examples, 3, *SIZE, dtype=dtype, generator=generator)
    return inputs, torch.tensor([2, 0, 3])[:examples], torch.randn(1, 3, *SIZE, dtype=dtype, generator=generator) / 4


def run(name, net, inputs, target, baselines, layer=None, **settings):
    return methods.create(name, net, layer or net.features, methods.MethodSettings(**settings))(
        inputs, target, baselines
    )


def as_map(attributions):
    """What ``create`` promises to make of them."""
    positive = attributions.detach().sum(1, keepdim=True).clamp(min=0)
    return F.interpolate(positive, SIZE, mode="bilinear", align_corners=False)


def classes(module, argument):
    """Public classes of a package that are made of a model and a layer."""
    found = {}
    for name, value in vars(module).items():
        parameters = inspect.signature(value).parameters if inspect.isclass(value) else {}
        if argument in parameters and name != "ActivationsAndGradients":
            found[name] = value
    return found


def torchcam_classes():
    return classes(pytest.importorskip("torchcam.methods"), "target_layer")


def grad_cam_classes():
    return classes(pytest.importorskip("pytorch_grad_cam"), "target_layers")


def net_for(name):
    # CAM asks for one fully connected layer, and SESS crops to squares of other sizes.
    return Net(pooled=name in ("cam", "torchcam:CAM", "grad_cam:SESS"))


TORCHCAM = (
    *("CAM", "FinerCAM", "GradCAM", "GradCAMpp", "ISCAM"),
    *("LayerCAM", "SSCAM", "ScoreCAM", "SmoothGradCAMpp", "XGradCAM"),
)
TORCHCAM_FAILING = {"LeGrad": "score_projection", "RefineCAM": "at least two target layers"}
GRAD_CAM = (
    *("AblationCAM", "EigenCAM", "EigenGradCAM", "FEM", "FinerCAM"),
    *("FullGrad", "GradCAM", "GradCAMElementWise", "GradCAMPlusPlus", "HiResCAM"),
    *("KPCA_CAM", "LayerCAM", "RandomCAM", "RefineCAM", "SESS"),
    *("ScoreCAM", "SegEigenCAM", "ShapleyCAM", "XGradCAM"),
)
ALL = [*OWN, *CAPTUM, "gradient_shap", *(f"torchcam:{n}" for n in TORCHCAM), *(f"grad_cam:{n}" for n in GRAD_CAM)]


def skip_without_package(name):
    if ":" in name:
        pytest.importorskip({"torchcam": "torchcam", "grad_cam": "pytorch_grad_cam"}[name.partition(":")[0]])


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch):
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})


def test_names_are_those_tested_here():
    assert sorted(methods.names()) == sorted([*OWN, *CAPTUM, "gradient_shap"])


def test_every_cam_class_of_the_packages_is_tested_here():
    assert sorted(torchcam_classes()) == sorted([*TORCHCAM, *TORCHCAM_FAILING])
    assert sorted(grad_cam_classes()) == sorted(GRAD_CAM)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not", "ignore:Setting backward hooks")
@pytest.mark.parametrize("name", [*OWN, *CAPTUM])
def test_built_in_methods_are_direct_calls_summed_cut_and_upsampled(name):
    net, (inputs, target, baselines) = net_for(name).double(), data(dtype=torch.float64)
    maps = run(name, net, inputs, target, baselines)
    direct = {**OWN, **CAPTUM}[name](out_of_place(net), inputs, target, baselines)
    assert maps.shape == (3, 1, *SIZE)
    assert maps.max() > 0
    torch.testing.assert_close(maps, as_map(direct))


@pytest.mark.parametrize("name", [*OWN, *CAPTUM])
def test_an_example_has_its_own_baseline(name):
    net, (inputs, target, black) = net_for(name).double(), data(dtype=torch.float64)
    baselines = torch.cat([black, black - 1, black + 2])
    maps = run(name, net, inputs, target, baselines)
    each = [run(name, net, inputs[i : i + 1], target[i : i + 1], baselines[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(maps, torch.cat(each))


def test_gradient_shap_of_a_linear_model_is_the_weight_times_the_difference_to_the_baseline():
    inputs, target, black = data()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), CLASSES))
    for baselines in (black, torch.cat([black, black - 1, black + 2])):
        maps = run("gradient_shap", linear, inputs, target, baselines, layer=linear[1])
        # Wherever the gradient is drawn, it is the weight.
        expected = linear[1].weight[target].reshape(inputs.shape) * (inputs - baselines)
        torch.testing.assert_close(maps, as_map(expected))


def test_settings_reach_the_methods():
    net, (inputs, target, baselines) = Net(), data()
    settings = {"theta": 40.0, "max_channels": 2, "internal_batch_size": 2}
    union = LayerUnionCam(net, net.features).attribute(inputs, target, baselines=baselines, **settings)
    torch.testing.assert_close(run("union_cam", net, inputs, target, baselines, **settings), as_map(union))
    assert not torch.equal(as_map(union), run("union_cam", net, inputs, target, baselines))
    denoised = LayerDenoisedGradCam(net, net.features).attribute(inputs, target, theta=40)
    torch.testing.assert_close(run("denoised_grad_cam", net, inputs, target, baselines, **settings), as_map(denoised))
    halved = run("score_cam", net, inputs, target, baselines, score_dtype=torch.bfloat16)
    score_cam = LayerScoreCam(net, net.features)
    expected = score_cam.attribute(inputs, target, baselines=baselines, score_dtype=torch.bfloat16)
    torch.testing.assert_close(halved, as_map(expected))
    with pytest.raises(ValueError, match="theta"):
        run("union_cam", net, inputs, target, baselines, theta=200.0)


@pytest.mark.parametrize(
    "name",
    [
        *("score_cam", "integrated_gradients", "occlusion"),
        *("torchcam:ScoreCAM", "grad_cam:ScoreCAM", "grad_cam:AblationCAM"),
    ],
)
def test_no_pass_has_more_rows_than_the_internal_batch_size(name):
    skip_without_package(name)
    net, (inputs, target, baselines) = Net(), data()
    rows = []
    net.head.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    run(name, net, inputs, target, baselines)
    assert max(rows) > 3
    rows.clear()
    run(name, net, inputs, target, baselines, internal_batch_size=3)
    assert max(rows) == 3


@pytest.mark.parametrize("name", TORCHCAM)
def test_torchcam_is_the_package_used_example_by_example(name):
    cam_class = torchcam_classes()[name]
    net, (inputs, target, baselines) = net_for(f"torchcam:{name}"), data()
    torch.manual_seed(5)
    maps = run(f"torchcam:{name}", net, inputs, target, baselines)
    net, expected = out_of_place(net), []
    torch.manual_seed(5)
    for i, index in enumerate(target.tolist()):
        with cam_class(net, "features") as extractor:
            scores = net(inputs[i : i + 1])
            expected += extractor(index, scores, normalized=False)
    assert maps.max() > 0
    torch.testing.assert_close(maps, as_map(torch.stack(expected)), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of ShapleyCAM's destructor
@pytest.mark.parametrize("name", GRAD_CAM)
def test_grad_cam_is_the_package_used_example_by_example(name):
    cam_class = grad_cam_classes()[name]
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net, (inputs, target, baselines) = net_for(f"grad_cam:{name}"), data()
    torch.manual_seed(5)
    maps = run(f"grad_cam:{name}", net, inputs, target, baselines)
    net, expected = out_of_place(net), []
    for i, index in enumerate(target.tolist()):
        cam = cam_class(net, [] if name == "FullGrad" else [net.features])
        asked = {"target_idx": index} if name == "FinerCAM" else {"targets": [ClassifierOutputTarget(index)]}
        expected.append(torch.from_numpy(cam(inputs[i : i + 1], **asked)))
    assert maps.shape == (3, 1, *SIZE)
    assert maps.max() > 0.99
    if name != "RandomCAM":
        torch.testing.assert_close(maps, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["torchcam:CAM", "grad_cam:ScoreCAM", "grad_cam:AblationCAM", "grad_cam:FullGrad"])
def test_packages_print_and_log_nothing(capfd, caplog, name):
    skip_without_package(name)
    run(name, net_for(name), *data())
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_finer_cam_compares_the_class_with_others():
    pytest.importorskip("pytorch_grad_cam")
    finer, plain = (run(f"grad_cam:{name}", Net(), *data()) for name in ("FinerCAM", "GradCAM"))
    assert not torch.allclose(finer, plain, atol=1e-2)


@pytest.mark.parametrize("name", ["gradient_shap", "grad_cam:RandomCAM", "torchcam:SmoothGradCAMpp"])
def test_torchs_generator_decides_what_is_random_and_numpys_is_left_alone(name):
    skip_without_package(name)
    net, runs = Net(), []
    for torch_seed, numpy_seed in ((0, 0), (0, 1), (1, 0)):
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)
        runs.append(run(name, net, *data()))
        drawn = np.random.random()
        np.random.seed(numpy_seed)
        assert drawn == np.random.random()
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2], rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        *("union_cam", "denoised_grad_cam", "grad_cam", "layer_grad_x_activation", "guided_grad_cam"),
        *("torchcam:GradCAM", "torchcam:LayerCAM", "grad_cam:LayerCAM", "grad_cam:AblationCAM"),
    ],
)
def test_a_relu_in_place_behind_the_layer_changes_nothing(name):
    skip_without_package(name)
    in_place = Net()
    plain = out_of_place(in_place)
    maps = [run(name, net, *data(), layer=net.features[3]) for net in (in_place, plain)]
    torch.testing.assert_close(*maps)


def everything_of(net):
    return {
        **state_of(net),
        # Methods draw from torch's.
        "the random generators": None,
        "grads": [id(p.grad) for p in net.parameters()],
        "modules": {name: id(module) for name, module in net.named_modules()},
        "inplace": [module.inplace for module in net.modules() if hasattr(module, "inplace")],
    }


def net_in_use(name):
    net = net_for(name).train()
    net.features[1].eval()
    net.features[0].requires_grad_(False)
    net.features[3].weight.grad = torch.ones_like(net.features[3].weight)
    net.features.register_forward_hook(lambda *_args: None)
    return net


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("name", ALL)
def test_model_and_inputs_are_left_as_found(name):
    skip_without_package(name)
    net, arguments = net_in_use(name), data(2)
    before, values = everything_of(net), [x.clone() for x in arguments]
    with torch.no_grad():
        maps = run(name, net, *arguments)
        assert not torch.is_grad_enabled()
    assert everything_of(net) == before
    assert not maps.requires_grad
    for x, value in zip(arguments, values, strict=True):
        assert torch.equal(x, value)
        assert not x.requires_grad
        assert x.grad is None
    if name not in ("gradient_shap", "torchcam:SSCAM", "torchcam:SmoothGradCAMpp", "grad_cam:RandomCAM"):
        # In training mode, dropout and batch normalisation would have had a part.
        torch.testing.assert_close(maps, run(name, net.eval(), *arguments))


@pytest.mark.usefixtures("rows_tried")
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_model_is_left_as_found_when_a_pass_raises(name, fails_at):
    skip_without_package(name)
    net, sound = net_in_use(name), net_for(name)
    run(name, sound, *data(2))
    before, net.fails_at = everything_of(net), fails_at
    error = raised_by(lambda: run(name, net, *data(2)))
    # Passes that are traced are not counted: a model that raises in them is run whole, and raises there.
    if error is not None or sound.passes >= fails_at:
        assert isinstance(error, Failure if ":" in name else KeyError)
        assert "stop" in str(error)
    assert everything_of(net) == before


@pytest.mark.parametrize("name", ["saliency", "union_cam", "torchcam:GradCAM", "grad_cam:GradCAM", "grad_cam:FullGrad"])
def test_a_frozen_model_can_be_explained(name):
    skip_without_package(name)
    expected = run(name, Net(), *data())
    torch.testing.assert_close(run(name, Net().requires_grad_(False), *data()), expected)


def test_names_of_the_packages_are_matched_without_case_and_punctuation():
    torchcam_classes(), grad_cam_classes()
    for given, name in (
        ("torchcam:grad_cam_pp", "torchcam:GradCAMpp"),
        ("torchcam:LAYER-CAM", "torchcam:LayerCAM"),
        ("grad_cam:hirescam", "grad_cam:HiResCAM"),
        ("grad_cam:kpca-cam", "grad_cam:KPCA_CAM"),
    ):
        assert torch.equal(run(given, Net(), *data()), run(name, Net(), *data()))


@pytest.mark.parametrize(("name", "reason"), TORCHCAM_FAILING.items())
def test_a_class_that_does_not_fit_the_model_fails_with_its_reason(name, reason):
    torchcam_classes()
    net = Net()
    before = everything_of(net)
    with pytest.raises(Failure, match=f"torchcam:{name}: raised ValueError: .*{reason}"):
        run(f"torchcam:{name}", net, *data())
    with pytest.raises(Failure, match="multiple fully connected layers"):
        run("torchcam:CAM", net, *data())
    assert everything_of(net) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unioncam", r"no method 'unioncam'; did you mean union_cam.*torchcam:NAME"),
        ("nothing_near", r"no method 'nothing_near'\. Give one of .*denoised_grad_cam, "),
        ("torchcam:LayerKAM", "torchcam has no method 'LayerKAM'; did you mean LayerCAM"),
        ("grad_cam:ActivationsAndGradients", "grad_cam has no method"),
        ("grad_cam:", "grad_cam has no method ''"),
        ("no_such_module:make", "no_such_module:make: there is no module 'no_such_module'"),
        ("json:lods", "json has no function 'lods'; did you mean loads"),
        (":make", "give package.module:function"),
    ],
)
def test_unknown_names(name, message):
    skip_without_package(name if name.startswith(("torchcam", "grad_cam")) else "")
    with pytest.raises(WrongArgument, match=message):
        methods.create(name, Net(), nn.Identity())


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [("torchcam:CAM", "torchcam.methods", "pip install torchcam"), ("grad_cam:CAM", "pytorch_grad_cam", "grad-cam")],
)
def test_a_missing_package_says_how_to_install_it(monkeypatch, name, module, install):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Failure, match=install):
        methods.create(name, Net(), nn.Identity())


def test_packages_are_not_imported_before_they_are_asked_for():
    code = (
        "import sys, captum_unioncam.methods; assert not {'torchcam', 'pytorch_grad_cam', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def corner(model, layer, settings):
    return lambda inputs, target, baselines: (
        (inputs - baselines)[:, :, :3, :2] * (target + settings.theta).view(-1, 1, 1, 1)
    )


def test_one_call_registers_a_method():
    methods.register("corner", corner)
    assert "corner" in methods.names()
    inputs, target, baselines = data()
    maps = run("corner", Net(), inputs, target, baselines, theta=7.0)
    expected = (inputs - baselines)[:, :, :3, :2] * torch.tensor([9.0, 7.0, 10.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(maps, as_map(expected))


@pytest.mark.parametrize(("name", "message"), [("union_cam", "already"), ("mine", "already"), ("a:b", "':'")])
def test_names_are_registered_once_and_without_colon(name, message):
    methods.register("mine", corner)
    with pytest.raises(WrongArgument, match=message):
        methods.register(name, corner)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a module into the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_methods", raising=False)
    importlib.invalidate_caches()
    return lambda text: (tmp_path / "own_methods.py").write_text(text)


def test_a_function_of_a_module_here_is_a_method(own_module):
    own_module("def red(model, layer, settings):\n    return lambda inputs, target, baselines: inputs[:, :1]\n")
    inputs, target, baselines = data()
    assert torch.equal(run("own_methods:red", Net(), inputs, target, baselines), inputs[:, :1].clamp(min=0))


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("raise OSError('no disk')", Failure, "own_methods:make: raised OSError: no disk"),
        ("return 3", WrongArgument, "returned int"),
        ("return lambda x, t, b: 1 / 0", Failure, "own_methods:make: raised ZeroDivisionError: division by zero"),
        ("return lambda x, t, b: x[0]", Failure, r"returned shape \(3, 14, 10\) for .* of shape \(3, C, h, w\)"),
        ("return lambda x, t, b: x[:2]", Failure, r"returned shape \(2, 3, 14, 10\)"),
        ("return lambda x, t, b: x[..., :0]", Failure, r"returned shape \(3, 3, 14, 0\)"),
        ("return lambda x, t, b: x.tolist()", Failure, "returned list"),
        ("return lambda x, t, b: x / (t != 0).view(-1, 1, 1, 1)", ValueError, r"own_methods:make: not finite .* \[1\]"),
    ],
)
def test_what_users_methods_do_wrong_is_said(own_module, body, error, message):
    own_module(f"def make(model, layer, settings):\n    {body}\n")
    with pytest.raises(error, match=message):
        run("own_methods:make", Net(), *data())


def test_a_users_method_cannot_change_inputs_or_gradients():
    def careless(model, layer, settings):
        def attribute(inputs, target, baselines):
            layer.register_forward_hook(lambda *_args: None)
            inputs.requires_grad_()
            model.requires_grad_(True)
            model(inputs)[:, 0].sum().backward()
            result = inputs.grad.clone()
            inputs.data.zero_()
            baselines.zero_()
            return result

        return attribute

    methods.register("careless", careless)
    net, arguments = net_in_use(""), data()
    before, values = everything_of(net), [x.clone() for x in arguments]
    run("careless", net, *arguments)
    assert everything_of(net) == before
    assert all(torch.equal(x, value) for x, value in zip(arguments, values, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_maps_have_float32_at_least(dtype):
    methods.register("cast", lambda model, layer, settings: lambda inputs, target, baselines: inputs.to(dtype))
    inputs, target, baselines = data()
    maps = run("cast", Net(), inputs, target, baselines)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, inputs.to(dtype).float().sum(1, keepdim=True).clamp(min=0))
    assert run("saliency", Net().double(), inputs.double(), target, baselines.double()).dtype == torch.float64
