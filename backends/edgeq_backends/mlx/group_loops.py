"""The passes over all groups of a layer in MLX, whose compiler fuses their operations on GPUs.

On a CPU they run operation by operation: compiled, the search for scales took up to twice the time,
without the processor's vector instructions, and its first pass seconds of a C++ compiler.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import mlx.core as mx

from edgeq.algorithms.group_loops import GroupLoops
from edgeq.types import Grid
from edgeq_backends.mlx.in_numpy import on_cpu

Choice = tuple[mx.array, mx.array, mx.array]
Compiled = Callable[..., Any]


class MlxGroupLoops(GroupLoops):
    """Offers these passes to the MLX backend."""

    def choose_scales(
        self,
        values: mx.array,
        weights: mx.array,
        tried: Iterable[tuple[mx.array, mx.array]],
        grid: Grid,
        best: Choice | None = None,
    ) -> Choice:
        if not is_compiled():
            chosen: Choice = plain(self).choose_scales(values, weights, tried, grid, best)
            return chosen
        try_one = compiled_choice(self, grid)
        for scales, offsets in tried:
            best = try_one(values, weights, scales, offsets, *(best or ()))
            mx.eval(*best)
        assert best is not None, "something is tried"
        return best

    def sweep_scales(
        self, A: mx.array, c: mx.array, x: mx.array, grid: Grid, sweeps: int
    ) -> mx.array:
        if not is_compiled():
            swept: mx.array = plain(self).sweep_scales(A, c, x, grid, sweeps)
            return swept
        for _ in range(sweeps):
            x = compiled_sweep(self, grid)(A, c, x)
            mx.eval(x)
        return x


class Followed(GroupLoops):
    """A backend's verbs while MLX's compiler follows them through a pass: nothing is computed."""

    def __init__(self, backend: MlxGroupLoops) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def evaluate(self, *arrays: mx.array) -> None:
        """Do nothing."""


def plain(loops: MlxGroupLoops) -> Any:
    """Give a backend's passes as they are specified, operation by operation."""
    return super(MlxGroupLoops, loops)


def is_compiled() -> bool:
    """Say whether passes are compiled where arrays are computed."""
    return not on_cpu()


@cache
def compiled_choice(backend: MlxGroupLoops, grid: Grid) -> Compiled:
    """Give the choice between one pair of scales and offsets and the best one before, if any."""
    followed: Any = Followed(backend)

    def try_one(
        values: mx.array, weights: mx.array, scales: mx.array, offsets: mx.array, *best: mx.array
    ) -> Choice:
        pair = [(scales, offsets)]
        chosen: Choice = followed.choose_scales(values, weights, pair, grid, best or None)
        return chosen

    return mx.compile(try_one)


@cache
def compiled_sweep(backend: MlxGroupLoops, grid: Grid) -> Compiled:
    """Give one sweep over the scales of all groups."""
    followed: Any = Followed(backend)

    def sweep_once(A: mx.array, c: mx.array, x: mx.array) -> mx.array:
        swept: mx.array = followed.sweep_scales(A, c, x, grid, 1)
        return swept

    return mx.compile(sweep_once)
