"""How far each layer makes up for inherited error: as the recipe or held-out tokens say.

The correction itself is `edgeq.algorithms.qep`, the choice by held-out tokens
`edgeq.algorithms.propagation_choice`.
"""

from dataclasses import dataclass

from edgeq.algorithms.damping import DampedFactor, factorise, lower_factor
from edgeq.algorithms.problem import Problem
from edgeq.algorithms.propagation_choice import Corrector, choose_propagation, make_correctors
from edgeq.algorithms.qep import correct_weight
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.recipe.setting_rules import AUTOMATIC
from edgeq.solving.statistics import Split
from edgeq.types import Array, LayerStatistics

FEW_TOKENS = 2  # for each input: with fewer, a correction follows the noise of its tokens
# the least damping then, which is safe: measured with 8 x 512 tokens on the demo
FEW_TOKENS_DAMPING = 1.0


@dataclass(frozen=True, slots=True)
class Propagation:
    """Everything that corrections of a site's layers need; empty where none is corrected.

    factor is that of H + lambda I, for layers of a stated strength. split and correctors, which are
    made of its fitted part, are for layers whose strength is chosen. few_tokens says that there
    were too few tokens for the recipe's damping.
    """

    H: Array | None = None
    factor: DampedFactor | None = None
    split: Split | None = None
    correctors: tuple[Corrector, ...] = ()
    few_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected weight and how it came about.

    held_out_gain is the share of output energy that it saves on held-out tokens. few_tokens says
    that it was damped more than the recipe says, for lack of tokens.

    Shapes: V (out, in).
    """

    V: Array
    strength: float = 0.0
    damping: float | None = None
    retries: int = 0
    held_out_gain: float | None = None
    few_tokens: bool = False


def prepare_propagation(
    statistics: LayerStatistics, split: Split | None, recipe: Recipe, backend: Backend
) -> Propagation:
    """Factor what the corrections of a site's layers share.

    Raises: NotPositiveDefinite.
    """
    if statistics.D is None or not recipe.propagates:
        return Propagation()
    H = statistics.H if statistics.paired_H is None else statistics.paired_H
    factor = None
    damping = damping_for(statistics, recipe)
    if recipe.states_propagation:
        factor = factorise(H, damping, backend, lower_factor)
    correctors = () if split is None else make_correctors(split.fit, backend)
    return Propagation(H, factor, split, correctors, damping != recipe.propagation_damping)


def damping_for(statistics: LayerStatistics, recipe: Recipe) -> float:
    """Take the recipe's damping, or more where both streams ran on too few tokens for it."""
    tokens = statistics.n_tokens if statistics.paired_tokens is None else statistics.paired_tokens
    if tokens < FEW_TOKENS * statistics.H.shape[0]:
        return max(recipe.propagation_damping, FEW_TOKENS_DAMPING)
    return recipe.propagation_damping


def correct(name: str, problem: Problem, propagation: Propagation, recipe: Recipe) -> Correction:
    """Move the weight of a layer against inherited error, where there is any."""
    strength = recipe.strength_of(name)
    backend = problem.backend
    if problem.D is None or strength == 0:
        return Correction(problem.V)
    factor = propagation.factor
    gain = None
    few = propagation.few_tokens
    if strength == AUTOMATIC:
        split = propagation.split
        assert split is not None
        choice = choose_propagation(
            problem.V, split.fit, split.held_out, propagation.correctors, backend
        )
        best = choice.best
        if best.strength == 0:
            return Correction(problem.V, held_out_gain=0.0)
        strength = best.strength
        gain = -best.error
        few = False  # the damping was chosen with the strength
        factor = factorise(propagation.H, best.damping, backend, lower_factor)
    assert factor is not None
    V = correct_weight(
        problem.V, problem.D, factor.factor, backend, propagation_strength=float(strength)
    )
    return Correction(V, float(strength), factor.damping, factor.retries, gain, few)
