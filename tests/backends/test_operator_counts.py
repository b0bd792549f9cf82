"""How many operations a layer starts: on a GPU that, not their work, is what takes time."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from edgeq.protocols import Columns
from edgeq.recipe.recipe import make_recipe
from edgeq.registry import load_backend
from edgeq.solving.one_layer import grid_for, solve_arrays
from edgeq_backends import numpy_loops
from edgeq_backends.torch.backend import ON_DEVICE, TorchBackend
from edgeq_backends.torch.column_loops import COLUMNS_ON_CUDA, plain

SIZE = 512
INSIDE = "inside of a kernel"
RECIPE = make_recipe({"quality": "balanced", "bits": 4, "group_size": 64})


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(7)
    W, X = (rng.standard_normal((rows, SIZE)).astype(np.float32) for rows in (SIZE, 600))
    drifted = X + 0.05 * rng.standard_normal(X.shape).astype(np.float32)
    return W, (X[None], drifted[None])


def counted(layer, backend):
    """Solve a layer: the solution, its loss, and how often each operator was called."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        solved, report = solve_arrays(layer[0], layer[1], RECIPE, backend)
    calls = Counter()
    for event in profiled.events():
        if event.name.startswith("aten::") and not is_inside(event):
            calls[event.name] += 1
    return solved, report.final_loss, calls


def is_inside(event):
    while event is not None:
        if event.name == INSIDE:
            return True
        event = event.cpu_parent
    return False


class Launched:
    """Stands for a kernel: fills the arrays for its results with what the plain loop gives."""

    def __init__(self, compute):
        self.compute = compute

    def __getitem__(self, programs):
        def launch(*arguments, **options):
            with record_function(INSIDE):
                self.compute(*arguments)

        return launch


def put(results, *computed):
    for result, value in zip(results, computed, strict=True):
        result.copy_(torch.as_tensor(value).reshape(result.shape))


@pytest.fixture
def fused(monkeypatch):
    """A backend that works as on CUDA, on the CPU: with whole layers, wide blocks and kernels."""
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds, and on Linux only")
    from edgeq_backends.torch import triton_kernels, triton_loops  # noqa: PLC0415

    backend, grid = TorchBackend("cpu"), grid_for(RECIPE, (SIZE, SIZE))

    def round_block(columns, U, scales, offsets, *rest):
        columns, U, scales, offsets = (x.numpy() for x in (columns, U, scales, offsets))
        put(rest[:2], *numpy_loops.round_columns(columns, U, scales, offsets, grid))

    def sweep_block(H, scales, pull, codes, wanted, moves, *rest):
        columns = Columns(H.numpy(), scales.numpy(), pull.numpy(), grid)
        put(
            [moves],
            numpy_loops.sweep_columns(columns, codes.numpy(), wanted.numpy(), rounding=rest[7]),
        )

    def choose_scales(values, weights, scales, offsets, *rest):
        best = rest[:3]
        begun = [x.clone() for x in best] if rest[7] else None
        pairs = zip(scales, offsets, strict=True)
        put(best, *plain(backend).choose_scales(values, weights, pairs, grid, begun))

    def sweep_scales(A, c, start, result, rows, unknowns, groups, sweeps, *rest):
        put([result], plain(backend).sweep_scales(A, c, start, grid, sweeps))

    monkeypatch.setattr(triton_loops, "round_block", Launched(round_block))
    monkeypatch.setattr(triton_loops, "sweep_block", Launched(sweep_block))
    monkeypatch.setattr(triton_kernels, "choose_scales", Launched(choose_scales))
    monkeypatch.setattr(triton_kernels, "sweep_scales", Launched(sweep_scales))
    backend.kernels, backend.columns_at_once = triton_loops, COLUMNS_ON_CUDA
    monkeypatch.setattr(backend, "rows_at_once", lambda columns: ON_DEVICE // columns)
    return backend


def test_a_layer_takes_few_operators_on_a_cpu_and_fewer_beside_kernels(layer, fused, one_thread):
    expected, loss, calls = counted(layer, load_backend("cpu"))
    assert calls.total() <= 25_000
    solved, fused_loss, fused_calls = counted(layer, fused)
    assert fused_calls.total() <= 3_000
    assert fused_loss == pytest.approx(loss, rel=1e-3)
    assert (solved.codes == expected.codes).mean() > 0.999
    # each makes the host wait for the device
    assert fused_calls["aten::_local_scalar_dense"] <= 16
