"""Test processes that run side by side share the cores, and keep the memory that they have used."""

import ctypes
import os
import sys
import warnings

import pytest
import torch

from captum_unioncam.engine import independence

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

if WORKERS > 1:
    threads = max(1, (os.cpu_count() or 1) // WORKERS)
    torch.set_num_threads(threads)
    # Of the processes that tests start.
    os.environ["OMP_NUM_THREADS"] = str(threads)

if sys.platform == "linux":
    # glibc hands a large tensor's memory back at once, and asks for it again in the next pass.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


if not torch.cuda.is_available():
    # For a GPU that comes later, torch.manual_seed notes a traceback a call, which takes longer than a tiny network.
    torch.cuda.manual_seed_all = torch.xpu.manual_seed_all = lambda seed: None

LONGEST = "imagenet_sample", "contract", "run", "site", "docs", "notebooks", "app", "one_file", "packaging", "cli"


def pytest_collection_modifyitems(items):
    # The longest files go first, so that no process waits for one at the end.
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture
def no_warnings():
    """Warnings are errors, except those of what earlier tests left for the garbage collector (event loops, sockets)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in (ResourceWarning, pytest.PytestUnraisableExceptionWarning):
            warnings.simplefilter("ignore", category)
        yield


@pytest.fixture(scope="module")
def one_thread():
    """For tiny networks: several threads would mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rows_tried(monkeypatch):
    """For tests that count passes: models count as tried for rows that depend on each other."""
    monkeypatch.setattr(independence, "_distances", lambda *_: (0.0, 0.0))


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch, request):
    """Where the modules that the test file has in OWN_MODULES, name to code, can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, code in request.module.OWN_MODULES.items():
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(code)
