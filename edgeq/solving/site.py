"""What the layers of one site share, factored once, and one of these layers to solve.

Where the statistics come from is said by `edgeq.solving.statistics`, how a layer is solved by
`edgeq.solving.layer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeq.algorithms.damping import (
    DampedFactor,
    damped,
    factorise,
    inverse_upper_factor,
    settle_dead_columns,
)
from edgeq.algorithms.gptq import activation_order
from edgeq.algorithms.group_scale import importance_of
from edgeq.algorithms.problem import Problem
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.solving.propagation import Propagation, prepare_propagation
from edgeq.solving.statistics import Split
from edgeq.types import Array, Grid, LayerStatistics, NumpyArray


@dataclass(frozen=True, slots=True)
class SiteFactors:
    """The settled statistics of a site and their factors, which its layers share.

    U factors the inverse of H + lambda I of the solver, in `order`; None where none asks for it.
    importance weighs each column's error in the search for scales.
    """

    backend: Backend
    statistics: LayerStatistics
    H_damped: Array
    importance: Array
    U: Array | None
    order: NumpyArray | None
    dead_columns: int
    damping: float
    damping_retries: int
    propagation: Propagation


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer to solve, the site that it reads from and the recipe that it follows.

    Or several that read one input, their rows below one another: rows has how many each has, by
    name. It is empty for one layer.

    Shapes: W (out, in).
    """

    name: str
    W: Array
    grid: Grid
    site: SiteFactors
    recipe: Recipe
    rows: Mapping[str, int] = field(default_factory=dict)

    def problem(self) -> Problem:
        """State the problem as it is before any step: to come near the weight itself."""
        site = self.site
        return Problem(
            self.W,
            site.H_damped,
            self.grid,
            site.backend,
            D=site.statistics.D,
            U=site.U,
            order=site.order,
            importance=site.importance,
        )


def prepare_site(
    statistics: LayerStatistics, recipe: Recipe, backend: Backend, *, split: Split | None = None
) -> SiteFactors:
    """Settle unseen inputs and factor the second moment, once for all layers of a site.

    split is needed where the recipe chooses the strength of the propagation.
    """
    settled, dead_columns = settle_dead_columns(statistics, backend)
    H = settled.H
    order = None
    inverse = DampedFactor(None, recipe.damping, 0)
    # before the factor of the propagation: this one takes more memory on its way
    if recipe.solver != "rtn":
        if recipe.activation_order:
            order = activation_order(H, backend)
        inverse = factorise(H, recipe.damping, backend, inverse_upper_factor, order=order)
    importance = importance_of(H, inverse.factor, recipe.scale_weighting, backend, order=order)
    propagation = prepare_propagation(settled, split, recipe, backend)
    return SiteFactors(
        backend,
        settled,
        damped(settled.H, inverse.damping, backend),
        importance,
        inverse.factor,
        order,
        dead_columns,
        inverse.damping,
        inverse.retries,
        propagation,
    )
