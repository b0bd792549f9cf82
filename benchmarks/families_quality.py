"""Compare rounding, GPTQ and `balanced` at 3 bits on small trained models of several families.

    uv run python -m benchmarks.train_small qwen3 small/qwen3      (and gemma3, gemma2, mixture)
    uv run python -m benchmarks.families_quality small/*           (a minute for each model)

Everything goes through the command line: `edgeq quantize`, then `edgeq evaluate` against the
original on text that no model was trained or calibrated on. Prints a table, also to
benchmarks/results/families.md, and exits 1 when a model is refused, or when its KL divergences are
not in the order of the rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.solves import GPTQ, INGREDIENTS, PLAIN, PRESETS

RESULT = Path(__file__).parent / "results" / "families.md"
SETTINGS: Mapping[str, Any] = {
    "bits": 3,
    "group_size": 64,
    "embedding_bits": 16,
    "samples": 128,
    "sequence_length": 256,  # what the models are trained on
}
SOLVES: Mapping[str, Mapping[str, Any]] = {
    "round to nearest": INGREDIENTS["round to nearest"],
    GPTQ: INGREDIENTS[GPTQ],
    "--quality balanced": PRESETS["balanced"],
}
"""By row, what is set otherwise than PLAIN; each row must be nearer to the original."""
WINDOWS = 64
HEADER = ("model", "solve", "bits", "KL", "ratio", "perplexity", "original", "top-1")


@dataclass(frozen=True, slots=True)
class Row:
    """Holds what was measured of one solve: the two commands' own answers."""

    model: str
    solve: str
    quantized: Mapping[str, Any]
    quality: Mapping[str, Any]

    @property
    def kl(self) -> float:
        return float(self.quality["kl"])


class Refused(Exception):
    """A command ended with an error, whose last line is the text."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="directories of train_small")
    parser.add_argument("--output", type=Path, default=RESULT, help="write the table here")
    arguments = parser.parse_args()
    tables: list[Sequence[Row]] = []
    refusals: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgeq-families-") as folder:
        for number, model in enumerate(arguments.models):
            try:
                tables.append(measure(model, Path(folder) / str(number)))
            except Refused as error:
                refusals.append(f"{model.name}: {error}")
    text = format_text(tables, refusals)
    arguments.output.write_text(text, encoding="utf-8")
    print(text, end="")
    sys.exit(0 if not refusals and all(map(in_order, tables)) else 1)


def measure(model: Path, folder: Path) -> list[Row]:
    """Quantize a model by every solve, and compare each result with it.

    Raises: Refused.
    """
    folder.mkdir()
    rows = []
    for number, solve in enumerate(SOLVES):
        recipe, output = folder / f"{number}.toml", folder / str(number)
        recipe.write_text(as_toml(settings_of(solve)), encoding="utf-8")
        words = ["--output", str(output), "--recipe", str(recipe), "--calibration", "speeches"]
        quantized = ask("quantize", str(model), *words)
        quality = ask(
            *("evaluate", str(output), "--reference", str(model)),
            *("--windows", str(WINDOWS), "--sequence-length", str(SETTINGS["sequence_length"])),
        )
        rows.append(Row(model.name, solve, quantized, quality))
        print(f"{model.name}, {solve}: KL {rows[-1].kl:.4f}", file=sys.stderr, flush=True)
    return rows


def settings_of(solve: str) -> dict[str, Any]:
    """Make all settings of a row."""
    return {**PLAIN, **SOLVES[solve], **SETTINGS}


def as_toml(settings: Mapping[str, Any]) -> str:
    """Write settings as a recipe; those that are None keep their default by not being there."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join(line for line in lines if not line.endswith(" = null")) + "\n"


def ask(*words: str) -> Any:
    """Run a command of edgeq in a process of its own and read its answer.

    Raises: Refused.
    """
    command = [sys.executable, "-m", "edgeq", *words, "--backend", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout)


def in_order(rows: Sequence[Row]) -> bool:
    found = [row.kl for row in rows]
    return found == sorted(found, reverse=True)


def format_text(tables: Sequence[Sequence[Row]], refusals: Sequence[str]) -> str:
    """Make the Markdown table; ratios are to GPTQ on the same model."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("edgeq", "torch", "transformers"))
    length = SETTINGS["sequence_length"]
    lines = [
        "`python -m benchmarks.families_quality`: models of `benchmarks.train_small`, "
        f"{SETTINGS['bits']} bits symmetric, groups of {SETTINGS['group_size']}, dense embeddings, "
        f"{SETTINGS['samples']} x {length} calibration tokens, seed 0; {packages}; "
        f"{os.cpu_count()} cores. Bits per weight are those of the linear layers. KL divergence to "
        f"the original in nats per token on {WINDOWS} windows of {length} tokens of held-out "
        f"speeches; ratio to {GPTQ}.",
        "",
        format_cells(HEADER),
        format_cells(["---"] * len(HEADER)),
    ]
    for rows in tables:
        baseline = next(row.kl for row in rows if row.solve == GPTQ)
        lines += [format_row(row, baseline) for row in rows]
    notes = {
        f"- {rows[0].model}: {note}" for rows in tables for note in rows[-1].quantized["notes"]
    }
    lines += ["", "What the runs of `balanced` note:", "", *sorted(notes)] if notes else []
    lines += ["", *(f"- refused: {refusal}" for refusal in refusals)] if refusals else []
    return "\n".join(lines) + "\n"


def format_row(row: Row, baseline: float) -> str:
    quality = row.quality
    return format_cells(
        [
            row.model,
            row.solve,
            f"{row.quantized['bits_per_weight']['linear layers']:.2f}",
            f"{row.kl:.4f}",
            f"{row.kl / baseline:.2f}",
            f"{quality['perplexity']:.2f}",
            f"{quality['reference_perplexity']:.2f}",
            f"{quality['top1_agreement']:.1%}",
        ]
    )


def format_cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
