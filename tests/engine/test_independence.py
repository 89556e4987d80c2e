"""Rows of a pass that depend on each other are refused, however they do; a model that needs two rows has them."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, find_spatial_layer, metrics
from captum_unioncam.attr.base import CAMS, PerturbationCam
from captum_unioncam.engine import independence
from captum_unioncam.engine.model_state import evaluation_mode
from tests.attr import few_passes
from tests.networks import PooledNet, same, tiny_inputs

ON_OTHERS = r"^forward_func: what it gives for an example depends on the other rows of its pass"
ON_PLACE = r"^forward_func: gives copies of an example different outputs in one pass"


class Mixing(PooledNet):
    """Does something to all rows together, in front of the head or in front of the features."""

    def __init__(self, mix, early=False):
        super().__init__()
        self.mix, self.early = mix, early

    def forward(self, x):
        return self.head(self.features(self.mix(x))) if self.early else self.head(self.mix(self.features(x)))


def attended(a):
    """Attention that takes examples for the tokens of a sequence, as without ``batch_first=True``."""
    tokens = a.flatten(2).transpose(0, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(0, 2).reshape(a.shape)


MIXED = {
    "batch norm": lambda a: F.batch_norm(a, None, None, training=True),
    "mean": lambda a: a - a.mean(0),
    "a tenth of the mean": lambda a: a + 0.1 * a.mean(0),
    "deviation": lambda a: a / (a.std((0, 2, 3), keepdim=True) + 1e-3),
    "largest": lambda a: a / (a.amax() + 1e-3),
    "softmax": lambda a: a.softmax(0),
    "passed on": lambda a: a.cumsum(0),
    "passed back": lambda a: a.flip(0).cumsum(0).flip(0),
    "sorted": lambda a: a.sort(0).values,
    "sorted downwards": lambda a: a.sort(0, descending=True).values,
    "moved": lambda a: a.roll(1, 0),
    "attention over examples": attended,
}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("mix", MIXED)
def test_functions_that_mix_rows_are_refused(mix, early):
    net, inputs = Mixing(MIXED[mix], early), tiny_inputs()
    for forward_func in (net, lambda x: net(x)):
        with pytest.raises(ValueError, match=ON_OTHERS):
            LayerDenoisedGradCam(forward_func, net.features).attribute(inputs, 1)
    with pytest.raises(ValueError, match=ON_OTHERS):
        LayerScoreCam(net, net.features).attribute(inputs[:1], 1)
    with pytest.raises(ValueError, match=ON_OTHERS):
        metrics.deletion(net, inputs, torch.rand(3, 1, 8, 6), 1, steps=3)


@pytest.mark.parametrize("method", CAMS)
def test_no_method_takes_rows_that_are_normalised_together(method):
    net = Mixing(MIXED["batch norm"])
    of_one = (1,) if issubclass(CAMS[method], PerturbationCam) else ()
    for examples in (3, *of_one):
        with pytest.raises(ValueError, match=ON_OTHERS):
            CAMS[method](net, net.features).attribute(tiny_inputs(examples=examples), 1)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_dropout_that_is_never_off_is_refused(share):
    net = Mixing(lambda a: F.dropout(a, share))
    for call in (
        lambda: LayerUnionCam(net, net.features).attribute(tiny_inputs(), 1),
        lambda: LayerScoreCam(net, net.features).attribute(tiny_inputs(examples=1), 1),
    ):
        with pytest.raises(ValueError, match=ON_PLACE):
            call()


ALONE = {
    "instance norm": lambda a: F.instance_norm(a),
    "batch norm of fixed statistics": lambda a: F.batch_norm(a, torch.ones(5).double(), torch.ones(5).double()),
    "own mean": lambda a: a - a.mean((1, 2, 3), keepdim=True),
    "half precision within": lambda a: a.half().double(),
    "bfloat16 within": lambda a: a.bfloat16().double(),
    "the same number for all": lambda a: a + torch.rand(()),
    "not a number in black": lambda a: a / a.abs().amax((1, 2, 3), keepdim=True),
    "dead": lambda a: 0 * a,
    "large offset": lambda a: a + 1e4,
}


@pytest.mark.parametrize("mix", ALONE)
def test_functions_that_take_each_row_alone_are_taken(mix):
    net, inputs = Mixing(ALONE[mix]), tiny_inputs()
    made = LayerDenoisedGradCam(net, net.features).attribute(inputs, 1)
    apart = [LayerDenoisedGradCam(net, net.features).attribute(x, 1) for x in inputs.split(1)]
    assert same(made, torch.cat(apart))
    LayerScoreCam(net, net.features, confidence_fn=torch.sigmoid).attribute(inputs, 1)


def test_kernels_that_do_not_repeat_are_no_dependence():
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    net = Mixing(lambda a: a * (1 + 0.05 * torch.randn(a.shape, generator=chance).double()))
    LayerDenoisedGradCam(net, net.features).attribute(tiny_inputs(), 1)


@pytest.mark.filterwarnings("ignore")
def test_values_that_are_quantised_in_the_range_of_all_rows_are_taken():
    net, inputs = PooledNet().float(), tiny_inputs().float()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    made = LayerScoreCam(quantised, quantised.features).attribute(inputs, 1)
    assert torch.allclose(made, LayerScoreCam(net, net.features).attribute(inputs, 1), rtol=0, atol=0.05)


def test_a_model_is_tried_once_for_its_modules_and_inputs():
    net, rows = PooledNet(), []
    net.features.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))

    def calls(forward_func, inputs):
        rows.clear()
        LayerDenoisedGradCam(forward_func, net.features).attribute(inputs, 1)
        return rows.copy()

    inputs, plain = tiny_inputs(), [3]
    tried = [*plain, independence.ROWS, independence.ROWS]
    assert calls(net, inputs) == tried
    assert calls(net, inputs) == plain
    # A function is another, and so is what it calls.
    assert calls(net.forward, inputs) == tried
    forward_func = lambda x: net(x)  # noqa: E731
    assert calls(forward_func, inputs) == tried
    assert calls(forward_func, inputs) == plain
    net.head.append(nn.Identity())
    assert calls(forward_func, inputs) == tried
    assert calls(net, inputs) == tried
    # One example has no others.
    assert calls(lambda x: net(x), inputs[:1]) == [1]


def test_a_model_that_begins_to_mix_with_a_new_layer_is_refused():
    class OverRows(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    net, inputs = PooledNet(), tiny_inputs()
    LayerDenoisedGradCam(net, net.features).attribute(inputs, 1)
    net.head.insert(1, OverRows())
    with pytest.raises(ValueError, match=ON_OTHERS):
        LayerDenoisedGradCam(net, net.features).attribute(inputs, 1)


def test_what_was_tried_keeps_no_model():
    net = PooledNet()
    LayerDenoisedGradCam(net, net.features).attribute(tiny_inputs(), 1)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


class NoHash:
    """A function that nothing can be remembered of."""

    __hash__ = None

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


def test_a_function_that_cannot_be_remembered_is_tried_in_each_call():
    net = Mixing(MIXED["mean"])
    with pytest.raises(ValueError, match=ON_OTHERS):
        metrics.deletion(NoHash(net), tiny_inputs(), torch.rand(3, 1, 8, 6), 1, steps=3)
    plain = PooledNet()
    metrics.deletion(NoHash(plain), tiny_inputs(), torch.rand(3, 1, 8, 6), 1, steps=3)


def test_a_model_of_two_rows_is_tried_with_two():
    class OfTwo(Mixing):
        def forward(self, x):
            if len(x) != 2:
                raise ValueError("made for two rows")
            return super().forward(x)

    net = OfTwo(MIXED["mean"])
    with pytest.raises(ValueError, match=ON_OTHERS):
        LayerDenoisedGradCam(net, net.features).attribute(tiny_inputs(examples=2), 1)


def test_black_inputs_tell_as_well():
    net = Mixing(MIXED["mean"])
    with pytest.raises(ValueError, match=ON_OTHERS):
        LayerDenoisedGradCam(net, net.features).attribute(0 * tiny_inputs(), 1)


def test_a_score_function_that_mixes_rows_is_refused():
    net, mixing = PooledNet(), Mixing(MIXED["mean"])
    with pytest.raises(ValueError, match=ON_OTHERS):
        LayerScoreCam(net, net.features, score_func=mixing).attribute(tiny_inputs(), 1)


def test_rows_of_arguments_go_with_the_example():
    net = PooledNet()
    with evaluation_mode(lambda x, scale, words: net(x) * scale + len(words)) as (forward_func,):
        arguments = (torch.rand(3, 1).double(), ["a", "b"])
        independence.check_independent_rows(forward_func, (tiny_inputs(),), arguments)


class NeedsTwo(PooledNet):
    """A head that fails of one row, in one of the ways in which heads do."""

    def __init__(self, way="raises"):
        super().__init__()
        self.way = way
        self.norm = nn.BatchNorm1d(5).double().eval()
        self.norm.running_mean.fill_(0.1)

    def forward(self, x):
        pooled = F.adaptive_avg_pool2d(self.features(x), 1)
        if self.way == "raises" and len(x) < 2:
            raise RuntimeError("at least two")
        pooled = pooled.squeeze() if self.way == "squeezes" else pooled.flatten(1)
        output = self.head[-1](self.norm(pooled))
        return output[:-1] if self.way == "loses a row" and len(x) == 1 else output


WAYS = [(method, "raises") for method in CAMS]
WAYS += [(method, way) for method in ("union_cam", "ablation_cam") for way in ("squeezes", "loses a row")]


@pytest.mark.parametrize(("method", "way"), WAYS)
def test_one_example_of_a_model_that_needs_two_rows(method, way):
    net, plain, inputs = NeedsTwo(way), NeedsTwo(None), tiny_inputs(examples=1)

    def explain(model, **options):
        return CAMS[method](model, model.features).attribute(inputs, [1], **few_passes(CAMS[method]), **options)

    assert torch.allclose(explain(net), explain(plain), rtol=0, atol=1e-12)
    if CAMS[method].gives_details:
        made, expected = (explain(model, return_details=True)[1] for model in (net, plain))
        assert all(getattr(made, n).shape == getattr(expected, n).shape for n in vars(expected))
    of_targets = CAMS[method](net, net.features).attribute_targets(inputs, [[1, 2]], **few_passes(CAMS[method]))
    assert torch.allclose(of_targets[:, 0], explain(plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["raises", "squeezes"])
def test_its_layers_are_found_by_one_example(way):
    net, plain = NeedsTwo(way), NeedsTwo(None)
    name, layer = find_spatial_layer(net, tiny_inputs(examples=1))
    assert name == find_spatial_layer(plain, tiny_inputs(examples=1))[0]
    assert layer is net.get_submodule(name)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        find_spatial_layer(nn.Sequential(net.features, nn.Flatten(), nn.Linear(1, 2).double()), tiny_inputs(examples=1))


class TogetherAlone(NeedsTwo):
    def forward(self, x):
        return self.head[-1](F.batch_norm(self.features(x).mean((2, 3)), None, None, training=True))


@pytest.mark.parametrize("method", ["x_grad_cam", "union_cam", "ablation_cam"])
def test_one_example_that_a_model_normalises_over_the_batch_is_refused(method):
    net, inputs = NeedsTwo("flattens"), tiny_inputs(examples=1)
    net.norm = nn.BatchNorm1d(5, track_running_stats=False).double()
    with pytest.raises(ValueError, match=r"^forward_func: BatchNorm1d\(.*normalises over the batch"):
        CAMS[method](net, net.features).attribute(inputs, 1)
    net = TogetherAlone()
    with pytest.raises(ValueError, match=ON_OTHERS):
        CAMS[method](net, net.features).attribute(inputs, 1)


def test_what_a_model_raises_for_two_rows_too_is_raised():
    class Failing(PooledNet):
        def forward(self, x):
            raise KeyError(f"of {len(self.features(x))}")

    net = Failing()
    for method in (LayerDenoisedGradCam, LayerUnionCam):
        with pytest.raises(KeyError, match="of 1"):
            method(net, net.features).attribute(tiny_inputs(examples=1), 1)


def test_arguments_and_targets_of_one_example_go_with_both_rows():
    net, inputs, scale = NeedsTwo(), tiny_inputs(examples=1), torch.tensor([[2.0]]).double()

    def forward(x, scale):
        assert len(x) == len(scale)
        return net(x) * scale

    plain = NeedsTwo(None)
    for target in (1, [1], torch.tensor([1]), torch.tensor(1)):
        made = LayerUnionCam(forward, net.features).attribute(inputs, target, scale)
        expected = LayerUnionCam(lambda x, s: plain(x) * s, plain.features).attribute(inputs, target, scale)
        assert torch.allclose(made, expected, rtol=0, atol=1e-12)
