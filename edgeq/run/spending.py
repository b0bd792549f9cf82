"""How a job gets the types that keep a budget, and what is known of one before it is spent.

Which types these are is chosen by `edgeq.run.allocation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.run.allocation import pose, spend, stored_allocation, with_allocation
from edgeq.run.assembly import check_gradients
from edgeq.run.budget import HEADERS, read_budget
from edgeq.run.forecast import measuring_takes
from edgeq.run.observing import Observer
from edgeq.run.pipeline import Job
from edgeq.run.resume import Ask, refuse_other


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run writes, and whether it replaces or continues what is there."""

    output: Path
    force: bool = False
    resume: bool = False


def within_budget(
    job: Job,
    options: Mapping[str, Any],
    observer: Observer,
    *,
    place: Place | None = None,
) -> Job:
    """Give a job the types that a budget chooses; the job itself where none is asked for.

    options are the fields of `edgeq.run.budget.Budget`, sizes in words. A run to continue at a
    place keeps what it has chosen.

    Raises: BadInput.
    """
    budget = read_budget(options)
    if budget is None:
        return job
    question = pose(job, budget)
    if place is not None:
        refuse_other(place.output, Ask(place.force, place.resume))
        stored = stored_allocation(place.output, question) if place.resume else None
        if stored is not None:
            return with_allocation(job, stored)
    check_gradients()
    return spend(job, question, observer)


def describe_budget(job: Job, options: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a budget is known to lead to before anything is measured; nothing without one.

    Units: bytes, seconds.
    Raises: BadInput.
    """
    budget = read_budget(options)
    if budget is None:
        return {}
    question = pose(job, budget)
    beside = sum(question.beside.values())
    longest = job.source.record.context
    is_beyond = budget.context is not None and longest is not None and budget.context > longest
    labels = dict.fromkeys(o.label for item in question.items for o in item.options)
    return {
        "budget": {
            "asked": budget.asked,
            "limit": question.limit + beside,
            "beside": question.beside,
            "read": longest if is_beyond else None,
            "file": min(question.limit, question.largest) + question.beside.get(HEADERS, 0),
            "smallest": question.smallest + beside,
            "largest": question.largest + beside,
            "types": list(labels),
            "items": len(question.items),
            **measuring_takes(job, question.items),
        }
    }
