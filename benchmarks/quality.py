"""Quality per bit on a real model: KL divergence to the original, ingredient by ingredient.

    uv run python -m benchmarks.quality table        the table of the README (about 75 minutes on 2 cores)
    uv run python -m benchmarks.quality defaults     the scan that the defaults were chosen from (about 60 minutes)
    uv run python -m benchmarks.quality presets      what --quality stands for, at 3 bits (about 30 minutes)
    uv run python -m benchmarks.quality outliers     1 % outlier columns against smaller groups (about 60 minutes)

Each solve is one line of benchmarks/results/; solves that stand there are not run again unless --fresh.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeq.assembly import make_job
from edgeq.calibration import first_windows, read_text, tokenize
from edgeq.evaluation import compare
from edgeq.measurement import EVALUATION_TEXT, model_logits
from edgeq.pipeline import quantize
from edgeq.protocols import ModelSource
from edgeq.recipe import PRESETS
from edgeq.screen import Silent
from edgeq.sources import open_source
from edgeq.types import NumpyArray

RESULTS = Path(__file__).parent / "results"
FACTBOOK = str(Path(__file__).parent / "data" / "factbook.txt")
TEXTS = {"speeches": (None, 64), "factbook": (FACTBOOK, 12)}  # text and windows of 512 tokens
TUNING_TEXTS = ("factbook",)  # defaults are chosen without a look at the text of the table
COMMON = {"group_size": 64, "embedding_bits": 16, "samples": 64, "sequence_length": 512, "seed": 0}
INGREDIENTS: dict[str, dict[str, Any]] = {
    "round to nearest": {"solver": "rtn", "scales": "none", "propagation_strength": 0.0},
    "GPTQ, min-max scales": {"scales": "none", "propagation_strength": 0.0},
    "GPTQ, stage 1": {"scales": "first", "propagation_strength": 0.0},
    "QEP + GPTQ, stage 1": {"scales": "first"},
    "QEP + GPTQ, both stages": {"scales": "both"},
}
GRIDS = ((3, "symmetric"), (2, "offset"), (4, "symmetric"))


SCAN = ((0.5, 1.0), (0.5, 0.1), (0.5, 0.01), (0.25, 1.0), (0.25, 0.01), (1.0, 1.0), (1.0, 0.01))  # strength, damping


def table_solves() -> list[dict[str, Any]]:
    """Every ingredient on every grid."""
    return [
        {"row": row, "bits": bits, "zeros": zeros, **settings}
        for (bits, zeros), (row, settings) in itertools.product(GRIDS, INGREDIENTS.items())
    ]


def preset_solves() -> list[dict[str, Any]]:
    """The presets at 3 bits, beside the solve that their ratios are to."""
    plain = INGREDIENTS["GPTQ, min-max scales"]
    rows = [{"row": "GPTQ, min-max scales", **plain}]
    rows += [{"row": f"--quality {name}", **PRESETS[name]} for name in ("balanced", "fast", "best")]
    return [{"bits": 3, "zeros": "symmetric", **row} for row in rows]


def default_solves() -> list[dict[str, Any]]:
    """Propagation strength and damping at 3 bits, then the target of the second stage."""
    scan = [
        {"row": f"strength {strength:g}, damping {damping:g}", "bits": 3, "zeros": "symmetric", "scales": "first",
         "propagation_strength": strength, "propagation_damping": damping}
        for strength, damping in SCAN
    ]  # fmt: skip
    refits = [
        {"row": f"second stage, {name}", "bits": 3, "zeros": "symmetric", "propagation_damping": 1.0, **settings}
        for name, settings in (
            ("same target", {}),
            ("drift at 0.5", {"refit_strength": 0.5}),
            ("drift at 1", {"refit_strength": 1.0}),
        )
    ]
    return [*refits, *scan]


OUTLIER_ROWS: dict[str, dict[str, Any]] = {
    "groups of 128": {"group_size": 128},
    "groups of 128, 1% outlier columns": {"group_size": 128, "outlier_columns": 0.01},
    "groups of 64": {"group_size": 64},
    "groups of 64, 1% outlier columns": {"group_size": 64, "outlier_columns": 0.01},
    "groups of 32": {"group_size": 32},
}


def outlier_solves() -> list[dict[str, Any]]:
    """With and without outlier columns beside groups that cost about as many bits."""
    return [
        {"row": row, "bits": bits, "zeros": zeros, **PRESETS["balanced"], **settings}
        for (bits, zeros), (row, settings) in itertools.product(GRIDS[:2], OUTLIER_ROWS.items())
    ]


SOLVES: dict[str, Any] = {
    "table": lambda: (table_solves(), tuple(TEXTS)),
    "defaults": lambda: (default_solves(), TUNING_TEXTS),
    "presets": lambda: (preset_solves(), tuple(TEXTS)),
    "outliers": lambda: (outlier_solves(), tuple(TEXTS)),
}


class Bench:
    """The model, its logits on every text (kept in memory, about 10 GB), and one solve after the other."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.source = open_source("demo")
        self.windows = {name: self._windows(*TEXTS[name]) for name in texts}
        self.references = {name: self._logits(self.source, ids) for name, ids in self.windows.items()}

    def _windows(self, path: str | None, count: int) -> NumpyArray:
        tokens = tokenize(self.source, read_text(path, default=EVALUATION_TEXT))
        return first_windows(tokens, windows=count, sequence_length=512)

    def _logits(self, source: ModelSource, ids: NumpyArray) -> list[NumpyArray]:
        return list(model_logits(source, "cpu").logits(ids))

    def run(self, solve: dict[str, Any]) -> dict[str, Any]:
        """Quantize and measure. Units: KL in nats per token, seconds of CPU time over all cores."""
        settings = COMMON | {name: value for name, value in solve.items() if name != "row"}
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(self.source, settings, backend="cpu")
            cpu, wall = time.process_time(), time.perf_counter()
            checkpoint = quantize(job, Path(folder) / "run", Silent())
            seconds = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
            quality = {
                name: asdict(compare(ids, model_logits(checkpoint, "cpu").logits(ids), self.references[name]))
                for name, ids in self.windows.items()
            }
            bits_per_weight = checkpoint.report["bits_per_weight"]["linear layers"]
        return {**solve, **seconds, "bits_per_weight": bits_per_weight, "quality": quality}


def key(solve: dict[str, Any]) -> tuple[Any, ...]:
    return solve["row"], solve["bits"], solve["zeros"]


def load_results(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    if not path.is_file():
        return {}
    return {key(result): result for result in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def run_missing(solves: list[dict[str, Any]], texts: Sequence[str], path: Path, *, fresh: bool) -> list[dict[str, Any]]:
    """The results of all solves, in order; each new one is added to the file as soon as it is there."""
    known = {} if fresh else load_results(path)
    missing = [solve for solve in solves if key(solve) not in known]
    bench = Bench(texts) if missing else None
    for solve in missing:
        assert bench is not None
        result = bench.run(solve)
        known[key(solve)] = result
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(format_row(result), flush=True)
    return [known[key(solve)] for solve in solves]


def format_row(result: dict[str, Any], baseline: dict[str, Any] | None = None) -> str:
    cells = [f"{result['bits']} {result['zeros']}", result["row"]]
    if result["row"] in OUTLIER_ROWS:
        cells[1] += f" ({result['bits_per_weight']:.3f} bits per weight)"
    for name, quality in result["quality"].items():
        cells.append(f"{quality['kl']:.4f}")
        cells.append(f"{quality['kl'] / baseline['quality'][name]['kl']:.2f}" if baseline else "")
        cells += [f"{quality['perplexity']:.2f}", f"{quality['top1_agreement']:.1%}"]
    cells.append(f"{result['cpu_seconds']:.0f}")
    return "| " + " | ".join(cells) + " |"


def format_table(results: list[dict[str, Any]], texts: Sequence[str], command: str) -> str:
    """A Markdown table; ratios are to GPTQ with min-max scales on the same grid."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("edgeq", "torch", "transformers", "numpy"))
    head = [
        f"`{command}`: SmolLM2-135M-Instruct, groups of 64 unless stated, dense embeddings, "
        f"64 x 512 calibration tokens, seed 0; {packages}; {os.cpu_count()} cores. "
        "KL divergence to the original in nats per token on "
        + " and ".join(
            f"{results[0]['quality'][name]['tokens'] // 512} windows of 512 tokens of {name}" for name in texts
        )
        + "; ratio to GPTQ with min-max scales; CPU seconds of the solve over all cores.",
        "",
        "| grid | solve | " + "".join(f"KL {name} | ratio | perplexity | top-1 | " for name in texts) + "CPU s |",
        "|---|---|" + "---|---|---|---|" * len(texts) + "---|",
    ]
    baselines = {(r["bits"], r["zeros"]): r for r in results if r["row"] == "GPTQ, min-max scales"}
    return "\n".join([*head, *(format_row(r, baselines.get((r["bits"], r["zeros"]))) for r in results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(SOLVES))
    parser.add_argument("--fresh", action="store_true", help="run solves again that have results")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    solves, texts = SOLVES[arguments.what]()
    results = run_missing(solves, texts, RESULTS / f"quality-{arguments.what}.jsonl", fresh=arguments.fresh)
    text = format_table(results, texts, f"python -m benchmarks.quality {arguments.what}")
    (RESULTS / f"quality-{arguments.what}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
