"""The loop over blocks: statistics, solve, replace, write.

No arithmetic here: how a layer is solved is `edgeq.solving`, what is on disk until a run is done
`edgeq.run.commits`, and how it came out `edgeq.run.report`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgeq.calibration.texts import Calibration
from edgeq.calibration.windows import check_length
from edgeq.checkpoint.reader import Checkpoint
from edgeq.checkpoint.tensor_file import TensorFile, write_tensors
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.files.json_files import write_json
from edgeq.files.ownership import ALLOCATION_FILE, RUN_FILE
from edgeq.files.storage import check_destination, claimed, sync_file
from edgeq.format_parts import Exporter
from edgeq.grids.limits import check_size
from edgeq.planning.process_memory import reused_memory
from edgeq.protocols import ActivationSource, Backend, ModelSource
from edgeq.recipe.layer_grids import Grids, check_exports, kept_dense, plan_grids
from edgeq.recipe.recipe import Recipe
from edgeq.run.commits import Run
from edgeq.run.head import write_head
from edgeq.run.identity import identify
from edgeq.run.observing import (
    LOADING,
    ROUNDING,
    SOLVING,
    TOKENIZING,
    WEIGHING,
    WRITING_TEXT,
    Observer,
)
from edgeq.run.report import RunReport, check_findings
from edgeq.run.resume import (
    Ask,
    is_unfinished,
    refuse_unfinished,
    stored_run,
    working_on,
)
from edgeq.run.site_solving import SiteSolver
from edgeq.run.token_weights import MeasureTokens, measure_weights
from edgeq.run.tuning import Tuner, check_drawn, check_tunable, drawing_recipe, tune_into
from edgeq.run.weighing import weighed_layers
from edgeq.solving.layer import join_layers, solve_without_statistics
from edgeq.solving.lending import Lender
from edgeq.solving.token_weights import TokenWeights
from edgeq.sources.importance import Importance
from edgeq.sources.reading import (
    largest_magnitude,
    read_matrix,
    read_tensor,
)
from edgeq.stopwatch import Stopwatch, timed
from edgeq.streams.backward import Sensitivities
from edgeq.types import BlockSpec, NumpyArray, QuantizedLinear

MakeActivations = Callable[[ModelSource, NumpyArray, float], ActivationSource]
MeasureGradients = Callable[[ModelSource, NumpyArray, int], Sensitivities]
MakeCalibration = Callable[[ModelSource, Recipe, Callable[[int, int], None]], Calibration]


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a run needs.

    `make_activations` gets the source, the token windows and on which share of them both streams
    run. `measure_gradients` gets the source, token windows and a seed, `measure_tokens` the recipe
    instead of a seed. `make_calibration` gets the source, the recipe, and whom to tell how much
    text the model has written. For the plan of memory, characters is how many are tokenized at
    once. rows_at_once bounds the memory of a layer's solve; None solves all rows together.
    importance weighs the search for scales where nothing is calibrated. allocation is how a budget
    is spent, as the recipe then says. draw_apart makes windows for tuning as make_calibration makes
    those of the solve; text_notes say what is unusual of the choice of texts. tuner says how the
    solved model is tuned, None where it is not, and tuning_note what a recipe that leaves that open
    came to.
    """

    source: ModelSource
    recipe: Recipe
    backend: Backend
    make_activations: MakeActivations
    make_calibration: MakeCalibration
    exporters: Sequence[Exporter] = ()
    clock: Stopwatch = field(default_factory=Stopwatch)
    rows_at_once: int | None = None
    characters: int = 0
    importance: Importance | None = None
    measure_gradients: MeasureGradients | None = None
    measure_tokens: MeasureTokens | None = None
    allocation: Mapping[str, Any] | None = None
    draw_apart: MakeCalibration | None = None
    text_notes: Sequence[str] = ()
    tuner: Tuner | None = None
    tuning_note: str = ""


def quantize(
    job: Job,
    destination: Path,
    observer: Observer,
    *,
    force: bool = False,
    resume: bool = False,
    again: str = "the same call with resume=True",
) -> Checkpoint:
    """Solve every linear layer of a model and write a quantized checkpoint.

    Nothing is computed for what cannot be written. A run that stops keeps its finished blocks
    beside the destination. With `resume` it goes on behind them, and an output that is complete is
    left as it is. `again` is what the error of a stopped run names to continue.

    Raises: BadInput and the other errors of `edgeq.errors`; the destination then is as it was.
    """
    ask = Ask(force, resume, again)
    check_destination(destination, force=force or resume, whole=force)
    with claimed(destination) as folder:
        refuse_unfinished(destination, folder, ask)
        done = stored_run(folder).done if resume and is_unfinished(folder) else 0
    grids = plan_grids(job.source, job.recipe)
    check_exports(job.exporters, job.source, grids)
    companions = {
        name: data for name, data in job.source.companions().items() if name != "config.json"
    }
    observer.begin(len(job.source.blocks()), done)
    calibration = start_calibration(job, observer) if needs_calibration(job, grids) else None
    drawn = draw_for_tuning(job, observer)
    texts = None if calibration is None else calibration.record()
    of_file = None if job.importance is None else job.importance.record()
    identity = identify(job.source, job.recipe, texts, companions, imatrix=of_file)
    files = [block_file(block.index) for block in job.source.blocks()]
    check = partial(check_continued, job.source, grids)
    with working_on(destination, identity, files, ask, check) as run:
        if run is not None:
            run.record(job.backend.name)
            run.clock = job.clock
            if job.allocation is not None:  # a run that is stopped need not measure again
                write_json(run.folder / ALLOCATION_FILE, job.allocation)
            with job.backend.working():
                write_model(job, grids, calibration, run, observer)
            write_head(job.source, job.recipe, job.allocation, run, companions)
            if drawn is not None:
                tune_run(job, drawn, run, observer)
    return Checkpoint(destination)


def check_continued(source: ModelSource, grids: Grids, run: Run) -> None:
    """Refuse a run to continue whose blocks or report are none of this model on these grids.

    Raises: BadInput.
    """
    check_findings(source, grids, RUN_FILE, run.report, run.done)
    for block in source.blocks()[: run.done]:
        file = TensorFile(run.made / block_file(block.index))
        found = {name: (file.shape(name), file.grid(name)) for name in file.names}
        if found != {name: grids[name] for name in block.tensors if name in grids}:
            raise BadInput(f"{block_file(block.index)} holds other tensors than the model's")


def solves(grids: Grids, block: BlockSpec) -> bool:
    """Say whether any linear layer of a block is quantized."""
    return any(grids[linear.tensor][1] is not None for linear in block.linears)


def needs_calibration(job: Job, grids: Grids) -> bool:
    """Say whether any layer is solved with a look at activations."""
    if not job.recipe.needs_calibration:
        return False
    return any(solves(grids, block) for block in job.source.blocks())


def start_calibration(job: Job, observer: Observer) -> Calibration:
    """Draw token windows from the calibration texts, before any block is solved."""
    check_length(job.source, job.recipe.sequence_length)
    observer.progressed(TOKENIZING)
    with job.clock("calibration text"):
        wrote = partial(observer.progressed, WRITING_TEXT)
        return job.make_calibration(job.source, job.recipe, wrote)


def draw_for_tuning(job: Job, observer: Observer) -> Calibration | None:
    """Draw the windows that the solved model is tuned on; None where it is not."""
    if job.tuner is None:
        return None
    assert job.draw_apart is not None
    check_tunable(job.tuner, job.source)
    observer.progressed(TOKENIZING)
    with job.clock("calibration text"):
        wrote = partial(observer.progressed, WRITING_TEXT)
        drawn = job.draw_apart(job.source, drawing_recipe(job.recipe), wrote)
    check_drawn(drawn)
    return drawn


def tune_run(job: Job, drawn: Calibration, run: Run, observer: Observer) -> None:
    """Tune what a run has solved, beside it: the run goes on from there if it is stopped."""
    assert job.tuner is not None
    with job.clock("tuning"):
        tune_into(
            job.tuner,
            job.source,
            Checkpoint(run.made),
            drawn,
            folder=run.folder,
            made=run.tuned,
            told=observer.progressed,
        )


def start_activations(job: Job, calibration: Calibration, observer: Observer) -> ActivationSource:
    """Take token windows through the embedding, where both streams start."""
    observer.progressed(LOADING)
    with job.clock("load model"):
        drift = job.recipe.propagation_share if job.recipe.needs_drift else 0.0
        return job.make_activations(job.source, calibration.windows, drift)


def weigh_tokens(job: Job, calibration: Calibration, observer: Observer) -> TokenWeights | None:
    """Measure how much tokens count, with the original model; None where all count alike."""
    if job.recipe.token_weights == "none":
        return None
    assert job.measure_tokens is not None, "whoever assembles a job says how"
    tell = partial(observer.progressed, WEIGHING)
    with job.clock("weigh tokens"):
        measured = job.measure_tokens(job.source, calibration.windows, job.recipe)
        return measure_weights(measured, job.source, len(calibration.windows), tell)


def write_model(
    job: Job, grids: Grids, calibration: Calibration | None, run: Run, observer: Observer
) -> None:
    """Solve and write block after block, then what lies outside of the blocks.

    Blocks are committed while later ones are solved.
    """
    blocks = job.source.blocks()
    findings = run.report
    findings.kept_dense = kept_dense(grids)
    if job.importance is not None:
        findings.imatrix = weighed_layers(job.source, grids, job.importance)
    findings.budget = None if job.allocation is None else dict(job.allocation)
    inside = {name for block in blocks for name in block.tensors}
    outside = [name for name in grids if name not in inside]
    # read at once: found damaged at the end, they would have cost the whole run
    for name in outside:
        tensor = read_tensor(job.source, name)
        if grids[name][1] is not None:
            check_size(name, largest_magnitude(tensor))
    left = blocks[run.done :]
    activations = weights = None
    if calibration is not None:
        findings.calibration_tokens = calibration.tokens
        if any(solves(grids, block) for block in left):
            weights = weigh_tokens(job, calibration, observer)
            activations = start_activations(job, calibration, observer)
            run.restore(activations)
    if left:
        passes = None if activations is None else activations.computes_in
        findings.note_precision(job.backend.name, job.backend.computes_in, passes)
    observer.progressed(SOLVING, run.done, len(blocks))
    with reused_memory() as bound:
        for block in left:
            if activations is None:
                tensors = list(dict.fromkeys(linear.tensor for linear in block.linears))
                solved = round_tensors(job, grids, tensors, findings)
            else:
                linears = {linear.name: linear for linear in block.linears}
                lender = Lender(job.recipe, job.backend, linears, weights)
                solved = solve_block(
                    job, grids, block, activations, lender, observer, findings, bound
                )
            names = [name for name in block.tensors if name in grids]
            write_part(job, run.made / block_file(block.index), names, solved)
            with job.clock("write"):
                run.finish(block.index + 1, activations)
            bound()
            observer.finished_block(block.index)
    observer.progressed(ROUNDING)
    rounded = round_tensors(job, grids, outside, findings)
    write_part(job, run.made / "outer.safetensors", outside, rounded)
    with job.clock("write"):
        sync_file(run.made / "outer.safetensors")
        run.settle()


def block_file(index: int) -> str:
    """Name the file of a block inside of a checkpoint."""
    return f"blocks/{index:04d}.safetensors"


def solve_block(
    job: Job,
    grids: Grids,
    block: BlockSpec,
    activations: ActivationSource,
    lender: Lender,
    observer: Observer,
    findings: RunReport,
    bound: Callable[[], None],
) -> dict[str, QuantizedLinear]:
    """Solve the layers of a block site by site, and let the quantized stream go on with them.

    bound is called wherever memory that is free may be given back.
    """
    parts: dict[str, dict[tuple[int, int], QuantizedLinear]] = {}
    solver = SiteSolver(job, grids, block, lender)
    for site in timed(activations.sites(block), job.clock, "forward passes"):
        bound()
        if site.lends:
            with job.clock("statistics"):
                lender.keep(site)
            continue
        for linear, layer in solver.solve(site, findings):
            parts.setdefault(linear.tensor, {})[linear.place] = layer
            observer.solved(findings.layers[-1])
            bound()
    left = [
        linear.name
        for linear in block.linears
        if grids[linear.tensor][1] is not None and linear.place not in parts.get(linear.tensor, {})
    ]
    if left:
        raise UnsupportedModel(
            f"layer {left[0]!r} never runs on calibration text ({len(left)} such in its block); "
            "calibrate on other text, or keep it dense with --keep-dense"
        )
    return {tensor: join_layers(of_tensor) for tensor, of_tensor in parts.items()}


def round_tensors(
    job: Job, grids: Grids, names: Sequence[str], findings: RunReport
) -> dict[str, QuantizedLinear]:
    """Round those of the named tensors that have a grid, without looking at activations.

    An importance matrix, where there is one, weighs the search for their scales.
    """
    solved = {}
    for name in names:
        grid = grids[name][1]
        if grid is not None:
            with job.clock("round"):
                weight = read_matrix(job.source, name)
                check_size(name, largest_magnitude(weight))
                known = {} if job.importance is None else job.importance.weights
                solved[name] = solve_without_statistics(
                    weight, grid, job.recipe, job.backend, importance=known.get(name)
                )
                findings.note_clamped(name, weight, solved[name])
    return solved


def write_part(
    job: Job, path: Path, names: Sequence[str], solved: Mapping[str, QuantizedLinear]
) -> None:
    """Write one file with the named tensors: those that are solved, and others as they are.

    It is on the disk once somebody has flushed it.
    """
    with job.clock("write"):
        dense = {name: read_tensor(job.source, name) for name in names if name not in solved}
        write_tensors(path, solved, dense, flush=False)
