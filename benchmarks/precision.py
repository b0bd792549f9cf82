"""Say what fewer digits cost: solves in full precision, and in those that are faster.

    python -m benchmarks.precision MODEL              three precisions at 3, 4 and 8 bits
    python -m benchmarks.precision MODEL --seeds 6    on as many draws of calibration text

"exact" has forward passes in float32 and solves in float64, "float32" both in float32, and
"bfloat16" forward passes in bfloat16, whatever the processor multiplies fast. Solves are those of
the preset balanced, or of --quality. Ratios are of KL to the original, to the exact solve of the
same draw on the same windows; behind the ± stands the standard error of their mean over draws.
Rounding alone moves the KL of one solve by some per cent, up or down: one draw says nothing.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.solves import PRESETS
from benchmarks.token_weights import Bench, divergences
from edgeq.commands.progress import Silent
from edgeq.measuring.targets import model_logits
from edgeq.run import pipeline
from edgeq.run.assembly import make_job
from edgeq_backends.torch import activations

EXACT = "exact"
PASSES: Mapping[str, torch.dtype] = {
    EXACT: torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}


def solved_kl(bench: Bench, settings: Mapping[str, Any], precision: str) -> np.ndarray[Any, Any]:
    """Quantize in a precision and measure. Units: KL in nats per token, of each window."""
    usual = activations.kind_of_passes
    activations.kind_of_passes = lambda *_, **__: PASSES[precision]
    try:
        chosen = {**settings, "exact": precision == EXACT}
        job = make_job(bench.source, chosen, backend="cpu", calibration=("speeches",))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = pipeline.quantize(job, Path(folder) / "run", Silent())
            found = model_logits(checkpoint, "cpu").logits(bench.windows.ids)
            return np.array(divergences(bench.windows.ids, found, bench.reference))
    finally:
        activations.kind_of_passes = usual


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4, help="draws of calibration text")
    parser.add_argument("--quality", choices=tuple(PRESETS), default="balanced")
    parser.add_argument("--bits", type=int, nargs="*", default=(3, 4, 8))
    asked = parser.parse_args()
    bench = Bench(asked.model)
    texts = list(dict.fromkeys(bench.windows.texts))
    print("| bits | precision | " + " | ".join([*texts, "all"]) + " |")
    print("|" + "---|" * (len(texts) + 3))
    for bits in asked.bits:
        settings = {"bits": bits, "group_size": 64, "embedding_bits": 16, "samples": asked.samples}
        settings["quality"] = asked.quality
        found: dict[str, list[list[float]]] = {name: [] for name in PASSES}
        for seed in range(asked.seeds):
            for name, rows in found.items():
                kl = solved_kl(bench, {**settings, "seed": seed}, name)
                of_text = [kl[[each == text for each in bench.windows.texts]] for text in texts]
                rows.append([part.mean() for part in [*of_text, kl]])
        for name, rows in found.items():
            ratios = np.array(rows) / np.array(found[EXACT])
            errors = ratios.std(axis=0, ddof=1) / asked.seeds**0.5
            words = [
                f"{ratio:.3f} ± {error:.3f}"
                for ratio, error in zip(ratios.mean(0), errors, strict=True)
            ]
            if name == EXACT:
                words = [f"{mean:.4f}" for mean in np.array(rows).mean(axis=0)]
            print(f"| {bits} | {name} | " + " | ".join(words) + " |", flush=True)


if __name__ == "__main__":
    main()
