"""Put several runs on one page: size against KL divergence, errors over each other, settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.storage import output_file
from edgeq.pages import shown
from edgeq.pages.budget import predicted_curve
from edgeq.pages.charts import Table
from edgeq.pages.depth import errors_of_runs, last_loss, mean_of
from edgeq.pages.names import names_of
from edgeq.pages.quality import position_chart, size_chart
from edgeq.pages.run_data import RunData, gather, measure_command, setting
from edgeq.pages.template import render

LONGEST_SETTING = 80  # characters: lists of overrides are long, and in recipe.toml


def write_runs_page(checkpoints: Sequence[Checkpoint], path: Path) -> Path:
    """Write a page of several runs.

    Raises: BadInput for damaged reports, and where the file cannot be written.
    """
    page = runs_page(checkpoints)
    with output_file(path) as file:
        file.write(page)
    return path


def runs_page(checkpoints: Sequence[Checkpoint]) -> bytes:
    """Make a page of several runs.

    Raises: BadInput for damaged reports or measurements.
    """
    places = [str(checkpoint.path.resolve()) for checkpoint in checkpoints]
    named = zip(checkpoints, names_of(places), strict=True)
    runs = [gather(checkpoint, name) for checkpoint, name in named]
    measured = {run.name: run.quality for run in runs}
    curves = [
        predicted_curve(run.report.budget, f"{run.name}: predicted")
        for run in runs
        if run.report.budget is not None
    ]
    charts = [
        size_chart([run.sized for run in runs], curves),
        position_chart(measured),
        errors_of_runs({run.name: run.report.layers for run in runs}),
    ]
    return render(
        "runs.html",
        charts,
        runs=runs,
        models=list(dict.fromkeys(run.model for run in runs)),
        mixed=len({run.checkpoint.fingerprint() for run in runs}) > 1,
        unmeasured={
            run.name: measure_command(run) for run in runs if run.quality.get("kl") is None
        },
        table=runs_table(runs),
        settings=differing_settings(runs),
        answers=answers_together(runs),
    )


def runs_table(runs: Sequence[RunData]) -> Table:
    """Lay out size and quality of each run."""
    rows = []
    for run in runs:
        quality, seconds = run.quality, sum(run.measured.seconds.values())
        rows.append(
            [
                run.name,
                run.model,
                shown.size(run.result_bytes),
                shown.NOTHING if run.bits is None else f"{run.bits:.2f}",
                shown.sure(quality, "kl", shown.nats),
                shown.sure(quality, "perplexity", shown.perplexity),
                shown.sure(quality, "top1_agreement", shown.percent),
                shown.percent(mean_of(run.report.layers, last_loss), 2),
                shown.seconds(seconds) if seconds else shown.NOTHING,
            ]
        )
    header = ["run", "model", "size", "bits per weight", "KL", "perplexity"]
    return Table([*header, "same top token", "mean error of layers", "time"], rows)


def differing_settings(runs: Sequence[RunData]) -> Table | None:
    """Lay out the settings in which runs differ; None where they are equal."""
    recipes: list[dict[str, Any]] = [run.checkpoint.head["recipe"] for run in runs]
    rows = []
    for name in dict.fromkeys(name for recipe in recipes for name in recipe):
        values = [setting(recipe.get(name)) for recipe in recipes]
        if len(set(values)) > 1:
            rows.append([name, *map(clipped, values)])
    return Table(["setting", *(run.name for run in runs)], rows) if rows else None


def clipped(text: str) -> str:
    """Cut the end of a long text."""
    return text if len(text) <= LONGEST_SETTING else f"{text[: LONGEST_SETTING - 1]}…"


def answers_together(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Gather what runs answered to equal prompts, with what the originals did."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for run in runs:
        for answer in run.answers:
            key = (answer["prompt"], answer["original"])
            found.setdefault(key, []).append((run.name, answer["quantized"]))
    return [
        {"prompt": prompt, "original": original, "others": others}
        for (prompt, original), others in found.items()
    ]
