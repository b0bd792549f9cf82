"""A finished run in plain data: what the last screen shows and `--json` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.checkpoint import Checkpoint
from edgeq.inspection import parameter_count
from edgeq.pipeline import Job, export
from edgeq.plan import plan_grids
from edgeq.storage import size_of

WORST_LAYERS = 5


def finish_run(job: Job, checkpoint: Checkpoint, model: str) -> dict[str, Any]:
    """Write the exports and gather sizes, errors, times and everything that was not done as usual.

    Units: bytes, seconds of wall-clock time.
    """
    sizes = {"original at 16 bits": 2 * parameter_count(job.source), "checkpoint": checkpoint.stored_bytes()}
    exports = {}
    for exporter in job.exporters:
        with job.clock("export"):
            written = export(checkpoint, exporter, checkpoint.path / exporter.name)
        exports[exporter.name] = str(written[0])
        sizes[exporter.name] = stored_size(written[0])
    layers = checkpoint.report["layers"]
    return {
        "model": job.source.name,
        "original": model,
        "output": str(checkpoint.path),
        "exports": exports,
        "result": next(iter(exports.values()), str(checkpoint.path)),
        "bytes": sizes,
        "bits_per_weight": checkpoint.report["bits_per_weight"],
        "worst_layers": worst_layers(layers),
        "notes": notes(layers, plan_grids(job.source, job.recipe)),
        "seconds": dict(job.clock.seconds),
        "total_seconds": sum(job.clock.seconds.values()),
    }


def stored_size(path: Path) -> int:
    """Bytes of an export's file or directory, with the data file that an ONNX graph has beside it."""
    data = path.with_name(path.name + ".data")
    return size_of(path) + (size_of(data) if data.is_file() else 0)


def worst_layers(reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The layers with the largest loss after the last stage."""
    final = [(report["name"], list(report["losses"].values())[-1]) for report in reports if report["losses"]]
    return sorted(final, key=lambda item: -item[1])[:WORST_LAYERS]


def notes(reports: Sequence[Mapping[str, Any]], grids: Mapping[str, Any]) -> list[str]:
    """One line for each departure from the plain road: dense layers, raised damping, unseen inputs, short groups."""
    found = []
    dense = [name for name, (shape, grid) in grids.items() if len(shape) == 2 and grid is None]
    if dense:
        found.append(f"{len(dense)} matrices stay dense: {', '.join(dense[:3])}{' ...' if len(dense) > 3 else ''}")
    for report in reports:
        for of, what in (("damping", "damping"), ("propagation", "propagation damping")):
            times, value = report[f"{of}_retries"], report[what.replace(" ", "_")]
            if times:
                found.append(f"{report['name']}: {what} raised {times} times to {value:g}")
        if report["dead_columns"]:
            found.append(
                f"{report['name']}: {report['dead_columns']} inputs never seen in calibration, plainly rounded"
            )
    short = [name for name, (shape, grid) in grids.items() if grid and shape[1] % grid.columns_per_group(shape[1])]
    if short:
        found.append(f"{len(short)} matrices have a short last group, such as {short[0]}")
    return found
