"""Compare MLX's loops over columns with the plain loop: CPU seconds by stage, and equal codes.

    uv run python -m benchmarks.mlx_solves
    uv run python -m benchmarks.mlx_solves --bits 4 --quality best --repeats 3

Both solve all layers of glassllm from the same statistics, by turns; the least seconds of each
count. MLX computes late: each stage is waited for, so that its seconds are its own.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.solves import PLAIN, PRESETS
from edgeq.algorithms.column_loops import ColumnLoops
from edgeq.algorithms.problem import Problem
from edgeq.recipe.recipe import Recipe
from edgeq.solving.layer import solve_layer
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.steps import STEPS, BoundStep, Posed, Step
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerStatistics, NumpyArray, Solution
from edgeq_backends.mlx.backend import MlxBackend

TOKENS = 2048  # of the statistics
GROUP_SIZE = 32
Statistics = tuple[NumpyArray, NumpyArray, NumpyArray | None]


class PlainLoops(MlxBackend):
    """The same backend with the loops as they are specified, operation by operation."""

    round_columns = ColumnLoops.round_columns
    sweep_columns = ColumnLoops.sweep_columns


WAYS: Mapping[str, type[MlxBackend]] = {"plain loops": PlainLoops, "MLX's loops": MlxBackend}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--quality", choices=sorted(PRESETS), default="balanced")
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    settings = {**PLAIN, **PRESETS[asked.quality]}
    recipe = Recipe(**{**settings, "bits": asked.bits, "group_size": GROUP_SIZE})
    layers = layers_of_glassllm()
    best: dict[str, Stopwatch] = {}
    codes: dict[str, list[NumpyArray]] = {}
    for _ in range(asked.repeats):
        for way, make in WAYS.items():
            clock = Stopwatch(time.process_time)
            codes[way] = solve_all(layers, recipe, make(), clock)
            if way not in best or total(clock) < total(best[way]):
                best[way] = clock
    print_table(best)
    first, second = (np.concatenate([each.reshape(-1) for each in codes[way]]) for way in WAYS)
    print(f"{(first == second).mean():.4%} of {first.size:,} codes are equal")


def layers_of_glassllm() -> Mapping[str, Statistics]:
    """Weight, H and D of every layer, by the same code as in the tests."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from trained import glass_layers  # noqa: PLC0415

    layers: Mapping[str, Statistics] = glass_layers()
    return layers


def solve_all(
    layers: Mapping[str, Statistics], recipe: Recipe, backend: MlxBackend, clock: Stopwatch
) -> list[NumpyArray]:
    """Solve all layers and give their codes."""
    codes, steps = [], [waited_for(step) for step in STEPS]
    for name, (W, H, D) in layers.items():
        with clock("prepare"):
            drift = None if D is None else backend.asarray(D)
            statistics = LayerStatistics(backend.asarray(H), drift, TOKENS)
            site = prepare_site(statistics, recipe, backend)
            wait_for(site)
        layer = Layer(name, backend.asarray(W), recipe.grid_of(name), site, recipe)
        codes.append(solve_layer(layer, clock, steps)[0].codes)
    return codes


def waited_for(step: Step) -> Step:
    """Let a step end when all of its result is computed."""

    def bind(layer: Layer) -> BoundStep:
        run = step.bind(layer)

        def finish(problem: Problem, solution: Solution) -> Solution | Posed:
            found = run(problem, solution)
            wait_for(found.problem if isinstance(found, Posed) else found)
            return found

        return finish

    return replace(step, bind=bind)


def wait_for(data: Any) -> None:
    """Compute all arrays of a data class."""
    assert is_dataclass(data)
    values = [getattr(data, field.name) for field in fields(data)]
    mx.eval([value for value in values if isinstance(value, mx.array)])


def total(clock: Stopwatch) -> float:
    return sum(clock.seconds.values())


def print_table(clocks: Mapping[str, Stopwatch]) -> None:
    """Print seconds by stage, a column for each way."""
    stages: Sequence[str] = list(next(iter(clocks.values())).seconds)
    print(f"{'CPU seconds':16}" + "".join(f"{way:>14}" for way in clocks))
    for stage in stages:
        print(f"{stage:16}" + "".join(f"{clock.seconds[stage]:14.2f}" for clock in clocks.values()))
    print(f"{'all':16}" + "".join(f"{total(clock):14.2f}" for clock in clocks.values()))


if __name__ == "__main__":
    main()
