"""Say whether a preset beats plain GPTQ on tokens that nothing was fitted to, layer by layer.

    uv run python -m benchmarks.held_out                 balanced, the whole demo (10 minutes)
    uv run python -m benchmarks.held_out --quality best  another preset

Every layer is solved twice from the same statistics: by the preset, whose result the model runs on
with, and by GPTQ with min-max scales and no propagation. Both are judged by ||X W.T - X_hat Q.T||^2
/ ||X W.T||^2 on other texts. Results go to benchmarks/results/held-out-PRESET.md.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.solves import COMMON, GPTQ, INGREDIENTS, PLAIN, PRESETS, TEXTS
from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import first_windows, sample_windows, tokenize
from edgeq.protocols import Site
from edgeq.recipe.recipe import Recipe, make_recipe
from edgeq.solving.layer import solve_layer
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.statistics import accumulate, accumulate_split
from edgeq.sources import open_source
from edgeq.sources.reading import read_weight
from edgeq.stopwatch import Stopwatch
from edgeq.streams.blockwise import CALIBRATION_BATCH, share_windows
from edgeq.types import Array, NumpyArray, Tokens
from edgeq_backends.torch.activations import TorchActivations
from edgeq_backends.torch.backend import TorchBackend

RESULTS = Path(__file__).parent / "results"
JUDGES = ("speeches", "factbook")
PER_BATCH = CALIBRATION_BATCH // 512


class Part:
    """Shows some of a site's batches, with the full-precision stream on a share of them."""

    def __init__(self, site: Site, start: int, stop: int, share: float = 1.0) -> None:
        self.name, self.lends = site.name, site.lends
        self._site = site
        self._bounds = (start, stop)
        self._both = math.ceil(share * (stop - start))

    def batches(self) -> Iterator[tuple[Array | None, Array]]:
        for index, (X, X_hat) in enumerate(islice(self._site.batches(), *self._bounds)):
            yield (X if index < self._both else None), X_hat

    def tokens(self, batch: int) -> Tokens | None:
        return self._site.tokens(self._bounds[0] + batch)


class TrueLoss:
    """Measures ||X W.T - X_hat Q.T||^2 / ||X W.T||^2 on the tokens of one part of a site.

    Products are in float32.
    """

    def __init__(self, part: Part, backend: TorchBackend) -> None:
        self._backend = backend
        self._pairs = []
        for batch in part.batches():
            streams = map(backend.activations, batch)
            self._pairs.append(tuple(x.reshape(-1, x.shape[-1]) for x in streams))

    def __call__(self, W: NumpyArray, solutions: Mapping[str, NumpyArray]) -> dict[str, float]:
        """Give the loss of each solution.

        Shapes: W and the solutions (out, in).
        """
        lost = dict.fromkeys(solutions, 0.0)
        energy = 0.0
        for X, X_hat in self._pairs:
            wanted = X @ self._backend.activations(W).T
            energy += float((wanted.double() ** 2).sum())
            for name, Q in solutions.items():
                found = X_hat @ self._backend.activations(Q).T
                lost[name] += float(((wanted - found).double() ** 2).sum())
        return {name: loss / energy for name, loss in lost.items()}


class Solver:
    """Solves the layers of a site from the statistics of one of its parts."""

    def __init__(self, part: Part, recipe: Recipe, backend: TorchBackend) -> None:
        self._recipe = recipe
        split = None
        if recipe.chooses_propagation:
            statistics, split = accumulate_split(part, backend)
        else:
            statistics = accumulate(part, backend, drift=recipe.needs_drift)
        self._factors = prepare_site(statistics, recipe, backend, split=split)

    def __call__(self, name: str, W: Array) -> NumpyArray:
        """Solve a layer, and give its dequantized weight.

        Shapes: (out, in).
        """
        grid = self._recipe.grid_of(name)
        assert grid is not None
        layer = Layer(name, W, grid, self._factors, self._recipe)
        return solve_layer(layer, Stopwatch())[0].dequantized()


def judge(quality: str) -> list[dict[str, Any]]:
    """Measure, layer by layer, the held-out losses of the preset and of plain GPTQ."""
    source, backend = open_source("demo"), TorchBackend("cpu")
    settings = {**COMMON, "bits": 3}
    chosen = {"preset": PRESETS[quality], "plain": INGREDIENTS[GPTQ]}
    recipes = {
        name: make_recipe({**PLAIN, **choices, **settings}) for name, choices in chosen.items()
    }
    fit = sample_windows(tokenize(source, read_text(None)), samples=64, sequence_length=512, seed=0)
    both, quantized = share_windows(fit, recipes["preset"].propagation_share)
    others = [
        first_windows(tokenize(source, TEXTS[name][0]()), windows=PER_BATCH, sequence_length=512)
        for name in JUDGES
    ]
    count = len(fit) // PER_BATCH
    found = []
    streams = TorchActivations(source, np.concatenate([both, quantized, *others]))
    for block in source.blocks():
        for site in streams.sites(block):
            judges = {
                name: TrueLoss(Part(site, count + i, count + i + 1), backend)
                for i, name in enumerate(JUDGES)
            }
            solvers = {
                name: Solver(Part(site, 0, count, recipe.propagation_share), recipe, backend)
                for name, recipe in recipes.items()
            }
            for layer in site.layers():
                W = read_weight(source, f"{layer}.weight")
                solved = {name: solve(layer, backend.asarray(W)) for name, solve in solvers.items()}
                losses = {text: loss(W, solved) for text, loss in judges.items()}
                found.append({"layer": layer, **losses})
                site.replace(layer, solved["preset"])
        print(f"block {block.index + 1} of {len(source.blocks())}", flush=True)
    return found


def format_table(found: Sequence[dict[str, Any]], quality: str) -> str:
    """Make the Markdown table of the preset's ratios to plain GPTQ, with the worst layers."""
    lines = [
        f"`python -m benchmarks.held_out --quality {quality}`: "
        "SmolLM2-135M-Instruct, 3 bits symmetric, groups of 64, calibrated on 64 x 512 tokens; "
        f"{len(found)} layers, held-out loss of the preset as a share of plain GPTQ's.",
        "",
        "| text | mean | median | worst | layers that are worse |",
        "|---|---|---|---|---|",
    ]
    for text in JUDGES:
        ratios = np.array([row[text]["preset"] / row[text]["plain"] for row in found])
        worst = found[int(ratios.argmax())]["layer"]
        worse = int((ratios > 1).sum())
        lines.append(
            f"| {text} | {ratios.mean():.3f} | {np.median(ratios):.3f} | "
            f"{ratios.max():.3f} ({worst}) | {worse} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quality", choices=tuple(PRESETS), default="balanced")
    quality = parser.parse_args().quality
    text = format_table(judge(quality), quality)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"held-out-{quality}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
