"""Checks of every way to call a method: targets, layers, inputs, functions, and what wraps it."""

import inspect
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from captum_unioncam.attr.upsampled import UpsampledAttribution
from captum_unioncam.testing.contract import Subject, given, layer_check, raised_by, require, require_same
from captum_unioncam.testing.map_checks import TARGETS
from captum_unioncam.testing.networks import CLASSES, Alarm, TinyNet, TwoOutputs, tiny_inputs


@layer_check
def signature(subject: Subject) -> None:
    """A layer attribution with LayerGradCam's positional arguments, ``grad_kwargs`` only where there are gradients."""
    require(issubclass(subject.cls, LayerAttribution), "the class is no captum.attr.LayerAttribution")
    constructor, captums = _positional(subject.cls), _positional(LayerGradCam)
    require(constructor == captums, f"the constructor's positional arguments are {constructor}, not {captums}")
    ours, captums = _positional(subject.cls.attribute), _positional(LayerGradCam.attribute)
    without = [(name, default) for name, default in captums if name != "grad_kwargs"]
    require(ours in (captums, without), f"attribute's positional arguments are {ours}, not {captums}")
    require(
        hasattr(subject.cls.attribute, "__wrapped__"), "attribute lacks Captum's log_usage, which NoiseTunnel needs"
    )


def _positional(function: Any) -> list[tuple[str, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@layer_check
def targets(subject: Subject) -> None:
    """Every form of target that Captum has means what it means there."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    each = torch.cat([subject.explain(net, net.features, inputs[i : i + 1], t) for i, t in enumerate(TARGETS)])
    same, one = (subject.explain(net, net.features, examples, 2) for examples in (inputs, inputs[:1]))
    cases: list[tuple[Tensor, list[Any], Tensor, str]] = [
        (inputs, [TARGETS, torch.tensor(TARGETS)], each, "of each example alone"),
        (inputs, [torch.tensor(2), torch.tensor([2]), [2, 2, 2], torch.tensor([2, 2, 2])], same, "of target 2"),
        (inputs[:1], [2, [2], torch.tensor([2]), torch.tensor(2)], one, "of target 2"),
    ]
    for examples, forms, expected, what in cases:
        for target in forms:
            with given(f"a batch of {len(examples)} and target {target!r}"):
                require_same(subject.explain(net, net.features, examples, target), expected, what)


@layer_check
def targets_of_more_dimensions(subject: Subject) -> None:
    """Tuples name the output of a model whose output has more than two dimensions."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)

    def spatial(x: Tensor) -> Tensor:
        output: Tensor = net(x)
        return torch.stack([output, 2 * output.flip(1)], dim=2)

    def explained(i: int, target: tuple[int, int]) -> Tensor:
        # The softmax over the classes of each position: as that of a network with one position.
        made: Tensor = subject.explain(lambda x: spatial(x)[..., target[1]], net.features, inputs[i : i + 1], target[0])
        return made

    for target in ((2, 1), [(3, 0), (0, 1), (1, 1)]):
        with given(f"an output of shape (3, {CLASSES}, 2) and target {target}"):
            of_each = target if isinstance(target, list) else [target] * 3
            expected = torch.cat([explained(i, one) for i, one in enumerate(of_each)])
            made = subject.explain(spatial, net.features, inputs, target)
            require_same(made, expected, "of the position alone")
            subject.require_reference(made, spatial, net.features, inputs, of_each)


@layer_check
def no_target(subject: Subject) -> None:
    """A model with one output an example needs no target, whether it is (N,) or (N, 1)."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)

    def positive(x: Tensor) -> Any:
        return net(x).sigmoid()[:, 1]

    explained = {
        "(N,) and no target": subject.explain(positive, net.features, inputs),
        "(N, 1) and no target": subject.explain(lambda x: positive(x).reshape(-1, 1), net.features, inputs),
        "(N, 1) and target 0": subject.explain(lambda x: positive(x).reshape(-1, 1), net.features, inputs, 0),
    }
    alone = torch.cat([subject.explain(positive, net.features, example) for example in inputs[:, None]])
    for how, made in explained.items():
        with given(f"an output of shape {how}"):
            require_same(made, alone, "of each example alone")
            subject.require_reference(made, positive, net.features, inputs, [None] * 3)


@layer_check
def bad_targets(subject: Subject) -> None:
    """A target that does not fit raises what Captum raises, or an error that names the argument."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    bad = (CLASSES, [0, 1], [0, 1, CLASSES], (0, 0, 0), torch.tensor([0, 1]), None, "0")
    for target in bad:
        expected = raised_by(partial(LayerGradCam(net, net.features).attribute, inputs, target))
        error = raised_by(partial(subject.explain, net, net.features, inputs, target))
        named = isinstance(error, (AssertionError, TypeError, ValueError)) and "target" in str(error).lower()
        require(
            named or isinstance(error, type(expected)),
            f"given target {target!r}, {error!r} was raised, and {type(expected).__name__} by Captum's LayerGradCam",
        )


@layer_check
def targets_in_one_call(subject: Subject) -> None:
    """``attribute_targets`` gives what a call of ``attribute`` for each target gives."""
    if not hasattr(subject.cls, "attribute_targets"):
        return
    net, inputs, targets = subject.net(subject.ndim), tiny_inputs(subject.ndim), [[0, 3], [2, 2], [1, 0]]
    method, settings = subject.cls(net, net.features), subject.traits.arguments
    expected = torch.stack([method.attribute(inputs, [row[t] for row in targets], **settings) for t in (0, 1)], 1)
    for given_targets in (targets, torch.tensor(targets)):
        with given(f"targets {given_targets!r}"):
            require_same(method.attribute_targets(inputs, given_targets, **settings), expected, "of single calls")
    forms: list[Any] = [[[0], [1]], [[0], [1, 2], [3]], [0, 1, 2], 1, [[], [], []], torch.zeros(3).long()]
    for bad in forms:
        _refused(f"targets {bad!r}", "targets", partial(method.attribute_targets, inputs, bad, **settings))


@layer_check
def lists_of_layers(subject: Subject) -> None:
    """A list of layers gives a list of what each layer alone gives."""
    forms: list[tuple[int, dict[str, Any]]] = [(ndim, {}) for ndim in subject.traits.spatial_dims]
    forms.append((subject.ndim, {"attribute_to_layer_input": True}))
    forms += [(subject.ndim, {"attr_dim_summation": summed}) for summed in subject.summations if not summed]
    for ndim, settings in forms:
        plain, inputs = subject.net(ndim), tiny_inputs(ndim)
        with given(f"{ndim}-D inputs, {settings}"):
            alone = [subject.explain(plain, plain.features[n], inputs, TARGETS, **settings) for n in range(5)]
        for relu in (nn.ReLU(), nn.ReLU(inplace=True)):
            net = subject.net(ndim, relu)
            for numbers in ([0, 2, 1], [4], [4, 4], [3, 4]):
                with given(f"{ndim}-D inputs, the list of features {numbers}, {relu}, {settings}"):
                    made = subject.explain(net, [net.features[n] for n in numbers], inputs, TARGETS, **settings)
                    require(isinstance(made, list), f"a {type(made).__name__} came back, not a list")
                    require(len(made) == len(numbers), f"{len(made)} results came back for {len(numbers)} layers")
                    for n, of_layer in zip(numbers, made, strict=True):
                        require_same(of_layer, alone[n], f"of features[{n}] alone")
    _refused("a list of no layers", "layer", lambda: subject.explain(net, [], inputs, 1))


@layer_check
def layers_by_name(subject: Subject) -> None:
    """A layer may be its dotted name in the model, alone or in a list."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features[1], inputs, TARGETS)
    with given("the layer 'features.1'"):
        require_same(subject.explain(net, "features.1", inputs, TARGETS), expected, "of model.features[1]")
    with given("the layers ['features.1', model.features[1]]"):
        for of_layer in subject.explain(net, ["features.1", net.features[1]], inputs, TARGETS):
            require_same(of_layer, expected, "of model.features[1]")
    _refused("the layer 'features.99'", "layer", lambda: subject.explain(net, "features.99", inputs, 1))


@layer_check
def layers_of_several_outputs(subject: Subject) -> None:
    """A layer of several output tensors gives a tuple of the maps of each."""
    net, inputs = TwoOutputs(subject.ndim, subject.traits.network), tiny_inputs(subject.ndim)
    expected = [subject.explain(net, layer, inputs, TARGETS) for layer in (net.first, net.second)]
    with given("a layer of two outputs"):
        made = subject.explain(net, net.both, inputs, TARGETS)
        require(isinstance(made, tuple) and len(made) == 2, f"a {type(made).__name__} came back, not a tuple of two")
        for of_output, alone in zip(made, expected, strict=True):
            require_same(of_output, alone, "of a layer of this output alone")
    with given("a list of a layer of one output and one of two"):
        first, both = subject.explain(net, [net.first, net.both], inputs, TARGETS)
        require_same(first, expected[0], "of the layer alone")
        require(isinstance(both, tuple), f"a {type(both).__name__} came back for the layer of two, not a tuple")


@layer_check
def details(subject: Subject) -> None:
    """``return_details`` adds details in the form of the attributions, and changes nothing."""
    if not subject.takes("return_details"):
        return
    net, inputs = TwoOutputs(subject.ndim, subject.traits.network), tiny_inputs(subject.ndim)
    for how, layer in {"a layer": net.first, "a layer of two outputs": net.both, "a list": [net.first]}.items():
        with given(f"{how} and return_details=True"):
            plain = subject.explain(net, layer, inputs, TARGETS)
            made, details = subject.explain(net, layer, inputs, TARGETS, return_details=True)
            form = type(plain) if isinstance(plain, (list, tuple)) else None
            require(form is None or isinstance(details, form), f"details are a {type(details).__name__}, not {form}")
            for one, other in zip(*((x if form else [x]) for x in (made, plain)), strict=True):
                require_same(one, other, "without details")


@layer_check
def tuples_of_inputs(subject: Subject) -> None:
    """A tuple of one input is that input; further inputs and arguments go to the model, row by row."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    vector = torch.linspace(-1, 1, 3 * CLASSES, dtype=torch.float64).reshape(3, CLASSES)
    plain = subject.explain(net, net.features, inputs, TARGETS)
    with given("a tuple of one input"):
        require_same(subject.explain(net, net.features, (inputs,), TARGETS), plain, "of the input")

    def forward(x: Tensor, added: Tensor, scale: Any = 1.0) -> Any:
        return (net(x) + added) * scale

    alone = torch.cat(
        [
            subject.explain(lambda x, i=i: 2 * (net(x) + vector[i]), net.features, inputs[i : i + 1], target)
            for i, target in enumerate(TARGETS)
        ]
    )
    calls: dict[str, tuple[Any, Any]] = {
        "an image and a vector, and 2.0": ((inputs, vector), 2.0),
        "an image and a vector, and a tensor (N, 1)": ((inputs, vector), torch.full((3, 1), 2.0).double()),
        "an image, and a vector and 2.0": (inputs, (vector, 2.0)),
        "an image, and a vector and a tensor of no dimensions": (inputs, (vector, torch.tensor(2.0).double())),
    }
    for what, (of_inputs, additional) in calls.items():
        with given(f"{what} as additional_forward_args"):
            made = subject.explain(forward, net.features, of_inputs, TARGETS, additional)
            require_same(made, alone, "with the same values in a closure")


@layer_check
def baselines(subject: Subject) -> None:
    """Baselines may be a number, a tensor of one or of all examples, or a tuple; none is 0 or the method's own."""
    if not subject.takes("baselines"):
        return
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    number, black = (subject.explain(net, net.features, inputs, TARGETS, baselines=b) for b in (0.4, 0))
    for form in (torch.full_like(inputs, 0.4), torch.full_like(inputs[:1], 0.4), (0.4,)):
        with given(f"baselines {form if isinstance(form, tuple) else tuple(form.shape)}"):
            require_same(
                subject.explain(net, net.features, inputs, TARGETS, baselines=form), number, "of the number 0.4"
            )
    if not getattr(subject.cls, "has_own_baselines", False):
        with given("baselines None"):
            require_same(subject.explain(net, net.features, inputs, TARGETS, baselines=None), black, "of the number 0")
    require(not torch.allclose(number, black), "given baselines 0.4, the map is that of baselines 0")
    error = raised_by(lambda: subject.explain(net, net.features, inputs, TARGETS, baselines=inputs[:2]))
    require(
        isinstance(error, AssertionError), f"given baselines of 2 for 3 examples, {error!r} was raised, not Captum's"
    )


@layer_check
def batch_sizes(subject: Subject) -> None:
    """``internal_batch_size`` changes nothing, and what is no batch size is refused before the model runs."""
    if not subject.takes("internal_batch_size"):
        return
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features, inputs, TARGETS)
    for size in (1, 2, 7, 1000):
        with given(f"internal_batch_size={size}"):
            made = subject.explain(net, net.features, inputs, TARGETS, internal_batch_size=size)
            require_same(made, expected, "of the default")
    for bad in (0, -3, 2.5, True):
        alarm = Alarm(armed=True)
        call = partial(subject.explain, alarm, alarm, inputs, 0, internal_batch_size=bad)
        _refused(f"internal_batch_size={bad}", "internal_batch_size", call)


@layer_check
def bad_inputs(subject: Subject) -> None:
    """Layers without space, empty batches and values that are not finite raise ``ValueError`` with the name."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    spoilt = inputs.clone()
    spoilt[1, 0, 0] = float("nan")
    _refused("a layer without space", "layer", lambda: subject.explain(net, net.head, inputs, 0))
    _refused("an empty batch", "inputs", lambda: subject.explain(net, net.features, inputs[:0], 0))
    flat = nn.Sequential(TinyNet(2).features, nn.Flatten(2), nn.Linear(12, CLASSES)).double()
    if subject.ndim == 2:
        other = partial(subject.explain, lambda x: flat(x).mean(1), flat[1], inputs, 0)
        _refused("2-D inputs and a layer of 1-D maps", "inputs", other)
    message = _refused("NaN in example 1", "", lambda: subject.explain(net, net.features, spoilt, 0))
    require("[1]" in message, f"given NaN in example 1, the error does not name it: {message}")


def _refused(what: str, argument: str, call: Callable[[], Any]) -> str:
    """The message of the ``ValueError`` that ``call`` has to raise, which begins with the argument's name."""
    error = raised_by(call)
    require(isinstance(error, ValueError), f"given {what}, {error!r} came, not a ValueError")
    require(str(error).startswith(argument), f"given {what}, the error does not begin with {argument!r}: {error}")
    return str(error)


class _Owner:
    """Has a model, and a method that runs it."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def predict(self, x: Tensor) -> Any:
        return self.net(x)


FORWARDS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "the model": lambda net: net,
    "a function": lambda net: lambda x: net(x),
    "the model's method": lambda net: net.forward,
    "another object's method": lambda net: _Owner(net).predict,
    "a partial function": lambda net: partial(net),
    "a DataParallel": lambda net: _data_parallel(net),
    "a function of a DataParallel": lambda net: _Owner(_data_parallel(net)).predict,
}
"""What may be given as ``forward_func``, each made of a model."""


def _data_parallel(net: nn.Module) -> nn.Module:
    # With a GPU it would want the model there.
    return net if torch.cuda.is_available() else nn.DataParallel(net)


@layer_check
def functions(subject: Subject) -> None:
    """The model may be given as a function, a method or a ``DataParallel``."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features, inputs, TARGETS)
    for kind, make in FORWARDS.items():
        with given(f"{kind} as forward_func"):
            require_same(subject.explain(make(net), net.features, inputs, TARGETS), expected, "of the model")


@layer_check
def no_gradients(subject: Subject) -> None:
    """A method without gradients explains a model that has none; any runs under ``torch.no_grad``."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    expected = subject.explain(net, net.features, inputs, TARGETS)
    with given("torch.no_grad()"), torch.no_grad():
        require_same(subject.explain(net, net.features, inputs, TARGETS), expected, "outside of it")
    if not subject.traits.uses_gradients:
        with given("a model without gradients"):
            made = subject.explain(lambda x: net(x).detach(), net.features, inputs, TARGETS)
            require_same(made, expected, "of the model with gradients")


@layer_check
def noise_tunnel(subject: Subject) -> None:
    """Captum's ``NoiseTunnel`` gives the mean of the maps, and its other types."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    method, settings = subject.cls(net, net.features), subject.traits.arguments
    for kind in ("smoothgrad", "smoothgrad_sq", "vargrad"):
        with given(f"NoiseTunnel, nt_type={kind!r}"):
            torch.manual_seed(0)
            made = NoiseTunnel(method).attribute(
                inputs, nt_type=kind, nt_samples=4, stdevs=0.1, target=TARGETS, **settings
            )
            torch.manual_seed(0)
            noise = torch.normal(0, torch.tensor(0.1).repeat(12, *inputs.shape[1:]))
            noisy, repeated = inputs.repeat_interleave(4, 0) + noise, [t for t in TARGETS for _ in range(4)]
            maps = method.attribute(noisy, repeated, **settings)
            maps = maps.reshape(3, 4, *maps.shape[1:])
            mean, mean_square = maps.mean(1), maps.square().mean(1)
            expected = {"smoothgrad": mean, "smoothgrad_sq": mean_square, "vargrad": mean_square - mean.square()}
            require_same(made, expected[kind], "computed from the maps of the noisy inputs")


@layer_check
def sensitivity(subject: Subject) -> None:
    """``captum.metrics.sensitivity_max`` measures the method, wrapped in ``UpsampledAttribution``."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[subject.ndim]
    upsampled = UpsampledAttribution(subject.cls(net, net.features), mode)
    arguments = {"target": TARGETS, "n_perturb_samples": 2, **subject.traits.arguments}
    with given("sensitivity_max with UpsampledAttribution"):
        made = sensitivity_max(upsampled.attribute, inputs, **arguments)
        require(made.shape == (3,), f"the sensitivity has shape {tuple(made.shape)}, not (3,)")
        # A map that is 0 everywhere, as that of a class the layer speaks against, stays so.
        shown = (upsampled.attribute(inputs, TARGETS, **subject.traits.arguments) != 0).flatten(1).any(1)
        require(bool(shown.any()), "all maps are 0 everywhere")
        require(bool((made[shown] > 0).all()), "the sensitivity to noise is 0")
    with given("sensitivity_max with a perturbation that changes nothing"):
        made = sensitivity_max(upsampled.attribute, inputs, perturb_func=lambda x: x, **arguments)
        require_same(made, torch.zeros(3), "expected, a sensitivity of 0", 1e-6)


@layer_check
def pickling(subject: Subject) -> None:
    """A method object survives pickling, before and after use, and is used again with the same result."""
    net, inputs = subject.net(subject.ndim), tiny_inputs(subject.ndim)
    method, settings = subject.cls(net, net.features), subject.traits.arguments
    expected = subject.explain(net, net.features, inputs, TARGETS)
    for state in ("not used", "used"):
        with given(f"a pickled method that was {state}"):
            copied = pickle.loads(pickle.dumps(method))
            require_same(copied.attribute(inputs, TARGETS, **settings), expected, "of a new method")
        with given(f"a method object that was {state}"):
            require_same(method.attribute(inputs, TARGETS, **settings), expected, "of a new method")
