"""Test processes that run side by side share the cores."""

import os

import torch

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))

if WORKERS > 1:
    threads = max(1, (os.cpu_count() or 1) // WORKERS)
    torch.set_num_threads(threads)
    # Of the processes that tests start.
    os.environ["OMP_NUM_THREADS"] = str(threads)
