"""How long a run takes: operations counted from its shapes, at the rates of this machine now."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgeq.algorithms.propagation_choice import DAMPINGS
from edgeq.decoder import Decoder
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.solving.steps import STEPS
from edgeq.types import Array

PROBE = 768  # rows and columns of the products that measure this machine
PROBES = 3
SEARCH_SECONDS = (
    3e-8  # per weight and candidate: passes over arrays in the cache, measured on one slow core
)

Shapes = Mapping[str, tuple[int, ...]]


def measure_rates(backend: Backend) -> dict[str, float]:
    """Operations per second of this machine now: products in float32 and of the solve, and a
    factorisation.
    """
    rng = np.random.default_rng(0)
    values = rng.standard_normal((PROBE, PROBE))
    X, A = backend.activations(values), backend.asarray(values)
    Y, H = (
        backend.activations(values + 1),
        backend.asarray(values @ values.T + PROBE * np.eye(PROBE)),
    )
    cube = float(PROBE) ** 3
    return {
        "forward": 2 * cube / _seconds(lambda: backend.gram(X, Y), backend),
        "solve": 2 * cube / _seconds(lambda: A @ A, backend),
        "factor": cube / 3 / _seconds(lambda: backend.cholesky(H), backend),
    }


def _seconds(work: Callable[[], Array], backend: Backend) -> float:
    """The shortest of a few runs, after one that warms up."""
    taken = []
    for _ in range(1 + PROBES):
        start = time.perf_counter()
        result = work()
        backend.evaluate(result)
        backend.to_numpy(result[:1])  # waits for devices that work on by themselves
        taken.append(time.perf_counter() - start)
    return max(min(taken[1:]), 1e-6)


def block_seconds(
    decoder: Decoder,
    recipe: Recipe,
    rates: Mapping[str, float],
    recomputing: bool,
    solved: Shapes,
) -> dict[str, float]:
    """Seconds of a block by stage, the mean over all blocks; solved are the shapes of all layers to
    be solved.
    """
    blocks = len(decoder.layers)
    weights = sum(map(math.prod, solved.values())) / blocks
    if not recipe.needs_calibration or not solved:
        return {"round": weights * SEARCH_SECONDS}
    squared = (
        sum(math.prod(shape) * shape[1] for shape in solved.values()) / blocks
    )  # out x in x in
    drift = recipe.needs_drift
    trials = len(DAMPINGS) * recipe.chooses_propagation  # fitted to a part of the tokens first
    costs = [step.cost(recipe) for step in STEPS if step.is_asked(recipe)]
    return of_tokens(
        decoder, recipe, rates["forward"], recomputing, site_widths(decoder, solved)
    ) | {
        "factors": sum((2 + drift * (1 + trials)) * n**3 / 3 for n in site_widths(decoder, solved))
        / blocks
        / rates["factor"],
        "search scales": weights * sum(cost.candidates for cost in costs) * SEARCH_SECONDS,
        "solve": sum(cost.products for cost in costs) * squared / rates["solve"],
        "annealing": sum(cost.annealing for cost in costs) * squared / rates["forward"],
    }


def of_tokens(
    decoder: Decoder, recipe: Recipe, rate: float, recomputing: bool, widths: Sequence[int]
) -> dict[str, float]:
    """What grows with the calibration tokens: both streams' passes, and H and D of every input."""
    tokens = recipe.samples * recipe.sequence_length
    both = recipe.propagation_share if recipe.needs_drift else 0.0
    weights = sum(math.prod(linear.shape) for linear in decoder.layers[0].linears)
    passes = (2.6 if recomputing else 1.0) * (1 + both)
    statistics = sum((1.1 + 2 * both) * tokens * n**2 for n in widths) / len(decoder.layers)
    return {
        "forward passes": passes
        * tokens
        * 2
        * (weights + decoder.hidden * recipe.sequence_length)
        / rate,
        "statistics": statistics / rate,
    }


def site_widths(decoder: Decoder, solved: Shapes) -> list[int]:
    """Give the columns of every input that layers are solved for; one input counts once."""
    return [
        site[0].shape[1]
        for index, layer in enumerate(decoder.layers)
        for site in layer.sites
        if any(linear.inside(decoder.block_name(index)).tensor in solved for linear in site)
    ]
