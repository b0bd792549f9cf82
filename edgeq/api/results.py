"""What functions return: frozen, with a line for people and plain data for files.

Those that stand for something on disk may be given where a path is: `edgeq.evaluate(run)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeq.run.finished import FinishedRun
from edgeq.run.report import RunReport
from edgeq.run.tune_run import TunedRun
from edgeq.run.tuning_report import TuningReport
from edgeq.words import show_megabytes, show_size, show_time


@dataclass(frozen=True, slots=True, repr=False)
class Quality:
    """How a model predicts, beside an original where one was given.

    runtime is what ran it, reference the library that computed the original. perplexity is that of
    the text. kl is the mean KL divergence from the original in nats per token (0 is equal),
    top1_agreement the share of tokens whose likeliest next token is the same, 0 to 1; they are None
    without an original. intervals are those that hold the true value in 95 of 100 cases, by name.
    details has all of `edgeq evaluate --json`.
    """

    target: str
    runtime: str
    reference: str | None
    tokens: int
    perplexity: float
    reference_perplexity: float | None
    kl: float | None
    top1_agreement: float | None
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "Quality":
        """Make one of what `edgeq evaluate --json` prints."""
        return cls(
            found["target"],
            found["runtime"],
            found["reference"],
            found["tokens"],
            found["perplexity"],
            found["reference_perplexity"],
            found["kl"],
            found["top1_agreement"],
            dict(found["intervals"]),
            dict(found),
        )

    def __repr__(self) -> str:
        parts = [f"perplexity {self.perplexity:.4g}"]
        if self.kl is not None and self.top1_agreement is not None:
            parts[0] += f" (original {self.reference_perplexity:.4g})"
            parts.append(f"KL divergence {self.kl:.4g}")
            parts.append(f"same top token {self.top1_agreement:.1%}")
        parts.append(f"{self.tokens} tokens in {self.runtime}")
        return f"<Quality of {self.target!r}: {', '.join(parts)}>"


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Several models on the same windows of text: the quality of each, and every two compared.

    reference is the library that computed the original. pairs have "a", "b", "kl_difference" and
    its 95 % interval. details has all of `edgeq evaluate --json`.
    """

    reference: str | None
    targets: tuple[Quality, ...]
    pairs: tuple[Mapping[str, Any], ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "Comparison":
        """Make one of what `edgeq evaluate --json` prints of several targets."""
        targets = tuple(map(Quality.from_plain, found["targets"]))
        return cls(found["reference"], targets, tuple(found["pairs"]), dict(found))

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.targets))


@dataclass(frozen=True, slots=True, repr=False)
class RunResult:
    """A finished run: what was written where, how large it is and how well it came out.

    output is the checkpoint's directory, exports what a runtime is given, by format. sizes are in
    bytes by what they are of, seconds are of wall-clock time by stage. grids counts matrices by
    part of the model and grid. report has every layer with its errors. notes say what was not done
    as usual, advice what of it can be done better. quality and answers (what the original and the
    result wrote behind a prompt) are there with evaluate=True. page is the report for a browser.
    """

    model: str
    original: str
    output: Path
    exports: Mapping[str, Path]
    sizes: Mapping[str, int]
    grids: Mapping[str, Mapping[str, int]]
    report: RunReport
    notes: tuple[str, ...]
    advice: tuple[str, ...]
    seconds: Mapping[str, float]
    quality: Quality | None
    answers: tuple[Mapping[str, str], ...]
    page: Path | None
    details: Mapping[str, Any] = field(default_factory=dict)
    """All of `edgeq quantize --json`."""

    @classmethod
    def from_run(cls, finished: FinishedRun) -> "RunResult":
        """Make one of a finished run."""
        quality = finished.quality
        return cls(
            finished.model,
            finished.original,
            finished.output,
            {name: Path(path) for name, path in finished.exports.items()},
            dict(finished.sizes),
            dict(finished.grids),
            finished.report,
            tuple(finished.notes),
            tuple(finished.advice),
            dict(finished.seconds),
            None if quality is None else Quality.from_plain(quality),
            tuple(finished.answers),
            finished.page,
            finished.plain(),
        )

    @property
    def bits_per_weight(self) -> float:
        """Return the bits that a weight of the model takes, scales and offsets included."""
        return self.report.bits_per_weight["model"]

    @property
    def result(self) -> Path:
        """Return what a runtime is given: the first export, or the checkpoint without one."""
        return next(iter(self.exports.values()), self.output)

    def __fspath__(self) -> str:
        return str(self.output)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{what} {show_size(size)}" for what, size in self.sizes.items())
        quality = "" if self.quality is None else f"; {self.quality!r}"
        notes = f"; {len(self.notes)} notes" if self.notes else ""
        return (
            f"<RunResult of {self.model!r} in {str(self.output)!r}: {sizes}; "
            f"{self.bits_per_weight:.2f} bits per weight{quality}{notes}>"
        )


@dataclass(frozen=True, slots=True, repr=False)
class TuneResult:
    """A tuned checkpoint: where it lies, and what tuning gained on windows that were held out.

    kl_before and kl_after are their KL divergence from the original in nats per token; is_gain says
    whether anything was gained, otherwise the output holds what the checkpoint did. report has the
    curve and all else. notes say what was not as usual. seconds are of wall-clock time by stage.
    page is the report for a browser.
    """

    model: str
    original: str
    output: Path
    kl_before: float
    kl_after: float
    is_gain: bool
    tokens: int
    report: TuningReport
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    page: Path | None
    details: Mapping[str, Any] = field(default_factory=dict)
    """All of `edgeq tune --json`."""

    @classmethod
    def from_run(cls, found: TunedRun) -> "TuneResult":
        """Make one of a finished tuning."""
        report = found.report
        return cls(
            found.checkpoint.record.name,
            found.original,
            found.checkpoint.path,
            report.before,
            report.after,
            report.is_gain,
            report.tokens,
            report,
            tuple(found.notes),
            dict(found.seconds),
            found.page,
            found.plain(),
        )

    def __fspath__(self) -> str:
        return str(self.output)

    def __repr__(self) -> str:
        notes = f"; {len(self.notes)} notes" if self.notes else ""
        where = f"{self.model!r} in {str(self.output)!r}"
        return f"<TuneResult of {where}: {self.report.line()}{notes}>"


@dataclass(frozen=True, slots=True, repr=False)
class ExportResult:
    """An export: what a runtime is given, all files with their bytes, and what they do not hold."""

    format: str
    path: Path
    files: Mapping[Path, int]
    notes: tuple[str, ...]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        size = show_size(sum(self.files.values()))
        notes = f"; {len(self.notes)} notes" if self.notes else ""
        return f"<ExportResult {self.format} in {str(self.path)!r}: {size}{notes}>"


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What a run takes, found without running it.

    memory is the most bytes at a time, at the moment memory_at; memory_parts says of what.
    device_memory is the most on a device with memory of its own, None where there is none. disk is
    bytes by what is written, disk_free what there is. seconds is an estimate for the whole run.
    formats has a row for each export, with bytes and why it does not fit ("refused", else None).
    details has all of `edgeq plan --json`.
    """

    model: str
    backend: str
    memory: int
    memory_at: str
    memory_parts: Mapping[str, int]
    device_memory: int | None
    disk: Mapping[str, int]
    disk_free: int
    seconds: float
    formats: tuple[Mapping[str, Any], ...]
    grids: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "Plan":
        """Make one of what `edgeq plan --json` prints."""
        return cls(
            found["model"],
            found["backend"],
            found["memory"]["peak"],
            found["memory"]["at"],
            found["memory"]["parts"],
            None if found["device memory"] is None else found["device memory"]["peak"],
            found["disk"],
            found["disk free"],
            found["seconds"]["total"],
            tuple(found["formats"]),
            found["grids"],
            tuple(found["notes"]),
            dict(found),
        )

    def __repr__(self) -> str:
        disk = ", ".join(f"{what} {show_size(size)}" for what, size in self.disk.items())
        return (
            f"<Plan for {self.model!r} on {self.backend}: {show_size(self.memory)} of memory, "
            f"about {show_time(self.seconds)}; {disk}>"
        )


@dataclass(frozen=True, slots=True, repr=False)
class Allocation:
    """How a budget is spent: the recipe that was written, and what it leads to.

    bytes counts all that the budget is of, limit what it allows. predicted_kl is the predicted KL
    divergence in nats per token. details has all of `edgeq allocate --json`, with the curve of
    sizes.
    """

    model: str
    recipe: Path
    bytes: int
    limit: int
    predicted_kl: float
    notes: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "Allocation":
        """Make one of what `edgeq allocate --json` prints."""
        return cls(
            found["model"],
            Path(found["recipe"]),
            found["bytes"],
            found["limit"],
            found["predicted_kl"],
            tuple(found["notes"]),
            dict(found),
        )

    def __fspath__(self) -> str:
        return str(self.recipe)

    def __repr__(self) -> str:
        sizes = f"{show_megabytes(self.bytes)} of {show_megabytes(self.limit)}"
        return (
            f"<Allocation for {self.model!r} in {str(self.recipe)!r}: {sizes}, "
            f"KL divergence {self.predicted_kl:.3g} predicted>"
        )


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """What was found when an export was read back.

    differences has a line for each difference from the manifest or the checkpoint; details has all
    of `edgeq verify --json`.
    """

    export: Path
    format: str
    library: str
    differences: tuple[str, ...]
    largest_deviation: float | None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Say whether everything is as it was written."""
        return not self.differences

    def __repr__(self) -> str:
        found = f"{len(self.differences)} differences" if self.differences else "as it was written"
        return f"<Verification of {str(self.export)!r}, {self.format} by {self.library}: {found}>"


@dataclass(frozen=True, slots=True)
class FormatRow:
    """What an export format holds and takes, and whether a checkpoint fits it.

    zeros are kinds of zero point; those in zeros_without_loss are not rounded again. missing says
    what has to be installed, None where nothing is. fits is "without loss", "with loss" or "no",
    None where no checkpoint was given, and reason says why.
    """

    name: str
    bits: tuple[int, ...]
    groups: tuple[str, ...]
    zeros: tuple[str, ...]
    zeros_without_loss: tuple[str, ...]
    types: tuple[str, ...]
    options: tuple[str, ...]
    read_by: str
    missing: str | None = None
    fits: str | None = None
    reason: str = ""

    @classmethod
    def from_plain(cls, row: Mapping[str, Any]) -> "FormatRow":
        """Make one of a row that `edgeq formats --json` prints."""
        return cls(
            row["name"],
            tuple(row["bits"]),
            tuple(row["groups"]),
            tuple(row["zeros"]),
            tuple(row["zeros_without_loss"]),
            tuple(row["types"]),
            tuple(row["options"]),
            row["read_by"],
            row.get("missing"),
            row.get("fits"),
            row.get("reason", ""),
        )
