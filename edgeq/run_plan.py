"""`edgeq plan`: what a run will take, found without running it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.algorithms.qqa import Annealing
from edgeq.algorithms.qqa_rounding import annealing_cost
from edgeq.errors import BadInput
from edgeq.formats import READ_BY
from edgeq.memory_plan import MemoryPlan
from edgeq.pipeline import Job, check_length, needs_calibration
from edgeq.plan import Grids, plan_grids
from edgeq.protocols import Backend, Exporter, ModelSource
from edgeq.recipe import Recipe
from edgeq.sources.layout import expected_linear_shapes
from edgeq.sources.outline import ModelOutline
from edgeq.sources.safetensors_directory import SHARD_INDEX, SINGLE_FILE, weight_files
from edgeq.tensor_file import ITEM_BYTES, stored_parts
from edgeq.types import Array, Grid

PROBE = 768  # rows and columns of the products that measure this machine
PROBES = 3
SEARCH_SECONDS = 3e-8  # per weight and candidate: passes over arrays in the cache, measured on one slow core
GGUF_COLUMNS = 32  # that share a scale there, whatever the grid's groups
CONTAINER_BITS = {"gguf": (4, 5, 8), "onnx": (2, 4, 8), "mlx": (2, 3, 4, 5, 6, 8), "gptq": (2, 3, 4, 8),
                  "compressed-tensors": (4, 8)}  # fmt: skip


def open_outline(model: str) -> ModelSource | None:
    """The model of a directory that has a config.json but not all of its weights; None for anything else."""
    path = Path(model).expanduser()
    if not (path / "config.json").is_file() or (path / SINGLE_FILE).is_file():
        return None
    if (path / SHARD_INDEX).is_file():
        try:
            weight_files(path)
        except BadInput:  # whatever is missing or wrong: the outline reads the same files and says so
            return ModelOutline(path)
        return None
    return None if any(path.glob("*.safetensors")) or any(path.glob("*.gguf")) else ModelOutline(path)


def describe_run(job: Job, memory: MemoryPlan) -> dict[str, Any]:
    """Memory by part, disk, time, and size by format of a run. Units: bytes, seconds.

    Raises: BadInput for sequences that the model is too short for.
    """
    grids = plan_grids(job.source, job.recipe)
    if needs_calibration(job, grids):
        check_length(job.source, job.recipe.sequence_length)
    checkpoint = sum(tensor_bytes(name, *grid, job.source) for name, grid in grids.items())
    way, recipe = memory.way, job.recipe
    streams = 1 + (recipe.propagation_share if recipe.needs_drift else 0)
    states = streams * recipe.samples * recipe.sequence_length * job.source.config["hidden_size"] * 4
    exports = [format_row(exporter, grids, job.source) for exporter in job.exporters]
    disk = {"checkpoint": checkpoint} | {row["format"]: row["bytes"] for row in exports}
    copies = 2 * (len(job.source.blocks()) > 1) + way.states_on_disk  # two while a block is committed
    if recipe.needs_calibration and copies:
        disk["hidden states, while it runs"] = int(copies * states)
    seconds = block_seconds(job.source.config, recipe, measure_rates(job.backend), way.schedule == "recomputing")
    per_block = sum(seconds.values())
    return {
        "model": job.source.name,
        "backend": job.backend.name,
        "memory": {"peak": memory.peak.total, "at": memory.peak.name, "parts": dict(memory.peak.parts)},
        "way": asdict(way),
        "disk": disk,
        "seconds": {"block": per_block, "blocks": len(job.source.blocks()),
                    "total": per_block * len(job.source.blocks()), "by stage of a block": seconds},
        "original": job.source.stored_bytes(),
        "formats": exports,
    }  # fmt: skip


def annealing_note(job: Job, memory: MemoryPlan) -> str | None:
    """What annealing will take of a run's time on this machine, for those who start one; None for runs without."""
    if not job.recipe.anneal_rounds:
        return None
    recomputing = memory.way.schedule == "recomputing"
    seconds = block_seconds(job.source.config, job.recipe, measure_rates(job.backend), recomputing)
    blocks, annealing = len(job.source.blocks()), seconds["annealing"]
    return (
        f"annealing, {job.recipe.anneal_rounds} x {job.recipe.anneal_steps} steps: {show_time(blocks * annealing)} "
        f"of about {show_time(blocks * sum(seconds.values()))} on this machine"
    )


def show_time(seconds: float) -> str:
    """In a unit that leaves few digits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def tensor_bytes(name: str, shape: tuple[int, ...], grid: Grid | None, source: ModelSource) -> int:
    """What a tensor takes in the checkpoint: exact for grids, as stored in the source where it stays dense."""
    if grid is None:
        return source.tensor_bytes(name)
    parts = stored_parts(name, (shape[0], shape[1]), grid).values()
    return sum(math.prod(of_part) * ITEM_BYTES[dtype] for dtype, of_part in parts)


def format_row(exporter: Exporter, grids: Grids, source: ModelSource) -> dict[str, Any]:
    """About how large an export becomes: codes as wide as the format stores them, scales, offsets, 16-bit weights."""
    total = 0.0
    for name, (shape, grid) in grids.items():
        if grid is None or (exporter.linear_only and ".layers." not in name):
            total += math.prod(shape) * 2
            continue
        width = min(bits for bits in (*CONTAINER_BITS.get(exporter.name, ()), 16) if bits >= grid.bits)
        per_group = 16 if grid.zeros == "symmetric" and exporter.name != "mlx" else 32
        groups = -(-shape[1] // GGUF_COLUMNS) if exporter.name == "gguf" else grid.group_count(shape[1])
        total += shape[0] * (shape[1] * width + groups * per_group) / 8 + 2 * shape[0] * grid.outlier_count(shape[1])
    reason = exporter.reject_reason(source.config, source.companions(), grids)
    return {"format": exporter.name, "bytes": int(total), "read_by": READ_BY.get(exporter.name, ""), "refused": reason}


def measure_rates(backend: Backend) -> dict[str, float]:
    """Operations per second of this machine now: products in float32 and of the solve, and a factorisation."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((PROBE, PROBE))
    X, A = backend.activations(values), backend.asarray(values)
    Y, H = backend.activations(values + 1), backend.asarray(values @ values.T + PROBE * np.eye(PROBE))
    cube = float(PROBE) ** 3
    return {
        "forward": 2 * cube / _seconds(lambda: backend.gram(X, Y), backend),
        "solve": 2 * cube / _seconds(lambda: A @ A, backend),
        "factor": cube / 3 / _seconds(lambda: backend.cholesky(H), backend),
    }


def _seconds(work: Callable[[], Array], backend: Backend) -> float:
    """The shortest of a few runs, after one that warms up."""
    taken = []
    for _ in range(1 + PROBES):
        start = time.perf_counter()
        result = work()
        backend.evaluate(result)
        backend.to_numpy(result[:1])  # waits for devices that work on by themselves
        taken.append(time.perf_counter() - start)
    return max(min(taken[1:]), 1e-6)


def block_seconds(
    config: Mapping[str, Any], recipe: Recipe, rates: Mapping[str, float], recomputing: bool
) -> dict[str, float]:
    """Seconds of a block by stage: operations counted from its shapes, at the rates of this machine."""
    shapes = list(expected_linear_shapes(config).values())
    if not recipe.needs_calibration:
        return {"round": sum(map(math.prod, shapes)) * SEARCH_SECONDS}
    tokens, drift = recipe.samples * recipe.sequence_length, recipe.needs_drift
    sites = [shapes[0][1], shapes[3][1], shapes[4][1], shapes[6][1]]
    weights = float(sum(map(math.prod, shapes)))
    squared = float(sum(math.prod(shape) * shape[1] for shape in shapes))  # out x in x in
    passes = (2.6 if recomputing else 1.0) * (1 + drift)
    products = 2.0 * drift + 2 * drift + 2 + 2 * stages(recipe) * 2  # correct, target, one loss for each stage
    sweeps = 2.0 * (recipe.sweeps + recipe.alternations) + (2 if recipe.scales == "both" else 0)
    annealing = Annealing(steps=recipe.anneal_steps)
    annealed = sum(annealing_cost(shape[0], shape[1], annealing, rounds=recipe.anneal_rounds).flops for shape in shapes)
    return {
        "forward passes": passes * tokens * 2 * (weights + config["hidden_size"] * recipe.sequence_length)
        / rates["forward"],
        "statistics": sum((1.1 + 2 * drift) * tokens * n**2 for n in sites) / rates["forward"],
        "factors": sum((1 + drift) * n**3 / 3 + n**3 / 3 for n in sites) / rates["factor"],
        "search scales": weights * recipe.scale_candidates * SEARCH_SECONDS * (recipe.scales != "none"),
        "solve": (2 * squared + (products + sweeps) * squared) / rates["solve"],
        "annealing": annealed / rates["forward"],
    }  # fmt: skip


def stages(recipe: Recipe) -> int:
    """How often a loss is measured for a layer."""
    later: Sequence[bool] = (recipe.sweeps > 0, recipe.anneal_rounds > 0, recipe.scales == "both")
    return 2 + sum(later)
