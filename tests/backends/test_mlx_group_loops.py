"""The passes over all groups, compiled by MLX as on a GPU: they choose what plain ones choose."""

import shutil

import numpy as np
import pytest
from layers import SolvedLayer

from edgeq.algorithms.scale_refit import refit_scales
from edgeq.grids.types import GRIDS
from edgeq.registry import load_backend
from edgeq.types import Grid

pytest.importorskip("mlx.core", reason="MLX has no build for this system")
from edgeq_backends.mlx import group_loops


@pytest.mark.slow  # a C++ compiler takes seconds for what a GPU's takes moments for
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler, by which MLX compiles")
@pytest.mark.parametrize(
    "grid", [Grid(3, 16), Grid(3, 16, "offset"), Grid(4, 16, "integer"), GRIDS["IQ4_NL"]]
)
def test_compiled_passes_choose_the_scales_of_plain_ones(monkeypatch, grid):
    found = []
    for is_compiled in (False, True):
        monkeypatch.setattr(group_loops, "is_compiled", lambda way=is_compiled: way)
        layer = SolvedLayer(np.random.default_rng(0), grid, load_backend("mlx"), in_features=64)
        refitted = refit_scales(layer.problem, layer.solution)
        found.append([layer.scales, layer.offsets, np.array(refitted.scales)])
    for plain, compiled in zip(*found, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-6)
    assert (found[0][2] != 0).any()
