"""The end of a run: quality and answers are measured, and lie with times and memory beside it.

The command and the Python function go this way, after `edgeq.run.finished.finish_run`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import EdgeqError
from edgeq.measuring.evaluate import evaluate
from edgeq.measuring.inspection import parameter_count
from edgeq.pages.run_page import write_run_page
from edgeq.planning.process_memory import machine_bytes, peak_resident_bytes
from edgeq.run.card import renew_cards
from edgeq.run.finished import FinishedRun
from edgeq.run.measured import Measured, read_measured, write_measured
from edgeq.run.observing import EVALUATING, Observer
from edgeq.run.report import with_measured
from edgeq.run.tune_run import TunedRun
from edgeq.sources import open_source
from edgeq.talking import answer
from edgeq.words import show_size

QUESTION = "Why is the sky blue?"  # for models that answer
BEGINNING = "The sky is blue because"  # for models that continue
MOST_TOKENS = 32  # of an answer: two lines
FLOAT = 4  # bytes of a weight of a model that writes in a framework
ROOM = 0.7  # of the machine's memory: the rest is other programs'
ANSWERING = "asking both models"


@dataclass(frozen=True, slots=True)
class Answers:
    """What both models wrote behind a prompt, or why they did not."""

    given: tuple[Mapping[str, str], ...] = ()
    why_none: str = ""


def close_run(
    finished: FinishedRun,
    checkpoint: Checkpoint,
    observer: Observer,
    *,
    evaluated: bool,
    backend: str = "auto",
) -> FinishedRun:
    """Measure a finished run where that is asked for, and write what was measured, and its page.

    A run that was complete before keeps what was measured then.

    Raises: BadInput and the other errors of `edgeq.errors`.
    """
    quality: Mapping[str, Any] | None = None
    answers, before = Answers(), read_measured(checkpoint)
    write_measured(checkpoint, joined(finished, quality, answers, before))
    if evaluated:
        write_run_page(checkpoint)  # stays where the measurement is stopped
        observer.progressed(EVALUATING)
        quality = evaluate(
            finished.result,
            reference=finished.original,
            backend=backend,
            progress=observer.evaluated,
        )
        finished = replace(finished, quality=quality, report=with_measured(checkpoint, quality))
        observer.progressed(ANSWERING)
        answers = ask_both(finished)
        write_measured(checkpoint, joined(finished, quality, answers, before))
        renew_cards(checkpoint)
    elif before is not None and measured_kl(before) is not None:
        finished = replace(finished, quality=before.quality)
        answers = Answers(tuple(before.answers))
    page = write_run_page(checkpoint)
    return replace(finished, answers=answers.given, unanswered=answers.why_none, page=page)


def close_tuning(found: TunedRun) -> TunedRun:
    """Write times and sizes of a finished tuning beside it, and its page.

    One that was complete before keeps what was measured then.

    Raises: BadInput.
    """
    checkpoint = found.checkpoint
    if read_measured(checkpoint) is None:
        peak = peak_resident_bytes()
        measured = Measured(None, (), found.seconds, peak, found.sizes, found.notes)
        write_measured(checkpoint, measured)
    return replace(found, page=write_run_page(checkpoint))


def measured_kl(before: Measured) -> float | None:
    """Give the KL divergence that was measured before; None where none was."""
    return None if before.quality is None else before.quality.get("kl")


def joined(
    finished: FinishedRun,
    quality: Mapping[str, Any] | None,
    answers: Answers,
    before: Measured | None,
) -> Measured:
    """Put together what was measured now and, of a run that was complete already, before."""
    found = Measured(
        quality,
        answers.given,
        finished.seconds,
        peak_resident_bytes(),
        finished.sizes,
        finished.notes,
        finished.advice,
    )
    if before is None:
        return found
    seconds = dict(before.seconds)
    for stage, taken in finished.seconds.items():
        seconds[stage] = seconds.get(stage, 0.0) + taken
    peaks = [peak for peak in (before.memory_peak, found.memory_peak) if peak is not None]
    found = replace(found, seconds=seconds, memory_peak=max(peaks, default=None))
    if quality is None:
        found = replace(found, quality=before.quality, answers=before.answers)
    return found


def ask_both(finished: FinishedRun) -> Answers:
    """Have the original and the result answer one prompt; a failure is told, and stops nothing."""
    prompt = QUESTION if finished.is_chat else BEGINNING
    try:
        needed, memory = FLOAT * parameter_count(open_source(finished.original)), machine_bytes()
        if memory is not None and needed > ROOM * memory:
            return Answers(
                why_none=f"the original takes {show_size(needed)} of memory to write, and this "
                f"machine has {show_size(memory)}"
            )
        original = answer(finished.original, prompt, most_tokens=MOST_TOKENS)
        quantized = answer(finished.result, prompt, most_tokens=MOST_TOKENS)
    except (EdgeqError, MemoryError) as error:
        return Answers(why_none=str(error) or "memory ran out")
    return Answers(({"prompt": prompt, "original": original, "quantized": quantized},))
