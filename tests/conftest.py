"""What all tests share: seeded random numbers, every backend, and how closely a backend must come to exact answers."""

import numpy as np
import pytest

from edgeq.registry import load_backend

BACKENDS = ("reference", "cpu")
TOLERANCES = {"reference": 1e-10}
FLOAT32_TOLERANCE = 1e-4


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return load_backend(request.param)


@pytest.fixture
def tolerance(backend) -> float:
    return TOLERANCES.get(backend.name, FLOAT32_TOLERANCE)
