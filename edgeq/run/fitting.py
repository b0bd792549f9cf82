"""Fit what was asked for into its memory; where that fails, find what would fit, by trying it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeq.errors import BadInput, TooLittleMemory
from edgeq.planning.memory import ENOUGH, MemoryPlan
from edgeq.run.assembly import chosen_recipe, fit_job
from edgeq.run.pipeline import Job
from edgeq.words import option_words, show_size

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


def fit_asked(
    job: Job,
    max_ram: str | None,
    folder: Path,
    settings: Mapping[str, Any],
    imatrix: Path | None = None,
) -> tuple[Job, MemoryPlan]:
    """Fit a job made of these settings into a size of memory; see `edgeq.run.assembly.fit_job`.

    Raises: TooLittleMemory with words of the command line that would fit; BadInput.
    """
    try:
        return fit_job(job, max_ram, folder)
    except TooLittleMemory as error:
        least = show_size(error.least, up=True)
        change = next(changes_that_fit(job, error.limit, folder, settings, imatrix), None)
        if change is None:
            words = ["--max-ram", least.replace(" ", "")]
            advice = f"give {' '.join(words)} or choose a smaller model"
        else:
            words = option_words(change)
            less = " (plain rounding: worse)" if "solver" in change else ""
            advice = f"give that much, or add {' '.join(words)}{less}"
        raise TooLittleMemory(f"{error}; {advice}", error.limit, error.least, words) from error


def changes_that_fit(
    job: Job, limit: int, folder: Path, settings: Mapping[str, Any], imatrix: Path | None
) -> Iterator[Mapping[str, Any]]:
    """Try changes of the settings, and give those with which a run keeps the limit."""
    for change in CHANGES:
        if change.get("samples", 0) >= job.recipe.samples:
            continue
        if change.get("sequence_length", 0) >= job.recipe.sequence_length:
            continue
        try:
            recipe = chosen_recipe(
                {**settings, **change}, job.source, job.exporters, weighed=imatrix is not None
            )
            _, memory = fit_job(replace(job, recipe=recipe), f"{limit}", folder)
        except BadInput:  # of another setting against this one, or still too much
            continue
        if ENOUGH * memory.peak.total <= limit:
            yield change
