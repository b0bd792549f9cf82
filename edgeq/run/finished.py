"""A finished run: its report, with the sizes, times and places that lie beside it.

The last screen, `--json`, pages and the Python interface show it.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeq.checkpoint.certificate import is_sealed, why_not_as_written
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, NotInstalled
from edgeq.files.json_files import read_json
from edgeq.files.ownership import MANIFEST_FILE, REPORT_FILE
from edgeq.files.storage import size_of
from edgeq.measuring.evaluate import evaluate
from edgeq.measuring.formats import fit
from edgeq.measuring.inspection import parameter_count
from edgeq.protocols import Exporter, Format
from edgeq.recipe.layer_grids import Grids, grids_by_part, kept_dense, plan_grids
from edgeq.recipe.layer_types import replaced_types
from edgeq.recipe.recipe import Recipe
from edgeq.registry import FORMATS, load_exporter, options_of
from edgeq.run.pipeline import Job, export
from edgeq.run.report import RunReport, check_findings, read_report, with_measured
from edgeq.solving.lending import LENT_TOKENS
from edgeq.solving.propagation import FEW_TOKENS
from edgeq.solving.report import ExpertReport, LayerReport
from edgeq.words import option_words

WORST_LAYERS = 5  # on the last screen
MUCH_LENT = 0.5  # of an expert's moments: more than its own tokens make up
LARGE_ERROR = 0.5  # of a layer's output energy: rounding well loses a few hundredths


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run as the last screen shows it.

    original is the model as the user named it. grids counts, by part of the model, the matrices on
    each grid. exports are, by format, what a runtime is given.
    notes say what was not done as usual. quality is what `evaluate` measured, where it was asked
    for.

    Units: sizes in bytes, seconds of wall-clock time by stage.
    """

    model: str
    original: str
    output: Path
    exports: Mapping[str, str]
    sizes: Mapping[str, int]
    report: RunReport
    notes: Sequence[str]
    seconds: Mapping[str, float]
    grids: Mapping[str, Mapping[str, int]]
    quality: Mapping[str, Any] | None = None
    next_format: str | None = None
    """A format that holds the result, to suggest where none was asked for."""

    @property
    def result(self) -> str:
        """Return what `evaluate` is given: the first export, or the checkpoint without one."""
        return next(iter(self.exports.values()), str(self.output))

    @property
    def worst_layers(self) -> list[LayerReport]:
        """Return the few layers with the largest errors, the worst first."""
        return self.report.worst_layers(WORST_LAYERS)

    @property
    def total_seconds(self) -> float:
        """Add up the time of all stages."""
        return sum(self.seconds.values())

    def plain(self) -> dict[str, Any]:
        """Return what `edgeq quantize --json` prints."""
        found = {
            "model": self.model,
            "original": self.original,
            "output": str(self.output),
            "exports": self.exports,
            "result": self.result,
            "bytes": self.sizes,
            "grids": self.grids,
            "bits_per_weight": self.report.bits_per_weight,
            "worst_layers": [(layer.name, layer.final_loss) for layer in self.worst_layers],
            "notes": self.notes,
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
        }
        if self.report.budget is not None:
            found["budget"] = self.report.budget
        if self.report.experts:
            found["experts"] = [asdict(expert) for expert in self.report.experts]
        return found if self.quality is None else found | {"quality": self.quality}


def first_format(checkpoint: Checkpoint) -> str | None:
    """Find the first format of the table that holds a checkpoint and is installed."""
    for name in FORMATS:
        try:
            exporter = load_exporter(name)
        except NotInstalled:
            continue
        if fit(exporter, checkpoint)["fits"] != "no":
            return name
    return None


def finish_run(job: Job, checkpoint: Checkpoint, model: str) -> FinishedRun:
    """Write the exports, and gather sizes, errors, times and what was not done as usual.

    Raises: BadInput for an export that is there and not what this run would write.
    """
    report, grids = read_report(checkpoint), plan_grids(job.source, job.recipe)
    called, decoder = repr(str(checkpoint.path / REPORT_FILE)), job.source.record.decoder
    check_findings(job.source, grids, called, report, len(job.source.blocks()))
    exports = {}
    stored = {}
    kept = []
    for exporter in job.exporters:
        name = exporter.format.name
        folder = checkpoint.path / name
        # there already: the run was continued when its checkpoint was complete
        if is_sealed(folder, checkpoint):
            check_kept(folder, exporter)
            path = runnable(folder, exporter.format)
            kept.append(f"format {name!r} was there already and stays as it is")
        else:
            with job.clock("export"):
                path = export(checkpoint, exporter, folder)[0]
        exports[name] = path
        stored[name] = stored_size(path, exporter.format)
    sizes = {
        "original at 16 bits": 2 * parameter_count(job.source),
        "checkpoint": checkpoint.stored_bytes(),
    }
    suggested = None if job.exporters else first_format(checkpoint)
    short = short_texts(job.recipe, checkpoint.head.get("calibration"))
    return FinishedRun(
        model=job.source.record.name,
        original=model,
        output=checkpoint.path,
        exports={name: str(path) for name, path in exports.items()},
        sizes=sizes | stored,
        report=report,
        notes=[
            *dict.fromkeys((*job.source.record.notes, *checkpoint.record.notes)),
            *export_notes(job.exporters, checkpoint),
            *kept,
            *short,
            *replaced_types(job.recipe, decoder),
            *notes(report, grids),
        ],
        seconds=dict(job.clock.seconds),
        grids=grids_by_part(grids, decoder, job.recipe),
        next_format=suggested,
    )


def measured(finished: FinishedRun, checkpoint: Checkpoint, backend: str) -> FinishedRun:
    """Evaluate a finished run against the original, and note it beside what a budget predicted."""
    quality = evaluate(finished.result, reference=finished.original, backend=backend)
    return replace(finished, quality=quality, report=with_measured(checkpoint, quality))


def export_notes(exporters: Sequence[Exporter], checkpoint: Checkpoint) -> Iterator[str]:
    """Note what exports do not hold of the model as it is."""
    companions, grids = checkpoint.companions(), checkpoint.grids()
    if exporters and checkpoint.record.template is None:
        yield "the model has no chat template, so none goes into its exports"
    for exporter in exporters:
        for note in exporter.notes(checkpoint.record, companions, grids):
            yield f"format {exporter.format.name!r}: {note}"


def check_kept(folder: Path, exporter: Exporter) -> None:
    """Raise BadInput for an export that is there and not what this run would write."""
    reason = why_not_as_written(folder, exporter.settings)
    if reason is not None:
        name = exporter.format.name
        words = [*option_words(options_of(name, exporter.settings)), "--force"]
        command = ["edgeq", "export", str(folder.parent), "--format", name, *words]
        raise BadInput(
            f"format {name!r} is there already, but {reason}; replace it: {shlex.join(command)}"
        )


def runnable(folder: Path, described: Format) -> Path:
    """Find what a runtime is given of an export: its one file, or the directory."""
    if not described.suffix:
        return folder
    return folder / str(read_json(folder / MANIFEST_FILE)["file"])


def stored_size(path: Path, described: Format) -> int:
    """Count the bytes of an export's file or directory, with the data file beside a file."""
    if not described.data_suffix:
        return size_of(path)
    return size_of(path) + size_of(path.with_name(path.name + described.data_suffix))


def short_texts(recipe: Recipe, calibration: Mapping[str, Any] | None) -> list[str]:
    """Note each calibration text whose sequences repeat tokens, or which repeats itself."""
    if calibration is None:
        return []
    length = recipe.sequence_length
    found = []
    for text in calibration["texts"]:
        name, samples, tokens = repr(text["name"]), text["samples"], text["tokens"]
        if samples * length > tokens:
            found.append(
                f"calibration text {name}: {samples} sequences of {length} overlap "
                f"in its {tokens} tokens; more text is better"
            )
        if "runs" in text:
            found.append(
                f"calibration text {name} repeats itself: its {samples} sequences of {length} "
                f"hold only {text['runs']} different runs of tokens; text that varies is better"
            )
    return found


def notes(report: RunReport, grids: Grids) -> list[str]:
    """Write one line for each departure from the plain road."""
    found = [] if report.imatrix is None else report.imatrix.notes()
    dense = kept_dense(grids)
    if dense:
        named = ", ".join(f"{name} ({count})" for name, count in dense.items())
        found.append(f"{sum(dense.values())} matrices stay dense: {named}")
    few = [layer for layer in report.layers if layer.few_tokens]
    if few:
        found.append(
            f"error propagation is damped {few[0].propagation_damping:g} in {len(few)} layers, "
            f"such as {few[0].name}: fewer than {FEW_TOKENS} tokens for each input; "
            "more --samples allow less"
        )
    found += expert_notes(report.experts)
    for layer in report.layers:
        found += layer_notes(layer)
    for name, groups in report.clamped.items():
        grid = grids[name][1] if name in grids else None
        if grid is None:
            raise BadInput(
                f"{REPORT_FILE} counts scales of {name!r}, which has none; "
                "it is damaged, make the directory again"
            )
        found.append(
            f"{name}: {groups} scales are at the limit of {grid.scale_dtype}, "
            "its weights do not fit the grid"
        )
    short = [
        name
        for name, (shape, grid) in grids.items()
        if grid and shape[1] % grid.columns_per_group(shape[1])
    ]
    if short:
        found.append(f"{len(short)} matrices have a short last group, such as {short[0]}")
    return found


def expert_notes(experts: Sequence[ExpertReport]) -> Iterator[str]:
    """Note experts that few tokens reach, and those that none does."""
    few = [expert for expert in experts if expert.lent_share > MUCH_LENT]
    if few:
        fewest = min(few, key=lambda expert: expert.tokens)
        yield (
            f"{len(few)} of {len(experts)} experts saw fewer than {LENT_TOKENS} tokens for each "
            f"input and are solved more for tokens of others than their own, as {fewest.name} "
            f"({fewest.tokens} tokens, {fewest.lent_share:.0%} of others); more --samples help"
        )
    unseen = [expert.name for expert in experts if not expert.tokens]
    if unseen:
        more = " ..." if len(unseen) > 3 else ""
        yield (
            f"{len(unseen)} experts saw no token and are solved for those of others alone: "
            f"{', '.join(unseen[:3])}{more}"
        )


def layer_notes(layer: LayerReport) -> Iterator[str]:
    """Note raised damping, unseen inputs, and an error so large that something is wrong."""
    if layer.damping_retries:
        yield f"{layer.name}: damping raised {layer.damping_retries} times to {layer.damping:g}"
    if layer.propagation_retries:
        yield (
            f"{layer.name}: propagation damping raised {layer.propagation_retries} times "
            f"to {layer.propagation_damping:g}"
        )
    if layer.dead_columns:
        yield (
            f"{layer.name}: {layer.dead_columns} inputs never seen in calibration, plainly rounded"
        )
    if not layer.final_loss <= LARGE_ERROR:  # also where it is NaN
        yield (
            f"{layer.name}: {layer.final_loss:.0%} error, its weights do not fit the grid; "
            "keep it dense"
        )
