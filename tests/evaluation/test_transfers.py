"""Images and results on their way to and from a GPU: one that is pretended, whose copies are made as late as may be."""

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_unioncam import demo, methods
from captum_unioncam.engine.accelerators import Mark
from captum_unioncam.evaluation.run import Evaluation, evaluate
from captum_unioncam.evaluation.transfers import Uploads, queued, to_host
from captum_unioncam.methods.settings import MethodSettings
from captum_unioncam.models.subject import ExplainedModel
from captum_unioncam.system.errors import Failure
from captum_unioncam.testing import PretendedDevices

GPU = torch.device("cuda", 0)
OUT = Path("out")
METHODS = ["grad_cam", "score_cam"]

pytestmark = pytest.mark.usefixtures("one_thread")


class Stream:
    """What it has to do, in order; copies that wait are made when something waits for them."""

    def __init__(self, device=None):
        self.copies, self.has_come_to = [], 0

    def record_event(self):
        event = Event()
        event.record(self)
        return event

    def wait_event(self, event):
        event.reach()


class Event:
    time = 0

    def __init__(self, enable_timing=False):
        self.enable_timing = enable_timing

    def record(self, stream):
        Event.time += 1
        self.stream, self.copies, self.time = stream, list(stream.copies), Event.time

    def reach(self):
        for copy in self.copies:
            copy()
        self.stream.has_come_to = max(self.stream.has_come_to, self.time)

    synchronize = reach

    def elapsed_time(self, later):
        assert self.enable_timing
        assert later.enable_timing
        assert self.time < later.time <= self.stream.has_come_to
        return 1000.0 * (later.time - self.time)


class PretendedGpu(TorchFunctionMode):
    """Tensors that pretend to be on a GPU; ``said`` is what happened, in order."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.devices, self.said, self.pinned = PretendedDevices(), [], []
        self.main = self.current = Stream()
        self.current_devices = []
        vars(self.devices.modules["cuda"]).update(
            Stream=Stream,
            Event=Event,
            stream=self.within,
            current_stream=lambda device=None: self.current,
            device=self.being_current,
            synchronize=lambda device=None: self.said.append("synchronize"),
            empty_cache=lambda: self.said.append("empty cache"),
        )
        # It takes no stream that is none.
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self.recorded(stream))

    def recorded(self, stream):
        self.said.append("record stream")
        assert stream is self.main

    @contextlib.contextmanager
    def within(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def being_current(self, device):
        self.current_devices.append(device)
        yield
        self.current_devices.append(None)

    @contextlib.contextmanager
    def active(self):
        with self.devices.active(), self:
            yield

    def subject(self):
        """The demo's model on the GPU."""
        subject = ExplainedModel(device="cpu")
        subject.device = GPU
        self.devices.place(subject.model, GPU)
        return subject

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        if func is not Tensor.to or not kwargs.get("non_blocking"):
            return func(*args, **kwargs)
        made = func(*args, **kwargs).clone()
        to_gpu = torch.device(args[1]).type == "cuda"
        self.devices.say(made, GPU if to_gpu else torch.device("cpu"))
        if to_gpu:
            assert any(args[0] is one for one in self.pinned)
            assert self.current is not self.main
        self.said.append("to the GPU" if to_gpu else "to the host")
        with torch._C.DisableTorchFunction():
            value, rubbish = made.clone(), made.new_full((), 77)
            made.copy_(rubbish)

            def copy():
                with torch._C.DisableTorchFunction():
                    made.copy_(value)

            self.current.copies.append(copy)
        return made


@pytest.fixture
def gpu(monkeypatch):
    return PretendedGpu(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three images with the boxes of their objects: of one class, broken, and of two classes."""
    folder = tmp_path_factory.mktemp("data")
    demo.write_voc(folder, 3, seed=3)
    (folder / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captum_unioncam.methods.registry._registered", {})


def evaluated(data, subject, out=OUT, method_names=METHODS):
    settings = MethodSettings(internal_batch_size=8, max_channels=4)
    return evaluate(Evaluation(str(data), steps=2, settings=settings), subject, method_names, out, 0, False)


def lines_in(out):
    return [json.loads(line) for path in out.glob("records/*.jsonl") for line in path.read_bytes().splitlines()]


def without_seconds(record):
    values = {name: value for name, value in record.get("values", {}).items() if name != "seconds"}
    return {name: value for name, value in record.items() if name not in ("crc", "values")} | values


@pytest.fixture(scope="module")
def on_cpu(data, tmp_path_factory):
    """The records on the CPU, in their order."""
    out = tmp_path_factory.mktemp("cpu")
    evaluated(data, ExplainedModel(device="cpu"), out)
    return [without_seconds(record) for record in lines_in(out)]


def test_what_is_queued_is_asked_for_later_and_in_order():
    said = []

    def started():
        for number in range(5):
            said.append(f"start {number}")
            yield lambda number=number: said.append(f"end {number}") or number

    assert list(queued(started(), 2)) == [0, 1, 2, 3, 4]
    assert said == [
        *("start 0", "start 1", "start 2", "end 0", "start 3", "end 1", "start 4", "end 2"),
        *("end 3", "end 4"),
    ]
    said.clear()
    assert list(queued(started(), 0)) == [0, 1, 2, 3, 4]
    assert said == [f"{what} {number}" for number in range(5) for what in ("start", "end")]
    assert list(queued([], 2)) == []


def test_a_copy_to_the_gpu_is_started_from_pinned_memory_and_awaited_by_the_stream(gpu):
    images = [torch.rand(2, 3), torch.rand(4)]
    with gpu.active():
        given = Uploads(GPU).start(images)
        assert len(gpu.pinned) == 2
        copies = given()
        assert [str(copy.device) for copy in copies] == ["cuda:0"] * 2
    assert gpu.said == ["to the GPU"] * 2 + ["record stream"] * 2
    for copy, image in zip(copies, images, strict=True):
        assert torch.equal(copy, image)


def test_a_result_is_read_when_the_device_has_come_to_its_mark(gpu):
    with gpu.active():
        result = gpu.devices.put(torch.arange(3.0), GPU)
        start = Mark(GPU)
        copy = to_host(result)
        assert copy.tolist() == [77.0] * 3
        end = Mark(GPU)
        end.wait()
        assert copy.tolist() == [0.0, 1.0, 2.0]
        assert end.seconds_since(start) == 1.0
    assert "synchronize" not in gpu.said


def test_on_the_cpu_a_result_is_there_at_once():
    result = torch.arange(3.0, requires_grad=True)
    start = Mark(torch.device("cpu"))
    copy = to_host(result)
    assert copy.data_ptr() == result.data_ptr()
    assert not copy.requires_grad
    assert 0 <= Mark(torch.device("cpu")).seconds_since(start) < 10


def test_a_gpus_records_are_those_of_the_cpu_in_order(gpu, data, on_cpu):
    subject = gpu.subject()
    with gpu.active():
        tally = evaluated(data, subject)
    records = lines_in(OUT)
    assert tally.records == len(records) == len(on_cpu)
    assert tally.failures == sum("error" in record for record in on_cpu) == len(METHODS)
    # Rounded to six digits, of sums in another order.
    for record, expected in zip(records, on_cpu, strict=True):
        made = without_seconds(record)
        assert made.keys() == expected.keys()
        for name, value in expected.items():
            wanted = value if isinstance(value, (str, dict, int)) else pytest.approx(value, rel=1e-5)
            assert made[name] == wanted
        if "error" not in record:
            assert record["values"]["seconds"] > 0
    # Of the user's code that names no more than "cuda".
    assert gpu.current_devices == [GPU, None]


def test_images_are_copied_ahead_and_results_come_back_later(gpu, data, monkeypatch):
    subject, said = gpu.subject(), gpu.said

    def attribute(inputs, target, baselines):
        said.append("method")
        return inputs

    methods.register("watched", lambda model, layer, settings: attribute)
    record = "captum_unioncam.evaluation.run.RecordFile.append"
    monkeypatch.setattr(record, lambda file, record: said.append("record"))
    monkeypatch.setattr("captum_unioncam.evaluation.run.IMAGES_AHEAD", 1)
    monkeypatch.setattr("captum_unioncam.evaluation.run.RESULTS_BEHIND", 2)
    with gpu.active():
        evaluated(data, subject, method_names=["watched"])
    steps = [what for what in said if what in ("method", "record", "to the GPU")]
    before = [Counter(steps[:index]) for index, what in enumerate(steps) if what == "method"]
    # Input, baseline and the mask of each class: of the first image, and when the second is read, of the third.
    assert [counts["to the GPU"] for counts in before] == [3, 7, 7]
    assert [counts["record"] for counts in before] == [0, 0, 1]
    assert steps.count("record") == 4


def test_a_run_that_is_broken_off_on_a_gpu_goes_on_with_nothing_lost_or_doubled(gpu, data, on_cpu):
    subject, calls = gpu.subject(), []

    def breaking(model, layer, settings):
        explain = methods.create("grad_cam", model, layer)

        def attribute(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return explain(*arguments)

        return attribute

    methods.register("breaking", breaking)
    with gpu.active():
        with pytest.raises(KeyboardInterrupt):
            evaluated(data, subject, method_names=["grad_cam", "breaking"])
        assert len(lines_in(OUT)) < 8
        evaluated(data, subject, method_names=["grad_cam", "breaking"])
    records = lines_in(OUT)
    keys = [(record["image"], record.get("target"), record["method"]) for record in records]
    expected = {(one["image"], one["target"]) for one in on_cpu}
    assert len(keys) == len(set(keys)) == 2 * len(expected)
    assert {key[:2] for key in keys} == expected
    maps = {(one["image"], one["target"]): one.get("map") for one in on_cpu if one["method"] == "grad_cam"}
    assert all(record.get("map") == maps[record["image"], record["target"]] for record in records)


def test_a_copy_that_fails_is_made_at_the_images_turn(gpu, data, on_cpu, monkeypatch):
    def no_memory(uploads, tensors):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Uploads, "start", no_memory)
    subject = gpu.subject()
    with gpu.active():
        evaluated(data, subject, method_names=["grad_cam"])
    expected = [record.get("map") for record in on_cpu if record["method"] == "grad_cam"]
    assert [record.get("map") for record in lines_in(OUT)] == expected


@pytest.mark.parametrize("when", [1, 3])
def test_a_gpu_that_fails_ends_the_run_which_goes_on_at_the_next_start(gpu, data, on_cpu, monkeypatch, when):
    subject, calls, dead = gpu.subject(), [], []
    error = getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: an illegal memory access was encountered")

    def fails_when_dead(function):
        def called(*arguments, **named):
            if dead:
                raise error
            return function(*arguments, **named)

        return called

    def killing(model, layer, settings):
        def attribute(inputs, target, baselines):
            calls.append(1)
            if len(calls) == when:
                # It is told at the next call.
                dead.append(True)
            return inputs

        return attribute

    methods.register("killing", killing)
    for where, name in ((torch, "ones"), (Event, "record"), (Event, "reach"), (Event, "synchronize")):
        monkeypatch.setattr(where, name, fails_when_dead(getattr(where, name)))
    with gpu.active():
        with pytest.raises(Failure, match=r"cuda:0 has failed while .*illegal memory access.*start again"):
            evaluated(data, subject, method_names=["killing"])
        assert not any("illegal" in record.get("error", "") for record in lines_in(OUT))
        dead.clear()
        evaluated(data, subject, method_names=["killing"])
    keys = [(record["image"], record.get("target")) for record in lines_in(OUT)]
    assert sorted(keys) == sorted({(one["image"], one["target"]) for one in on_cpu})


def test_a_number_that_is_not_finite_is_told_when_it_has_arrived(gpu, data):
    methods.register("infinite", lambda model, layer, settings: lambda inputs, target, baselines: inputs)
    subject = gpu.subject()
    handle = subject.model.register_forward_hook(lambda model, inputs, output: output * float("nan"))
    with gpu.active():
        evaluated(data, subject, method_names=["infinite"])
    handle.remove()
    errors = [record["error"] for record in lines_in(OUT)]
    assert len(errors) == 4
    assert sum("not finite" in error for error in errors) == 3
