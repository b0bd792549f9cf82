"""Tune a solved model on what its original predicts: texts, models, saved state, and the result.

How one step goes is `edgeq.tuning`, which way fits into memory `edgeq.planning.tuning`, and what is
written `edgeq.run.tuned_checkpoint`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.calibration.texts import Calibration, hash_tokens
from edgeq.checkpoint.reader import TUNED_KEY, Checkpoint
from edgeq.errors import BadInput
from edgeq.files.hashes import hash_of_content, hash_of_file
from edgeq.files.json_files import read_json, write_json
from edgeq.files.ownership import TUNING, remove_entry
from edgeq.files.plain_files import is_plain_file
from edgeq.planning.tuning import TuningPlan
from edgeq.protocols import ModelSource
from edgeq.recipe.recipe import Recipe
from edgeq.registry import device_of, find_tuner, load
from edgeq.run.tuned_checkpoint import write_tuned
from edgeq.run.tuning_report import TuningReport
from edgeq.tuning.free import CODES, FREE
from edgeq.tuning.loop import STEP_TOKENS, Tuned, Tuning, tune
from edgeq.tuning.loop import TUNING as STEPS
from edgeq.tuning.model import Models
from edgeq.tuning.state import Row

STATE_FILE = "tuning.json"
"""What a saved state is of; it lies beside that."""
FEWEST_WINDOWS = 2  # one to tune on, one to decide
LOADING = "loading both models"
Told = Callable[[str, int, int], None]
"""Is told what is worked on, and how far it has come."""


@dataclass(frozen=True, slots=True)
class Tuner:
    """How a solved model is tuned.

    exact: training passes are in float32 too. Hidden states that do not stay in memory lie in a
    folder.
    """

    backend: str
    tuning: Tuning
    plan: TuningPlan
    folder: Path
    exact: bool = False


def tuning_of(recipe: Recipe) -> Tuning:
    """Read from a recipe how to tune."""
    return Tuning(
        rate=recipe.tune_rate,
        passes=recipe.tune_passes,
        step_windows=max(1, round(STEP_TOKENS / recipe.sequence_length)),
        seed=recipe.seed,
        free=(*FREE, CODES) if recipe.tune_codes else FREE,
    )


def windows_for(tokens: int, length: int) -> int:
    """Count the windows of which so many tokens are left when some are held out."""
    wanted, held_out = max(1, round(tokens / length)), Tuning().held_out
    count = wanted + 1
    while (missing := wanted - count + math.ceil(held_out * count)) > 0:
        count += missing
    return count


def drawing_recipe(recipe: Recipe) -> Recipe:
    """Give the recipe by which windows for tuning are drawn: others than those of the solve."""
    count = windows_for(recipe.tune_tokens, recipe.sequence_length)
    return replace(recipe, samples=count, seed=(recipe.seed + 1) % 2**32)


def check_drawn(drawn: Calibration) -> None:
    """Refuse texts that are too short to tune on.

    Raises: BadInput.
    """
    count, length = drawn.windows.shape
    if count < FEWEST_WINDOWS:
        raise BadInput(
            f"tuning: the texts hold {count} sequence of {length} tokens; it needs "
            f"{FEWEST_WINDOWS} or more, since one is held out; give more --calibration text, "
            "or choose a smaller --sequence-length"
        )


def notes_before(source: ModelSource, checkpoint: Checkpoint) -> list[str]:
    """Say what is unusual of the two models."""
    found = []
    if source.fingerprint() != checkpoint.fingerprint():
        found.append(
            "the reference has the shapes of the checkpoint's original, but not its very weights "
            "and files (its fingerprint is another)"
        )
    before = checkpoint.head.get(TUNED_KEY)
    if before is not None:
        found.append(
            f"the checkpoint was tuned before, on {before['tokens']:,} tokens; this goes on from it"
        )
    return found


def tuning_notes(report: TuningReport | None, recipe: Recipe) -> list[str]:
    """Say what is unusual of a tuning: nothing gained, or fewer windows than were asked for."""
    if report is None:
        return []
    found = [] if report.is_gain else [report.line()]
    wanted, drawn = drawing_recipe(recipe).samples, sum(text["samples"] for text in report.texts)
    if drawn < wanted:
        found.append(
            f"tuning took all that the texts have, {drawn} sequences of {recipe.sequence_length}, "
            f"where {recipe.tune_tokens:,} tokens take {wanted}; more text is better"
        )
    return found


def state_folder(folder: Path, question: Mapping[str, Any]) -> Path:
    """Give the directory where the state of a tuning is kept; the state of another one goes.

    Where it is not known what a state is of, its own hash says.
    """
    place = folder / TUNING
    if place.is_dir() and stored_question(place) not in (None, question):
        remove_entry(place)
    place.mkdir(exist_ok=True)
    write_json(place / STATE_FILE, question)
    return place


def stored_question(place: Path) -> Any:
    """Read what the state in a directory is of; None where that is not known."""
    path = place / STATE_FILE
    try:
        return read_json(path) if is_plain_file(path) else None
    except BadInput:
        return None


def question_of(
    tuner: Tuner, source: ModelSource, checkpoint: Checkpoint, drawn: Calibration
) -> dict[str, Any]:
    """Say what a tuning is of, so that only the same one goes on from its state."""
    files = {name: hash_of_file(file.path) for name, file in checkpoint.files().items()}
    return {
        "original": source.fingerprint(),
        "solution": hash_of_content(files),
        "windows": hash_tokens(drawn.windows),
        "tuning": {**asdict(tuner.tuning), "free": list(tuner.tuning.free)},
        "exact": tuner.exact,
    }


class Teller:
    """Tells how far tuning has come, with the loss of the last step and the held-out KL."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._loss: float | None = None
        self._held_out: float | None = None

    def measured(self, row: Row) -> None:
        """Note a row of the curve."""
        self._loss = row.loss
        self._held_out = row.held_out if row.held_out is not None else self._held_out

    def watch(self, what: str, done: int, total: int) -> None:
        """Tell what is done, with what is known."""
        named = {"loss": self._loss, "held-out KL": self._held_out}
        known = ", ".join(f"{name} {x:.3g}" for name, x in named.items() if x is not None)
        if what == STEPS and known:
            head, _, unit = what.rpartition(", ")
            what = f"{head} ({known}), {unit}"
        self._told(what, done, total)


def make_models(tuner: Tuner, original: ModelSource, quantized: ModelSource) -> Models:
    """Make both models in the framework of a tuner; no weights are read yet.

    Raises: BadInput, UnsupportedModel, NotInstalled.
    """
    make = load(find_tuner(tuner.backend), "tuning")
    way = tuner.plan.way
    models: Models = make(
        original,
        quantized,
        **device_of(tuner.backend),
        resident=way.resident,
        exact=tuner.exact,
        states_folder=tuner.folder if way.states_on_disk else None,
    )
    return models


def check_tunable(tuner: Tuner, source: ModelSource) -> None:
    """Refuse a model that cannot be tuned, before it is solved.

    Raises: UnsupportedModel, NotInstalled.
    """
    make_models(tuner, source, source)


def tune_into(
    tuner: Tuner,
    source: ModelSource,
    checkpoint: Checkpoint,
    drawn: Calibration,
    *,
    folder: Path,
    made: Path,
    told: Told,
) -> Checkpoint:
    """Tune a checkpoint and write the result into a new directory.

    folder is that of the run, where its state is kept.

    Raises: BadInput, UnsupportedModel, NotInstalled.
    """
    question = question_of(tuner, source, checkpoint, drawn)
    place = state_folder(folder, question)
    told(LOADING, 0, 0)
    teller = Teller(told)
    tuned = tune(
        make_models(tuner, source, checkpoint),
        checkpoint,
        drawn.windows,
        tuner.tuning,
        watch=teller.watch,
        measured=teller.measured,
        folder=place,
        question=hash_of_content(question),
    )
    report = report_of(tuned, tuner, drawn, checkpoint, hash_of_content(question))
    made.mkdir(exist_ok=True)
    return write_tuned(checkpoint, tuned.values, report, made)


def report_of(
    tuned: Tuned, tuner: Tuner, drawn: Calibration, checkpoint: Checkpoint, question: str
) -> TuningReport:
    """Say how a tuning came out, and how the checkpoint was tuned before.

    question is the hash of what was asked.
    """
    before = checkpoint.head.get(TUNED_KEY)
    earlier = [] if before is None else [*before.get("earlier", ()), {**before, "earlier": []}]
    parts = [part for of_tensor in tuned.values.values() for part in of_tensor.items()]
    return TuningReport(
        before=tuned.before,
        after=tuned.after,
        kept_step=tuned.kept_step,
        steps=tuned.steps,
        tokens=tuned.tokens,
        held_out_tokens=tuned.held_out_tokens,
        texts=list(drawn.texts),
        seed=tuner.tuning.seed,
        passes=tuner.tuning.passes,
        rate=tuner.tuning.rate,
        precision=tuned.precision,
        way=tuned.way,
        free=list(tuner.tuning.free),
        numbers=sum(values.size for part, values in parts if part != CODES),
        codes=sum(values.size for part, values in parts if part == CODES),
        moved_codes=sum(
            int(np.count_nonzero(of_tensor[CODES] != checkpoint.quantized(tensor).codes))
            for tensor, of_tensor in tuned.values.items()
            if CODES in of_tensor
        ),
        question=question,
        curve=[asdict(row) for row in tuned.curve],
        earlier=earlier,
    )
