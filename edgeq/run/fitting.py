"""Fit what was asked for into its memory; where that fails, find what would fit, by trying it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeq.errors import BadInput, TooLittleMemory
from edgeq.planning.device_memory import Device
from edgeq.planning.memory import ENOUGH, MemoryPlan, choose_way
from edgeq.planning.moments import FLOAT, Process, measure_process
from edgeq.planning.process_memory import give_large_arrays_back
from edgeq.planning.tuning import TuningPlan, with_tuning
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe
from edgeq.registry import ACTIVATIONS, BACKENDS, can_tune, device_of, load
from edgeq.run.assembly import (
    CalibrationMaker,
    chosen_recipe,
    make_activations,
    measure_gradients,
    measure_tokens,
)
from edgeq.run.pipeline import Job
from edgeq.run.tuning import Tuner, drawing_recipe, tuning_of
from edgeq.run.tuning_choice import choose_tuner
from edgeq.words import option_words, parse_size, show_size

CHANGES: Sequence[Mapping[str, Any]] = (
    {"samples": 32},
    {"samples": 16},
    {"quality": "fast"},
    {"quality": "fast", "samples": 32},
    {"quality": "fast", "samples": 16},
    {"quality": "fast", "samples": 16, "sequence_length": 256},
    {"solver": "rtn", "scales": "none", "propagation_strength": 0},
)
"""Settings that save memory, those that cost the least quality first; the last only rounds."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much memory a run may take, as users write it ("8GB"); None where nothing was said.

    ram is the machine's memory, vram that of a device with memory of its own.
    """

    ram: str | None = None
    vram: str | None = None

    def check(self) -> None:
        """Refuse what is no size. Raises: BadInput."""
        self.limit()
        if self.vram is not None:
            parse_size(self.vram, "--max-vram")

    def limit(self) -> int | None:
        """Read the limit on the machine's memory. Raises: BadInput for what is no size."""
        return None if self.ram is None else parse_size(self.ram, "--max-ram")

    def device(self, backend: Backend) -> Device | None:
        """Ask a backend for its device's own memory; None where it has none.

        Raises: BadInput for what is no size, and for a limit where there is no such memory.
        """
        limit = None if self.vram is None else parse_size(self.vram, "--max-vram")
        found = backend.device_memory()
        if found is not None:
            return Device(*found, limit)
        if limit is not None:
            raise BadInput(
                f"--max-vram {show_size(limit)}: backend {backend.name!r} computes in the memory "
                "of the machine; leave it out, or limit that with --max-ram"
            )
        return None


def fit_job(job: Job, sizes: Sizes, folder: Path) -> tuple[Job, MemoryPlan]:
    """Fit a job into sizes of memory, in the fastest way that does, and return its plan.

    Hidden states that must lie on disk do so in `folder`, or in the nearest folder above it that
    exists.

    Raises: BadInput for what is no size, and with the smallest one that would do.
    """
    limit, device = sizes.limit(), sizes.device(job.backend)
    process = process_of(job)
    maker = job.make_calibration
    drawn = maker if isinstance(maker, CalibrationMaker) else None
    memory = choose_way(
        job.source.record.decoder,
        job.recipe,
        process,
        limit,
        written=0 if drawn is None else most_written(drawn, job.recipe, job.backend.name),
        device=device,
    )
    kept = None if memory.writing is None else memory.writing.resident
    if drawn is not None:
        maker = replace(drawn, resident=kept)
    apart = job.draw_apart
    if isinstance(apart, CalibrationMaker):
        apart = replace(apart, resident=kept)
    existing = existing_folder(folder)
    choice = choose_tuner(job.source, job.recipe, job.backend.name, process, limit, device)
    tuner = None if choice.plan is None else tuner_of(job, choice.plan, existing)
    is_limited = sizes != Sizes()
    fitted = replace(
        job,
        make_activations=partial(
            make_activations,
            job.backend.name,
            exact=job.recipe.needs_exact_passes,
            flow=memory.way.flow(existing),
        ),
        # hidden states between all blocks are kept, which the plan of a run does not count
        measure_gradients=partial(
            measure_gradients, job.backend.name, folder=existing if is_limited else None
        ),
        measure_tokens=partial(
            measure_tokens,
            job.backend.name,
            folder=existing if memory.way.states_apart else None,
            tokens_at_once=memory.way.batch_tokens,
        ),
        rows_at_once=memory.way.rows_at_once,
        make_calibration=maker,
        draw_apart=apart,
        tuner=tuner,
        tuning_note=choice.note,
    )
    return fitted, memory if choice.plan is None else with_tuning(memory, choice.plan)


def process_of(job: Job) -> Process:
    """Measure this process, with what a job will have it import, and the numbers of its passes."""
    give_large_arrays_back()
    name, recipe, wide = job.backend.name, job.recipe, FLOAT
    if recipe.needs_calibration:
        streams = load(ACTIVATIONS[BACKENDS[name].framework], "calibration")
        drift = recipe.propagation_share if recipe.needs_drift else 0.0
        wide = streams.number_bytes(job.source, recipe.needs_exact_passes, drift, **device_of(name))
    return measure_process(job.characters, job.backend, passes=wide)


def existing_folder(folder: Path) -> Path:
    """Give the folder, or the nearest one above it that exists."""
    place = folder.resolve()
    return next(path for path in (place, *place.parents) if path.is_dir())


def most_written(drawn: CalibrationMaker, recipe: Recipe, backend: str) -> int:
    """Count the sequences that the model writes together, to calibrate on or to tune on."""
    samples = [recipe.samples] if recipe.needs_calibration else []
    if recipe.tune and can_tune(backend):
        samples.append(drawing_recipe(recipe).samples)
    return max(map(drawn.written, samples), default=0)


def tuner_of(job: Job, plan: TuningPlan, folder: Path) -> Tuner:
    """Say how a job tunes what it has solved; hidden states on disk lie in a folder."""
    tuning, exact = tuning_of(job.recipe), job.recipe.exact
    return Tuner(job.backend.name, tuning, plan, folder, exact=exact)


def fit_asked(
    job: Job,
    sizes: Sizes,
    folder: Path,
    settings: Mapping[str, Any],
    imatrix: Path | None = None,
) -> tuple[Job, MemoryPlan]:
    """Fit a job made of these settings into sizes of memory, as `fit_job` does.

    Raises: TooLittleMemory with words of the command line that would fit; BadInput.
    """
    try:
        return fit_job(job, sizes, folder)
    except TooLittleMemory as error:
        least = show_size(error.least, up=True)
        change = next(changes_that_fit(job, sizes, folder, settings, imatrix), None)
        words: list[str] = []
        if change is not None:
            words = option_words(change)
            less = " (plain rounding: worse)" if "solver" in change else ""
            more = "give that much, or add" if error.option else "add"
            advice = f"{more} {' '.join(words)}{less}"
        elif error.option:
            words = [error.option, least.replace(" ", "")]
            advice = f"give {' '.join(words)} or choose a smaller model"
        else:
            advice = "take --backend cpu or choose a smaller model"
        raise TooLittleMemory(
            f"{error}; {advice}", error.limit, error.least, words, option=error.option
        ) from error


def changes_that_fit(
    job: Job, sizes: Sizes, folder: Path, settings: Mapping[str, Any], imatrix: Path | None
) -> Iterator[Mapping[str, Any]]:
    """Try changes of the settings, and give those with which a run keeps its sizes."""
    for change in CHANGES:
        if change.get("samples", 0) >= job.recipe.samples:
            continue
        if change.get("sequence_length", 0) >= job.recipe.sequence_length:
            continue
        try:
            recipe = chosen_recipe(
                {**settings, **change}, job.source, job.exporters, weighed=imatrix is not None
            )
            _, memory = fit_job(replace(job, recipe=recipe), sizes, folder)
        except BadInput:  # of another setting against this one, or still too much
            continue
        if is_well_within(memory, sizes.limit()):
            yield change


def is_well_within(memory: MemoryPlan, limit: int | None) -> bool:
    """Say whether a plan keeps its limits when the process takes a little more than now."""
    if memory.device is not None and memory.on_device is not None:
        if ENOUGH * memory.on_device.total > memory.device.room:
            return False
    return limit is None or ENOUGH * memory.peak.total <= limit
