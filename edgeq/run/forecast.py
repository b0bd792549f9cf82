"""`edgeq plan`: what a run will take, found without running it.

Memory, time and sizes are counted in `edgeq.planning`; here they become one plan of a job.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeq.calibration.windows import check_length
from edgeq.errors import BadInput, NotInstalled
from edgeq.planning.memory import MemoryPlan
from edgeq.planning.process_memory import machine_bytes
from edgeq.planning.rates import measure_rates
from edgeq.planning.sizes import format_row, tensor_bytes
from edgeq.planning.time import block_seconds
from edgeq.planning.tuning import TuningPlan, tuning_seconds, way_words
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import Grids, grids_by_part, plan_grids
from edgeq.recipe.layer_types import replaced_types
from edgeq.registry import FORMATS, load_exporter
from edgeq.run.assembly import length_notes
from edgeq.run.candidates import Item
from edgeq.run.costs import GRADIENT_WINDOWS, SOLVE_WINDOWS
from edgeq.run.pipeline import Job, needs_calibration
from edgeq.run.weighing import weighed_layers
from edgeq.solving.type_errors import ROWS
from edgeq.sources import HUB_NAME, short_name
from edgeq.sources.hub import download_description
from edgeq.sources.outline import ModelOutline
from edgeq.sources.refusals import SHARD_INDEX, SINGLE_FILE
from edgeq.sources.safetensors_directory import weight_files
from edgeq.streams.backward import HEAD_COPIES, head_tokens
from edgeq.words import show_time

LONGER = 1.5  # than planned: what a run on a busy laptop took (benchmarks/results/laptop.md)
SOLVE_PRODUCTS = 3  # of the rows with a square: the solve, and energies around it
COLUMN_SECONDS = 1e-4  # of a solve for each column, however few rows: calls of the framework


def open_outline(model: str) -> ModelSource | None:
    """Open a directory that has config.json but not all weights; return None for anything else.

    Of a model on the hub nothing but the description is fetched.
    """
    path = Path(model).expanduser()
    if not os.path.lexists(path) and HUB_NAME.fullmatch(model):
        return ModelOutline(download_description(model), name=short_name(model))
    if not (path / "config.json").is_file() or (path / SINGLE_FILE).is_file():
        return None
    if (path / SHARD_INDEX).is_file():
        try:
            weight_files(path)
        except BadInput:  # of whatever is wrong: the outline reads the same files and says so
            return ModelOutline(path)
        return None
    if any(path.glob("*.safetensors")) or any(path.glob("*.gguf")):
        return None
    return ModelOutline(path)


def describe_run(job: Job, memory: MemoryPlan, folder: Path) -> dict[str, Any]:
    """Say what a run that writes in a folder takes: memory by part, disk, time, size by format.

    Units: bytes, seconds.
    Raises: BadInput for sequences that the model is too short for.
    """
    grids = plan_grids(job.source, job.recipe)
    if needs_calibration(job, grids):
        check_length(job.source, job.recipe.sequence_length)
    blocks, decoder = len(job.source.blocks()), job.source.record.decoder
    checkpoint = sum(tensor_bytes(name, *grid, job.source) for name, grid in grids.items())
    exports = [format_row(exporter, grids, job.source) for exporter in job.exporters]
    disk = {"checkpoint": checkpoint} | {row["format"]: row["bytes"] for row in exports}
    # two while a block is committed, and the one that streams run on
    copies = 2 * (blocks > 1) + memory.way.states_on_disk
    if needs_calibration(job, grids) and copies:
        disk["hidden states, while it runs"] = int(copies * states_bytes(job))
    with job.backend.working():
        rates = measure_rates(job.backend)
    seconds = stage_seconds(job, memory, grids, rates)
    per_block = sum(seconds.values())
    tuning = None if job.tuner is None else describe_tuning(job.tuner.plan, rates)
    total = per_block * blocks + (0 if tuning is None else tuning["seconds"])
    return {
        "model": job.source.record.name,
        "backend": job.backend.name,
        "memory": {
            "peak": memory.peak.total,
            "at": memory.peak.name,
            "parts": dict(memory.peak.parts),
            "least": memory.least,
            "machine": machine_bytes(),
        },
        "device memory": describe_device(memory),
        "way": asdict(memory.way),
        "disk": disk,
        "disk free": shutil.disk_usage(folder).free,
        "seconds": {
            "block": per_block,
            "blocks": blocks,
            "total": total,
            "at most": LONGER * total,
            "by stage of a block": seconds,
        },
        "tuning": tuning,
        "original": job.source.stored_bytes(),
        "formats": exports,
        "other formats": [] if exports else other_formats(job, grids),
        "grids": grids_by_part(grids, decoder, job.recipe),
        "notes": [
            *job.source.record.notes,
            *replaced_types(job.recipe, decoder),
            *length_notes(job.recipe, job.source),
            *job.text_notes,
            *importance_notes(job, grids),
            *job.backend.notes,
            *filter(None, [job.tuning_note]),
            *([] if memory.writing is None else [f"own text: {memory.writing.describe()}"]),
        ],
    }


def describe_device(memory: MemoryPlan) -> dict[str, Any] | None:
    """Say what a run takes of a device's own memory; None where there is none. Units: bytes."""
    if memory.device is None or memory.on_device is None:
        return None
    return {
        "peak": memory.on_device.total,
        "at": memory.on_device.name,
        "parts": dict(memory.on_device.parts),
        "least": memory.device_least,
        "free": memory.device.free,
        "total": memory.device.total,
    }


def other_formats(job: Job, grids: Grids) -> list[dict[str, Any]]:
    """Describe each format that could be asked for: those that are installed."""
    rows = []
    for name in FORMATS:
        try:
            exporter = load_exporter(name)
        except NotInstalled:
            continue
        rows.append(format_row(exporter, grids, job.source))
    return rows


def importance_notes(job: Job, grids: Grids) -> list[str]:
    """Say what an importance matrix weighs, where the run has one."""
    if job.importance is None:
        return []
    return weighed_layers(job.source, grids, job.importance).notes()


def states_bytes(job: Job) -> float:
    """Count the bytes of both streams' hidden states between two blocks, in float32."""
    recipe = job.recipe
    streams = 1 + (recipe.propagation_share if recipe.needs_drift else 0)
    tokens = streams * recipe.samples * recipe.sequence_length
    return tokens * job.source.record.decoder.hidden * 4


def describe_tuning(plan: TuningPlan, rates: Mapping[str, float]) -> dict[str, Any]:
    """Say what tuning takes: memory by part, time, text; and what moves. Units: bytes, seconds."""
    sizes = plan.sizes
    return {
        "seconds": tuning_seconds(sizes, plan.way, rates),
        "tokens": (sizes.windows - sizes.held_out) * sizes.length,
        "held out": sizes.held_out * sizes.length,
        "passes": sizes.passes,
        "way": way_words(plan.way),
        "moves codes": plan.moves_codes,
        "memory": {
            "peak": plan.peak.total,
            "at": plan.peak.name,
            "parts": dict(plan.peak.parts),
            "least": plan.least,
            "on device": None if plan.on_device is None else plan.on_device.total,
        },
    }


def stage_seconds(
    job: Job, memory: MemoryPlan, grids: Grids, rates: Mapping[str, float]
) -> dict[str, float]:
    """Estimate the seconds of a block by stage, at the rates of this machine."""
    linears = {linear.tensor for block in job.source.blocks() for linear in block.linears}
    solved = {
        name: shape for name, (shape, grid) in grids.items() if grid is not None and name in linears
    }
    recomputing = memory.way.schedule == "recomputing"
    return block_seconds(job.source.record.decoder, job.recipe, rates, recomputing, solved)


def measuring_takes(job: Job, items: Sequence[Item]) -> dict[str, float]:
    """Estimate the seconds that a budget measures types for, and the memory that it takes at most.

    Most memory take hidden states between all blocks, the head's table, and predictions of some
    tokens, which are there several times. Units: bytes, seconds.
    """
    decoder, recipe = job.source.record.decoder, job.recipe
    with job.backend.working():
        rates = measure_rates(job.backend)
    length = recipe.sequence_length
    weights = sum(math.prod(linear.shape) for linear in decoder.linears())
    weights += decoder.hidden * decoder.vocabulary
    # forward, again with its graph, and two products back; then the passes of the solves
    passes = 4 * min(recipe.samples, GRADIENT_WINDOWS) + min(recipe.samples, SOLVE_WINDOWS)
    solves = [(item.layers[0].shape[1], len(item.options)) for item in items if item.layers]
    operations = sum(2 * ROWS * width**2 * count for width, count in solves)
    columns = sum(width * count for width, count in solves)
    factors = sum(2 * width**3 / 3 for width, _ in solves) / rates["factor"]
    seconds = 2 * weights * length * passes / rates["forward"] + factors
    seconds += SOLVE_PRODUCTS * operations / rates["solve"] + columns * COLUMN_SECONDS
    states = (len(decoder.layers) + 1) * min(recipe.samples, GRADIENT_WINDOWS) * decoder.hidden
    at_once = min(length, head_tokens(decoder.vocabulary))
    predictions = HEAD_COPIES * at_once * decoder.vocabulary
    table = decoder.hidden * decoder.vocabulary
    return {"seconds": seconds, "memory": 4 * (states * length + predictions + table)}


def annealing_note(job: Job, memory: MemoryPlan) -> str | None:
    """Say what annealing will take of a run's time on this machine; None for runs without."""
    if not job.recipe.anneal_rounds:
        return None
    grids = plan_grids(job.source, job.recipe)
    with job.backend.working():
        rates = measure_rates(job.backend)
    seconds = stage_seconds(job, memory, grids, rates)
    blocks = len(job.source.blocks())
    annealing = show_time(blocks * seconds.get("annealing", 0.0))
    total = show_time(blocks * sum(seconds.values()))
    return (
        f"annealing, {job.recipe.anneal_rounds} x {job.recipe.anneal_steps} steps: "
        f"{annealing} of about {total} on this machine"
    )
