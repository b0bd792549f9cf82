"""Backends as tests get them: skipped, with the reason, where this machine has none."""

import pytest

from edgeq.protocols import Backend
from edgeq.registry import load_backend

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
"""The parameter of a test that also runs on a CUDA device, where there is one."""


def load_present(name: str) -> Backend:
    """Make a backend, or skip the test that asks for it."""
    if name == "mlx":
        pytest.importorskip("mlx.core", reason="MLX has no build for this system")
    if name == "cuda" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return load_backend(name)


def are_present(*names: str) -> list[str]:
    """List those of several backends that this machine has, without skipping a test."""
    found = []
    for name in names:
        try:
            load_present(name)
        except pytest.skip.Exception:
            continue
        found.append(name)
    return found
