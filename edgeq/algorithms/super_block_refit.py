"""Stage 2 for scales of two levels: floats of super-blocks jointly, integers one after the other.

`edgeq.algorithms.scale_refit` says what is minimised, and which rows go together.
"""

from dataclasses import dataclass

from edgeq.algorithms.problem import Problem
from edgeq.algorithms.scale_descent import Refit, descend
from edgeq.algorithms.scale_system import RIDGE, ScaleSystem, residual, scale_system, system_loss
from edgeq.grids.super_blocks import (
    by_block,
    composed,
    float_grid,
    for_groups,
    groups_per_block,
    nearest_sub_minima,
    nearest_sub_scales,
    sub_minima_of,
    sub_scales_of,
)
from edgeq.types import Array, Grid, Solution

JOINT = Refit(sweeps=1, exact=True)
"""Of the floats, after each sweep over the integers."""


def refit_super_blocks(problem: Problem, solution: Solution, refit: Refit) -> Solution:
    """Minimise the loss of rows over the integers and floats of their scales and offsets.

    Integers are gone through by coordinate descent; floats, in which the loss is a parabola as
    well, are solved for jointly and rounded to storage. No row's loss is raised.
    """
    grid, backend, codes = problem.grid, problem.backend, solution.codes
    with_minima = grid.zeros == "offset"
    features = codes if with_minima else codes - grid.middle
    system = scale_system(problem, features, with_offsets=with_minima)
    integers, floats = factors_of(solution, grid, problem)
    before = for_groups(floats, grid, backend) * integers
    unknowns = before
    for _ in range(refit.sweeps):
        units = for_groups(floats, grid, backend)
        integers = move_integers(system, grid, units, integers)
        floats = descend(by_floats(system, grid, integers), floats, JOINT)
        unknowns = for_groups(floats, grid, backend) * integers
        backend.evaluate(integers, floats)
    better = (system_loss(system, unknowns) < system_loss(system, before))[:, None]
    old_integers, old_floats = factors_of(solution, grid, problem)
    integers = backend.where(better, integers, old_integers)
    floats = backend.where(better, floats, old_floats)
    if not with_minima:
        return composed(floats, integers, None, None, grid, backend)
    groups, blocks = solution.scales.shape[1], solution.super_scales.shape[1]
    sub_scales, sub_minima = integers[:, :groups], -integers[:, groups:]
    super_scales, super_minima = floats[:, :blocks], floats[:, blocks:]
    return composed(super_scales, sub_scales, super_minima, sub_minima, grid, backend)


def factors_of(solution: Solution, grid: Grid, problem: Problem) -> tuple[Array, Array]:
    """Give the integers of all scales and offsets, and the floats that they multiply.

    Offsets are the negative multiples of minima, and follow the scales.

    Shapes: (out, unknowns) and (out, super-blocks), twice as many of both where there are minima.
    """
    backend = problem.backend
    sub_scales = sub_scales_of(solution, grid, backend)
    if solution.super_minima is None:
        return sub_scales, solution.super_scales
    sub_minima = sub_minima_of(solution, grid, backend)
    integers = backend.concatenate([sub_scales, -sub_minima], axis=1)
    return integers, backend.concatenate([solution.super_scales, solution.super_minima], axis=1)


def by_floats(system: ScaleSystem, grid: Grid, integers: Array) -> ScaleSystem:
    """State the same loss in the floats, with the integers held."""
    backend, each = system.backend, groups_per_block(grid)
    blocks = [slice(at, at + each) for at in range(0, integers.shape[1], each)]
    # block by block: the system is the largest array of a refit, and no second one is made
    columns = [
        (system.A[:, :, block] * integers[:, None, block]).sum(axis=-1)[:, :, None]
        for block in blocks
    ]
    half = backend.concatenate(columns, axis=2)
    rows = [(half[:, block] * integers[:, block, None]).sum(axis=1)[:, None, :] for block in blocks]
    c = by_block(system.c * integers, grid).sum(axis=-1)
    whole = backend.concatenate(rows, axis=1)
    return ScaleSystem(whole, c, float_grid(grid), backend)


@dataclass(frozen=True, slots=True)
class Integers:
    """Hold the unknowns of some rows while their integers move, in arrays that are written into.

    values = units * integers, where units repeat the floats of super-blocks.

    Shapes: (out, unknowns) each.
    """

    system: ScaleSystem
    grid: Grid
    units: Array
    integers: Array
    values: Array

    def nearest(self, at: int, value: Array, *, minimum: bool = False) -> Array:
        """Give the integers nearest a value of one unknown. Shapes: (out,)."""
        backend, units = self.system.backend, self.units[:, at]
        wanted = value / backend.where(units == 0, 1.0, units)
        if minimum:
            return -nearest_sub_minima(-wanted, self.grid, backend)
        return nearest_sub_scales(wanted, self.grid, backend)

    def put(self, at: int, better: Array, integers: Array) -> None:
        """Take other integers of one unknown in the rows where they are better."""
        chosen = self.system.backend.where(better, integers, self.integers[:, at])
        self.integers[:, at] = chosen
        self.values[:, at] = self.units[:, at] * chosen


def move_integers(system: ScaleSystem, grid: Grid, units: Array, integers: Array) -> Array:
    """Sweep once over the groups, each set to its best integers given all others.

    Shapes: units, integers and the result (out, unknowns).
    """
    backend = system.backend
    state = Integers(system, grid, units, backend.copy(integers), backend.copy(units * integers))
    if grid.zeros == "offset":
        groups = integers.shape[1] // 2
        for group in range(groups):
            move_pair(state, group, group + groups)
    else:
        for group in range(integers.shape[1]):
            move_one(state, group)
    return state.integers


def move_one(state: Integers, at: int) -> None:
    """Move the integer of one scale to the one nearest the minimum of its parabola."""
    system, backend = state.system, state.system.backend
    curvature, slope = system.A[:, at, at], residual(system, state.values, at)
    best = state.values[:, at] + slope / backend.where(curvature > 0, curvature, 1.0)
    integers = state.nearest(at, best)
    step = state.units[:, at] * integers - state.values[:, at]
    state.put(at, step * (2 * slope - step * curvature) > 0, integers)


def move_pair(state: Integers, scale: int, offset: int) -> None:
    """Move the integers of a scale and of its offset, the offset making up for the rounded scale.

    The integers on both sides of the best scale are tried: the nearest need not be the better one.
    """
    system, backend = state.system, state.system.backend
    A_s, A_o = system.A[:, scale, scale], system.A[:, offset, offset]
    A_so = system.A[:, scale, offset]
    r_s, r_o = residual(system, state.values, scale), residual(system, state.values, offset)
    determinant = A_s * A_o - A_so * A_so
    solvable = determinant > RIDGE * A_s * A_o
    joint = (r_s * A_o - r_o * A_so) / backend.where(solvable, determinant, 1.0)
    best = state.values[:, scale] + backend.where(solvable, joint, 0.0)
    units = state.units[:, scale]

    def tried(integers: Array) -> tuple[Array, Array, Array]:
        step_s = units * integers - state.values[:, scale]
        step_o = (r_o - A_so * step_s) / backend.where(A_o > 0, A_o, 1.0)
        minima = state.nearest(offset, state.values[:, offset] + step_o, minimum=True)
        step_o = state.units[:, offset] * minima - state.values[:, offset]
        gain = step_s * (2 * r_s - step_s * A_s - 2 * step_o * A_so)
        return integers, minima, gain + step_o * (2 * r_o - step_o * A_o)

    integers, minima, gain = tried(state.nearest(scale, best))
    beyond = backend.where(best / units > integers, 1.0, -1.0)
    others, other_minima, other_gain = tried(state.nearest(scale, units * (integers + beyond)))
    other = other_gain > gain
    gain = backend.where(other, other_gain, gain)
    state.put(scale, gain > 0, backend.where(other, others, integers))
    state.put(offset, gain > 0, backend.where(other, other_minima, minima))
