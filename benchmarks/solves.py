"""List what `benchmarks.quality` solves: tables of settings, and the texts to measure on."""

import argparse
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics as pydoc_topics
from typing import Any

from edgeq.calibration.reading import read_text
from edgeq.measuring.texts import EVALUATION_TEXT
from edgeq.recipe import settings as table

Solve = dict[str, Any]
FACTBOOK = str(Path(__file__).parent / "data" / "factbook.txt")
PLAIN = table.defaults(table.PLAIN)
"""The settings of a solve whose row says nothing else."""
PRESETS: Mapping[str, Mapping[str, Any]] = {
    preset: {
        name: value
        for name, value in table.defaults(preset).items()
        if value != PLAIN[name] and name != "tune"
    }
    for preset in table.PRESETS
}
"""What each `--quality` sets of the solve beside PLAIN; `benchmarks.tuning` has the rest."""
COMMON = {"group_size": 64, "embedding_bits": 16, "samples": 64, "sequence_length": 512, "seed": 0}
GPTQ, STAGE_1 = "GPTQ, min-max scales", "GPTQ, stage 1"
INGREDIENTS: Mapping[str, Mapping[str, Any]] = {
    "round to nearest": {"solver": "rtn", "scales": "none", "propagation_strength": 0.0},
    GPTQ: {"scales": "none", "propagation_strength": 0.0},
    STAGE_1: {"scales": "first", "propagation_strength": 0.0},
    "QEP + GPTQ, stage 1": {"scales": "first"},
    "QEP + GPTQ, both stages": {"scales": "both"},
}
QUALITIES: Mapping[str, Mapping[str, Any]] = {
    f"--quality {name}": settings for name, settings in PRESETS.items()
}
GRIDS = ((3, "symmetric"), (2, "offset"), (4, "symmetric"))
# Strength and damping of the propagation.
SCAN = ((0.5, 1.0), (0.5, 0.1), (0.5, 0.01), (0.25, 1.0), (0.25, 0.01), (1.0, 1.0), (1.0, 0.01))
ORDERED = {"activation_order": True, "scale_weighting": "mean"}
BALANCED, BEST = PRESETS["balanced"], PRESETS["best"]
ANNEALED = {"anneal_rounds": 1, "anneal_steps": 100}
PLAIN_ORDER = {"activation_order": False, "scale_weighting": "diagonal"}


def speeches() -> str:
    return read_text(None, default=EVALUATION_TEXT)


def manual() -> str:
    """Read Python's own help on its language, of the interpreter that runs this."""
    return "\n\n".join(text for _, text in sorted(pydoc_topics.items()))


def code() -> str:
    """Read the source code of a module of the interpreter that runs this."""
    return inspect.getsource(argparse)


TEXTS: Mapping[str, tuple[Callable[[], str], int]] = {
    "speeches": (speeches, 64),
    "few speeches": (speeches, 12),
    "factbook": (lambda: read_text(FACTBOOK), 12),
    "manual": (manual, 12),
    "code": (code, 12),
}
"""By name: the text, and how many windows of 512 tokens of it."""
TUNING_TEXTS = ("factbook",)
"""Values of settings are scanned on this one alone."""


@dataclass(frozen=True, slots=True)
class Table:
    """Holds solves, the texts they are measured on, and the row that ratios are to."""

    solves: Sequence[Solve]
    texts: Sequence[str]
    baseline: str = GPTQ


def on_grid(bits: int, zeros: str, rows: Mapping[str, Mapping[str, Any]]) -> list[Solve]:
    return [
        {"row": row, "bits": bits, "zeros": zeros, **settings} for row, settings in rows.items()
    ]


def ingredients() -> Table:
    """Add ingredient after ingredient, on every grid."""
    solves = [solve for bits, zeros in GRIDS for solve in on_grid(bits, zeros, INGREDIENTS)]
    return Table(solves, ("speeches", "factbook"))


def defaults() -> Table:
    """Scan propagation strength and damping at 3 bits, and the target of the second stage."""
    refits = {
        "second stage, same target": {"propagation_damping": 1.0},
        "second stage, drift at 0.5": {"propagation_damping": 1.0, "refit_strength": 0.5},
        "second stage, drift at 1": {"propagation_damping": 1.0, "refit_strength": 1.0},
    }
    scan = {
        f"strength {strength:g}, damping {damping:g}": {
            "scales": "first",
            "propagation_strength": strength,
            "propagation_damping": damping,
        }
        for strength, damping in SCAN
    }
    return Table(on_grid(3, "symmetric", {**refits, **scan}), TUNING_TEXTS)


def presets() -> Table:
    """Solve by each --quality, with the solves that it is compared with."""
    plain = {GPTQ: INGREDIENTS[GPTQ]}
    symmetric = on_grid(3, "symmetric", {**plain, **QUALITIES})
    four = on_grid(4, "symmetric", {STAGE_1: INGREDIENTS[STAGE_1], "--quality balanced": BALANCED})
    two = on_grid(2, "offset", {**plain, "--quality balanced": BALANCED, "--quality best": BEST})
    balanced = {"--quality balanced": BALANCED}
    others = [*on_grid(3, "offset", balanced), *on_grid(2, "symmetric", balanced)]
    best_64 = {"--quality best, 64 sequences": {**BEST, "samples": COMMON["samples"]}}
    fewer = on_grid(3, "symmetric", best_64)
    return Table([*symmetric, *two, *four, *others, *fewer], ("speeches", "factbook", "manual"))


def unseen() -> Table:
    """Measure two presets on a text that was looked at after everything was decided."""
    rows = {GPTQ: INGREDIENTS[GPTQ], "--quality balanced": BALANCED, "--quality best": BEST}
    return Table(on_grid(3, "symmetric", rows), ("code",))


def ablation() -> Table:
    """Take each ingredient of `balanced` alone, leave it out, change it, on half of the tokens."""
    drift = {"propagation_damping": 0.1, "propagation_share": 0.5}
    alone = {
        STAGE_1: INGREDIENTS[STAGE_1],
        "stage 1 + activation order, mean weights": {**INGREDIENTS[STAGE_1], **ORDERED},
        "stage 1 + propagation, drift from half": {"scales": "first", **drift},
        "stage 1 + stage 2": {"scales": "both", "propagation_strength": 0.0},
        "stage 1 + 3 sweeps": {**INGREDIENTS[STAGE_1], "sweeps": 3},
        "stage 1 + annealing": {**INGREDIENTS[STAGE_1], **ANNEALED},
    }
    without = {
        "balanced": BALANCED,
        "balanced without stage 2": {**BALANCED, "scales": "first"},
        "balanced without activation order, mean weights": {**BALANCED, **PLAIN_ORDER},
        "balanced without propagation": {**BALANCED, "propagation_strength": 0.0},
        "balanced without sweeps": {**BALANCED, "sweeps": 0},
    }
    changed = {
        "balanced, drift from all sequences": {**BALANCED, "propagation_share": 1.0},
        "balanced, strength and damping chosen on held-out tokens": {
            **BALANCED,
            "propagation_strength": "auto",
        },
        "balanced + one alternation": {**BALANCED, "alternations": 1},
        "balanced + annealing": {**BALANCED, **ANNEALED},
        "balanced, drift from all sequences, 5 sweeps": {**BEST, "sweeps": 5},
        "balanced, drift from all sequences, strength and damping chosen": {
            **BEST,
            "propagation_strength": "auto",
        },
    }
    rows = {**alone, **without, **changed}
    solves = [{**solve, "samples": 32} for solve in on_grid(3, "symmetric", rows)]
    return Table(solves, ("factbook", "manual"), STAGE_1)


def grids() -> Table:
    """Solve on all bits, zero points and group sizes, on a quarter of the calibration tokens."""
    rows = {
        **INGREDIENTS,
        "QuantEase, stage 1": {**INGREDIENTS[STAGE_1], "solver": "quantease"},
        **QUALITIES,
    }
    sizes = (32, 64, 128, "row")
    solves = [
        {**solve, "row": f"{solve['row']}, group {size}", "group_size": size, "samples": 16}
        for bits, zeros, size in itertools.product((4, 3, 2), ("symmetric", "offset"), sizes)
        for solve in on_grid(bits, zeros, rows)
    ]
    return Table(solves, ("factbook", "manual"), f"{GPTQ}, group 64")


def calibration() -> Table:
    """Calibrate `balanced` at 3 bits on speeches, on self-written text, on both."""
    mixes = (("speeches",), ("self",), ("speeches", "self"))
    rows = {
        f"calibrated on {' + '.join(mix)}": {"calibration": mix, **BALANCED, "samples": 32}
        for mix in mixes
    }
    texts = ("few speeches", "factbook", "manual")
    return Table(on_grid(3, "symmetric", rows), texts, "calibrated on speeches")


def outliers() -> Table:
    """Compare outlier columns with groups that cost about as many bits, on half of the tokens."""
    rows = {
        "groups of 128": {"group_size": 128},
        "groups of 128, 1% outlier columns": {"group_size": 128, "outlier_columns": 0.01},
        "groups of 64": {"group_size": 64},
    }
    solves = [
        {**solve, **BALANCED, **rows[solve["row"]], "samples": 32}
        for bits, zeros in GRIDS[:2]
        for solve in on_grid(bits, zeros, rows)
    ]
    return Table(solves, ("factbook", "manual"), "groups of 64")


TABLES: Mapping[str, Callable[[], Table]] = {
    "table": ingredients,
    "defaults": defaults,
    "presets": presets,
    "unseen": unseen,
    "ablation": ablation,
    "grids": grids,
    "calibration": calibration,
    "outliers": outliers,
}
