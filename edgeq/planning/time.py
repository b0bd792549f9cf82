"""How long a run takes: operations counted from its shapes, at the rates of this machine now.

The rates are those of `edgeq.planning.rates`; what the steps of a layer cost is said by the table
in `edgeq.solving.steps`.
"""

import math
from collections.abc import Mapping, Sequence

from edgeq.algorithms.propagation_choice import DAMPINGS
from edgeq.decoder import Decoder
from edgeq.planning.mixtures import is_of_expert, mixture_of
from edgeq.recipe.recipe import Recipe
from edgeq.solving.steps import STEPS

RECOMPUTED = 2.6  # passes through a block that is recomputed: two to three, by its sites
BACKWARD = 4  # passes: forward, again with its graph, and back, where attention takes two of them
SYMMETRIC = 1.1  # operations of H for each token and square: half of a product, and its sum

Shapes = Mapping[str, tuple[int, ...]]


def block_seconds(
    decoder: Decoder,
    recipe: Recipe,
    rates: Mapping[str, float],
    recomputing: bool,
    solved: Shapes,
) -> dict[str, float]:
    """Estimate the seconds of a block by stage, the mean over all blocks.

    solved has the shapes of all layers to be solved. rates are those of
    `edgeq.planning.rates.measure_rates`.
    """
    blocks = len(decoder.layers)
    weights = sum(map(math.prod, solved.values())) / blocks
    if not recipe.needs_calibration or not solved:
        return {"round": weights / rates["search"]}
    # out x in x in
    squared = sum(math.prod(shape) * shape[1] for shape in solved.values()) / blocks
    sites = solved_sites(decoder, solved)
    # two for the solver's inverse; of the propagation one, after trials on a part of the tokens
    trials = len(DAMPINGS) * recipe.chooses_propagation
    factors = 2 + recipe.needs_drift * (1 + trials)
    factored = sum(factors * columns**3 / 3 for columns, _ in sites) / blocks
    # one solve and its sweeps go through the columns of an input
    loops = (recipe.solver != "rtn") + recipe.sweep_count
    columns = loops * sum(columns for columns, _ in sites) / blocks
    costs = [step.cost(recipe) for step in STEPS if step.is_asked(recipe)]
    return of_tokens(decoder, recipe, rates["forward"], recomputing, sites) | {
        "factors": factored / rates["factor"],
        "search scales": weights * sum(cost.candidates for cost in costs) / rates["search"],
        "solve": sum(cost.products for cost in costs) * squared / rates["solve"]
        + columns / rates["columns"],
        "annealing": sum(cost.annealing for cost in costs) * squared / rates["forward"],
    }


def of_tokens(
    decoder: Decoder,
    recipe: Recipe,
    rate: float,
    recomputing: bool,
    sites: Sequence[tuple[int, float]],
) -> dict[str, float]:
    """Estimate what grows with calibration tokens: passes of both streams, H and D of inputs."""
    tokens = recipe.samples * recipe.sequence_length
    both = recipe.propagation_share if recipe.needs_drift else 0.0
    blocks = len(decoder.layers)
    weights = sum(
        math.prod(linear.shape) * (share if linear.expert is not None else 1.0)
        for layer, share in zip(decoder.layers, shares_of_experts(decoder), strict=True)
        for linear in layer.linears
    )
    passes = (RECOMPUTED if recomputing else 1.0) * (1 + both)
    # scores and their products with values, each over the half of a window that a token sees
    attention = decoder.hidden * recipe.sequence_length
    forward = passes * tokens * 2 * (weights / blocks + attention)
    squares = sum(share * columns**2 for columns, share in sites) / blocks
    statistics = (SYMMETRIC + 2 * both) * tokens * squares
    head = decoder.hidden * decoder.vocabulary / blocks
    weighing = 0.0
    if recipe.token_weights != "none":
        weighing = BACKWARD * tokens * 2 * (weights / blocks + attention + head)
    return {
        "weigh tokens": weighing / rate,
        "forward passes": forward / rate,
        "statistics": statistics / rate,
    }


def solved_sites(decoder: Decoder, solved: Shapes) -> list[tuple[int, float]]:
    """List the columns of every input that layers are solved for, and the share of tokens it has.

    One input counts once.
    """
    shares = shares_of_experts(decoder)
    return [
        (site[0].shape[1], shares[index] if is_of_expert(site) else 1.0)
        for index, layer in enumerate(decoder.layers)
        for site in layer.sites
        if any(linear.inside(decoder.block_name(index)).tensor in solved for linear in site)
    ]


def shares_of_experts(decoder: Decoder) -> list[float]:
    """Estimate, by block, the share of tokens that reach an expert; 1 where there is none."""
    mixtures = map(mixture_of, decoder.layers)
    return [1.0 if mixture is None else mixture.share for mixture in mixtures]
