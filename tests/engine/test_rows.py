"""Rows are independent and plain: models that need two, a fixed number or contiguous inputs; inputs of every kind."""

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_unioncam import LayerDenoisedGradCam, LayerScoreCam, LayerUnionCam, metrics
from captum_unioncam.engine import accelerators, tuning
from captum_unioncam.engine.maps import minmax, up
from captum_unioncam.engine.rows import check_rows_of_arguments, takes_any_format
from captum_unioncam.engine.scoring import MaskedScorer
from captum_unioncam.testing.devices import PretendedDevices
from tests.attr import reference
from tests.networks import TinyNet, tiny_inputs


def small():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 5, 2, 2), nn.SiLU())
    return features.double().eval(), nn.Linear(5, 4).double()


class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = small()

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).squeeze())


def expected_map(net, inputs, target):
    """Score-CAM in plain loops, on a model of the same weights that does not squeeze."""
    maps = []
    with torch.no_grad():
        for x in inputs.split(1):
            activations = net.features(x)
            total = 0
            for channel in activations[0]:
                masked = reference.blend(reference.mask_of(channel[None, None], x.shape[2:]), x, 0 * x)
                confidence = net.head(net.features(masked).mean((2, 3))).softmax(1)[0, target]
                total = total + confidence * channel
            maps.append(total.clamp(min=0)[None, None])
    return torch.cat(maps)


@pytest.mark.parametrize("rows", [None, "auto", 1, 2, 4, 7])
@pytest.mark.parametrize("examples", [2, 3])
def test_models_that_squeeze_never_get_a_single_row(examples, rows):
    net, inputs = Squeezing(), tiny_inputs(examples=examples)
    attr = LayerScoreCam(net, net.features).attribute(inputs, 1, internal_batch_size=rows)
    assert torch.allclose(attr, expected_map(net, inputs, 1), rtol=0, atol=1e-9)


class OfRows(nn.Module):
    """Made for a number of rows, as models exported with an example are."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.features, self.head = small()

    def forward(self, x):
        return self.head(self.features(x).reshape(self.rows, 5, 12).mean(2))


@pytest.mark.parametrize("rows", [None, "auto", 2, 3])
@pytest.mark.parametrize("examples", [1, 2, 3])
def test_a_model_of_as_many_rows_as_examples_gets_them(examples, rows):
    net, inputs = OfRows(examples), tiny_inputs(examples=examples)
    attr = LayerScoreCam(net, net.features).attribute(inputs, 1, internal_batch_size=rows)
    assert torch.allclose(attr, expected_map(net, inputs, 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_model_of_the_given_number_of_rows_gets_them_in_the_metrics(rows):
    net, inputs, attr = OfRows(rows), tiny_inputs(examples=3), torch.rand(3, 1, 4, 3)
    plain = Squeezing()
    made = metrics.deletion(net, inputs, attr, 1, steps=4, internal_batch_size=rows)
    assert torch.allclose(made, metrics.deletion(plain, inputs, attr, 1, steps=4), rtol=0, atol=1e-12)


def test_an_exported_model_of_fixed_size():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    exported = torch.export.export(net, (inputs,)).module()
    attr = LayerScoreCam(net, net.features, score_func=exported).attribute(inputs, 1)
    assert torch.allclose(attr, LayerScoreCam(net, net.features).attribute(inputs, 1), rtol=0, atol=1e-12)


def test_outputs_that_have_not_a_row_each_are_refused():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    twice = MaskedScorer(lambda x: net(x).repeat(2, 1), (inputs,), None, [1], None)
    with pytest.raises(ValueError, match=r"forward_func: .*row"):
        twice.confidences(torch.rand(3, 2, 4, 3).double())


@pytest.mark.parametrize("cls", [LayerScoreCam, LayerUnionCam, LayerDenoisedGradCam])
def test_layers_that_normalise_over_the_batch_are_refused(cls):
    net = TinyNet(batch_norm=True)
    net.features[3] = nn.BatchNorm2d(5, track_running_stats=False).double()
    with pytest.raises(ValueError, match=r"^forward_func: BatchNorm2d\(.*normalises over the batch"):
        cls(net, net.features).attribute(tiny_inputs(), 1)


def test_one_example_depends_on_no_other():
    net = TinyNet(batch_norm=True)
    net.features[3] = nn.BatchNorm2d(5, track_running_stats=False).double()
    assert LayerDenoisedGradCam(net, net.features).attribute(tiny_inputs(examples=1), 1).isfinite().all()


class Engine(nn.Module):
    """Reads memory as bindings of inference engines do: an address and a shape."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        values = torch.as_strided(x.detach().clone(memory_format=torch.preserve_format), (x.numel(),), (1,))
        return self.net(values.reshape(x.shape))


@pytest.mark.parametrize(
    "wrap", [lambda engine: engine, lambda engine: lambda x: engine(x), lambda engine: engine.forward]
)
@pytest.mark.parametrize("rows", [None, "auto", 2])
def test_a_model_that_reads_memory_gets_contiguous_inputs(wrap, rows):
    net, inputs, attr = TinyNet(), tiny_inputs(), torch.rand(3, 1, 8, 6)
    made = metrics.deletion(wrap(Engine(net)), inputs, attr, 1, steps=6, internal_batch_size=rows)
    assert torch.allclose(made, metrics.deletion(net, inputs, attr, 1, steps=6), rtol=0, atol=1e-12)


def read_with_numpy(x):
    return torch.from_numpy(np.asarray(x))


class Calling(TinyNet):
    def forward(self, x):
        return super().forward(read_with_numpy(x))


def test_which_models_take_channels_last():
    net = TinyNet()
    assert takes_any_format(net)
    assert takes_any_format(nn.DataParallel(net))
    assert takes_any_format(Squeezing())
    for other in (net.forward, lambda x: net(x), Engine(net), Calling(), nn.Sequential(nn.Flatten(), nn.Linear(2, 3))):
        assert not takes_any_format(other)
    assert not takes_any_format(torch.jit.trace(net, tiny_inputs()))


def test_two_calls_give_the_same_bits_on_a_clock_that_runs_wild(monkeypatch):
    class Wild:
        @staticmethod
        def perf_counter():
            return float(np.random.default_rng().random()) * 1e6

    monkeypatch.setattr(accelerators, "time", Wild)
    net, inputs = TinyNet().float(), tiny_inputs(examples=9).float()
    first = LayerUnionCam(net, net.features).attribute(inputs, 1)
    method = LayerUnionCam(net, net.features)
    for _ in range(3):
        assert torch.equal(method.attribute(inputs, 1), first)


@pytest.mark.parametrize("value", ["Auto", "", b"auto", 0, -1, 2.0, True, [4]])
def test_what_is_no_batch_size_is_refused_before_any_pass(value):
    def alarm(x):
        raise AssertionError("a pass was run")

    net = TinyNet()
    for call in (
        lambda: LayerUnionCam(alarm, net.features).attribute(tiny_inputs(), 1, internal_batch_size=value),
        lambda: metrics.deletion(alarm, tiny_inputs(), torch.rand(3, 1, 8, 6), 1, internal_batch_size=value),
    ):
        with pytest.raises((ValueError, TypeError), match="internal_batch_size"):
            call()


@pytest.mark.usefixtures("rows_tried")
def test_a_numpy_number_of_rows_is_one():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    rows = []
    net.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    LayerScoreCam(net, net.features).attribute(inputs, 1, internal_batch_size=np.int64(5))
    assert rows[1:] == [5, 5, 5]


def test_a_failed_pass_holds_nothing_when_its_memory_is_given_back(monkeypatch):
    """Nor does the collector of cycles have to run."""
    made, alive = [], []
    monkeypatch.setattr(tuning.PassTuner, "release", lambda self: alive.append([x() is not None for x in made]))
    net, inputs = TinyNet(), tiny_inputs()

    def forward(x):
        activations = net.features(x)
        if len(made) < 2:
            made.extend(weakref.ref(tensor) for tensor in (x, activations))
            raise torch.OutOfMemoryError("simulated")
        return net.head(activations)

    gc.collect()
    gc.disable()
    try:
        MaskedScorer(forward, (inputs,), None, [1], None).confidences(torch.rand(3, 2, 4, 3).double())
    finally:
        gc.enable()
    assert alive == [[False, False]]


def test_autocast_is_where_the_model_computes():
    net, inputs = TinyNet(activation=nn.SiLU()), tiny_inputs()
    activations, on_gpu = net.features(inputs).detach(), []
    net.register_forward_pre_hook(lambda *_: on_gpu.append(torch.is_autocast_enabled("cuda")))
    devices = PretendedDevices()

    def moves_its_inputs(x):
        return net(x.to("cuda:0")).to("cpu")

    for score_func in (None, moves_its_inputs):
        on_gpu.clear()
        scorer = MaskedScorer(net, (inputs,), None, [1], None, score_func=score_func, score_dtype=torch.bfloat16)
        with devices.active():
            if score_func is not None:
                devices.place(net, "cuda:0")
            scorer.sweep(activations, torch.ones(3, 5, dtype=torch.bool))
        assert set(on_gpu) == {score_func is not None}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_inputs_of_every_dtype_show_the_nearest_values(dtype):
    torch.manual_seed(0)
    inputs, maps, seen = (torch.rand(2, 3, 8, 6) * 255).to(dtype), torch.rand(2, 4, 4, 3).double(), []

    def forward(x):
        seen.append(x)
        return x.double().mean((2, 3))

    MaskedScorer(forward, (inputs,), None, [1], None).confidences(maps)
    shown = torch.cat(seen)
    assert shown.dtype == dtype
    exact = minmax(up(maps, (8, 6))).unsqueeze(2) * inputs.double().unsqueeze(1)
    error = (shown.double() - exact.flatten(0, 1)).abs().max()
    half_a_step = {torch.float16: 0.0625, torch.bfloat16: 0.5, torch.float64: 1e-9}.get(dtype, 0.5)
    assert error <= half_a_step + 1e-4


KINDS = {
    "complex": lambda x: torch.complex(x, x),
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "meta": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_inputs_that_no_mask_can_go_on_are_refused_by_name(kind):
    inputs = KINDS[kind](tiny_inputs())

    def call():
        MaskedScorer(lambda x: x.mean((2, 3)), (inputs,), 0, [1], None).confidences(torch.rand(3, 2, 4, 3).double())

    with pytest.raises(ValueError, match=r"^inputs: number 0 is"):
        call()


class Named(torch.Tensor):
    """A tensor of a class of its own."""


def test_a_tensor_of_a_class_of_its_own_is_taken():
    net, inputs = TinyNet(), tiny_inputs()
    attr = LayerUnionCam(net, net.features).attribute(inputs.as_subclass(Named), 1)
    assert torch.equal(attr.as_subclass(torch.Tensor), LayerUnionCam(net, net.features).attribute(inputs, 1))


@pytest.mark.parametrize("argument", ["target", "additional", "maps", "output"])
def test_what_lies_elsewhere_is_waited_for_once_a_call_and_not_once_a_pass(argument):
    """Inputs on a GPU, and one thing on the CPU."""
    counts = []
    for rows in (1, 32):
        devices = PretendedDevices()
        inputs, maps = devices.put(tiny_inputs(), "cuda:0"), torch.rand(3, 8, 4, 3).double()
        target, scale = torch.tensor([0, 1, 0]), torch.rand(3, 1).double()
        maps = maps if argument == "maps" else devices.put(maps, "cuda:0")
        target = target if argument == "target" else devices.put(target, "cuda:0")
        scale = scale if argument == "additional" else devices.put(scale, "cuda:0")

        def forward(x, scale):
            return x.mean((2, 3)).square() * scale.to(x.device, non_blocking=True)

        with devices.active():
            MaskedScorer(forward, (inputs,), None, [target], (scale,), internal_batch_size=rows).confidences(maps)
        counts.append(devices.synchronisations)
    assert counts[0] == counts[1]


def test_rows_of_arguments_on_a_gpu_beside_inputs_on_the_cpu_do_not_ask_for_values():
    devices, counts = PretendedDevices(), []
    for rows in (1, 32):
        scale = devices.put(torch.rand(3, 1).double(), "cuda:0")
        before = devices.synchronisations
        with devices.active():
            scorer = MaskedScorer(
                lambda x, scale: x.mean((2, 3)).square() + len(scale),
                (tiny_inputs(),),
                None,
                [1],
                (scale,),
                internal_batch_size=rows,
            )
            scorer._rows_checked = True
            scorer.confidences(torch.rand(3, 8, 4, 3).double())
        counts.append(devices.synchronisations - before)
    assert counts[0] == counts[1]


def test_an_argument_that_happens_to_have_a_row_an_example_is_refused():
    features, _ = small()
    inputs, text, attr = tiny_inputs(), torch.randn(3, 5).double(), torch.rand(3, 1, 8, 6)

    def zero_shot(x, text):
        return F.normalize(features(x).mean((2, 3)), dim=1) @ F.normalize(text, dim=1).T

    def attending(x, text):
        return features(x).mean((2, 3)) + text.mean(0)

    for forward in (zero_shot, attending):
        for call in (
            lambda forward=forward: LayerScoreCam(forward, features).attribute(inputs, 1, text),
            lambda forward=forward: metrics.insertion(forward, inputs, attr, 1, None, text, steps=3),
        ):
            with pytest.raises(ValueError, match=r"^additional_forward_args: number 0 .*by a closure"):
                call()


def doubled(x):
    return 2 * x


def through_others(x):
    return torch.from_numpy(x.detach().cpu().__array__())


class CallingAFunction(TinyNet):
    def forward(self, x):
        return super().forward(doubled(x))


class CallingNumPy(TinyNet):
    def forward(self, x):
        return super().forward(x * float(np.pi))


class CallingWhatReads(TinyNet):
    def forward(self, x):
        return super().forward(through_others(x))


def test_functions_that_a_model_calls_are_looked_into():
    assert takes_any_format(CallingAFunction())
    assert not takes_any_format(CallingNumPy())
    assert not takes_any_format(CallingWhatReads())


def test_masks_are_chosen_by_numbers_on_the_inputs_own_device():
    """Inputs on several devices; all take the mask."""
    devices = PretendedDevices()
    inputs = devices.put(tiny_inputs(), "cuda:0"), tiny_inputs()

    def forward(x, y):
        return x.mean((2, 3)).square() + y.to(x.device).mean((2, 3))

    maps = torch.rand(3, 4, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    with devices.active():
        made = MaskedScorer(forward, inputs, None, [1], None).confidences(maps)
    expected = MaskedScorer(forward, (tiny_inputs(), tiny_inputs()), None, [1], None)
    assert torch.allclose(made, expected.confidences(maps), rtol=0, atol=1e-12)


def test_a_list_for_a_model_of_one_row_is_not_doubted():
    def forward(x, factors):
        if len(x) != 1:
            raise ValueError("made for one row")
        return factors[0] * x.mean((2, 3))

    check_rows_of_arguments(forward, (tiny_inputs()[:1],), ([2.0],))
    with pytest.raises(ValueError, match="made for one row"):
        check_rows_of_arguments(forward, (tiny_inputs(),), ([2.0],))


def test_an_error_for_copies_of_an_example_is_raised():
    def forward(x, factors):
        if torch.equal(x[0], x[1]):
            raise KeyError("copies")
        return factors[0] * x.mean((2, 3))

    with pytest.raises(KeyError, match="copies"):
        check_rows_of_arguments(forward, (tiny_inputs(),), ([2.0],))


@pytest.mark.parametrize("number", [0, 2])
def test_the_first_and_the_last_example_tell_whether_rows_are_independent(number):
    attended = torch.zeros(3, 1).double()
    attended[number] = 5

    def forward(x, attended):
        return x.mean((2, 3)) + attended * attended.mean()

    with pytest.raises(ValueError, match=r"^additional_forward_args: number 0 "):
        check_rows_of_arguments(forward, (tiny_inputs(),), (attended,))


def test_rows_of_arguments_are_checked_once():
    calls, scale, maps = [], torch.rand(3, 1).double(), torch.rand(3, 4, 4, 3).double()

    def forward(x, scale):
        calls.append(len(x))
        return x.mean((2, 3)).square() * scale

    scorer = MaskedScorer(forward, (tiny_inputs(),), None, [1], (scale,), confidence_fn=abs, internal_batch_size=12)
    scorer.confidences(maps)
    # The examples, copies of the first and of the last, and the pass itself.
    assert calls == [3, 3, 3, 12]
    scorer.confidences(maps)
    assert calls[4:] == [12]


def test_a_network_of_convolutions_gets_pictures_with_their_channels_last():
    net, last = TinyNet(), []
    scorer = MaskedScorer(net, (tiny_inputs(),), None, [1], None, confidence_fn=abs)
    net.register_forward_pre_hook(
        lambda _m, args: last.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    scorer.confidences(torch.rand(3, 4, 4, 3, generator=torch.Generator().manual_seed(0)).double())
    assert last
    assert all(last)
