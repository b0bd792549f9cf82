"""Draw how a budget was spent: the curve of sizes, one type for all layers, and the choice."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgeq.errors import BadInput
from edgeq.files.ownership import REPORT_FILE
from edgeq.pages import shown
from edgeq.pages.charts import Axis, Chart, Series, Table, View, shortened, spans_decades
from edgeq.pages.quality import KL_NAME

Budget = Mapping[str, Any]


def budget_chart(budget: Budget) -> Chart:
    """Draw predicted KL divergence against size, the choice, and what was measured.

    Raises: BadInput for a budget that is damaged.
    """
    try:
        best = [(row["bytes"], row["predicted_kl"]) for row in budget["curve"]]
        uniform = [
            (row["bytes"], row["predicted_kl"], None, None, row["type"])
            for row in budget["uniform"]
        ]
        chosen = (budget["bytes"], budget["predicted_kl"], None, None, "")
        measured = budget.get("measured")
        found = None if measured is None else (budget["bytes"], measured["kl"], None, None, "")
        points = [*best, *uniform, chosen, *([] if found is None else [found])]
        if not all(isinstance(point[0], int | float) and point[1] >= 0 for point in points):
            raise ValueError("sizes and divergences are numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{REPORT_FILE}: its budget cannot be read ({type(error).__name__}: {error}); "
            "it is damaged, make the directory again"
        ) from error
    series = [Series("best types by layer (predicted)", best)]
    if uniform:
        series.append(Series("one type for all layers (predicted)", uniform, "labels"))
    series.append(Series("chosen (predicted)", [chosen], "points"))
    if found is not None:
        series.append(Series("chosen (measured)", [found], "points"))
    return Chart(
        "budget",
        "Size against predicted KL divergence",
        "The curve is the least that types by layer are predicted to lose at each size.",
        Axis("size", "bytes"),
        Axis(KL_NAME, "number", log=spans_decades(point[1] for point in points)),
        [View("", series)],
        points_table(series),
    )


def predicted_curve(budget: Budget, name: str) -> Series:
    """Give the least predicted KL divergence by size as a series.

    Raises: BadInput for a budget that is damaged.
    """
    return Series(name, budget_chart(budget).views[0].series[0].points, dashed=True)


def points_table(series: Sequence[Series]) -> Table:
    """Lay out the points of a budget's chart."""
    rows = []
    for each in series:
        for x, y, *more in each.points:
            label = more[2] if len(more) > 2 else ""
            rows.append([each.name, str(label), shown.size(x), shown.nats(y)])
    return Table(["what", "type", "size", "KL"], rows)


def spent_table(budget: Budget) -> Table:
    """Lay out what each part costs, the most expensive in KL divergence first."""
    spent = budget.get("spent")
    rows = []
    try:
        parts = sorted((spent or {}).items(), key=lambda part: -part[1][1])
        rows = [[name, shown.size(size), shown.nats(kl)] for name, (size, kl) in parts]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BadInput(
            f"{REPORT_FILE}: what its budget was spent on cannot be read "
            f"({type(error).__name__}); it is damaged, make the directory again"
        ) from error
    return shortened(["part", "size", "predicted KL"], rows, "parts")
