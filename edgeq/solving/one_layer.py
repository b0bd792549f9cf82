"""One linear layer whose weight and inputs lie in arrays: solved without a model.

A run does the same for each of its layers, whose inputs come from forward passes.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from edgeq.dtypes import LARGEST_WEIGHT
from edgeq.errors import BadInput
from edgeq.protocols import Backend
from edgeq.recipe.layer_types import LayerTypes
from edgeq.recipe.recipe import Recipe
from edgeq.solving.layer import output_energy, solve_layer, solve_without_statistics
from edgeq.solving.report import LayerReport
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.statistics import gather, statistics_of
from edgeq.stopwatch import Stopwatch
from edgeq.types import Array, Grid, LinearSpec, NumpyArray, QuantizedLinear

NAME = "layer"
LARGEST_INPUT = 1e12  # sums of its square over 10^8 tokens, times weights, are held in float32


class ArraySite:
    """A site of one layer whose inputs are there.

    Shapes: X and X_hat (..., tokens, in); X is None where both streams are equal.
    """

    name = NAME
    lends: Sequence[str] = ()

    def __init__(self, X: NumpyArray | None, X_hat: NumpyArray) -> None:
        self._X, self._X_hat = X, X_hat

    def batches(self) -> Iterator[tuple[Array | None, Array]]:
        """Give all inputs at once."""
        yield self._X, self._X_hat

    def tokens(self, batch: int) -> None:
        """Say nothing of the tokens: they are those of whole windows."""

    def layers(self) -> Iterator[str]:
        """Give the one layer."""
        yield self.name

    def replace(self, layer: str, W: NumpyArray | QuantizedLinear) -> None:
        """Do nothing: no stream goes on behind the layer."""


def grid_for(recipe: Recipe, shape: tuple[int, int]) -> Grid:
    """Give the grid of a layer of one's own.

    Shapes: (out, in).
    Raises: BadInput where it stays dense, or where a type does not fit its width.
    """
    types, linear = LayerTypes(recipe), LinearSpec(NAME, NAME, shape)
    grid, asked = types.grid_of(linear), types.asked(linear)
    if asked is not None and types.given(linear) != asked:
        raise BadInput(
            f"type = {asked!r} does not fit rows of {shape[1]} inputs; "
            "choose a type with smaller blocks, such as Q4_0, or bits and group_size"
        )
    if grid is None:
        raise BadInput(f"bits = {recipe.bits}: the layer stays dense; choose 2 to 8 bits")
    return grid


def check_magnitudes(W: NumpyArray, inputs: tuple[NumpyArray | None, NumpyArray] | None) -> None:
    """Refuse numbers so large that losses overflow in float32.

    Raises: BadInput.
    """
    largest = float(np.abs(W).max())
    if largest > LARGEST_WEIGHT:
        raise BadInput(
            f"W holds a weight of {largest:.3g}, and grids hold none beyond "
            f"{LARGEST_WEIGHT:.3g}; divide W by a number, and multiply the result by it"
        )
    found = max((float(np.abs(x).max()) for x in inputs or () if x is not None), default=0.0)
    if found > LARGEST_INPUT:
        raise BadInput(
            f"X holds a number of {found:.3g}, whose square overflows in sums over tokens; "
            f"scale it to {LARGEST_INPUT:.0g} or less, which changes no code"
        )


def solve_arrays(
    W: NumpyArray,
    inputs: tuple[NumpyArray | None, NumpyArray] | None,
    recipe: Recipe,
    backend: Backend,
) -> tuple[QuantizedLinear, LayerReport]:
    """Solve a layer for its inputs (X, X_hat), as `ArraySite` takes them, or round it without any.

    Shapes: W (out, in).
    Raises: BadInput, NotPositiveDefinite.
    """
    grid = grid_for(recipe, (W.shape[0], W.shape[1]))
    check_magnitudes(W, inputs)
    if inputs is None:
        solved = solve_without_statistics(W, grid, recipe, backend)
        return solved, LayerReport(NAME, W.shape, grid.bits, grid.group_size, type=grid.type)
    site = ArraySite(*inputs)
    chooses = recipe.chooses_propagation
    moments = gather(site, backend, drift=recipe.needs_drift, hold_out=chooses)
    statistics, split = statistics_of(site.name, moments, backend)
    factors = prepare_site(statistics, recipe, backend, split=split)
    return solve_layer(Layer(NAME, backend.asarray(W), grid, factors, recipe), Stopwatch())


def output_error(
    W: NumpyArray,
    solved: NumpyArray,
    inputs: tuple[NumpyArray | None, NumpyArray],
    backend: Backend,
) -> float:
    """Compute what a solved layer changes of the output: ||X W.T - X_hat Q.T||^2 / ||X W.T||^2.

    Shapes: W and solved (out, in).
    """
    X, X_hat = inputs
    columns = W.shape[1]
    x_hat = backend.activations(X_hat.reshape(-1, columns))
    V, E = backend.asarray(W), backend.asarray(solved - W)
    H = backend.gram(x_hat, x_hat)
    error = output_energy(E, H, backend)
    energy = output_energy(V, H, backend)
    if X is not None:
        x = backend.activations(X.reshape(-1, columns))
        drift = x - x_hat
        # (X - X_hat) W.T - X_hat E.T, squared
        D = backend.gram(drift, x_hat)
        error += output_energy(V, backend.gram(drift, drift), backend)
        error -= 2 * float(((V @ D) * E).sum())
        energy = output_energy(V, backend.gram(x, x), backend)
    if energy > 0:
        return max(error, 0.0) / energy
    return 0.0 if not error else math.inf
