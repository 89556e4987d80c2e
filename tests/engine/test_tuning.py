"""The rows and memory format of a pass are learnt, on a clock that the tests drive."""

from collections import Counter

import pytest
import torch
from torch import nn

from captum_unioncam import LayerUnionCam
from captum_unioncam.engine import tuning
from captum_unioncam.engine.tuning import PassSetting, PassTuner
from tests.networks import TinyNet, same, tiny_inputs

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(tuning, "time", clock)
    # As where there are many cores.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 128)
    return clock


def run(tuner, clock, seconds, rows):
    """Runs ``rows`` rows as the engine does, each pass taking ``seconds(setting)``; returns the settings."""
    settings = []
    while rows > 0:
        setting = tuner.next()
        count = min(setting.rows, rows)
        with tuner.timed(setting, count):
            clock.now += seconds(setting)
        settings.append(setting)
        rows -= count
    return settings


@pytest.mark.parametrize("best", [1, 2, 4, 8, 16, 32, 256, 1024])
@pytest.mark.parametrize("channels_last", [False, True])
def test_learns_the_fastest_rows_and_format(clock, best, channels_last):
    def seconds(setting):
        slower_with_size = 1 + abs(torch.tensor(setting.rows / best).log2().item())
        return setting.rows * slower_with_size * (1 if setting.channels_last == channels_last else 1.5)

    tuner = PassTuner(CPU, None, (True, False))
    run(tuner, clock, seconds, 500 * max(best, 4))
    later = run(tuner, clock, seconds, 50 * best)
    assert set(later) == {PassSetting(best, channels_last)}


def test_learning_costs_few_passes(clock):
    tuner = PassTuner(CPU, None, (True, False))
    settings = run(tuner, clock, lambda setting: setting.rows * (1 + abs(setting.rows - 4)), 5000)
    assert sum(setting.rows for setting in settings if setting.rows != 4) <= 6 * (8 + 2)
    assert sum(setting.rows for setting in settings[:50] if setting.rows != 4) <= 2 * (8 + 2)


def test_a_trial_while_the_machine_was_busy_is_mended(clock):
    passes = []

    def seconds(setting):
        passes.append(setting)
        busy = 3 if len(passes) <= 4 else 1  # all the first trials of 4 rows
        return setting.rows * busy * (1 + abs(setting.rows - 4) / 4)

    tuner = PassTuner(CPU, None, (True, False))
    run(tuner, clock, seconds, 200)
    assert tuner.next().rows != 4
    run(tuner, clock, seconds, 5000)
    assert tuner.next().rows == 4


def test_a_setting_that_becomes_slow_is_left(clock):
    passes_of_four = 0

    def seconds(setting):
        nonlocal passes_of_four
        passes_of_four += setting.rows == 4
        slow = setting.rows == 4 and passes_of_four > 20
        return setting.rows * (1.5 if slow else 1 + abs(setting.rows - 4) / 5)

    tuner = PassTuner(CPU, None, (True, False))
    run(tuner, clock, seconds, 60)
    assert tuner.next().rows == 4
    later = run(tuner, clock, seconds, 400)
    assert Counter(setting.rows for setting in later[20:]).most_common(1)[0][0] == tuner.next().rows == 2


def test_the_first_pass_of_a_kind_does_not_decide(clock):
    seen = set()

    def seconds(setting):
        first, _ = setting not in seen, seen.add(setting)
        return setting.rows * (100 if first else 1 / setting.rows)

    tuner = PassTuner(CPU, None, (False,))
    run(tuner, clock, seconds, 20_000)
    assert tuner.next().rows == 1024


def test_a_given_number_of_rows_is_obeyed_and_the_format_still_learnt(clock):
    for rows in (5, 3000):
        tuner = PassTuner(CPU, rows, (True, False))
        settings = run(tuner, clock, lambda setting: 2.0 if setting.channels_last else 1.0, 20 * rows)
        assert {setting.rows for setting in settings} == {rows}
        assert tuner.next() == PassSetting(rows, False)


def test_incomplete_passes_are_not_timed(clock):
    tuner = PassTuner(CPU, None, (True, False))
    run(tuner, clock, lambda setting: 1.0, 3)
    assert not tuner.seconds


def test_deterministic_algorithms_fix_the_setting(clock):
    torch.use_deterministic_algorithms(True)
    try:
        tuner = PassTuner(CPU, None, (True, False))
        settings = run(tuner, clock, lambda setting: 1.0, 1000)
        assert set(settings) == {PassSetting(4, True)}
        net, inputs = TinyNet(), tiny_inputs()
        method = LayerUnionCam(net, net.features)
        assert torch.equal(method.attribute(inputs, 1), method.attribute(inputs, 1))
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_fix_the_setting_of_what_has_learnt_already(clock):
    tuner = PassTuner(CPU, None, (True, False))
    run(tuner, clock, lambda setting: 2.0 if setting.channels_last else 1.0, 5000)
    assert tuner.next() == PassSetting(1024, False)
    learnt = {setting: list(seconds) for setting, seconds in tuner.seconds.items()}
    torch.use_deterministic_algorithms(True)
    try:
        assert set(run(tuner, clock, lambda setting: 0.1, 1000)) == {PassSetting(4, True)}
    finally:
        torch.use_deterministic_algorithms(False)
    assert {setting: list(seconds) for setting, seconds in tuner.seconds.items()} == learnt
    assert tuner.next() == PassSetting(1024, False)


def test_out_of_memory_halves_for_good_and_is_not_climbed_again(clock):
    def seconds(setting):
        if setting.rows > 16:
            raise torch.OutOfMemoryError("simulated")
        return 1.0

    tuner = PassTuner(CPU, None, (False,))
    rows = 1000
    recovered = []
    while rows > 0:
        setting = tuner.next()
        try:
            with tuner.timed(setting, setting.rows):
                clock.now += seconds(setting)
            rows -= setting.rows
        except torch.OutOfMemoryError as error:
            recovered.append(tuner.recovers(setting, error))
    assert recovered == [True]
    assert tuner.next().rows == 16
    assert not tuner.recovers(PassSetting(1, False), torch.OutOfMemoryError("simulated"))


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 9 GB)",
    ],
)
def test_errors_of_memory_that_are_plain_runtime_errors(message):
    tuner = PassTuner(CPU, 4, (True, False))
    assert tuner.recovers(PassSetting(4, True), RuntimeError(message))
    assert tuner.formats == (True, False)
    assert tuner.next().rows == 2


def test_out_of_memory_on_a_gpu_gives_back_what_is_kept_free(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    tuner = PassTuner(torch.device("cuda"), None, (True, False))
    assert tuner.recovers(PassSetting(64, True), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert emptied == [True]
    assert tuner.most_rows == 32


def test_other_errors_are_not_taken_for_memory():
    assert not PassTuner(CPU, 4, (False,)).recovers(PassSetting(4, False), RuntimeError("shapes"))


class Viewing(TinyNet):
    """Views its feature maps as vectors, which tensors in channels-last format do not allow."""

    def __init__(self):
        super().__init__()
        self.formats = []

    def forward(self, x):
        features = self.features(x)
        self.formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.head[-1](features.view(x.shape[0], -1))


def test_a_model_that_cannot_take_channels_last_gets_the_usual_format():
    net, inputs = Viewing(), tiny_inputs()
    method = LayerUnionCam(net, net.features)
    attr = method.attribute(inputs, 1)
    assert net.formats.count(True) == 1
    plain = TinyNet()
    assert same(attr, LayerUnionCam(plain, plain.features).attribute(inputs, 1))
    net.formats.clear()
    method.attribute(inputs, 1)
    assert True not in net.formats


def test_an_error_in_both_formats_is_not_the_formats_fault():
    net, inputs = TinyNet(), tiny_inputs()
    formats = []

    def forward(x):
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return net(x)

    def failing(output):
        raise RuntimeError("of the user's own")

    method = LayerUnionCam(forward, net.features, confidence_fn=failing)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of the user's own"):
            method.attribute(inputs, 1)
        assert formats == [False, True, False]  # the gradients, and a masked pass in either format
        formats.clear()


def test_what_was_learnt_is_remembered_for_inputs_of_the_shape(clock):
    net = TinyNet(activation=nn.SiLU())
    rows = []

    def forward(x):
        rows.append(x.shape[0])
        clock.now += 1 + abs(x.shape[0] - 32)
        return net(x)

    method = LayerUnionCam(forward, net.features)
    inputs = tiny_inputs(examples=200)
    method.attribute(inputs, 1)
    rows.clear()
    method.attribute(inputs, 1)
    assert rows[0] == 200  # the gradients
    assert Counter(rows[1:]).most_common(1)[0][0] == rows[1] == 32
    fresh = LayerUnionCam(forward, net.features)
    rows.clear()
    fresh.attribute(inputs, 1)
    assert rows[1] == tuning.FIRST_ROWS["cpu"]


@pytest.mark.parametrize(("threads", "most"), [(1, 8), (2, 16), (64, 512), (1000, 1024)])
def test_a_cpus_rows_grow_with_its_threads_at_most(clock, monkeypatch, threads, most):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tuner = PassTuner(CPU, None, (False,))
    assert max(setting.rows for setting in run(tuner, clock, lambda setting: 1.0, 100_000)) == most
    # A number that is asked for is obeyed.
    assert {setting.rows for setting in run(PassTuner(CPU, 4096, (False,)), clock, lambda _: 1.0, 8192)} == {4096}
