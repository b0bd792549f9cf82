"""Judge and print what `benchmarks.llama_cpp_types` measured.

A row has side, kind, quality, bits_per_weight, bytes, kl, perplexity, top1_agreement, and of
budgets predicted_kl.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

LLAMA, EDGEQ, BUDGET = "llama.cpp", "edgeq", "budget"
LIMITS: Mapping[str, float] = {
    "Q3_K": 0.45,
    "Q2_K": 0.6,
    "IQ4_XS": 0.6,
    "IQ4_NL": 0.6,
    "Q4_K": 0.7,
}
"""By type: the largest ratio of edgeq's KL to llama.cpp's at the same bytes."""
CURVE = (2.5, 5.0)  # bits per weight: where the budget must be the nearest
LEAST_CORRELATION = 0.9
PAIRS = ("type", "quality", "bits", "KL", "llama.cpp's", "ratio", "at most", "top-1", "its")
POINTS = ("file", "bits", "KL", "predicted", "perplexity", "top-1")
Row = Mapping[str, Any]


def types_table(rows: Sequence[Row]) -> str:
    """Make the Markdown table of both sides' KL by type."""
    theirs = {row["kind"]: row for row in rows if row["side"] == LLAMA}
    lines = [as_line(PAIRS), as_line(["---"] * len(PAIRS))]
    for row in rows:
        if row["side"] == EDGEQ and row["kind"] in theirs:
            other = theirs[row["kind"]]
            limit = LIMITS.get(row["kind"])
            cells = [
                *(row["kind"], row["quality"], f"{row['bits_per_weight']:.3f}"),
                *(f"{row['kl']:.4f}", f"{other['kl']:.4f}", f"{ratio_of(row, other):.3f}"),
                "" if limit is None else f"{limit:g}",
                *(f"{each['top1_agreement']:.1%}" for each in (row, other)),
            ]
            lines.append(as_line(cells))
    return "\n".join(lines)


def too_far(rows: Sequence[Row]) -> list[str]:
    """Name the types whose ratio is above the limit."""
    theirs = {row["kind"]: row for row in rows if row["side"] == LLAMA}
    return [
        f"{row['kind']} ({row['quality']}): ratio {ratio_of(row, theirs[row['kind']]):.3f}, "
        f"limit {LIMITS[row['kind']]:g}"
        for row in rows
        if row["side"] == EDGEQ
        and row["kind"] in LIMITS
        and row["kind"] in theirs
        and ratio_of(row, theirs[row["kind"]]) > LIMITS[row["kind"]]
    ]


def ratio_of(row: Row, other: Row) -> float:
    return float(row["kl"] / other["kl"])


def curve_table(rows: Sequence[Row]) -> str:
    """Make the Markdown table of all files, the smallest first."""
    lines = [as_line(POINTS), as_line(["---"] * len(POINTS))]
    for row in sorted(rows, key=lambda row: (row["bits_per_weight"], row["side"])):
        predicted = row.get("predicted_kl")
        cells = [
            " ".join(row[part] for part in ("side", "kind", "quality") if row[part]),
            *(f"{row['bits_per_weight']:.3f}", f"{row['kl']:.4f}"),
            "" if predicted is None else f"{predicted:.4f}",
            *(f"{row['perplexity']:.2f}", f"{row['top1_agreement']:.1%}"),
        ]
        lines.append(as_line(cells))
    return "\n".join(lines)


def nearer(rows: Sequence[Row]) -> list[str]:
    """Name what is nearer to the original than every budget of at most its size.

    A budget is judged against files of its own preset, and llama.cpp's.
    """
    found = []
    for quality in sorted({row["quality"] for row in rows if row["side"] == BUDGET}):
        budgets = [row for row in rows if row["side"] == BUDGET and row["quality"] == quality]
        for row in rows:
            judged = row["side"] == LLAMA or (row["side"] == EDGEQ and row["quality"] == quality)
            fits = [each for each in budgets if each["bytes"] <= row["bytes"]]
            within = CURVE[0] <= row["bits_per_weight"] <= CURVE[1]
            if judged and within and fits and min(each["kl"] for each in fits) >= row["kl"]:
                best = min(fits, key=lambda each: float(each["kl"]))
                found.append(
                    f"{row['side']} {row['kind']}: KL {row['kl']:.4f} at "
                    f"{row['bits_per_weight']:.3f} bits, {quality} budget {best['kl']:.4f} at "
                    f"{best['bits_per_weight']:.3f}"
                )
    return found


def correlation(rows: Sequence[Row]) -> float | None:
    """Compare the order of predicted and measured KL of all budgets; None for fewer than three."""
    pairs = [
        (row["predicted_kl"], row["kl"]) for row in rows if row.get("predicted_kl") is not None
    ]
    if len(pairs) < 3:  # two are always in order or in reverse
        return None
    predicted, measured = (ranks(np.array(values)) for values in zip(*pairs, strict=True))
    return float(np.corrcoef(predicted, measured)[0, 1])


def ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rank numbers from 1; equal ones share the mean of their ranks."""
    below = (values[:, None] > values).sum(axis=1)
    equal = (values[:, None] == values).sum(axis=1)
    return below + (equal + 1) / 2


def as_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
