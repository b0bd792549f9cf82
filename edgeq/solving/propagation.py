"""How far each layer makes up for inherited error: as the recipe says, or chosen on tokens kept out
of the fit.
"""

from dataclasses import dataclass

from edgeq.algorithms.damping import DampedFactor, factorise, lower_factor
from edgeq.algorithms.propagation_choice import Corrector, choose_propagation, make_correctors
from edgeq.algorithms.qep import correct_weight
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.recipe.setting_rules import AUTOMATIC
from edgeq.solving.statistics import Split
from edgeq.types import Array, LayerStatistics

FEW_TOKENS = 2  # for each input: with fewer, a correction follows the noise of its tokens
FEW_TOKENS_DAMPING = 1.0


@dataclass(frozen=True, slots=True)
class Propagation:
    """What corrections of a site's layers need; without drift there is nothing to correct.

    factor is of H + lambda I at the recipe's damping, for layers of a stated strength; split and
    correctors, of its fitted part, are for layers whose strength is chosen. few_tokens: the
    recipe's damping was too little for them.
    """

    drift: Array | None = None
    H: Array | None = None
    factor: DampedFactor | None = None
    split: Split | None = None
    correctors: tuple[Corrector, ...] = ()
    few_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected weight and how it came about; held_out_gain is the share of output energy that it
    saves there.

    few_tokens: damped more than the recipe says.
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
    """The factors that the layers of a site share. Raises: NotPositiveDefinite."""
    if statistics.D is None or not recipe.propagates:
        return Propagation()
    H = statistics.H if statistics.paired_H is None else statistics.paired_H
    factor, damping = None, damping_for(statistics, recipe)
    if recipe.states_propagation:
        factor = factorise(H, damping, backend, lower_factor)
    correctors = () if split is None else make_correctors(split.fit, backend)
    return Propagation(
        statistics.D, H, factor, split, correctors, damping != recipe.propagation_damping
    )


def damping_for(statistics: LayerStatistics, recipe: Recipe) -> float:
    """The recipe's damping, or what is safe where both streams ran on few tokens (measured: 8 x 512
    on the demo).
    """
    tokens = statistics.n_tokens if statistics.paired_tokens is None else statistics.paired_tokens
    few = tokens < FEW_TOKENS * statistics.H.shape[0]
    return (
        max(recipe.propagation_damping, FEW_TOKENS_DAMPING) if few else recipe.propagation_damping
    )


def correct(
    name: str, W: Array, propagation: Propagation, recipe: Recipe, backend: Backend
) -> Correction:
    """The weight to quantize: moved against inherited error where there is any. Shapes: W (out,
    in).
    """
    strength = recipe.strength_of(name)
    if propagation.drift is None or strength == 0:
        return Correction(W)
    factor, gain, few = propagation.factor, None, propagation.few_tokens
    if strength == AUTOMATIC:
        assert propagation.split is not None
        best = choose_propagation(
            W, propagation.split.fit, propagation.split.held_out, propagation.correctors, backend
        ).best
        if best.strength == 0:
            return Correction(W, held_out_gain=0.0)
        strength, gain, few = best.strength, -best.error, False
        factor = factorise(propagation.H, best.damping, backend, lower_factor)
    assert factor is not None
    V = correct_weight(
        W, propagation.drift, factor.factor, backend, propagation_strength=float(strength)
    )
    return Correction(V, float(strength), factor.damping, factor.retries, gain, few)
