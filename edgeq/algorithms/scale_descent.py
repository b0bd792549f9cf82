"""Descend on the parabola of a layer's loss in its scales, by steps that can be stored."""

from dataclasses import dataclass

from edgeq.algorithms.scale_system import RIDGE, ScaleSystem, residual, solve_exactly, system_loss
from edgeq.grids.fitting import store_scales
from edgeq.types import Array


@dataclass(frozen=True, slots=True)
class Refit:
    """Say how often scales are gone through, and whether the system is solved exactly first."""

    sweeps: int = 3
    exact: bool = False


REFIT = Refit()


def descend(system: ScaleSystem, start: Array, refit: Refit) -> Array:
    """Sweep over the groups, each set to its best storable values given the others.

    Rows whose loss that does not lower keep their start.

    Shapes: start and result (out, unknowns).
    """
    backend, A, c = system.backend, system.A, system.c
    unknowns = solve_exactly(system, start) if refit.exact else start
    unknowns = backend.sweep_scales(A, c, unknowns, system.grid, refit.sweeps)
    better = system_loss(system, unknowns) <= system_loss(system, start)
    return backend.where(better[:, None], unknowns, start)


def improve_scale(system: ScaleSystem, unknowns: Array, at: int) -> None:
    """Move one scale to the storable value nearest the minimum of its parabola.

    A group of zeros keeps its scale.
    """
    backend = system.backend
    curvature, slope = system.A[:, at, at], residual(system, unknowns, at)
    step = slope / backend.where(curvature > 0, curvature, 1.0)
    step = store_scales(unknowns[:, at] + step, system.grid, backend) - unknowns[:, at]
    gain = step * (2 * slope - step * curvature)
    unknowns[:, at] += backend.where(gain > 0, step, 0.0)


def improve_pair(system: ScaleSystem, unknowns: Array, scale: int, offset: int) -> None:
    """Move a scale and its offset to their joint minimum, the offset making up for its rounding."""
    backend, dtype = system.backend, system.grid.scale_dtype
    A_s, A_o = system.A[:, scale, scale], system.A[:, offset, offset]
    A_so = system.A[:, scale, offset]
    r_s, r_o = residual(system, unknowns, scale), residual(system, unknowns, offset)
    determinant = A_s * A_o - A_so * A_so
    solvable = determinant > RIDGE * A_s * A_o
    joint = (r_s * A_o - r_o * A_so) / backend.where(solvable, determinant, 1.0)
    step_s = backend.where(solvable, joint, 0.0)
    step_s = store_scales(unknowns[:, scale] + step_s, system.grid, backend) - unknowns[:, scale]
    step_o = (r_o - A_so * step_s) / backend.where(A_o > 0, A_o, 1.0)
    step_o = backend.round_to(unknowns[:, offset] + step_o, dtype) - unknowns[:, offset]
    gain = step_s * (2 * r_s - step_s * A_s - 2 * step_o * A_so) + step_o * (2 * r_o - step_o * A_o)
    unknowns[:, scale] += backend.where(gain > 0, step_s, 0.0)
    unknowns[:, offset] += backend.where(gain > 0, step_o, 0.0)
