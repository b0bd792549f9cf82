"""A finished run: its report, with the sizes, times and places that lie beside it.

The last screen, `--json`, pages and the Python interface show it.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeq.checkpoint.certificate import is_sealed, why_not_as_written
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, NotInstalled
from edgeq.files.json_files import read_json
from edgeq.files.ownership import MANIFEST_FILE, REPORT_FILE
from edgeq.files.storage import size_of
from edgeq.format_parts import Exporter, Format
from edgeq.measuring.formats import fit, rounding_notes
from edgeq.measuring.inspection import parameter_count
from edgeq.recipe.layer_grids import Grids, grids_by_part, kept_dense, plan_grids
from edgeq.recipe.layer_types import replaced_types
from edgeq.recipe.recipe import Recipe
from edgeq.registry import BACKENDS, FORMATS, load_exporter, options_of
from edgeq.run.advice import LARGE_ERROR, MUCH_LENT, advise, short_of_types
from edgeq.run.assembly import length_notes
from edgeq.run.one_export import export
from edgeq.run.pipeline import Job
from edgeq.run.report import RunReport, check_findings, read_report
from edgeq.run.tuning import tuning_notes
from edgeq.solving.lending import LENT_TOKENS
from edgeq.solving.propagation import FEW_TOKENS
from edgeq.solving.report import ExpertReport, LayerReport
from edgeq.words import option_words

Told = Callable[[str], None]
"""Is told what is worked on."""
NO_TEMPLATE = "the model has no chat template, so none goes into its exports"
WORST_LAYERS = 5  # on the last screen
REDUCED = "forward passes in bfloat16"  # as reports state it


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run as the last screen shows it.

    original is the model as the user named it. grids counts, by part of the model, the matrices on
    each grid. exports are, by format, what a runtime is given.
    notes say all that was not done as usual, advice what of it a user can do something about.
    quality is what `evaluate` measured, where it was asked for, and answers are what the original
    and the result wrote behind a prompt (see `edgeq.run.measured.Measured`); unanswered says why
    there are none. page is the report for a browser. is_chat says whether the model answers
    messages, by a template.

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
    advice: Sequence[str] = ()
    is_chat: bool = False
    quality: Mapping[str, Any] | None = None
    answers: Sequence[Mapping[str, str]] = ()
    unanswered: str = ""
    page: Path | None = None
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
            "advice": self.advice,
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
        }
        if self.report.budget is not None:
            found["budget"] = self.report.budget
        if self.report.tuning is not None:
            found["tuned"] = self.report.tuning.head()
        if self.report.experts:
            found["experts"] = [asdict(expert) for expert in self.report.experts]
        if self.page is not None:
            found["page"] = str(self.page)
        if self.quality is not None:
            found |= {"quality": self.quality, "answers": self.answers}
        return found


def say_nothing(what: str) -> None:
    """Tell nobody what is worked on."""


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


def finish_run(
    job: Job, checkpoint: Checkpoint, model: str, progressed: Told = say_nothing
) -> FinishedRun:
    """Write the exports, and gather sizes, errors, times and what was not done as usual.

    progressed is told what is written.

    Raises: BadInput for an export that is there and not what this run would write.
    """
    report, grids = read_report(checkpoint), plan_grids(job.source, job.recipe)
    called, decoder = repr(str(checkpoint.path / REPORT_FILE)), job.source.record.decoder
    check_findings(job.source, grids, called, report, len(job.source.blocks()))
    exports, stored, kept = write_exports(job, checkpoint, progressed)
    sizes = {
        "original": job.source.stored_bytes(),
        "original at 16 bits": 2 * parameter_count(job.source),
        "checkpoint": checkpoint.stored_bytes(),
    }
    suggested = None if job.exporters else first_format(checkpoint)
    calibration = checkpoint.head.get("calibration")
    stated = [
        *dict.fromkeys((*job.source.record.notes, *checkpoint.record.notes)),
        *export_notes(job.exporters, checkpoint),
        *kept,
    ]
    replaced = list(replaced_types(job.recipe, decoder))
    return FinishedRun(
        model=job.source.record.name,
        original=model,
        output=checkpoint.path,
        exports={name: str(path) for name, path in exports.items()},
        sizes=sizes | stored,
        report=report,
        notes=[
            *stated,
            *short_texts(job.recipe, calibration),
            *replaced,
            *notes(report, grids),
            *job.backend.notes,
            *filter(None, [job.tuning_note]),
            *tuning_notes(report.tuning, job.recipe),
            *length_notes(job.recipe, job.source),
            *job.text_notes,
            *token_notes(report, job),
        ],
        seconds=dict(job.clock.seconds),
        grids=grids_by_part(grids, decoder, job.recipe),
        advice=[
            *advise(report, grids, job.recipe, calibration),
            *short_of_types(replaced),
            *job.text_notes,
            *tuning_notes(report.tuning, job.recipe),
            *(note for note in stated if note != NO_TEMPLATE),
        ],
        is_chat=checkpoint.record.template is not None,
        next_format=suggested,
    )


def write_exports(
    job: Job, checkpoint: Checkpoint, progressed: Told
) -> tuple[dict[str, Path], dict[str, int], list[str]]:
    """Write the exports of a run; give by format what a runtime is given and its size, and notes.

    Units: bytes.
    Raises: BadInput for an export that is there and not what this run would write.
    """
    exports: dict[str, Path] = {}
    stored: dict[str, int] = {}
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
            progressed(f"writing {name}")
            with job.clock("export"):
                path = export(checkpoint, exporter, folder)[0]
        exports[name] = path
        stored[name] = stored_size(path, exporter.format)
    return exports, stored, kept


def export_notes(
    exporters: Sequence[Exporter], checkpoint: Checkpoint, folder: Path | None = None
) -> Iterator[str]:
    """Note what exports do not hold of the model as it is.

    folder is where an export lies that is not in its place in the checkpoint.
    """
    companions, grids = checkpoint.companions(), checkpoint.grids()
    if exporters and checkpoint.record.template is None:
        yield NO_TEMPLATE
    for exporter in exporters:
        stated = exporter.notes(checkpoint.record, companions, grids)
        for note in (*stated, *rounding_notes(exporter, checkpoint, folder)):
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
    if any(stated.endswith(REDUCED) for stated in report.computed_in):
        found.append("calibration text went through the model in bfloat16; --exact has float32")
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


def token_notes(report: RunReport, job: Job) -> Iterator[str]:
    """Say how many tokens count where they are weighed; inputs of experts are left out."""
    counting = [
        layer.counting_tokens
        for layer in report.layers
        if layer.counting_tokens is not None and layer.expert is None
    ]
    if counting:
        total = job.recipe.samples * job.recipe.sequence_length
        by_torch = BACKENDS[job.backend.name].framework == "torch"
        yield (
            f"tokens are weighed by what they decide: of {total}, {min(counting)} to "
            f"{max(counting)} count at the inputs of a layer"
            + ("" if by_torch else "; gradients are by torch on the CPU")
        )


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
