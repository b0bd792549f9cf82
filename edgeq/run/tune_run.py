"""Tune a finished checkpoint: what is asked, refused early, and written beside it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeq.calibration.texts import Calibration, most_at_once
from edgeq.calibration.windows import check_length
from edgeq.checkpoint.reader import TUNED_KEY, Checkpoint
from edgeq.errors import BadInput
from edgeq.files.hashes import hash_of_content
from edgeq.files.ownership import (
    HEAD_FILE,
    MADE,
    REPORT_FILE,
    TUNING,
    clear_contents,
    remove_entry,
)
from edgeq.files.storage import (
    bring_back,
    check_destination,
    claimed,
    explaining,
    put_in_place,
)
from edgeq.measuring.inspection import parameter_count
from edgeq.planning.memory import choose_writing
from edgeq.planning.moments import measure_process
from edgeq.planning.process_memory import give_large_arrays_back
from edgeq.protocols import ModelSource
from edgeq.recipe.recipe import Recipe, make_recipe
from edgeq.recipe.settings import OF_TUNING
from edgeq.registry import choose_backend, find_tuner, load, load_backend
from edgeq.run.assembly import CalibrationMaker, texts_for, with_length
from edgeq.run.fitting import Sizes, existing_folder
from edgeq.run.observing import TOKENIZING, WRITING_TEXT, Observer
from edgeq.run.report import read_report
from edgeq.run.resume import is_unfinished
from edgeq.run.spending import Place
from edgeq.run.tuning import (
    Tuner,
    check_drawn,
    drawing_recipe,
    notes_before,
    question_of,
    stored_question,
    tune_into,
    tuning_notes,
    tuning_of,
)
from edgeq.run.tuning_choice import has_codes, planned
from edgeq.run.tuning_report import TuningReport
from edgeq.sources import at_revision, open_source
from edgeq.stopwatch import Stopwatch
from edgeq.tuning.state import STATE_FILE

WHAT_DIFFERS = {
    "original": "weights of the original",
    "solution": "codes or scales",
    "windows": "text, --tokens, --sequence-length or --seed",
    "tuning": "--passes, --rate, --seed, or whether codes move (--codes)",
    "exact": "precision (--exact)",
}
"""What it means that a part of a question differs."""


@dataclass(frozen=True, slots=True)
class TuneAsked:
    """Everything that a user asks of the tuning of a checkpoint, in words and plain settings.

    reference is the original. settings are among those of OF_TUNING; those left out are as in the
    recipe of the checkpoint, or else their defaults.
    """

    checkpoint: Path
    reference: str
    place: Place
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: Sequence[str] = ()
    backend: str = "auto"
    sizes: Sizes = field(default_factory=Sizes)
    exact: bool = False


@dataclass(frozen=True, slots=True)
class TuneJob:
    """A tuning that fits into its memory, once all that can be refused has been."""

    asked: TuneAsked
    source: ModelSource
    checkpoint: Checkpoint
    recipe: Recipe
    tuner: Tuner
    draw_apart: CalibrationMaker
    notes: Sequence[str]
    clock: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, slots=True)
class TunedRun:
    """A finished tuning: the checkpoint that it wrote, and how it came out.

    Units: sizes in bytes, seconds of wall-clock time by stage.
    """

    checkpoint: Checkpoint
    original: str
    report: TuningReport
    notes: Sequence[str]
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]
    page: Path | None = None

    def plain(self) -> dict[str, Any]:
        """Return what `edgeq tune --json` prints."""
        return {
            "model": self.checkpoint.record.name,
            "original": self.original,
            "output": str(self.checkpoint.path),
            "tuned": self.report.head(),
            "curve": list(self.report.curve),
            "bytes": self.sizes,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "page": None if self.page is None else str(self.page),
        }


def default_tuned(checkpoint: Path) -> Path:
    """Name the directory that a tuning writes where none was given: beside its checkpoint."""
    named = checkpoint if checkpoint.name not in ("", "..") else checkpoint.resolve()
    return named.with_name(f"{named.name}-tuned")


def prepare_tuning(asked: TuneAsked) -> TuneJob:
    """Open both models and fit their tuning into memory, once all that can be refused has been.

    Raises: the errors of `edgeq.errors`.
    """
    place = asked.place
    asked.sizes.check()
    backend = choose_backend(asked.backend)
    tuner = find_tuner(backend)
    checkpoint = Checkpoint(asked.checkpoint)
    read_tuned(checkpoint)  # which would be found damaged when all is done
    replaced = place.force or place.resume
    check_destination(place.output, force=replaced, source=checkpoint.path, whole=place.force)
    source = open_source(at_revision(asked.reference, None))
    check_original(source, checkpoint, asked.reference)
    recipe = tuning_recipe(checkpoint, source, asked.settings)
    check_length(source, recipe.sequence_length)
    chosen = texts_for(recipe, asked.calibration, source)
    give_large_arrays_back()
    load(tuner, "tuning")  # imports what the process will hold, before it is measured
    loaded = load_backend(backend)
    limit, device = asked.sizes.limit(), asked.sizes.device(loaded)
    process = measure_process(most_at_once(chosen.texts), loaded)
    plan = planned(source, checkpoint.grids(), recipe, process, limit, device)
    drawing, maker = drawing_recipe(recipe), CalibrationMaker(backend, chosen.texts, apart=True)
    written = maker.written(drawing.samples)
    writing = choose_writing(source.record.decoder, drawing, process, limit, written, device)
    existing = existing_folder(place.output.parent)
    return TuneJob(
        asked,
        source,
        checkpoint,
        recipe,
        Tuner(backend, tuning_of(recipe), plan, existing, asked.exact),
        replace(maker, resident=None if writing is None else writing.resident),
        [*notes_before(source, checkpoint), *chosen.notes],
    )


def tuning_recipe(
    checkpoint: Checkpoint, source: ModelSource, settings: Mapping[str, Any]
) -> Recipe:
    """Make the recipe of a tuning: what a checkpoint was solved with, and settings over it.

    Raises: BadInput for a setting that breaks its rule.
    """
    known = {name: checkpoint.head["recipe"].get(name) for name in OF_TUNING.values()}
    stated = {name: value for name, value in known.items() if value is not None}
    return make_recipe({**with_length({}, source), **stated, **settings, "tune": True})


def check_original(source: ModelSource, checkpoint: Checkpoint, called: str) -> None:
    """Refuse a model that a checkpoint was not made from: of another shape or vocabulary.

    Refuses a checkpoint without codes too, which is its original.

    Raises: BadInput.
    """

    def other(what: str) -> BadInput:
        return BadInput(
            f"--reference {called!r} is not what checkpoint {str(checkpoint.path)!r} was made "
            f"from: {what}; give its original, {checkpoint.record.name!r}"
        )

    if not has_codes(checkpoint.grids()):
        raise BadInput(
            f"checkpoint {str(checkpoint.path)!r} has no quantized tensor, so that nothing is to "
            "be tuned; quantize its model to fewer than 16 bits"
        )
    blocks, own = len(source.blocks()), len(checkpoint.blocks())
    if blocks != own:
        raise other(f"it has {blocks} blocks, the checkpoint {own}")
    names = set(source.tensor_names())
    for name in checkpoint.tensor_names():
        if name not in names:
            raise other(f"it has no tensor {name!r}")
        shape, expected = source.shape(name), checkpoint.shape(name)
        if shape != expected:
            raise other(f"its {name!r} is {by(shape)}, the checkpoint's {by(expected)}")


def by(shape: Sequence[int]) -> str:
    """Write a shape as people do."""
    return " x ".join(map(str, shape))


def run_tuning(
    job: TuneJob, observer: Observer, *, again: str = "the same call with resume=True"
) -> TunedRun:
    """Tune a checkpoint and write the result as a new one; its own stays as it is.

    A tuning that stops keeps its last state beside the output. With resume it goes on from there,
    and an output that is complete is left as it is. again names how to continue.

    Raises: the errors of `edgeq.errors`; the output then is as it was.
    """
    place = job.asked.place
    with claimed(place.output) as folder:
        refuse_others(folder, place)  # before text is drawn, and again when it is
    drawn = draw(job, observer)
    question = question_of(job.tuner, job.source, job.checkpoint, drawn)
    if place.resume and is_there(place, hash_of_content(question)):
        return finished_tuning(job)
    check_destination(place.output, force=place.force)
    with working_on(place, question, again) as folder, job.clock("tuning"):
        tune_into(
            job.tuner,
            job.source,
            job.checkpoint,
            drawn,
            folder=folder,
            made=folder / MADE,
            told=observer.progressed,
        )
    return finished_tuning(job)


def draw(job: TuneJob, observer: Observer) -> Calibration:
    """Draw the windows that are tuned on, as a run that tunes does. Raises: BadInput."""
    observer.progressed(TOKENIZING)
    wrote = partial(observer.progressed, WRITING_TEXT)
    with job.clock("calibration text"):
        drawn = job.draw_apart(job.source, drawing_recipe(job.recipe), wrote)
    check_drawn(drawn)
    return drawn


def refuse_others(folder: Path, place: Place) -> None:
    """Refuse an output where something unfinished is that is not to be continued or given up.

    Raises: BadInput.
    """
    named = f"output {str(place.output)!r}"
    if is_unfinished(folder) and not place.force:
        raise BadInput(
            f"{named}: an unfinished run of edgeq quantize is there; choose another name, or add "
            "--force to give it up"
        )
    if (folder / TUNING / STATE_FILE).is_file() and not (place.force or place.resume):
        raise BadInput(
            f"{named}: an unfinished tuning is there; add --resume to continue it or --force to "
            "start over"
        )


def check_same(folder: Path, question: Mapping[str, Any], place: Place) -> None:
    """Refuse to go on with the state of another tuning. Raises: BadInput naming what differs."""
    stored = stored_question(folder)
    if not isinstance(stored, dict) or not (folder / STATE_FILE).is_file():
        return
    others = [WHAT_DIFFERS[key] for key in WHAT_DIFFERS if stored.get(key) != question[key]]
    if others:
        raise BadInput(
            f"output {str(place.output)!r}: its unfinished tuning is another one, with other "
            f"{', '.join(others)}; continue it with what it was started with, or start over with "
            "--force and without --resume"
        )


def is_there(place: Place, question: str) -> bool:
    """Say whether an output is what this tuning would write.

    Raises: BadInput for another one that may not be replaced, or that is damaged.
    """
    if not place.output.exists():
        return False
    try:
        tuned = read_tuned(Checkpoint(place.output))
    except BadInput:
        if place.force:
            return False
        raise
    if tuned is not None and tuned.question == question:
        return True
    if place.force:
        return False
    raise BadInput(
        f"output {str(place.output)!r} is complete, but of another tuning or run; choose another "
        "name or pass --force to replace it"
    )


def read_tuned(checkpoint: Checkpoint) -> TuningReport | None:
    """Read how a checkpoint was tuned; None for one that was not.

    Raises: BadInput where its report does not say what its head does.
    """
    found = read_report(checkpoint).tuning
    stated = checkpoint.head.get(TUNED_KEY)
    if (None if stated is None else stated.get("question")) != getattr(found, "question", None):
        raise BadInput(
            f"checkpoint {str(checkpoint.path)!r}: {HEAD_FILE} and {REPORT_FILE} say different "
            "things of its tuning; it is damaged, make it again"
        )
    return found


@contextmanager
def working_on(place: Place, question: Mapping[str, Any], again: str) -> Iterator[Path]:
    """Open the directory in which a tuning is made; its content becomes the output at the end.

    When it fails, or the process ends, the state that was saved last stays.

    Raises: BadInput where the state of another tuning is to be continued.
    """
    with claimed(place.output) as folder:
        refuse_others(folder, place)
        if place.resume and not place.force:
            check_same(folder / TUNING, question, place)
        if place.force and not place.resume:
            clear_contents(folder)
        if (folder / MADE).is_dir():
            remove_entry(folder / MADE)
        try:
            with explaining(place.output, folder):
                yield folder
                put_in_place(folder / MADE, place.output)
        except BaseException as error:
            bring_back(place.output)
            if (folder / MADE).is_dir():
                remove_entry(folder / MADE)
            if (folder / TUNING / STATE_FILE).is_file():
                error.add_note(f"the last state is kept; to continue: {again}")
            else:
                clear_contents(folder)
            raise
        clear_contents(folder)


def finished_tuning(job: TuneJob) -> TunedRun:
    """Read what a tuning wrote, and gather what is said of it."""
    checkpoint = Checkpoint(job.asked.place.output)
    report = read_tuned(checkpoint)
    assert report is not None, "it was just written, or found to be there"
    return TunedRun(
        checkpoint,
        job.asked.reference,
        report,
        [*job.notes, *tuning_notes(report, job.recipe)],
        {
            "original": job.source.stored_bytes(),
            "original at 16 bits": 2 * parameter_count(job.source),
            "checkpoint": checkpoint.stored_bytes(),
        },
        dict(job.clock.seconds),
    )
