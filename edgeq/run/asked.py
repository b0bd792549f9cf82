"""What a user asks of a run, and the steps from there to a checkpoint, a plan or a recipe.

The command line and the Python interface go this way. `prepare_run` refuses whatever can be
refused, and nothing is computed before it is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.storage import check_destination, check_output_file, write_bytes
from edgeq.measuring.evaluate import check_evaluation
from edgeq.planning.memory import MemoryPlan
from edgeq.protocols import ModelSource
from edgeq.recipe.recipe import make_recipe
from edgeq.registry import FORMATS, check_format_options, choose_backend, find_format
from edgeq.run.allocation import DEFAULT_FORMAT
from edgeq.run.assembly import make_job, with_kind_of_zeros
from edgeq.run.budget import read_budget
from edgeq.run.fitting import Sizes, fit_asked, fit_job
from edgeq.run.forecast import describe_run, open_outline
from edgeq.run.observing import Observer
from edgeq.run.pipeline import Job, quantize
from edgeq.run.recipe_file import budget_recipe, is_budget_recipe
from edgeq.run.spending import Place, describe_budget, within_budget
from edgeq.sources import at_revision, open_source


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything that a user asks of a run, in words and plain settings.

    model is what `edgeq.sources.open_source` opens. settings are those of `make_recipe`, budget
    those of `edgeq.run.spending.within_budget`, and the others those of `make_job`.
    """

    model: str
    place: Place
    settings: Mapping[str, Any]
    revision: str | None = None
    backend: str = "auto"
    calibration: Sequence[str] = ()
    imatrix: Path | None = None
    exports: Sequence[str] = ()
    export_options: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    max_ram: str | None = None
    max_vram: str | None = None
    evaluated: bool = False

    @property
    def sizes(self) -> Sizes:
        """Give the sizes of memory that were asked for."""
        return Sizes(self.max_ram, self.max_vram)


def check_words(asked: Asked) -> None:
    """Refuse what is wrong with options by themselves, before a model is opened or fetched.

    Raises: the errors of `edgeq.errors`.
    """
    read_budget(asked.budget)
    asked.sizes.check()
    for name in asked.exports:
        find_format(name)
    check_format_options(asked.exports, asked.export_options)
    if asked.backend != "auto":  # which would load a framework
        choose_backend(asked.backend)
    if asked.imatrix is None:
        make_recipe(with_kind_of_zeros(asked.settings, ()))


def assemble(asked: Asked, source: ModelSource) -> Job:
    """Make the job that was asked for of a model that is open."""
    return make_job(
        source,
        asked.settings,
        backend=asked.backend,
        calibration=asked.calibration,
        exports=asked.exports,
        export_options=asked.export_options,
        imatrix=asked.imatrix,
        has_budget=read_budget(asked.budget) is not None,
    )


def fit_into(asked: Asked, job: Job, folder: Path) -> tuple[Job, MemoryPlan]:
    """Fit a job into the memory that was asked for. Raises: BadInput with words that would fit."""
    return fit_asked(job, asked.sizes, folder, asked.settings, asked.imatrix)


def prepare_run(asked: Asked) -> tuple[Asked, Job, MemoryPlan]:
    """Assemble a run that fits into its memory, once all that can be refused has been.

    The model of what was asked then has its whole name.

    Raises: the errors of `edgeq.errors`.
    """
    model, place = at_revision(asked.model, asked.revision), asked.place
    source = Path(model).expanduser() if model != "demo" else None
    replaced = place.force or place.resume
    check_destination(place.output, force=replaced, source=source, whole=place.force)
    job = assemble(asked, open_source(model))
    if asked.evaluated:
        check_evaluation(job.source, asked.exports, asked.backend)
    job, memory = fit_into(asked, job, place.output.parent)
    return replace(asked, model=model), job, memory


def run_asked(asked: Asked, job: Job, observer: Observer, *, again: str) -> tuple[Job, Checkpoint]:
    """Spend the budget, where there is one, and quantize; return the job as it then was.

    again is what the error of a run that stops names to continue.

    Raises: the errors of `edgeq.errors`.
    """
    place = asked.place
    job = within_budget(job, asked.budget, observer, place=place)
    checkpoint = quantize(
        job, place.output, observer, force=place.force, resume=place.resume, again=again
    )
    return job, checkpoint


def plan_asked(asked: Asked) -> dict[str, Any]:
    """Say what a run would take in memory, disk and time, without running it.

    Weights are not read, and need not be there. Units: bytes, seconds.

    Raises: the errors of `edgeq.errors`.
    """
    model = at_revision(asked.model, asked.revision)
    job = assemble(asked, open_outline(model) or open_source(model))
    folder = existing_parent(asked.place.output)
    job, memory = fit_into(asked, job, folder)
    plan = describe_run(job, memory, folder)
    found = describe_budget(job, asked.budget)
    return {**plan, **within_file(plan, found["budget"]), **found} if found else plan


def within_file(plan: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
    """Say of formats what a budget leaves them, which chooses other types than the recipe.

    Without an export it is of a GGUF file.
    """
    others = [row for row in plan["other formats"] if row["format"] == DEFAULT_FORMAT]
    formats = [{**row, "bytes": budget["file"]} for row in plan["formats"] or others]
    disk = {part: budget["file"] if part in FORMATS else n for part, n in plan["disk"].items()}
    return {"formats": formats, "other formats": [], "grids": {}, "disk": disk}


def existing_parent(path: Path) -> Path:
    """Return the directory itself, or the nearest one above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


def allocate_asked(asked: Asked, job: Job, observer: Observer) -> dict[str, Any]:
    """Choose types within the budget, write them as a recipe at the place, and describe them.

    Raises: the errors of `edgeq.errors`.
    """
    job = within_budget(job, asked.budget, observer)
    assert job.allocation is not None, "a budget was asked for"
    output = asked.place.output
    write_bytes(output, budget_recipe(job.recipe, job.allocation).encode())
    return {"model": job.source.record.name, "recipe": str(output), **job.allocation}


def prepare_allocation(asked: Asked) -> Job:
    """Assemble a job whose types are to be written as a recipe, which may be written there.

    Raises: the errors of `edgeq.errors`.
    """
    place = asked.place
    check_output_file(place.output, force=place.force, is_own=is_budget_recipe)
    job = assemble(asked, open_source(at_revision(asked.model, asked.revision)))
    return fit_job(job, asked.sizes, place.output.parent)[0]
