"""`edgeq evaluate`: how far one or more targets predict from the original, in their runtimes.

What targets are is `edgeq.measuring.targets`, the arithmetic `edgeq.measuring.quality` and
`comparing`. The original predicts each window once, for all targets.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.calibration.windows import load_tokenizer
from edgeq.files.ownership import MANIFEST_FILE
from edgeq.measuring.comparing import Measured, pairs_of, quality_of
from edgeq.measuring.foreign import Exported
from edgeq.measuring.manifest import check_as_written
from edgeq.measuring.quality import WindowQuality, measure_window, predictions
from edgeq.measuring.references import Reference, check_reference, opened_reference
from edgeq.measuring.same_tokens import check_same_tokens
from edgeq.measuring.targets import (
    bytes_of_export,
    check_runtime,
    choose_runtime,
    described_export,
    find_export,
    forward_logits,
    in_runtime,
    open_model,
    open_target,
    runtime_of,
)
from edgeq.measuring.task_runs import TaskRuns, check_named, read_tasks
from edgeq.measuring.texts import (
    WINDOWS,
    Windows,
    chosen_texts,
    cut_windows,
    length_of_windows,
)
from edgeq.measuring.watching import Count, Progress
from edgeq.protocols import LogitSource, ModelSource, TextModel
from edgeq.registry import ACTIVATIONS, LOGITS, choose_backend, load

REFERENCE = "the original"  # in progress
BITS = 8  # of a byte


@dataclass(frozen=True, slots=True)
class Planned:
    """A target that is there and can be run; nothing of it is loaded."""

    name: str
    exported: Exported | None
    runtime: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A target that predicts. source is None where only its runtime reads it."""

    planned: Planned
    source: ModelSource | None
    logits: LogitSource
    reads: TextModel


def evaluate(  # noqa: PLR0913 (one argument per option)
    target: str,
    *,
    reference: str | None,
    text: str | Sequence[str] | None = None,
    windows: int = WINDOWS,
    sequence_length: int | None = None,
    runtime: str | None = None,
    backend: str = "auto",
    tasks: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint, model or exported file, and return its quality as plain data.

    An exported file runs in the runtime it is for, as users run it, unless another one is named.
    Everything else runs in the framework of the backend. The reference is computed by the library
    of its own format, which the result names.
    """
    found = evaluate_all(
        [target],
        reference=reference,
        text=text,
        windows=windows,
        sequence_length=sequence_length,
        runtime=runtime,
        backend=backend,
        tasks=tasks,
        progress=progress,
    )
    only: dict[str, Any] = found["targets"][0]
    return only


def evaluate_all(  # noqa: PLR0913 (one argument per option)
    targets: Sequence[str],
    *,
    reference: str | None,
    text: str | Sequence[str] | None = None,
    windows: int = WINDOWS,
    sequence_length: int | None = None,
    runtime: str | None = None,
    backend: str = "auto",
    tasks: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure several targets on the same windows, and compare every two of them.

    Everything that can be wrong with targets, texts and tasks is refused before the first window.

    Raises: BadInput, UnsupportedModel, NotInstalled.
    """
    backend = choose_backend(backend)
    texts = chosen_texts(text)
    asked = read_tasks(tasks)
    planned = [plan_target(name, runtime, backend) for name in targets]
    original = open_model(reference) if reference is not None else None
    if original is not None:
        check_reference(original)
    check_named(asked)
    sources = [open_target(each.name, each.exported, each.runtime, original) for each in planned]
    known = [each for each in (original, *sources) if each is not None]
    described: TextModel = known[0] if known else described_export(targets[0])
    cut = cut_windows(known or [described], texts, windows=windows, sequence_length=sequence_length)
    with ExitStack() as stack:
        opened = [
            open_planned(each, source, backend)
            for each, source in zip(planned, sources, strict=True)
        ]
        readers = [described, *known, *(each.reads for each in opened)]
        if length_of_windows(readers, sequence_length) != cut.ids.shape[1]:
            cut = cut_windows(readers, texts, windows=windows, sequence_length=sequence_length)
        runs = TaskRuns(asked, described, readers)
        unknown = check_same_tokens(
            cut.ids, described, {each.planned.name: (each.reads, each.logits) for each in opened}
        )
        against = None
        if original is not None:
            against = stack.enter_context(opened_reference(original, backend))
        models = len(opened) + (against is not None)
        count = Count(models * (len(cut.ids) + runs.windows), progress)
        measured = measure_all(cut, opened, against, count)
        scored = runs.run(
            {each.planned.name: each.logits for each in opened}, against, count, REFERENCE
        )
    return laid_out(opened, measured, cut, described, against, original, scored, unknown)


def plan_target(name: str, runtime: str | None, backend: str) -> Planned:
    """Find what a target is and what runs it, and check that both are as they should be.

    Raises: BadInput, NotInstalled.
    """
    exported, path = find_export(name), Path(name).expanduser()
    chosen = choose_runtime(name, exported, runtime, backend)
    check_runtime(chosen)
    if exported is not None and (path.is_file() or (path / MANIFEST_FILE).is_file()):
        check_as_written(path)
    return Planned(name, exported, chosen)


def open_planned(planned: Planned, source: ModelSource | None, backend: str) -> Opened:
    """Open what predicts: a runtime over files, or a framework over tensors."""
    if source is not None and planned.runtime in ACTIVATIONS:
        return Opened(planned, source, forward_logits(source, planned.runtime, backend), source)
    assert planned.exported is not None
    make = load(LOGITS[planned.runtime], f"runtime {planned.runtime!r}")
    logits: LogitSource = make(planned.exported.path)
    return Opened(planned, source, logits, in_runtime(planned.exported, logits))


def measure_all(
    windows: Windows, opened: Sequence[Opened], against: Reference | None, count: Count
) -> list[Measured]:
    """Measure all targets window by window: the logits of two models at a time are in memory."""
    expected = None if against is None else count.logits(REFERENCE, against, windows.ids)
    running = [count.logits(each.planned.name, each.logits, windows.ids) for each in opened]
    measured: list[list[WindowQuality]] = [[] for _ in opened]
    for ids in windows.ids:
        reference = None if expected is None else predictions(next(expected), "reference")
        for each, logits, found in zip(opened, running, measured, strict=True):
            whose = "target" if len(opened) == 1 else f"target {each.planned.name!r}"
            found.append(measure_window(ids, predictions(next(logits), whose), reference))
    return list(measured)


def laid_out(
    opened: Sequence[Opened],
    measured: Sequence[Measured],
    windows: Windows,
    described: TextModel,
    against: Reference | None,
    original: ModelSource | None,
    scored: Sequence[list[dict[str, Any]]],
    unknown: Sequence[str],
) -> dict[str, Any]:
    """Lay out the result of several targets as plain data."""
    tokenizer = load_tokenizer(described)
    library = None if against is None else against.library
    targets = []
    for each, found, tasks in zip(opened, measured, scored, strict=True):
        size, bits = size_of(each, original)
        targets.append(
            {
                "target": each.planned.name,
                "runtime": each.planned.runtime,
                "reference": library,
                **quality_of(found, windows, tokenizer),
                "tasks": tasks,
                "bytes": size,
                "bits_per_weight": bits,
                "notes": list(notes_of(each, unknown)),
            }
        )
    names = [each.planned.name for each in opened]
    return {
        "reference": library,
        "targets": targets,
        "pairs": pairs_of(names, measured, windows.texts),
    }


def size_of(target: Opened, original: ModelSource | None) -> tuple[int, float | None]:
    """Count the bytes of a target's files, and the bits per weight of the model they hold."""
    exported = target.planned.exported
    counted = original or target.source
    if exported is not None:
        size = bytes_of_export(exported)
    else:
        assert target.source is not None
        size = target.source.stored_bytes()
    if counted is None:
        return size, None
    weights = sum(math.prod(counted.shape(name)) for name in counted.tensor_names())
    return size, BITS * size / weights


def notes_of(target: Opened, unknown: Sequence[str]) -> Iterator[str]:
    """Say what could not be checked of a target."""
    if target.planned.name in unknown:
        yield (
            "it brings no tokenizer.json, so that only its context and vocabulary were compared "
            "with the original's"
        )


def check_evaluation(source: ModelSource, formats: Sequence[str], backend: str) -> None:
    """Check before a run that its result, the first export, can be evaluated at its end.

    Raises: NotInstalled, BadInput.
    """
    check_runtime(runtime_of(formats, backend))
    check_reference(source)
    cut_windows([source], chosen_texts(None))
