"""What all tests share: one thread a process, random numbers, every backend and its tolerance."""

import os

from processes import longest_first, worker_count  # first: sets the environment of frameworks

# isort: split
import numpy as np
import pytest
from present import CUDA, load_present

TOLERANCES = {"reference": 1e-10, "cpu": 1e-5, "cuda": 1e-4, "mlx": 1e-4}
"""Every backend that tests run on, and how closely it must come to exact answers."""


def pytest_xdist_auto_num_workers(config):
    return worker_count(config)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=longest_first)


@pytest.fixture(autouse=True)
def without_fsync(request, monkeypatch):
    """Leave out the wait for the disk, except in tests that are about it."""
    if request.node.get_closest_marker("disk") is None:
        monkeypatch.setattr(os, "fsync", os.fstat)  # which fails for the same handles


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture
def one_thread():
    """torch on one thread: threads that wait for one another cost small layers most of their
    time.
    """
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[CUDA if name == "cuda" else name for name in TOLERANCES])
def backend(request, one_thread):
    return load_present(request.param)


@pytest.fixture
def tolerance(backend) -> float:
    return TOLERANCES[backend.name]
