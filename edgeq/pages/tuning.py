"""Draw how a solved model was tuned: the loss of each step, and the KL on windows held out."""

from collections.abc import Mapping

from edgeq.pages import shown
from edgeq.pages.charts import Axis, Chart, Series, Table, View, shortened, spans_decades
from edgeq.pages.quality import KL_NAME
from edgeq.run.tuning_report import TuningReport

Row = Mapping[str, float | None]


def tuning_chart(tuning: TuningReport) -> Chart | None:
    """Draw KL divergence by step; None where no step was taken."""
    losses = points(tuning, "loss")
    held_out = points(tuning, "held_out")
    if not losses:
        return None
    series = [Series("windows of the step", losses), Series("windows held out", held_out)]
    if tuning.is_gain:
        kept = (tuning.kept_step, tuning.after, None, None, "kept")
        series.append(Series("kept", [kept], "labels"))
    values = [y for _, y in (*losses, *held_out)]
    return Chart(
        "tuning",
        "KL divergence by step of tuning",
        "Lower is closer to the original. Windows held out are not tuned on and decide which step "
        "is kept.",
        Axis("step", "integer", least=0),
        Axis(KL_NAME, "number", log=spans_decades(values)),
        [View("", series)],
        steps_table(tuning),
    )


def points(tuning: TuningReport, key: str) -> list[tuple[float, float]]:
    """List the steps at which something was measured, with its value."""
    found = []
    for row in tuning.curve:
        step, value = row["step"], row[key]
        if step is not None and value is not None:
            found.append((step, value))
    return found


def steps_table(tuning: TuningReport) -> Table:
    """Lay out the curve."""
    rows = [
        [f"{row['step']:.0f}", shown.nats(row["loss"]), shown.nats(row["held_out"])]
        for row in tuning.curve
    ]
    return shortened(["step", "KL of its windows", "KL of windows held out"], rows, "steps")


def tuning_facts(tuning: TuningReport) -> list[str]:
    """Say in sentences how a model was tuned."""
    texts = ", ".join(f"{text['name']} ({text['samples']:,})" for text in tuning.texts)
    line = tuning.line()
    found = [
        f"{line[:1].upper()}{line[1:]}.",
        f"Step {tuning.kept_step} of {tuning.steps} was kept, chosen on "
        f"{tuning.held_out_tokens:,} tokens that were held out.",
        f"Free were {', '.join(tuning.free)}; moved were {tuning.moved()}. Passes ran in "
        f"{tuning.precision}, at a rate of {tuning.rate:g}.",
        f"Sequences by text: {texts}.",
    ]
    if tuning.earlier:
        found.append(f"It had been tuned {len(tuning.earlier)} times before.")
    return found
