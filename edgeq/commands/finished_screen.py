"""What people see when a run is done: how good the result is, how large, and how to use it.

The rest, which report.html shows too, comes with --verbose.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from edgeq.commands.evaluation_screen import show_measurement
from edgeq.commands.plain_text import visible_line
from edgeq.commands.screen import (
    MEGABYTE,
    facts_table,
    print_line,
    run_commands,
)
from edgeq.commands.typed import command_words
from edgeq.measuring.anchors import verdict
from edgeq.registry import find_format
from edgeq.run.allocation import best_uniform, curve_words, gain_words
from edgeq.run.finished import FinishedRun
from edgeq.run.tuning_report import TuningReport
from edgeq.words import show_counts

MOST_ADVICE = 3  # lines; all of it is in --verbose and report.html
MOST_APPS = 2  # that run the export; its README.md has all of them
MOST_LETTERS = 138  # of an answer: two lines of 80 columns
MOST_NOTES = 10  # with --verbose
LEAST_SHOWN = 0.5  # seconds of a stage: less would be written as 0
LESS_THAN_16 = 0.9  # of the size at 16 bits: the original was quantized before
BEGINNING = "Once upon a time"


def show_finished(console: Console, finished: FinishedRun, *, verbose: bool = False) -> None:
    """Print how good a run's result is, what it is and how to run it, and all else if asked for."""
    console.print(f"{visible_line(finished.model)}: {how_good(finished)}", highlight=False)
    console.print()
    table = facts_table()
    table.add_row("size", size_row(finished))
    if finished.report.budget is not None:
        table.add_row("budget", budget_row(finished.report.budget))
    if finished.report.tuning is not None:
        table.add_row("tuning", finished.report.tuning.line())
    for label, text in answer_rows(finished):
        table.add_row(label, text)
    for name, path in finished.exports.items():
        table.add_row(name, path)
    if not finished.exports:
        table.add_row("checkpoint", str(finished.output))
    if finished.page is not None:
        table.add_row("report", str(finished.page))
    for note in finished.advice[:MOST_ADVICE]:
        table.add_row("note", note)
    console.print(table, highlight=False, soft_wrap=not console.is_terminal)
    console.print()
    for when, command in next_commands(finished):
        print_line(console, f"{when}: {command}")
    if verbose:
        console.print()
        show_details(console, finished)
    else:
        left = len(finished.advice) - MOST_ADVICE
        more = f"{left} more notes, " if left > 0 else ""
        print_line(console, f"{more}errors by layer and times: the report, or --verbose")


def how_good(finished: FinishedRun) -> str:
    """Say how close the result is to the original, or that nobody measured it."""
    quality = finished.quality
    if quality is None or quality["kl"] is None:
        return "done; how close it is to the original has not been measured"
    said = verdict(quality["kl"], finished.model)
    return said[:1].lower() + said[1:] if said[1:2].islower() else said


def size_row(finished: FinishedRun) -> str:
    """Say how large the result is, and how large the original was as it lies on disk."""
    sizes = finished.sizes
    name = next(iter(finished.exports), "checkpoint")
    original, whole = sizes["original"], sizes["original at 16 bits"]
    more = f" ({megabytes(whole)} at 16 bits)" if original < LESS_THAN_16 * whole else ""
    # of the file that is shown: formats round sizes up, and add headers and tokenizers
    bits = finished.report.bits_per_weight["model"]
    if finished.exports and whole:
        bits = 8 * sizes[name] / (whole / 2)
    row = f"{megabytes(original)}{more} before, {megabytes(sizes[name])} now"
    return f"{row}; {bits:.2f} bits per weight"


def budget_row(budget: Mapping[str, Any]) -> str:
    """Say in a line what a budget predicts, and what one type for all of that size would."""
    said = f"KL {budget['predicted_kl']:.3g} predicted"
    best = best_uniform(budget)
    if best is None:
        return f"{said}; no one type for all layers keeps within it"
    return f"{said}; {best['type']} for all layers: {best['predicted_kl']:.3g}"


def megabytes(size: int) -> str:
    """Write bytes in MB, small ones with one digit more."""
    return f"{size / MEGABYTE:.0f} MB" if size >= 10 * MEGABYTE else f"{size / MEGABYTE:.1f} MB"


def answer_rows(finished: FinishedRun) -> Iterator[tuple[str, str]]:
    """Give a prompt with what the original and the result wrote behind it, or why they did not."""
    if finished.unanswered:
        yield "no answers", finished.unanswered
    for answers in finished.answers:
        yield "asked", answers["prompt"]
        if answers["original"] == answers["quantized"]:
            yield "both write", shortened(answers["original"])
        else:
            yield "original", shortened(answers["original"])
            yield "quantized", shortened(answers["quantized"])


def shortened(text: str) -> str:
    """Write a text on one line of at most so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS].rstrip()} ..."


def next_commands(finished: FinishedRun) -> Iterator[tuple[str, str]]:
    """Give the commands to go on with, each with what it is for."""
    if finished.quality is None:
        words = ("evaluate", finished.result, "--reference", finished.original)
        yield "measure it", command_words(*words)
    if finished.is_chat:
        yield "talk to it", command_words("chat", finished.result)
    else:
        yield "try it", command_words("generate", finished.result, BEGINNING)
    running = [line for name, path in finished.exports.items() for line in run_commands(name, path)]
    yield from running[:MOST_APPS]
    if finished.next_format is not None:
        words = ("export", str(finished.output), "--format", finished.next_format)
        yield f"for {find_format(finished.next_format).read_by}", command_words(*words)


def show_details(console: Console, finished: FinishedRun) -> None:
    """Print sizes, errors, times and all that was not done as usual."""
    table = facts_table()
    table.add_row("written to", str(finished.output))
    table.add_row("size", sizes_row(finished.sizes))
    table.add_row("grids", show_counts(finished.grids))
    bits = finished.report.bits_per_weight
    table.add_row("bits per weight", ", ".join(f"{part} {bits[part]:.2f}" for part in bits))
    if finished.report.budget is not None:
        table.add_row("budget", "\n".join(gain_words(finished.report.budget)))
        table.add_row("predicted KL", "\n".join(curve_words(finished.report.budget)))
    if finished.report.tuning is not None:
        table.add_row("tuned", "\n".join(tuning_lines(finished.report.tuning)))
    experts = finished.report.experts
    if experts:
        reached = [expert.tokens for expert in experts]
        table.add_row(
            "experts", f"{len(experts)}, reached by {min(reached)} to {max(reached)} tokens"
        )
    worst = "\n".join(f"{layer.final_loss:7.2%}  {layer.name}" for layer in finished.worst_layers)
    if worst:
        unit = "in % of the layer's squared output on the calibration text"
        table.add_row("largest errors", f"{unit}\n{worst}")
    table.add_row("seconds", seconds_row(finished))
    for note in finished.notes[:MOST_NOTES]:
        table.add_row("note", note)
    if len(finished.notes) > MOST_NOTES:
        table.add_row("note", f"... and {len(finished.notes) - MOST_NOTES} more, see report.json")
    console.print(table, highlight=False, soft_wrap=True)
    if finished.quality is not None:
        show_measurement(console, finished.quality)


def tuning_lines(tuning: TuningReport) -> list[str]:
    """Say how a model was tuned: steps, what was free, precision, and texts."""
    texts = ", ".join(f"{text['name']} {text['samples']}" for text in tuning.texts)
    kept = f"step {tuning.kept_step} of {tuning.steps} is kept"
    return [
        f"{kept}, chosen on {tuning.held_out_tokens:,} tokens that were held out",
        f"{', '.join(tuning.free)} were free, at rate {tuning.rate:g}",
        f"moved: {tuning.moved()}",
        f"{tuning.passes} passes in {tuning.precision}, {tuning.way}",
        f"sequences of each text: {texts}",
    ]


def seconds_row(finished: FinishedRun) -> str:
    """Write the time of a run with those stages that took some of it."""
    noticed = [(stage, taken) for stage, taken in finished.seconds.items() if taken >= LEAST_SHOWN]
    if not noticed:
        return "less than 1"
    stages = ", ".join(f"{stage} {taken:.0f}" for stage, taken in noticed)
    return f"{finished.total_seconds:.0f} ({stages})"


def sizes_row(sizes: Mapping[str, int]) -> str:
    """Write all sizes."""
    return ", ".join(f"{what} {size / MEGABYTE:.1f} MB" for what, size in sizes.items())
