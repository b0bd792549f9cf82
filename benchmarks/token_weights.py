"""Say whether weighing calibration tokens by gradients pays, on texts that nothing was fitted to.

    python -m benchmarks.token_weights MODEL           every variant, on four grids
    python -m benchmarks.token_weights MODEL --table   what was measured before, as a table

A token counts at each site by the magnitudes |g| of gradients of log p(y) at its layers' outputs,
scaled to mean 1 and clipped to a factor around it. Variants change the power of |g|, the clip, or
weigh each layer by its own gradients. Solves are those of the preset balanced. Ratios are of KL to
the original, to the same solve with tokens that all count alike, on the same windows; intervals are
of the paired difference, as shares of that solve's KL. Each solve is a line of
benchmarks/results/token_weights.jsonl; solves that stand there are not run again.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.commands.progress import Silent
from edgeq.measuring.intervals import mean_interval
from edgeq.measuring.quality import measure_window, predictions
from edgeq.measuring.targets import model_logits
from edgeq.measuring.text_kinds import KINDS
from edgeq.measuring.texts import Windows, cut_windows
from edgeq.protocols import Site
from edgeq.recipe.layer_grids import Grids
from edgeq.recipe.recipe import Recipe
from edgeq.run import pipeline
from edgeq.run.assembly import make_job, measure_tokens
from edgeq.run.pipeline import Job
from edgeq.run.report import RunReport, read_report
from edgeq.run.token_weights import empty
from edgeq.solving.lending import Lender
from edgeq.solving.token_weights import TokenWeights
from edgeq.sources import open_source
from edgeq.types import LinearSpec, NumpyArray, QuantizedLinear

RESULTS = Path(__file__).parent / "results" / "token_weights.jsonl"
GRIDS = ((3, "symmetric"), (2, "offset"), (4, "symmetric"), (3, "offset"))
GROUP = 64
WINDOWS = 24  # of each text

Noted = Sequence[tuple[int, int, Mapping[str, NumpyArray]]]


@dataclass(frozen=True, slots=True)
class Variant:
    """A way of making weights: of |g| or g^2, to a power, clipped to a factor, by layer or site."""

    squares: bool = False
    power: float = 1.0
    clip: float = 10.0
    by_layer: bool = False


VARIANTS: Mapping[str, Variant | None] = {
    "alike": None,
    "|g|": Variant(),
    "|g|, clip 5": Variant(clip=5.0),
    "|g|, clip 2": Variant(clip=2.0),
    "|g|, clip 100": Variant(clip=100.0),
    "|g|^0.6": Variant(power=0.6),
    "|g|^0.3": Variant(power=0.3),
    "g^2": Variant(squares=True),
    "|g| by layer": Variant(by_layer=True),
    "|g|^0.6 by layer": Variant(power=0.6, by_layer=True),
}


class Bench:
    """Holds a model, its gradients and its predictions; runs one solve at a time."""

    def __init__(self, model: str) -> None:
        self.source = open_source(model)
        self.windows: Windows = cut_windows([self.source], list(KINDS), windows=WINDOWS)
        reference = model_logits(self.source, "cpu").logits(self.windows.ids)
        self.reference = [predictions(each, "the original") for each in reference]
        self._noted: dict[bool, Noted] = {}

    def noted(self, windows: NumpyArray, recipe: Recipe, squares: bool) -> Noted:
        """Measure the tokens of calibration windows once."""
        if squares not in self._noted:
            kind = "squares" if squares else "gradient"
            recipe = replace(recipe, token_weights=kind)
            self._noted[squares] = list(measure_tokens("cpu", self.source, windows, recipe))
        return self._noted[squares]

    def run(self, settings: Mapping[str, Any], variant: Variant | None) -> dict[str, Any]:
        """Quantize and measure. Units: KL in nats per token, of each window."""
        job = make_job(self.source, settings, backend="cpu")
        weigh, solve_site = pipeline.weigh_tokens, pipeline.solve_site
        if variant is not None:
            pipeline.weigh_tokens = partial(self._weights, variant)  # type: ignore[assignment]
            if variant.by_layer:
                pipeline.solve_site = by_layer  # type: ignore[assignment]
        try:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = pipeline.quantize(job, Path(folder) / "run", Silent())
                counting = [layer.counting_tokens for layer in read_report(checkpoint).layers]
                found = model_logits(checkpoint, "cpu").logits(self.windows.ids)
                return {
                    "counting": [each for each in counting if each is not None],
                    "kl": divergences(self.windows.ids, found, self.reference),
                }
        finally:
            pipeline.weigh_tokens, pipeline.solve_site = weigh, solve_site

    def _weights(self, variant: Variant, job: Job, calibration: Any, _: Any) -> TokenWeights:
        noted = self.noted(calibration.windows, job.recipe, variant.squares)
        collected = empty(self.source.record.decoder)
        if variant.by_layer:
            collected = replace(
                collected,
                sites=[[[name] for site in of for name in site] for of in collected.sites],
            )
        for block, window, of_layers in noted:
            powers = {name: values**variant.power for name, values in of_layers.items()}
            collected.add(block, window, powers)
        return collected.weights(variant.clip)


def divergences(
    ids: NumpyArray, found: Iterator[NumpyArray], reference: Sequence[NumpyArray]
) -> list[float]:
    """Average the KL divergence of each window."""
    means = []
    for window, logits, expected in zip(ids, found, reference, strict=True):
        measured = measure_window(window, predictions(logits, "a solve"), expected)
        assert measured.compared is not None
        means.append(float(measured.compared.kl.mean()))
    return means


class OneLayer:
    """Shows a site as that of one of its layers."""

    lends: Sequence[str] = ()

    def __init__(self, site: Site, name: str) -> None:
        self.name, self._site = name, site
        self.batches, self.tokens, self.replace = site.batches, site.tokens, site.replace

    def layers(self) -> Iterator[str]:
        yield self.name


SOLVE_SITE = pipeline.solve_site


def by_layer(
    job: Job,
    grids: Grids,
    lender: Lender,
    site: Site,
    findings: RunReport,
    read: Callable[[LinearSpec], NumpyArray],
) -> Iterator[tuple[LinearSpec, QuantizedLinear]]:
    """Solve the layers of a site, each with moments of its own."""
    for name in site.layers():
        yield from SOLVE_SITE(job, grids, lender, OneLayer(site, name), findings, read)


def ratios(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Give, by text, the ratio of KL to the base's, and half the width of its 95 % interval."""
    found = {}
    texts = np.array(row["texts"])
    for text in dict.fromkeys(row["texts"]):
        own, other = (np.array(each["kl"])[texts == text] for each in (row, base))
        interval = mean_interval(own - other)
        assert interval is not None
        found[text] = (own.mean() / other.mean(), (interval[1] - interval[0]) / 2 / other.mean())
    return found


def load_results() -> list[dict[str, Any]]:
    if not RESULTS.is_file():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make the Markdown table: a line for each solve, a column for each text."""
    lines = []
    for row in rows:
        key = ("model", "bits", "zeros", "samples")
        [base] = [
            each
            for each in rows
            if each["variant"] == "alike" and all(each[k] == row[k] for k in key)
        ]
        found = ratios(row, base)
        if not lines:
            names = ["grid", "tokens weighed by", "tokens that count", *found]
            lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        total = row["tokens"]
        share = np.median(row["counting"]) / total if row["counting"] else 1.0
        cells = [f"{row['model']}, {row['bits']} {row['zeros']}", row["variant"], f"{share:.0%}"]
        texts = np.array(row["texts"])
        for text, (ratio, half) in found.items():
            mean = np.array(row["kl"])[texts == text].mean()
            alike = row["variant"] == "alike"
            cells.append(f"{mean:.4f}" if alike else f"{ratio:.3f} ± {half:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--bits", type=int, nargs="*", help="only these")
    parser.add_argument("--variant", nargs="*", help="only these, and alike")
    asked = parser.parse_args()
    name = open_source(asked.model).record.name
    rows, bench = load_results(), None
    for bits, zeros in () if asked.table else GRIDS:
        for variant, how in VARIANTS.items():
            if asked.bits and bits not in asked.bits:
                continue
            if asked.variant and variant not in {"alike", *asked.variant}:
                continue
            grid = {"model": name, "bits": bits, "zeros": zeros, "samples": asked.samples}
            row: dict[str, Any] = {**grid, "variant": variant}
            if any(row.items() <= each.items() for each in rows):
                continue
            bench = bench or Bench(asked.model)
            settings = {"bits": bits, "zeros": zeros, "group_size": GROUP, "samples": asked.samples}
            length = make_job(bench.source, settings).recipe.sequence_length
            row |= {"tokens": length * asked.samples, "texts": list(bench.windows.texts)}
            row |= bench.run({**settings, "embedding_bits": 16}, how)
            rows.append(row)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(bits, zeros, variant, np.mean(row["kl"]), flush=True)
    print(table([row for row in rows if row["model"] == name]))


if __name__ == "__main__":
    main()
