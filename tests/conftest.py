"""What all tests share: seeded random numbers, every backend, and how closely a backend must come
to exact answers.
"""

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before NumPy: small matrices, and other work on the machine

import numpy as np
import pytest

from edgeq.registry import load_backend

BACKENDS = ("reference", "cpu", "mlx")
TOLERANCES = {"reference": 1e-10, "cpu": 1e-5, "mlx": 1e-4}


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


@pytest.fixture(params=BACKENDS)
def backend(request, one_thread):
    if request.param == "mlx":
        pytest.importorskip("mlx.core", reason="MLX has no build for this system")
    return load_backend(request.param)


@pytest.fixture
def tolerance(backend) -> float:
    return TOLERANCES[backend.name]
