"""The rows and memory format of a pass are learnt, on a clock that the tests drive."""

import os
import platform
import subprocess
import sys
from collections import Counter
from textwrap import dedent

import pytest
import torch
from torch import nn

from captum_unioncam import LayerScoreCam, LayerUnionCam
from captum_unioncam.engine import accelerators, tuning
from captum_unioncam.engine.tuning import PassSetting, PassTuner, fixed_rows
from tests.networks import TinyNet, same, tiny_inputs

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(accelerators, "time", clock)
    # As where there are many cores.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 128)
    return clock


def run(tuner, clock, seconds, rows):
    """Runs ``rows`` rows as the engine does, each pass taking ``seconds(setting)``; returns the settings."""
    settings = []
    while rows > 0:
        setting = tuner.next()
        count = min(setting.rows, rows)
        with tuner.timed(setting, tuner.rows_for(setting, count)):
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

    tuner = PassTuner(CPU, 4, (True, False), learns=True)
    run(tuner, clock, seconds, 500 * max(best, 4))
    later = run(tuner, clock, seconds, 50 * best)
    # A single row is given twice, so two are the fewest.
    assert set(later) == {PassSetting(max(best, 2), channels_last)}


def test_learning_costs_few_passes(clock):
    tuner = PassTuner(CPU, 4, (True, False), learns=True)
    settings = run(tuner, clock, lambda setting: setting.rows * (1 + abs(setting.rows - 4)), 5000)
    assert sum(setting.rows for setting in settings if setting.rows != 4) <= 6 * (8 + 2)
    assert sum(setting.rows for setting in settings[:50] if setting.rows != 4) <= 2 * (8 + 2)


def test_a_trial_while_the_machine_was_busy_is_mended(clock):
    passes = []

    def seconds(setting):
        passes.append(setting)
        busy = 3 if len(passes) <= 4 else 1  # all the first trials of 4 rows
        return setting.rows * busy * (1 + abs(setting.rows - 4) / 4)

    tuner = PassTuner(CPU, 4, (True, False), learns=True)
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

    tuner = PassTuner(CPU, 4, (True, False), learns=True)
    run(tuner, clock, seconds, 60)
    assert tuner.next().rows == 4
    later = run(tuner, clock, seconds, 400)
    assert Counter(setting.rows for setting in later[20:]).most_common(1)[0][0] == tuner.next().rows == 2


def test_the_first_pass_of_a_kind_does_not_decide(clock):
    seen = set()

    def seconds(setting):
        first, _ = setting not in seen, seen.add(setting)
        return setting.rows * (100 if first else 1 / setting.rows)

    tuner = PassTuner(CPU, 4, (False,), learns=True)
    run(tuner, clock, seconds, 20_000)
    assert tuner.next().rows == 1024


@pytest.mark.parametrize("channels_last", [False, True])
def test_without_learning_the_setting_is_the_first_whatever_the_times(clock, channels_last):
    for rows in (5, 3000):
        tuner = PassTuner(CPU, rows, (channels_last, False))
        settings = run(tuner, clock, lambda setting: 2.0 if setting.channels_last else 1.0, 20 * rows)
        assert set(settings) == {PassSetting(rows, channels_last)}
        assert not tuner.seconds


def test_the_fixed_rule_is_of_size_and_device_type(monkeypatch):
    monkeypatch.setattr(tuning, "free_memory", lambda device: 2**36 if device.type == "cuda" else None)
    sizes = [1, 48, 32 * 32, 64 * 64, 112 * 112, 224 * 224, 512 * 512, 10**9]
    assert [fixed_rows(CPU, positions) for positions in sizes] == [64, 64, 64, 32, 16, 4, 2, 2]
    on_gpu = [fixed_rows(torch.device("cuda:1"), positions) for positions in sizes]
    assert on_gpu == [512, 512, 512, 512, 256, 64, 8, 2]
    assert fixed_rows(torch.device("mps"), 224 * 224) == 16


@pytest.mark.parametrize(
    ("free", "kept", "rows"), [(2**36, 0, 64), (2**30, 0, 16), (2**29, 2**29, 16), (2**28, 0, 4), (2**20, 0, 2)]
)
def test_no_more_rows_are_planned_than_fit_a_gpus_free_memory(monkeypatch, free, kept, rows):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**36))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30 + kept)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    assert fixed_rows(torch.device("cuda:1"), 224 * 224) == rows
    # 64 feature maps at the inputs' size, twice, as VGG16's first layers have them.
    assert rows == 2 or rows * 224 * 224 * 64 * 4 * 2 <= free + kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone gives back so soon")
def test_what_a_pass_frees_is_kept_for_the_next():
    # A block that glibc takes from the heap is kept there once freed; one that it maps alone is given back at once.
    script = """
        import torch
        from captum_unioncam.engine.tuning import PassTuner
        PassTuner(torch.device("cpu"), 4)
        block = torch.zeros(30 * 2**20, dtype=torch.uint8)
        ends = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0].split("-")
        first, last = (int(end, 16) for end in ends)
        print(first <= block.data_ptr() < last)
        """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_incomplete_passes_are_not_timed(clock):
    tuner = PassTuner(CPU, 4, (True, False), learns=True)
    run(tuner, clock, lambda setting: 1.0, 3)
    assert not tuner.seconds


def test_deterministic_algorithms_fix_the_setting(clock):
    torch.use_deterministic_algorithms(True)
    try:
        tuner = PassTuner(CPU, 4, (True, False), learns=True)
        settings = run(tuner, clock, lambda setting: 1.0, 1000)
        assert set(settings) == {PassSetting(4, True)}
        net, inputs = TinyNet(), tiny_inputs()
        method = LayerUnionCam(net, net.features)
        first = method.attribute(inputs, 1, internal_batch_size="auto")
        assert torch.equal(first, method.attribute(inputs, 1, internal_batch_size="auto"))
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_fix_the_setting_of_what_has_learnt_already(clock):
    tuner = PassTuner(CPU, 4, (True, False), learns=True)
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


def run_short_of_memory(tuner, clock, rows, fits):
    """As ``run``, where passes that do not fit run out of memory: how many did, and the rows of the others."""
    failures, done = 0, []
    while sum(done) < rows:
        setting = tuner.next()
        if fits(setting.rows, len(done)):
            with tuner.timed(setting, setting.rows):
                clock.now += 1
            done.append(setting.rows)
        else:
            failures += 1
            assert tuner.recovers(setting, torch.OutOfMemoryError("simulated"), setting.rows)
    return failures, done


def test_rows_grow_again_after_a_passing_shortage(clock):
    tuner = PassTuner(CPU, 64)
    failures, done = run_short_of_memory(tuner, clock, 64 * 100, lambda rows, passes: rows <= 8 or passes > 20)
    assert failures == 4  # 64, 32 and 16 rows, and 16 again after as many passes
    assert done[:20] == [8] * 20
    assert set(done[-10:]) == {64}


@pytest.mark.parametrize("learns", [False, True])
def test_a_shortage_that_stays_is_tried_ever_more_seldom(clock, learns):
    tuner = PassTuner(CPU, 64, learns=learns)
    failures, done = run_short_of_memory(tuner, clock, 16 * 2000, lambda rows, _passes: rows <= 16)
    assert failures <= 10
    assert max(done) == 16
    assert done.count(16) > 0.9 * len(done)
    assert not PassTuner(CPU, 1).recovers(PassSetting(1, False), torch.OutOfMemoryError("simulated"))


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
    tuner = PassTuner(torch.device("cuda"), 64, (True, False))
    assert tuner.recovers(PassSetting(64, True), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert emptied == []  # the failed pass still holds its memory
    tuner.release()
    PassTuner(CPU, 4).release()
    assert emptied == [True]
    assert tuner.most_rows == 32


def test_other_errors_are_not_taken_for_memory():
    assert not PassTuner(CPU, 4, (False,)).recovers(PassSetting(4, False), RuntimeError("shapes"))


class Viewing(TinyNet):
    """Views its feature maps as vectors, which tensors in channels-last format do not allow."""

    def forward(self, x):
        features = self.features(x)
        return self.head[-1](features.view(x.shape[0], -1))


def test_a_model_that_cannot_take_channels_last_gets_the_usual_format():
    net, inputs, formats = Viewing(), tiny_inputs(), []
    net.register_forward_pre_hook(
        lambda _m, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    method = LayerUnionCam(net, net.features)
    attr = method.attribute(inputs, 1)
    assert formats.count(True) == 1
    plain = TinyNet()
    assert same(attr, LayerUnionCam(plain, plain.features).attribute(inputs, 1))
    formats.clear()
    method.attribute(inputs, 1)
    assert formats
    assert True not in formats


def test_an_error_of_the_users_own_is_raised_after_one_pass_in_the_usual_format():
    net, inputs = TinyNet(), tiny_inputs()
    formats = []
    net.register_forward_pre_hook(
        lambda _m, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )

    def failing(output):
        raise RuntimeError("of the user's own")

    for forward, expected in ((net, [True, False]), (lambda x: net(x), [False])):
        method = LayerScoreCam(forward, net.features, confidence_fn=failing)
        for _ in range(2):
            formats.clear()
            with pytest.raises(RuntimeError, match="of the user's own"):
                method.attribute(inputs, 1)
            assert [f for f in formats if f] == [f for f in expected if f]
            assert formats[-len(expected) :] == expected


def test_an_error_after_a_pass_that_went_well_is_raised_at_once():
    net, calls = TinyNet(activation=nn.SiLU()), []

    def failing_later(output):
        calls.append(len(output))
        if len(calls) > 1:
            raise RuntimeError("of the user's own, after a pass, about a shape")
        return output.softmax(1)

    method = LayerScoreCam(net, net.features, confidence_fn=failing_later)
    with pytest.raises(RuntimeError, match="of the user's own"):
        method.attribute(tiny_inputs(), 1, internal_batch_size=5)
    assert calls == [5, 5]


@pytest.mark.usefixtures("rows_tried")
def test_what_was_learnt_is_remembered_for_inputs_of_the_shape(clock):
    net = TinyNet(activation=nn.SiLU())
    rows = []

    def forward(x):
        rows.append(x.shape[0])
        clock.now += 1 + abs(x.shape[0] - 32)
        return net(x)

    method = LayerUnionCam(forward, net.features)
    inputs = tiny_inputs(examples=200)
    method.attribute(inputs, 1, internal_batch_size="auto")
    rows.clear()
    method.attribute(inputs, 1, internal_batch_size="auto")
    assert rows[0] == 200  # the gradients
    assert Counter(rows[1:]).most_common(1)[0][0] == rows[1] == 32
    fresh = LayerUnionCam(forward, net.features)
    rows.clear()
    fresh.attribute(inputs, 1, internal_batch_size="auto")
    assert rows[1] == tuning.fixed_rows(CPU, 48) == 64
    rows.clear()
    fresh.attribute(inputs, 1)
    assert set(rows[1:-1]) <= {64, 1000 % 64, 600 % 64, 200 % 64}


@pytest.mark.parametrize(("threads", "most"), [(1, 8), (2, 16), (64, 512), (1000, 1024)])
def test_a_cpus_rows_grow_with_its_threads_at_most(clock, monkeypatch, threads, most):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tuner = PassTuner(CPU, 4, (False,), learns=True)
    assert max(setting.rows for setting in run(tuner, clock, lambda setting: 1.0, 100_000)) == most


def test_a_gpus_passes_are_timed_by_events_that_are_read_once_they_have_happened(monkeypatch):
    """On a stream that stands for a GPU's: nothing waits, and the times are the events'."""
    events, streams = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.happened, self.at = False, None
            events.append(self)

        def record(self, stream):
            streams.append(stream)
            self.at = 1000.0 * len(events)

        def query(self):
            return self.happened

        def elapsed_time(self, end):
            assert end.happened
            return end.at - self.at + 500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    gpu = torch.device("cuda:0")
    tuner = PassTuner(gpu, 64, (False,), learns=True)
    setting = tuner.next()
    with tuner.timed(setting, 64):
        pass
    assert streams == [("stream of", gpu)] * 2
    assert tuner.next() == setting
    assert not tuner.seconds
    for event in events:
        event.happened = True
    tuner.next()
    assert list(tuner.seconds[setting]) == [1.5]
    assert tuner.started[setting] == 1
    with tuner.timed(setting, 63):
        pass
    assert len(events) == 2


def test_rows_are_doubled_each_time_that_as_many_passes_went_well():
    tuner, rows = PassTuner(CPU, 8), []
    for _ in range(2):
        assert tuner.recovers(tuner.next(), torch.OutOfMemoryError("simulated"))
    for _ in range(3 * tuning.PASSES_BEFORE_MORE):
        setting = tuner.next()
        rows.append(setting.rows)
        with tuner.timed(setting, setting.rows):
            pass
    assert Counter(rows) == dict.fromkeys((2, 4, 8), tuning.PASSES_BEFORE_MORE)
