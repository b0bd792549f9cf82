"""A finished run in plain data: what the last screen shows and `--json` prints."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeq.checkpoint.certificate import is_sealed, why_not_as_written
from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.options import option_words
from edgeq.errors import BadInput
from edgeq.files.json_files import read_json
from edgeq.files.ownership import MANIFEST_FILE
from edgeq.files.storage import size_of
from edgeq.measuring.evaluate import SINGLE_FILES
from edgeq.measuring.inspection import parameter_count
from edgeq.protocols import Exporter
from edgeq.recipe.layer_grids import plan_grids
from edgeq.recipe.recipe import Recipe
from edgeq.registry import options_of
from edgeq.run.pipeline import Job, export
from edgeq.solving.propagation import FEW_TOKENS

WORST_LAYERS = 5
LARGE_ERROR = 0.5


def finish_run(job: Job, checkpoint: Checkpoint, model: str) -> dict[str, Any]:
    """Write the exports and gather sizes, errors, times and everything that was not done as usual.

    Units: bytes, seconds of wall-clock time.
    """
    sizes = {
        "original at 16 bits": 2 * parameter_count(job.source),
        "checkpoint": checkpoint.stored_bytes(),
    }
    exports, kept = {}, []
    for exporter in job.exporters:
        folder = checkpoint.path / exporter.name
        if is_sealed(
            folder, checkpoint
        ):  # a run that was continued after its checkpoint was complete
            check_kept(folder, exporter)
            path = runnable(folder)
            kept.append(f"format {exporter.name!r} was there already and stays as it is")
        else:
            with job.clock("export"):
                path = export(checkpoint, exporter, folder)[0]
        exports[exporter.name] = str(path)
        sizes[exporter.name] = stored_size(path)
    layers = checkpoint.report["layers"]
    grids = plan_grids(job.source, job.recipe)
    return {
        "model": job.source.record.name,
        "original": model,
        "output": str(checkpoint.path),
        "exports": exports,
        "result": next(iter(exports.values()), str(checkpoint.path)),
        "bytes": sizes,
        "bits_per_weight": checkpoint.report["bits_per_weight"],
        "worst_layers": worst_layers(layers),
        "notes": [
            *kept,
            *short_texts(job.recipe, checkpoint.head["calibration"]),
            *notes(checkpoint.report, grids),
        ],
        "seconds": dict(job.clock.seconds),
        "total_seconds": sum(job.clock.seconds.values()),
    }


def check_kept(folder: Path, exporter: Exporter) -> None:
    """Raises: BadInput for an export that is there and not what this run would write."""
    reason = why_not_as_written(folder, exporter.settings)
    if reason is not None:
        words = [*option_words(options_of(exporter.name, exporter.settings)), "--force"]
        command = ["edgeq", "export", str(folder.parent), "--format", exporter.name, *words]
        raise BadInput(
            f"format {exporter.name!r} is there already, "
            f"but {reason}; replace it: {shlex.join(command)}"
        )


def runnable(folder: Path) -> Path:
    """What a runtime is given of an export: its one file, or the directory."""
    file = folder / str(read_json(folder / MANIFEST_FILE)["file"])
    return file if file.suffix in SINGLE_FILES else folder


def stored_size(path: Path) -> int:
    """Bytes of an export's file or directory, with the data file that an ONNX graph has beside
    it.
    """
    data = path.with_name(path.name + ".data")
    return size_of(path) + (size_of(data) if data.is_file() else 0)


@contextmanager
def keeping(
    checkpoint: Checkpoint, exports: Mapping[str, Sequence[str]], *, evaluated_against: str | None
) -> Iterator[None]:
    """Inside, whatever stops the run is told apart from it: the checkpoint is there, and what is
    missing can follow.

    exports has the options of each format as words of the command line.
    """
    try:
        yield
    except BaseException as error:
        missing = [
            ["export", str(checkpoint.path), "--format", name, *words]
            for name, words in exports.items()
            if not (checkpoint.path / name).exists()
        ]
        if evaluated_against is not None:
            result = checkpoint.path / next(iter(exports), ".")
            missing.append(["evaluate", str(result), "--reference", evaluated_against])
        commands = ", then ".join(shlex.join(["edgeq", *command]) for command in missing)
        note = f"the checkpoint {str(checkpoint.path)!r} is complete and stays"
        error.add_note(f"{note}; to continue: {commands}" if commands else note)
        raise


def worst_layers(reports: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The layers with the largest loss after the last stage."""
    final = [(report["name"], final_loss(report)) for report in reports if report["losses"]]
    return sorted(final, key=lambda item: -item[1])[:WORST_LAYERS]


def final_loss(report: Mapping[str, Any]) -> float:
    return float(list(report["losses"].values())[-1])


def short_texts(recipe: Recipe, calibration: Mapping[str, Any] | None) -> list[str]:
    """A note for each calibration text whose sequences repeat tokens."""
    length = recipe.sequence_length
    return [
        f"calibration text {text['name']!r}: {text['samples']} "
        f"sequences of {length} overlap in its {text['tokens']} "
        "tokens; more text is better"
        for text in (calibration["texts"] if calibration is not None else ())
        if text["samples"] * length > text["tokens"]
    ]


def notes(report: Mapping[str, Any], grids: Mapping[str, Any]) -> list[str]:
    """One line for each departure from the plain road."""
    found = []
    dense = [name for name, (shape, grid) in grids.items() if len(shape) == 2 and grid is None]
    if dense:
        found.append(
            f"{len(dense)} matrices stay dense: "
            f"{', '.join(dense[:3])}{' ...' if len(dense) > 3 else ''}"
        )
    few = [layer for layer in report["layers"] if layer["few_tokens"]]
    if few:
        found.append(
            f"error propagation is damped {few[0]['propagation_damping']:g} "
            f"in {len(few)} layers, such as "
            f"{few[0]['name']}: fewer than {FEW_TOKENS} "
            "tokens for each input; more --samples allow less"
        )
    for layer in report["layers"]:
        found += layer_notes(layer)
    for name, groups in report["clamped"].items():
        kind = grids[name][1].scale_dtype
        found.append(
            f"{name}: {groups} scales are at the limit of {kind}, its weights do not fit the grid"
        )
    short = [
        name
        for name, (shape, grid) in grids.items()
        if grid and shape[1] % grid.columns_per_group(shape[1])
    ]
    if short:
        found.append(f"{len(short)} matrices have a short last group, such as {short[0]}")
    return found


def layer_notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Raised damping, unseen inputs, and an error so large that something is wrong."""
    for of, what in (("damping", "damping"), ("propagation", "propagation damping")):
        times, value = report[f"{of}_retries"], report[what.replace(" ", "_")]
        if times:
            yield f"{report['name']}: {what} raised {times} times to {value:g}"
    if report["dead_columns"]:
        yield (
            f"{report['name']}: {report['dead_columns']} "
            "inputs never seen in calibration, plainly rounded"
        )
    if report["losses"] and not final_loss(report) <= LARGE_ERROR:
        yield (
            f"{report['name']}: {final_loss(report):.0%} error, "
            "its weights do not fit the grid; keep it dense"
        )
