"""Several GPUs in one process, which are pretended; replicas run in threads, as PyTorch runs them."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.parallel import parallel_apply

from captum_unioncam import LayerGradCamPlusPlus, LayerScoreCam, LayerUnionCam
from captum_unioncam.testing import PretendedDevices
from captum_unioncam.testing.device_checks import Replicas
from tests.networks import TinyNet, same, tiny_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


class OnDevices(nn.Module):
    """A replica in whose thread devices are pretended."""

    def __init__(self, replica, devices):
        super().__init__()
        self.replica, self.devices = replica, devices

    def forward(self, x):
        with self.devices._in_thread():
            return self.replica(x)


class Parallel(Replicas):
    """On cuda:0 and cuda:1, by PyTorch's own threads."""

    def __init__(self, net, devices):
        super().__init__(net, lambda value, part: put(devices, value, part))
        self.devices = devices

    def forward(self, x):
        parts = [part.to(f"cuda:{i}") for i, part in enumerate(x.chunk(2))]
        replicas = [OnDevices(replica, self.devices) for replica in self.replicas[: len(parts)]]
        outputs = parallel_apply(replicas, parts, devices=self.device_ids[: len(parts)])
        return torch.cat([output.to("cuda:0") for output in outputs])


def put(devices, value, part):
    place = "cuda:1" if part == "replica" else "cuda:0"
    if isinstance(value, torch.Tensor):
        return devices.put(value, place)
    devices.place(value, place)
    return value


@pytest.fixture
def devices(monkeypatch):
    """What PyTorch's threads ask of a driver, it has."""
    pretended = PretendedDevices()
    streams = {"current_stream": lambda device=None: nullcontext()}
    is_there = {"is_available": lambda: True, "current_accelerator": lambda *_: torch.device("cuda")}
    for module, names in (
        (getattr(torch, "accelerator", None), {**streams, **is_there, "device_index": lambda _: nullcontext()}),
        (torch.cuda, {**streams, "device": lambda _: nullcontext(), "stream": lambda _: nullcontext()}),
    ):
        for name, value in names.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    return pretended


class Noting(TinyNet):
    """Notes the devices of its passes, and the dtype in which each computes."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.float()

    def forward(self, x):
        activations = self.features(x)
        self.seen.append((str(x.device), activations.dtype))
        return self.head(activations)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_replicas_score_in_the_dtype_that_is_asked_for(devices, dtype):
    net, inputs, target = Noting(), tiny_inputs().float(), [1, 0, 2]
    devices.place(net, "cuda:0")
    with devices.active():
        here = devices.put(inputs, "cuda:0")
        alone = LayerScoreCam(net, net.features).attribute(here, target, score_dtype=dtype)
        assert {seen for seen in net.seen if seen[1] != torch.float32} == {("cuda:0", dtype)}
        net.seen.clear()
        parallel = Parallel(net, devices)
        attr = LayerScoreCam(parallel, net.features).attribute(here, target, score_dtype=dtype)
        assert {seen for seen in net.seen if seen[1] != torch.float32} == {("cuda:0", dtype), ("cuda:1", dtype)}
        assert str(attr.device) == "cuda:0"
        assert not torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.float16
        net.seen.clear()
        parallel(here)
    assert {dtype for _, dtype in net.seen} == {torch.float32}
    torch.testing.assert_close(attr.clone(), alone.clone())


@pytest.mark.parametrize("method", [LayerUnionCam, LayerScoreCam, LayerGradCamPlusPlus])
def test_maps_of_replicas_are_those_of_one_device_in_the_order_of_device_ids(devices, method):
    net, inputs, target = TinyNet(), tiny_inputs(), [1, 0, 2]
    expected = method(net, net.features).attribute(inputs, target)
    with devices.active():
        parallel, here = Parallel(net, devices), devices.put(inputs, "cuda:0")
        maps = [
            method(forward, net.features, device_ids=device_ids).attribute(here, target)
            for forward, device_ids in ((parallel, None), (lambda x: parallel(x), [0, 1]))
        ]
        assert [str(attr.device) for attr in maps] == ["cuda:0"] * 2
        with pytest.raises(AssertionError, match="device ID list"):
            method(lambda x: parallel(x), net.features).attribute(here, target)
    assert all(same(attr, expected) for attr in maps)


def test_fewer_examples_than_devices_run_on_one(devices):
    net, inputs = TinyNet(), tiny_inputs()[:1]
    expected = LayerScoreCam(net, net.features).attribute(inputs, 1)
    with devices.active():
        parallel, here = Parallel(net, devices), devices.put(inputs, "cuda:0")
        attr = LayerScoreCam(parallel, net.features).attribute(here, 1, internal_batch_size=1)
    assert same(attr, expected)
