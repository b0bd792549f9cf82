"""Measure what llama.cpp's file types lose: the anchors of edgeq's verdicts.

    uv run python -m benchmarks.train_small llama OUT
    uv run python -m benchmarks.anchors OUT --name "a Llama of 4 M weights" --ship \
        --edgeq Q8_0 Q6_K Q5_K_M Q4_K_M IQ4_XS Q4_0 Q3_K_M Q2_K --sequence-length 256 --windows 64

llama.cpp makes a file of every kind with an importance matrix, and edgeq one of the kinds of
--edgeq, both from the same token windows; all run in llama.cpp on text that nothing was calibrated
on. --libraries is what `benchmarks.llama_cpp_library` describes. Rows go to
benchmarks/results/anchors.jsonl; with --ship, those of llama.cpp go to edgeq/data/anchors.json,
which edgeq ships. --work keeps what was made: a run goes on where it was stopped. A model should
lie on no grid when it comes: trained here, or turned (`benchmarks.padded_demo --turned`).
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.llama_cpp_library import Choice
from benchmarks.llama_cpp_tables import EDGEQ, LLAMA
from benchmarks.llama_cpp_types import (
    CALIBRATION,
    LIBRARIES,
    Bench,
    Made,
    importance_of,
    measured,
    name_of,
    open_bench,
    quantized,
    reference_path,
    say,
    store,
)

ROOT = Path(__file__).parent
RESULT = ROOT / "results" / "anchors.jsonl"
SHIPPED = ROOT.parent / "edgeq" / "data" / "anchors.json"
KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K")
TYPES = {"Q2_K": "Q2_K_M"}
"""What edgeq calls a kind, where that is another name."""


def main() -> None:
    arguments = parse()
    bench = open_bench(arguments)
    made = [*references(bench), *own(bench)]
    rows = [{"model": name_of(arguments), "curve": True, **row} for row in measured(bench, made)]
    store(rows, RESULT)
    if arguments.ship:
        ship(rows, bench)
    for row in rows:
        print(f"{row['side']:10} {row['kind']:7} {row['bits_per_weight']:.2f}  KL {row['kl']:.4f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="what edgeq quantize takes: a directory or a GGUF file")
    parser.add_argument("--name", help="call the model this")
    parser.add_argument("--ship", action="store_true", help="write edgeq/data/anchors.json too")
    parser.add_argument("--libraries", type=Path, default=os.environ.get(LIBRARIES))
    parser.add_argument("--work", type=Path, required=True, help="keep what is made in this folder")
    parser.add_argument("--edgeq", nargs="*", choices=KINDS, default=(), help="edgeq's files too")
    parser.add_argument("--windows", type=int, default=32, help="evaluation windows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens of every window")
    parser.set_defaults(samples=64, calibration=CALIBRATION, evaluation=None)
    arguments = parser.parse_args()
    if arguments.libraries is None:
        parser.error(f"give --libraries, or set {LIBRARIES}")
    return arguments


def references(bench: Bench) -> Iterator[Made]:
    """Make llama.cpp's file of every kind, as its users do: with an importance matrix."""
    importance = importance_of(bench)
    for kind in KINDS:
        path = reference_path(bench, kind, pure=False)
        if not path.exists():
            say(f"llama.cpp makes {path.name}")
            bench.library.quantize(bench.dense, path, Choice(kind), importance)
        yield Made(LLAMA, kind, path)


def own(bench: Bench) -> Iterator[Made]:
    """Make edgeq's files of the kinds that were asked for."""
    for kind in bench.arguments.edgeq:
        options = ["--type", TYPES.get(kind, kind)]
        yield Made(EDGEQ, kind, quantized(bench.arguments, kind, options), "balanced")


def ship(rows: Sequence[Mapping[str, Any]], bench: Bench) -> None:
    """Put llama.cpp's rows where edgeq reads them; the first model is that of all others."""
    count, length = bench.evaluation.shape
    anchors = {
        "model": name_of(bench.arguments).partition(",")[0],
        "text": f"{count} windows of {length} tokens of the text that ships with edgeq",
        "rows": [
            {
                "type": row["kind"],
                "bits_per_weight": round(row["bits_per_weight"], 2),
                "kl": float(f"{row['kl']:.3g}"),
            }
            for row in rows
            if row["side"] == LLAMA
        ],
    }
    tables = json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else []
    kept = {table["model"]: table for table in tables} | {anchors["model"]: anchors}
    SHIPPED.write_text(json.dumps([*kept.values()], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
