"""Measure how fast this machine, or its device, does what runs are made of."""

import math
import time
from collections.abc import Callable

import numpy as np

from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.group_scale import ScaleSearch, search_scales
from edgeq.algorithms.problem import Problem
from edgeq.protocols import Backend
from edgeq.types import Array, Grid

PROBE = 768  # rows and columns of the products that measure this machine
DEVICE_PROBE = 4096  # smaller products leave most of a device with its own memory idle
PROBES = 3  # the shortest counts: others were disturbed
# per weight and candidate: passes over arrays in the cache, measured on one slow core
SEARCH_SECONDS = 3e-8
LAYER = (4096, 512)  # rows and columns of the layer that measures a device's loops
TRIED = 4  # ranges for each of its groups


def measure_rates(backend: Backend) -> dict[str, float]:
    """Measure the operations per second of this machine now, as the time plan needs them.

    They are those of products of activations, of products of the solve, and of a factorisation.
    search counts weights and the ranges tried for each, columns those that loops go through beside
    the products: without end on a processor, which they do not keep waiting.
    """
    has_own_memory = backend.device_memory() is not None
    size = DEVICE_PROBE if has_own_memory else PROBE
    values = np.random.default_rng(0).standard_normal((size, size))
    X = backend.activations(values)
    Y = backend.activations(values + 1)  # of X alone it would be half the work
    A = backend.asarray(values)
    H = backend.add_diagonal(A @ A.T, float(size))
    cube = float(size) ** 3
    rates = {
        "forward": 2 * cube / _seconds(lambda: backend.gram(X, Y), backend),
        "solve": 2 * cube / _seconds(lambda: A @ A, backend),
        "factor": cube / 3 / _seconds(lambda: backend.cholesky(H), backend),
    }
    if has_own_memory:
        return rates | _rates_of_loops(backend)
    return rates | {"search": 1 / SEARCH_SECONDS, "columns": math.inf}


def _rates_of_loops(backend: Backend) -> dict[str, float]:
    """Measure the search for scales, and a solve column by column, on a small layer.

    On a device both take as long as it takes to start their many short steps.
    """
    rows, columns = LAYER
    V = backend.asarray(np.random.default_rng(0).standard_normal(LAYER))
    H = backend.asarray(np.eye(columns))
    problem = Problem(V, H, Grid(4, 128), backend, U=H, importance=backend.diagonal(H))
    search = ScaleSearch(TRIED, refits=0)
    scales = search_scales(problem, search)
    searching = _seconds(lambda: search_scales(problem, search).scales, backend)
    solving = _seconds(lambda: solve_columns(problem, scales).codes, backend)
    return {"search": rows * columns * TRIED / searching, "columns": columns / solving}


def _seconds(work: Callable[[], Array], backend: Backend) -> float:
    """Measure the shortest of a few runs, after one that warms up."""
    taken = []
    for _ in range(1 + PROBES):
        start = time.perf_counter()
        result = work()
        backend.evaluate(result)
        backend.to_numpy(result[:1])  # waits for devices that work on by themselves
        taken.append(time.perf_counter() - start)
    return max(min(taken[1:]), 1e-6)  # rates divide by it, and clocks may stand still
