"""The loop over blocks: statistics, solve, replace, write. No arithmetic here."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgeq.calibration import sample_windows, tokenize
from edgeq.certificate import seal
from edgeq.checkpoint import FORMAT_VERSION, Checkpoint, write_json
from edgeq.errors import BadInput, EdgeqError, NotPositiveDefinite
from edgeq.layer import LayerReport, prepare_site, solve_without_statistics
from edgeq.limits import clamped_groups
from edgeq.ownership import HEAD_FILE, REPORT_FILE
from edgeq.plan import Grids, bits_per_weight, check_exports, plan_grids
from edgeq.process_memory import trim
from edgeq.protocols import ActivationSource, Backend, Exporter, ModelDescription, ModelSource, Site
from edgeq.recipe import Recipe, recipe_settings
from edgeq.row_chunks import solve_rows
from edgeq.statistics import accumulate
from edgeq.stopwatch import Stopwatch
from edgeq.storage import check_destination, new_directory, write_bytes
from edgeq.tensor_file import TensorFile, write_tensors
from edgeq.tensors import read_tensor, read_weight
from edgeq.types import BlockSpec, LayerProblem, NumpyArray, QuantizedLinear
from edgeq.version import __version__

T = TypeVar("T")
MakeActivations = Callable[[ModelSource, NumpyArray, bool], ActivationSource]


class Observer(Protocol):
    """Who watches a run: the screen, a log, nobody."""

    def begin(self, blocks: int) -> None: ...

    def solved(self, report: LayerReport) -> None: ...

    def finished_block(self, index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a run needs. `make_activations` gets the source, the token windows and whether drift is needed.

    rows_at_once bounds the memory of a layer's solve; None solves all rows together.
    """

    source: ModelSource
    recipe: Recipe
    backend: Backend
    make_activations: MakeActivations
    text: str
    exporters: Sequence[Exporter] = ()
    clock: Stopwatch = field(default_factory=Stopwatch)
    rows_at_once: int | None = None


@dataclass(slots=True)
class Findings:
    """What is known of a run when it is over: how layers came out, and by name how many of their scales hit a limit."""

    calibration_tokens: int | None = None
    layers: list[LayerReport] = field(default_factory=list)
    clamped: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, weight: NumpyArray, layer: QuantizedLinear) -> None:
        groups = clamped_groups(name, weight, layer)
        if groups:
            self.clamped[name] = groups


def quantize(job: Job, destination: Path, observer: Observer, *, force: bool = False) -> Checkpoint:
    """Solve every linear layer and write a quantized checkpoint. Nothing is computed for what cannot be written.

    Raises: BadInput and the other errors of `edgeq.errors`; the destination then does not exist.
    """
    check_destination(destination, force=force)
    grids = plan_grids(job.source, job.recipe)
    check_exports(job.exporters, job.source, grids)
    findings = Findings()
    solves = any(grids[f"{linear}.weight"][1] is not None for block in job.source.blocks() for linear in block.linears)
    activations = start_activations(job, findings) if solves and job.recipe.needs_calibration else None
    with new_directory(destination, force=force) as folder:
        write_model(job, grids, activations, folder, observer, findings)
        write_head(job, findings, folder)
    return Checkpoint(destination)


def start_activations(job: Job, findings: Findings) -> ActivationSource:
    """Token windows of the calibration text through the embedding: where both streams start."""
    recipe = job.recipe
    with job.clock("tokenize"):
        tokens = tokenize(job.source, job.text)
        findings.calibration_tokens = len(tokens)
        check_length(job.source, recipe.sequence_length)
        windows = sample_windows(
            tokens, samples=recipe.samples, sequence_length=recipe.sequence_length, seed=recipe.seed
        )
    with job.clock("load model"):
        return job.make_activations(job.source, windows, recipe.needs_drift)


def check_length(source: ModelDescription, sequence_length: int) -> None:
    """Raises: BadInput when calibration sequences are longer than the model was made for."""
    longest = source.config.get("max_position_embeddings")
    if isinstance(longest, int) and sequence_length > longest:
        raise BadInput(
            f"sequence length {sequence_length}: the model reads at most {longest} tokens; "
            f"choose --sequence-length {longest} or less"
        )


def write_model(
    job: Job, grids: Grids, activations: ActivationSource | None, folder: Path, observer: Observer, findings: Findings
) -> None:
    """Solve and write block after block, then what lies outside of the blocks."""
    blocks = job.source.blocks()
    (folder / "blocks").mkdir()
    observer.begin(len(blocks))
    outer = set(grids)
    for block in blocks:
        if activations is None:
            solved = round_tensors(job, grids, [f"{linear}.weight" for linear in block.linears], findings)
        else:
            solved = solve_block(job, grids, block, activations, observer, findings)
        write_part(job, folder / block_file(block.index), [name for name in block.tensors if name in grids], solved)
        outer -= set(block.tensors)
        trim()
        observer.finished_block(block.index)
    names = [name for name in grids if name in outer]
    write_part(job, folder / "outer.safetensors", names, round_tensors(job, grids, names, findings))


def block_file(index: int) -> str:
    return f"blocks/{index:04d}.safetensors"


def solve_block(
    job: Job, grids: Grids, block: BlockSpec, activations: ActivationSource, observer: Observer, findings: Findings
) -> dict[str, QuantizedLinear]:
    """Stand still at each site of a block, solve its layers and let the quantized stream run on with the result."""
    solved: dict[str, QuantizedLinear] = {}
    for site in timed(activations.sites(block), job.clock, "forward passes"):
        for name, layer in solve_site(job, grids, site, findings):
            solved[name] = layer
            observer.solved(findings.layers[-1])
    return solved


def solve_site(job: Job, grids: Grids, site: Site, findings: Findings) -> Iterator[tuple[str, QuantizedLinear]]:
    backend, clock = job.backend, job.clock
    with clock("statistics"):
        statistics = accumulate(site, backend, drift=job.recipe.needs_drift)
    try:
        with clock("factor"):
            factors = prepare_site(statistics, job.recipe, backend)
    except NotPositiveDefinite as error:
        raise EdgeqError(f"inputs of layer {site.name!r}: {error}") from error
    for linear in timed(site.layers(), clock, "forward passes"):
        name = f"{linear}.weight"
        grid = grids[name][1]
        if grid is None:
            continue
        weight = read_weight(job.source, name)
        problem = LayerProblem(linear, backend.asarray(weight), factors.statistics, grid)
        layer, report = solve_rows(problem, factors, job.recipe, backend, clock, rows=job.rows_at_once)
        findings.layers.append(report)
        findings.note(name, weight, layer)
        site.replace(linear, layer.dequantized())
        yield name, layer


def timed(iterator: Iterator[T], clock: Stopwatch, stage: str) -> Iterator[T]:
    """The same items; the time it takes to get each is booked to a stage."""
    while True:
        with clock(stage):
            item = next(iterator, None)
        if item is None:
            return
        yield item


def round_tensors(job: Job, grids: Grids, names: Sequence[str], findings: Findings) -> dict[str, QuantizedLinear]:
    """Round those of the named tensors that have a grid, without looking at activations."""
    solved = {}
    for name in names:
        grid = grids[name][1]
        if grid is not None:
            with job.clock("round"):
                weight = read_weight(job.source, name)
                solved[name] = solve_without_statistics(weight, grid, job.recipe, job.backend)
                findings.note(name, weight, solved[name])
    return solved


def write_part(job: Job, path: Path, names: Sequence[str], solved: Mapping[str, QuantizedLinear]) -> None:
    """One file with the solved tensors among `names` and the others as the source has them."""
    with job.clock("write"):
        dense = {name: read_tensor(job.source, name) for name in names if name not in solved}
        write_tensors(path, solved, dense)


def write_head(job: Job, findings: Findings, folder: Path) -> None:
    """edgeq.json, config.json, the tokenizer files and report.json; nothing in them depends on time or place."""
    source = job.source
    companions = {name: data for name, data in source.companions().items() if name != "config.json"}
    for name, data in companions.items():
        write_bytes(folder / name, data)
    write_json(folder / "config.json", dict(source.config))
    files = [*(block_file(block.index) for block in source.blocks()), "outer.safetensors"]
    opened = [TensorFile(folder / file) for file in files]
    stored = {name: (file.shape(name), file.tensor_bytes(name)) for file in opened for name in file.names}
    write_json(folder / REPORT_FILE, {"bits_per_weight": bits_per_weight(stored), **asdict(findings)})
    head = {
        "format_version": FORMAT_VERSION,
        "edgeq": __version__,
        "model": source.name,
        "source": {"fingerprint": source.fingerprint()},
        "backend": job.backend.name,
        "recipe": recipe_settings(job.recipe),
        "calibration": {"sha256": hashlib.sha256(job.text.encode("utf-8")).hexdigest()},
        "files": files,
        "companions": sorted(companions),
    }
    write_json(folder / HEAD_FILE, head)


def export(checkpoint: Checkpoint, exporter: Exporter, destination: Path, *, force: bool = False) -> list[Path]:
    """Write a checkpoint in one format into a new directory. Raises: BadInput when the format cannot hold it."""
    check_destination(destination, force=force, source=checkpoint.path)
    grids: dict[str, Any] = {n: (checkpoint.shape(n), checkpoint.grid(n)) for n in checkpoint.tensor_names()}
    reason = exporter.reject_reason(checkpoint.config, checkpoint.companions(), grids)
    if reason is not None:
        raise BadInput(f"format {exporter.name!r}: {reason}")
    with new_directory(destination, force=force) as folder:
        written = [path.relative_to(folder) for path in exporter.write(checkpoint, folder)]
        seal(folder, checkpoint)
    return [destination / path for path in written]
