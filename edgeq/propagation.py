"""How far each layer makes up for inherited error: as the recipe says, or chosen on tokens kept out of the fit."""

from dataclasses import dataclass

from edgeq.algorithms.damping import DampedFactor, factorise, lower_factor
from edgeq.algorithms.propagation_choice import Corrector, choose_propagation, make_correctors
from edgeq.algorithms.qep import correct_weight
from edgeq.protocols import Backend
from edgeq.recipe import Recipe
from edgeq.setting_rules import AUTOMATIC
from edgeq.statistics import Split
from edgeq.types import Array, LayerStatistics


@dataclass(frozen=True, slots=True)
class Propagation:
    """What corrections of a site's layers need; without drift there is nothing to correct.

    factor is of H + lambda I at the recipe's damping, for layers of a stated strength; split and correctors, of its
    fitted part, are for layers whose strength is chosen.
    """

    drift: Array | None = None
    H: Array | None = None
    factor: DampedFactor | None = None
    split: Split | None = None
    correctors: tuple[Corrector, ...] = ()


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected weight and how it came about; held_out_gain is the share of output energy that it saves there."""

    V: Array
    strength: float = 0.0
    damping: float | None = None
    retries: int = 0
    held_out_gain: float | None = None


def prepare_propagation(
    statistics: LayerStatistics, split: Split | None, recipe: Recipe, backend: Backend
) -> Propagation:
    """The factors that the layers of a site share. Raises: NotPositiveDefinite."""
    if statistics.D is None or not recipe.propagates:
        return Propagation()
    H = statistics.H if statistics.paired_H is None else statistics.paired_H
    states = recipe.states_propagation
    factor = factorise(H, recipe.propagation_damping, backend, lower_factor) if states else None
    correctors = () if split is None else make_correctors(split.fit, backend)
    return Propagation(statistics.D, H, factor, split, correctors)


def correct(name: str, W: Array, propagation: Propagation, recipe: Recipe, backend: Backend) -> Correction:
    """The weight to quantize: moved against inherited error where there is any. Shapes: W (out, in)."""
    strength = recipe.strength_of(name)
    if propagation.drift is None or strength == 0:
        return Correction(W)
    factor, gain = propagation.factor, None
    if strength == AUTOMATIC:
        assert propagation.split is not None
        best = choose_propagation(
            W, propagation.split.fit, propagation.split.held_out, propagation.correctors, backend
        ).best
        if best.strength == 0:
            return Correction(W, held_out_gain=0.0)
        strength, gain = best.strength, -best.error
        factor = factorise(propagation.H, best.damping, backend, lower_factor)
    assert factor is not None
    V = correct_weight(W, propagation.drift, factor.factor, backend, propagation_strength=float(strength))
    return Correction(V, float(strength), factor.damping, factor.retries, gain)
