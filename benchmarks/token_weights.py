"""Say whether weighing calibration tokens by gradients pays, on texts that nothing was fitted to.

    python -m benchmarks.token_weights MODEL             every variant, on four grids
    python -m benchmarks.token_weights MODEL --seeds 4   on as many draws of calibration text
    python -m benchmarks.token_weights MODEL --table     what was measured before, as a table

A token counts at each site by the magnitudes |g| of gradients of log p(y) at its layers' outputs,
scaled to mean 1 and clipped to a factor around it. Variants change the power of |g|, the clip, or
weigh each layer by its own gradients. Solves are those of the preset balanced. Ratios are of KL to
the original, to the same solve with tokens that all count alike, on the same windows; intervals are
of the paired difference over windows, as shares of that solve's KL. They do not hold what another
draw of calibration text would give: with several seeds, the ratio is the mean over them, and behind
the ± stands the standard error of that mean. Each solve is a line of
benchmarks/results/token_weights.jsonl; solves that stand there are not run again.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.commands.progress import Silent
from edgeq.measuring.intervals import mean_interval
from edgeq.measuring.quality import measure_window, predictions
from edgeq.measuring.targets import model_logits
from edgeq.measuring.text_kinds import KINDS
from edgeq.measuring.texts import Windows, cut_windows
from edgeq.protocols import Site
from edgeq.recipe.recipe import Recipe
from edgeq.run import pipeline
from edgeq.run.assembly import make_job, measure_tokens
from edgeq.run.pipeline import Job
from edgeq.run.report import RunReport, read_report
from edgeq.run.site_solving import SiteSolver
from edgeq.run.token_weights import empty
from edgeq.solving.token_weights import TokenWeights
from edgeq.sources import open_source
from edgeq.types import LinearSpec, NumpyArray, QuantizedLinear

RESULTS = Path(__file__).parent / "results" / "token_weights.jsonl"
GRIDS = ((3, "symmetric"), (2, "offset"), (4, "symmetric"), (3, "offset"))
GROUP = 64
WINDOWS = 24  # of each text

Floats = npt.NDArray[np.float64]
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
        self._noted: dict[tuple[bool, int], Noted] = {}

    def noted(self, windows: NumpyArray, recipe: Recipe, squares: bool) -> Noted:
        """Measure the tokens of calibration windows once."""
        key = squares, recipe.seed
        if key not in self._noted:
            recipe = replace(recipe, token_weights="squares" if squares else "gradient")
            self._noted[key] = list(measure_tokens("cpu", self.source, windows, recipe))
        return self._noted[key]

    def run(self, settings: Mapping[str, Any], variant: Variant | None) -> dict[str, Any]:
        """Quantize and measure. Units: KL in nats per token, of each window."""
        job = make_job(self.source, settings, backend="cpu", calibration=("speeches",))
        weigh, solver = pipeline.weigh_tokens, pipeline.SiteSolver
        if variant is not None:
            pipeline.weigh_tokens = partial(self._weights, variant)  # type: ignore[assignment]
            if variant.by_layer:
                pipeline.SiteSolver = ByLayer  # type: ignore[misc]
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
            pipeline.weigh_tokens, pipeline.SiteSolver = weigh, solver  # type: ignore[misc]

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


class ByLayer(SiteSolver):
    """Solves the layers of a site, each with moments of its own."""

    def solve(
        self, site: Site, findings: RunReport
    ) -> Iterator[tuple[LinearSpec, QuantizedLinear]]:
        for name in site.layers():
            yield from super().solve(OneLayer(site, name), findings)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make the Markdown table: a line for each grid and variant, a column for each text."""
    texts = list(dict.fromkeys(rows[0]["texts"]))
    names = ["grid", "tokens weighed by", "tokens that count", "seeds", *texts, "all"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        grid = f"{row['model']}, {row['bits']} {row['zeros']}"
        groups.setdefault((grid, row["variant"]), []).append(row)
    for (grid, variant), of_seeds in groups.items():
        bases = {row["seed"]: row for row in groups[grid, "alike"]}
        counting = [np.median(row["counting"] or row["tokens"]) for row in of_seeds]
        share = np.mean(counting) / of_seeds[0]["tokens"]
        cells = [grid, variant.replace("|", r"\|"), f"{share:.0%}", str(len(of_seeds))]
        for text in (*texts, None):
            if variant == "alike":
                cells.append(f"{np.mean([of_text(row, text).mean() for row in of_seeds]):.4f}")
            else:
                cells.append(ratio_words(of_seeds, bases, text))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_text(row: Mapping[str, Any], text: str | None) -> Floats:
    """Give the KL of the windows of a text, or of all. Shapes: (windows,)."""
    chosen = [text in (None, each) for each in row["texts"]]
    return np.array(row["kl"])[chosen]


def ratio_words(
    rows: Sequence[Mapping[str, Any]], bases: Mapping[int, Mapping[str, Any]], text: str | None
) -> str:
    """Write the ratio of KL to that of bases, by seed, and how sure it is."""
    pairs = [(of_text(row, text), of_text(bases[row["seed"]], text)) for row in rows]
    ratios = [own.mean() / other.mean() for own, other in pairs]
    if len(ratios) > 1:
        error = np.std(ratios, ddof=1) / len(ratios) ** 0.5
        return f"{np.mean(ratios):.3f} ± {error:.3f}"
    [(own, other)] = pairs
    groups = None if text else list(rows[0]["texts"])
    interval = mean_interval(own - other, groups)
    assert interval is not None
    return f"{ratios[0]:.3f} ± {(interval[1] - interval[0]) / 2 / other.mean():.3f}"


def load_results() -> list[dict[str, Any]]:
    if not RESULTS.is_file():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1, help="draws of calibration text")
    parser.add_argument("--grid", nargs="*", help="only these, such as 3-symmetric")
    parser.add_argument("--variant", nargs="*", help="only these, and alike")
    asked = parser.parse_args()
    name = open_source(asked.model).record.name
    rows, bench = load_results(), None
    asks = [
        {"model": name, "bits": bits, "zeros": zeros, "samples": asked.samples, "seed": seed}
        for seed in range(0 if asked.table else asked.seeds)
        for bits, zeros in GRIDS
        if not asked.grid or f"{bits}-{zeros}" in asked.grid
    ]
    for ask, (variant, how) in itertools.product(asks, VARIANTS.items()):
        row: dict[str, Any] = {**ask, "variant": variant}
        left_out = asked.variant and variant not in {"alike", *asked.variant}
        if left_out or any(row.items() <= each.items() for each in rows):
            continue
        bench = bench or Bench(asked.model)
        settings = {**ask, "group_size": GROUP, "embedding_bits": 16}
        del settings["model"]
        length = make_job(bench.source, settings, calibration=("speeches",)).recipe.sequence_length
        row |= {"tokens": length * asked.samples, "texts": list(bench.windows.texts)}
        row |= bench.run(settings, how)
        rows.append(row)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(*ask.values(), variant, np.mean(row["kl"]), flush=True)
    print(table([row for row in rows if row["model"] == name]))


if __name__ == "__main__":
    main()
