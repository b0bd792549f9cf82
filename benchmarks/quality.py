"""Measure quality per bit on a real model: KL divergence to the original, ingredient by ingredient.

    uv run python -m benchmarks.quality TABLE

    table        ingredient after ingredient (about 75 minutes on 2 cores)
    defaults     the scan that the defaults were chosen from (about 60 minutes)
    presets      what --quality stands for (about 100 minutes)
    unseen       presets on a text that nothing was decided on (about 20 minutes)
    ablation     each ingredient alone and left out (about 70 minutes)
    grids        all bits, zero points and group sizes (about 8 hours)
    calibration  what the model is calibrated on (about 20 minutes)
    outliers     1 % outlier columns against smaller groups (about 25 minutes)

Each solve is one line of benchmarks/results/; solves that stand there are not run again unless
--fresh.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.solves import COMMON, PLAIN, TABLES, TEXTS, Solve, Table
from edgeq.calibration.windows import first_windows, tokenize
from edgeq.commands.progress import Silent
from edgeq.measuring.quality import compare
from edgeq.measuring.targets import model_logits
from edgeq.protocols import ModelSource
from edgeq.run.assembly import make_job
from edgeq.run.pipeline import quantize
from edgeq.run.report import read_report
from edgeq.sources import open_source
from edgeq.types import NumpyArray

RESULTS = Path(__file__).parent / "results"
# What a run adds to a solve.
MEASURED = ("cpu_seconds", "wall_seconds", "bits_per_weight", "quality")


class Bench:
    """Holds the model and its logits on every text, about 10 GB; runs one solve at a time."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.source = open_source("demo")
        self.windows = {name: self._windows(*TEXTS[name]) for name in texts}
        self.references = {
            name: self._logits(self.source, ids) for name, ids in self.windows.items()
        }

    def _windows(self, read: Callable[[], str], count: int) -> NumpyArray:
        tokens = tokenize(self.source, read())
        return first_windows(tokens, windows=count, sequence_length=512)

    def _logits(self, source: ModelSource, ids: NumpyArray) -> list[NumpyArray]:
        return list(model_logits(source, "cpu").logits(ids))

    def run(self, solve: Solve) -> dict[str, Any]:
        """Quantize and measure.

        Units: KL in nats per token, seconds of CPU time over all cores.
        """
        chosen = {name: solve[name] for name in solve if name not in ("row", "calibration")}
        texts = solve.get("calibration", ("speeches",))
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(self.source, PLAIN | COMMON | chosen, backend="cpu", calibration=texts)
            cpu = time.process_time()
            wall = time.perf_counter()
            checkpoint = quantize(job, Path(folder) / "run", Silent())
            seconds = {
                "cpu_seconds": time.process_time() - cpu,
                "wall_seconds": time.perf_counter() - wall,
            }
            quality = {}
            for name, ids in self.windows.items():
                logits = model_logits(checkpoint, "cpu").logits(ids)
                quality[name] = asdict(compare(ids, logits, self.references[name]))
            bits_per_weight = read_report(checkpoint).bits_per_weight["linear layers"]
        return {**solve, **seconds, "bits_per_weight": bits_per_weight, "quality": quality}


def key(solve: Solve) -> str:
    """Make the key that a solve is known by: one with another row or settings is run again."""
    asked = {name: value for name, value in solve.items() if name not in MEASURED}
    return json.dumps(asked, sort_keys=True)


def samples_of(solve: Solve) -> int:
    return int(solve.get("samples", COMMON["samples"]))


def load_results(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    results = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {key(result): result for result in results}


def run_missing(table: Table, path: Path, *, fresh: bool) -> list[dict[str, Any]]:
    """Run the solves that have no result, store each at once, and return all results in order."""
    if fresh:
        path.unlink(missing_ok=True)
    known = load_results(path)
    missing = [solve for solve in table.solves if key(solve) not in known]
    bench = Bench(table.texts) if missing else None
    for solve in missing:
        assert bench is not None
        result = bench.run(solve)
        known[key(solve)] = result
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(format_row(result), flush=True)
    return [known[key(solve)] for solve in table.solves]


def format_row(result: dict[str, Any], baseline: dict[str, Any] | None = None) -> str:
    cells = [f"{result['bits']} {result['zeros']}", result["row"]]
    bits = result.get("bits_per_weight")
    cells.append(f"{bits:.2f}" if bits else "")
    for name, quality in result["quality"].items():
        ratio = quality["kl"] / baseline["quality"][name]["kl"] if baseline else None
        cells.append(f"{quality['kl']:.4f}")
        cells.append("" if ratio is None else f"{ratio:.2f}")
        cells += [f"{quality['perplexity']:.2f}", f"{quality['top1_agreement']:.1%}"]
    cells.append(f"{result['cpu_seconds']:.0f}")
    return "| " + " | ".join(cells) + " |"


def format_table(results: list[dict[str, Any]], table: Table, command: str) -> str:
    """Make a Markdown table; ratios are to the baseline row on the same grid."""
    names = ("edgeq", "torch", "transformers", "numpy")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    first = samples_of(results[0])
    others = {r["row"]: samples_of(r) for r in results if samples_of(r) != first}
    more = "".join(f", {count} x 512 for {row}" for row, count in others.items())
    measured = results[0]["quality"]
    windows = {name: measured[name]["tokens"] // 512 for name in table.texts}
    texts = " and ".join(f"{windows[name]} windows of 512 tokens of {name}" for name in windows)
    columns = "".join(f"KL {name} | ratio | perplexity | top-1 | " for name in table.texts)
    lines = [
        f"`{command}`: SmolLM2-135M-Instruct, groups of 64 unless stated, dense embeddings, "
        f"{first} x 512 calibration tokens{more}, seed 0; {packages}; "
        f"{os.cpu_count()} cores. Bits per weight are those of the linear layers. "
        f"KL divergence to the original in nats per token on {texts}; "
        f"ratio to {table.baseline}; CPU seconds of the solve over all cores.",
        "",
        f"| grid | solve | bits | {columns}CPU s |",
        "|---|---|---|" + "---|---|---|---|" * len(table.texts) + "---|",
    ]
    baselines = {(r["bits"], r["zeros"]): r for r in results if r["row"] == table.baseline}
    lines += [format_row(r, baselines.get((r["bits"], r["zeros"]))) for r in results]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(TABLES))
    parser.add_argument("--fresh", action="store_true", help="run solves again that have results")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    table = TABLES[arguments.what]()
    results = run_missing(table, RESULTS / f"quality-{arguments.what}.jsonl", fresh=arguments.fresh)
    text = format_table(results, table, f"python -m benchmarks.quality {arguments.what}")
    (RESULTS / f"quality-{arguments.what}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
