"""Write report.html of one run: what it made, what that lost, where, and how it was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.storage import explaining, write_bytes
from edgeq.pages import shown
from edgeq.pages.budget import budget_chart, spent_table
from edgeq.pages.depth import error_chart, grid_map, stage_rows, strength_chart
from edgeq.pages.places import page_of
from edgeq.pages.quality import (
    Fact,
    measured_how,
    position_chart,
    quality_facts,
    share_changed,
    tasks_table,
    texts_table,
    verdict_of,
    windows_chart,
    worst_tokens,
)
from edgeq.pages.run_data import (
    RunData,
    dense_table,
    experts_table,
    gather,
    layers_table,
    measure_command,
    more_bits,
    odd_layers,
    run_advice,
    run_notes,
    settings_table,
    tensors_table,
    texts_used,
    tokens_solved_on,
)
from edgeq.pages.template import render
from edgeq.pages.tuning import tuning_chart, tuning_facts
from edgeq.run.allocation import gain_words

Bars = Sequence[tuple[str, float, str]]
"""Names with a number, and that as text."""


def write_run_page(checkpoint: Checkpoint) -> Path:
    """Write the page of a run into its checkpoint, over the one that edgeq wrote before.

    Raises: BadInput for a damaged report, and where a file of somebody else has the page's name.
    """
    path = page_of(checkpoint)
    page = run_page(checkpoint)
    with explaining(path):
        write_bytes(path, page)
    return path


def run_page(checkpoint: Checkpoint) -> bytes:
    """Make the page of a run.

    Raises: BadInput for a damaged report or damaged measurements.
    """
    run = gather(checkpoint, checkpoint.path.resolve().name)
    layers, budget, quality = run.report.layers, run.report.budget, run.quality
    tuning = run.report.tuning
    measured = {run.name: quality}
    charts = [
        position_chart(measured),
        windows_chart(quality),
        None if budget is None else budget_chart(budget),
        None if tuning is None else tuning_chart(tuning),
        error_chart(layers),
        strength_chart(layers),
    ]
    return render(
        "run.html",
        charts,
        run=run,
        measure=measure_command(run),
        facts=facts(run),
        lead=lead(run),
        quality=quality,
        how_measured=measured_how(quality),
        texts=texts_table(measured),
        tasks=tasks_table(measured),
        worst=worst_tokens(quality),
        answers=run.answers,
        budget_lines=[] if budget is None else budget_words(budget),
        spent=None if budget is None else spent_table(budget),
        tuning=[] if tuning is None else tuning_facts(tuning),
        stages=stage_rows(layers),
        layers=layers_table(layers),
        more_bits=more_bits(layers, in_list=budget is not None),
        map=grid_map(layers),
        tensors=tensors_table(checkpoint),
        sizes=[(name, size, shown.size(size)) for name, size in run.sizes.items()],
        seconds=time_rows(run.measured.seconds),
        total=shown.seconds(sum(run.measured.seconds.values())),
        memory=run.measured.memory_peak,
        dense=dense_table(run.report),
        odd=odd_layers(run),
        experts=experts_table(run.report),
        notes=run_notes(run),
        advice=run_advice(run),
        settings=settings_table(checkpoint),
        calibration=texts_used(checkpoint),
        solved_on=tokens_solved_on(checkpoint),
    )


def facts(run: RunData) -> list[Fact]:
    """List the numbers that stand large: size, bits, and quality where it was measured."""
    found = [Fact("Size", shown.size(run.result_bytes), was(run.sizes))]
    if run.bits is not None:
        layers = run.report.bits_per_weight.get("linear layers")
        below = "" if layers is None else f"{layers:.2f} in linear layers"
        found.append(Fact("Bits per weight", f"{run.bits:.2f}", below))
    return [*found, *quality_facts(run.quality)]


def was(sizes: Mapping[str, int]) -> str:
    """Say how large the original is on disk, and at 16 bits where that is another size."""
    stored, whole = sizes.get("original"), sizes.get("original at 16 bits")
    known = [] if whole is None or whole == stored else [f"{shown.size(whole)} at 16 bits"]
    if stored is not None:
        known.insert(0, shown.size(stored))
    return f"was {', '.join(known)}" if known else ""


def lead(run: RunData) -> list[str]:
    """Say in plain words what the run made and what that lost."""
    before, after = run.original_bytes, run.result_bytes
    smaller = f", {shown.digits(before / after)} times smaller" if 0 < after < before else ""
    lines = [f"{run.model} takes {shown.size(after)} instead of {shown.size(before)}{smaller}."]
    said = (verdict_of(run.quality, run.model), share_changed(run.quality))
    lines += [f"{each}." for each in said if each]
    return lines


def budget_words(budget: Mapping[str, Any]) -> list[str]:
    """Say how a budget was spent.

    Raises: BadInput for a budget that is damaged.
    """
    try:
        return gain_words(budget)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"report.json: its budget cannot be read ({type(error).__name__}: {error}); "
            "it is damaged, make the directory again"
        ) from error


def time_rows(seconds: Mapping[str, float]) -> Bars:
    """List stages with their time, the longest first."""
    longest = sorted(seconds.items(), key=lambda stage: -stage[1])
    return [(name, taken, shown.seconds(taken)) for name, taken in longest]
