"""The one module that knows kinds of devices, and the engine on accelerators that are pretended."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import captum_unioncam
from captum_unioncam import LayerScoreCam
from captum_unioncam.engine import accelerators
from captum_unioncam.engine.accelerators import Mark, current, default_device, free_memory, wide_dtype
from captum_unioncam.engine.tuning import BYTES_A_POSITION
from captum_unioncam.testing import PretendedDevices
from tests.networks import TinyNet, same, tiny_inputs

PACKAGE = Path(captum_unioncam.__file__).parent
CPU, CUDA, XPU, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "xpu", "mps"))

pytestmark = pytest.mark.usefixtures("one_thread")


def kinds_named(tree):
    """Accelerators that code names: by attributes such as ``torch.cuda`` and ``is_cuda``, and by strings."""
    for node in ast.walk(tree):
        name = getattr(node, "attr", getattr(node, "value", None) if isinstance(node, ast.Constant) else None)
        if isinstance(name, str) and re.fullmatch(r"(is_)?(cuda|xpu|mps)(:\d+)?", name):
            yield f"line {node.lineno}: {name}"


def test_no_other_module_names_a_kind_of_accelerator():
    others = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "testing"]
    named = {path.stem: [*kinds_named(ast.parse(path.read_text()))] for path in others}
    assert named.pop("accelerators")
    assert {name: lines for name, lines in named.items() if lines} == {}


@pytest.mark.parametrize(
    ("found", "available", "device"), [(CUDA, True, "cuda"), (MPS, True, "mps"), (XPU, False, "cpu")]
)
def test_the_default_device_is_the_accelerator_that_is_there(monkeypatch, found, available, device):
    there = SimpleNamespace(is_available=lambda: available, current_accelerator=lambda: found)
    monkeypatch.setattr(torch, "accelerator", there)
    assert default_device() == torch.device(device)


def test_memory_is_asked_of_the_device_where_it_can_tell():
    devices = PretendedDevices()
    with devices.active():
        assert [free_memory(device) for device in (CUDA, XPU, MPS)] == [2**34] * 3
        assert [free_memory(device) for device in (CPU, torch.device("meta"))] == [None] * 2

        def cannot_tell(device):
            raise RuntimeError("The device doesn't support querying the available free memory.")

        devices.modules["xpu"].mem_get_info = cannot_tell
        devices.modules["mps"].current_allocated_memory = lambda: 2**34 - 2**20
        assert (free_memory(XPU), free_memory(MPS)) == (None, 2**20)


def test_float64_is_where_the_device_has_it():
    assert [wide_dtype(device) for device in (CPU, CUDA, MPS)] == [torch.float64, torch.float64, torch.float32]
    for has_it, dtype in ((True, torch.float64), (False, torch.float32)):
        devices = PretendedDevices()
        devices.modules["xpu"].get_device_properties = lambda _, it=has_it: SimpleNamespace(has_fp64=it)
        with devices.active():
            assert wide_dtype(XPU) == dtype


def test_a_mark_is_an_event_where_there_are_streams_and_waits_elsewhere():
    devices = PretendedDevices()
    with devices.active():
        for device, waits in ((CUDA, 0), (XPU, 0), (MPS, 2), (CPU, 0)):
            before = devices.synchronisations
            start, end = Mark(device), Mark(device)
            assert devices.synchronisations - before == waits
            # An event of the pretended stream is asked for twice.
            assert end.has_happened() == (device in (MPS, CPU))
            assert end.has_happened()
            assert 0 <= end.seconds_since(start) < 10


def test_the_current_device_is_that_of_code_that_names_the_kind_alone():
    devices, entered = PretendedDevices(), []
    devices.modules["xpu"].device = lambda device: entered.append(device) or torch.no_grad()
    with devices.active():
        for device in (torch.device("xpu", 1), MPS, CPU):
            with current(device):
                pass
    assert entered == [torch.device("xpu", 1)]


@pytest.mark.parametrize("place", ["cuda:0", "xpu:1"])
def test_passes_on_an_accelerator_are_timed_by_its_events(place):
    devices, net, inputs = PretendedDevices(), TinyNet(), tiny_inputs()
    expected = LayerScoreCam(net, net.features).attribute(inputs, 1)
    devices.place(net, place)
    method = LayerScoreCam(net, net.features)
    # For four rows.
    devices.modules[place[:-2]].mem_get_info = lambda device: (4 * BYTES_A_POSITION * 8 * 6, 2**34)
    with devices.active():
        for _ in range(4):
            attr = method.attribute(devices.put(inputs, place), 1, internal_batch_size="auto")
            assert str(attr.device) == place
    (tuner,) = method._tuners.values()
    assert tuner.rows == 4
    assert devices.waits["synchronize"] == 0
    assert same(attr, expected)
    seconds = [each for times in tuner.seconds.values() for each in times]
    assert len(tuner.seconds) > 1
    assert all(0 <= each < 10 for each in seconds)


def test_out_of_memory_on_any_accelerator_gives_back_what_is_kept_free():
    devices, emptied = PretendedDevices(), []
    for kind, module in devices.modules.items():
        module.empty_cache = lambda kind=kind: emptied.append(kind)
    with devices.active():
        for device in (CPU, CUDA, XPU, MPS):
            accelerators.release_memory(device)
    assert emptied == ["cuda", "xpu", "mps"]


@pytest.mark.parametrize("on_a_mac", [False, True])
def test_generators_of_accelerators_in_use_keep_their_state(monkeypatch, on_a_mac):
    devices, given = PretendedDevices(), []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: on_a_mac)
    devices.modules["mps"].get_rng_state = lambda: "third"
    devices.modules["mps"].set_rng_state = given.append
    devices.modules["cuda"].get_rng_state_all = lambda: ["first", "second"]
    devices.modules["cuda"].set_rng_state_all = given.append
    devices.modules["xpu"].is_initialized = lambda: False
    devices.modules["xpu"].set_rng_state_all = given.append
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with devices.active(), accelerators.kept_random_states():
        torch.rand(3)
    assert given == [["first", "second"], *["third"] * on_a_mac]
    assert torch.equal(torch.rand(2), expected)
