"""Lay out what benchmarks measured beside other tools: the tables of README and docs.

`scripts/document` puts them there. Figures come from benchmarks/results alone; a table whose file
is not there is left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ANCHORS = "anchors.jsonl"
SMALL = "llama_cpp_types.jsonl"
TIMES = "whole_models.jsonl"
PRESETS = "quality-presets.jsonl"

LLAMA, EDGEQ, BUDGET = "llama.cpp", "edgeq", "budget"
"""Who made a file: llama.cpp's own quantizer, edgeq on one type or mix, edgeq within a budget."""
TYPES = {"Q2_K": "Q2_K_M"}
"""What edgeq calls a mix of llama.cpp's, where that is another name."""
TEXTS = ("speeches", "factbook", "manual")
GRIDS = {
    (4, "symmetric"): "4 bits symmetric",
    (3, "symmetric"): "3 bits symmetric",
    (3, "offset"): "3 bits with offsets",
    (2, "symmetric"): "2 bits symmetric",
    (2, "offset"): "2 bits with offsets",
}
USES = {
    "Q8_0": "as good as 16 bits, where there is room",
    "Q6_K": "next to no loss",
    "Q5_K": "quality first",
    "Q5_K_M": "quality first",
    "Q4_K": "the usual choice",
    "Q4_K_M": "the usual choice",
    "IQ4_NL": "widths that are no multiple of 256",
    "IQ4_XS": "a little smaller than the usual choice",
    "Q4_0": "every runtime, and fast on Arm CPUs",
    "Q3_K": "where 4 bits do not fit",
    "Q3_K_M": "where 4 bits do not fit",
    "Q2_K": "the last resort: a smaller model may be better",
}
"""What a type is good for, in the order of the table; a mix has the words of its type."""


def results(name: str) -> list[dict[str, Any]]:
    """Read the rows of a file of results; none where it is not there."""
    path = RESULTS / name
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay a table out in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(kl: float) -> str:
    """Write a KL divergence to three significant digits, never in powers of ten."""
    text = f"{kl:.3g}"
    return f"{kl:.5f}" if "e" in text else text


def compared(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any], Any]]:
    """Pair what llama.cpp and edgeq made of one type, the largest first.

    A type that edgeq was not measured on has None.
    """
    own = {row["kind"]: row for row in rows if row["side"] == EDGEQ}
    theirs = [row for row in rows if row["side"] == LLAMA]
    theirs.sort(key=lambda row: -row["bits_per_weight"])
    return [(row["kind"], row, own.get(row["kind"])) for row in theirs]


def of_types() -> list[dict[str, Any]]:
    """Choose the rows that README shows: those of the largest model that both tools quantized."""
    rows = [row for row in results(ANCHORS) if row["side"] in (LLAMA, EDGEQ)]
    both = {row["model"] for row in rows if row["side"] == EDGEQ}
    rows = [row for row in rows if row["model"] in both]
    if not rows:
        return [row for row in results(SMALL) if not row["curve"]]
    largest = max(rows, key=_size)["model"]
    return [row for row in rows if row["model"] == largest]


def of_curve() -> list[dict[str, Any]]:
    """Choose the rows of the picture: those with budgets too, so of the small model."""
    return [row for row in results(SMALL) if row["curve"]]


def model_words(name: str) -> str:
    """Name a model for readers."""
    small = "a Llama of 4 million weights, trained for this"
    return {"llama256": small, "a Llama of 4 M weights": small}.get(name, name)


def types_table() -> str:
    """Say of each type its size, its quality beside llama.cpp's, and what it is good for."""
    rows = []
    for kind, theirs, own in compared(of_types()):
        megabytes = f"{theirs['bytes'] / 1e6:.{0 if theirs['bytes'] >= 1e7 else 2}f} MB"
        size = (f"{theirs['bits_per_weight']:.2f}", megabytes)
        quality = (shown(theirs["kl"]), shown(own["kl"]) if own else "")
        called = f", `{TYPES[kind]}` of edgeq" if theirs["curve"] and kind in TYPES else ""
        rows.append((f"`{kind}`{called}", *size, *quality, USES[kind]))
    header = ("type", "bits per weight", "tensors", "KL llama.cpp", "KL edgeq", "for what")
    model = model_words(of_types()[0]["model"])
    return f"The model is {model}.\n\n{markdown(header, rows)}"


def small_table() -> str:
    """Compare files of equal bytes, with one type in every tensor, of the small Llama."""
    rows = []
    for kind, theirs, own in compared([row for row in results(SMALL) if not row["curve"]]):
        assert own is not None and own["bytes"] == theirs["bytes"]
        ratio = f"{own['kl'] / theirs['kl']:.2f}"
        cells = (f"{theirs['bits_per_weight']:.2f}", shown(theirs["kl"]), shown(own["kl"]), ratio)
        rows.append((f"`{kind}`", *cells))
    header = ("type of all linear layers", "bits per weight")
    return markdown((*header, "KL llama.cpp", "KL edgeq", "ratio"), rows)


def mixes_table() -> str:
    """Compare llama.cpp's mixes with budgets of their size, of the small Llama."""
    rows = [row for row in results(SMALL) if row["curve"]]
    budgets = [row for row in rows if row["side"] == BUDGET]
    lines = []
    for theirs in sorted((row for row in rows if row["side"] == LLAMA), key=_size):
        own = max((row for row in budgets if row["bytes"] <= theirs["bytes"]), key=_size)
        ratio = f"{own['kl'] / theirs['kl']:.2f}"
        cells = (f"{theirs['bits_per_weight']:.2f}", shown(theirs["kl"]), shown(own["kl"]), ratio)
        lines.append((f"`{theirs['kind']}`", *cells))
    header = ("llama.cpp's mix", "bits per weight")
    return markdown((*header, "KL llama.cpp", "KL edgeq, budget of that size", "ratio"), lines)


def _size(row: Mapping[str, Any]) -> int:
    return int(row["bytes"])


def predictions_table() -> str:
    """Say what budgets predicted and what was measured, of the small Llama."""
    budgets = [row for row in results(SMALL) if row["side"] == BUDGET]
    rows = [
        (f"{row['bits_per_weight']:.2f}", shown(row["predicted_kl"]), shown(row["kl"]))
        for row in sorted(budgets, key=_size)
    ]
    return markdown(("bits per weight", "predicted KL", "measured KL"), rows)


def presets_table() -> str:
    """Compare presets with plain GPTQ at equal bits, on three texts; ratios are to GPTQ."""
    rows: list[tuple[str, ...]] = []
    reference: dict[tuple[int, str], dict[str, Any]] = {}
    order = list(GRIDS)
    for row in sorted(results(PRESETS), key=lambda row: order.index((row["bits"], row["zeros"]))):
        grid = (row["bits"], row["zeros"])
        if row["row"].startswith("GPTQ"):
            reference[grid] = row
        cells = []
        for text in TEXTS:
            kl = row["quality"][text]["kl"]
            base = reference.get(grid)
            ratio = f" ({kl / base['quality'][text]['kl']:.2f})" if base else ""
            cells.append(f"{shown(kl)}{ratio}")
        solve = row["row"] if row["row"].startswith("GPTQ") else _as_code(row["row"])
        bits = f"{row['bits_per_weight']:.2f}"
        rows.append((GRIDS[grid], solve, bits, *cells, f"{row['cpu_seconds']:.0f}"))
    header = ("grid", "solve", "bits per weight", *(f"KL {text}" for text in TEXTS), "CPU s")
    return markdown(header, rows)


def _as_code(option: str) -> str:
    head, comma, rest = option.partition(",")
    return f"`{head}`{comma}{rest}"


def times_table() -> str:
    """Say what models of 1B, 3B and 7B take; empty while nothing was measured."""
    rows = [
        (
            row["shape"],
            f"`{row['quality']}`",
            row["device"],
            duration(row["seconds_total"]),
            f"{row['memory_peak'] / 1e9:.1f} GB",
        )
        for row in results(TIMES)
    ]
    header = ("model", "`--quality`", "on", "time", "memory")
    return markdown(header, rows) if rows else ""


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
