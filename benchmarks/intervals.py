"""Measure how often 95 % intervals of means over windows hold the truth, by several methods.

A pool of windows stands for all text: its mean is the truth, and samples are drawn from it. Pools
are synthetic, or the divergences of a real model, rounded plainly to some bits, over some text:

    python -m benchmarks.intervals
    python -m benchmarks.intervals --model demo --bits 4 3 --text benchmarks/data/factbook.txt
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeq.measuring import intervals
from edgeq.measuring.comparing import means_of
from edgeq.measuring.quality import measure_window, predictions
from edgeq.measuring.targets import model_logits
from edgeq.measuring.texts import cut_windows
from edgeq.protocols import ModelSource
from edgeq.sources import open_source
from edgeq.types import NumpyArray

Values = npt.NDArray[np.float64]
Method = Callable[[Values], Sequence[float]]

SEED = 20261127
SIZES = (8, 16, 32, 64)
TRIALS = 4000
DRAWS = 400  # of a bootstrap
POOL = 20_000
GROUP = 32  # weights that share a scale in a rounded model
AT_ONCE = 16  # windows


class Rounded:
    """A model whose matrices are rounded plainly; embeddings stay as they are."""

    def __init__(self, source: ModelSource, bits: int) -> None:
        self._source, self._largest = source, 2 ** (bits - 1) - 1

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def read(self, name: str) -> NumpyArray:
        weights = self._source.read(name)
        if weights.ndim != 2 or "_proj" not in name or weights.shape[1] % GROUP:
            return weights
        groups = weights.astype(np.float32).reshape(len(weights), -1, GROUP)
        scales = np.abs(groups).max(axis=2, keepdims=True) / self._largest
        codes = np.rint(np.divide(groups, scales, where=scales > 0, out=np.zeros_like(groups)))
        return (codes * scales).reshape(weights.shape)


def student(values: Values) -> list[float]:
    half = intervals.t_quantile(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return [values.mean() - half, values.mean() + half]


def hall(values: Values) -> list[float]:
    error = values.std(ddof=1) / len(values) ** 0.5
    quantile = intervals.t_quantile(len(values) - 1)
    skewness = intervals.third_moment(values) / error**3
    ends = [intervals.without_skewness(t, skewness) for t in (quantile, -quantile)]
    return [values.mean() - end * error for end in ends]


def percentile(values: Values) -> list[float]:
    random = np.random.default_rng(SEED)
    means = values[random.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    return [float(end) for end in np.quantile(means, (0.025, 0.975))]


def studentized(values: Values) -> list[float]:
    random = np.random.default_rng(SEED)
    drawn = values[random.integers(0, len(values), (DRAWS, len(values)))]
    errors = drawn.std(axis=1, ddof=1)
    t = (drawn.mean(axis=1) - values.mean())[errors > 0] / errors[errors > 0]
    low, high = np.quantile(t, (0.025, 0.975)) * values.std(ddof=1)
    return [values.mean() - high, values.mean() - low]


def used(values: Values) -> Sequence[float]:
    return intervals.mean_interval(values) or (0.0, 0.0)


METHODS: Mapping[str, Method] = {
    "edgeq": used,
    "Student": student,
    "Hall": hall,
    "percentile bootstrap": percentile,
    "bootstrap-t": studentized,
}


def synthetic(random: np.random.Generator) -> dict[str, Values]:
    """Pools of known kinds, from even to heavy-tailed."""
    hard = np.exp(random.normal(0, 0.5, POOL))
    return {
        "normal": 1 + 0.3 * random.standard_normal(POOL),
        "lognormal 0.5": np.exp(0.5 * random.standard_normal(POOL)),
        "exponential": random.exponential(size=POOL),
        "difference": hard * (random.gamma(20, 0.05, POOL) - random.gamma(20, 0.05, POOL)),
        "Pareto 3": 1 + random.pareto(3, POOL),
    }


def real(
    model: str, bits: Sequence[int], text: str, windows: int, length: int
) -> Iterator[tuple[str, Values]]:
    """Pools of the divergences of a model that was rounded, and of the difference of two."""
    source = open_source(model)
    cut = cut_windows([source], [text], windows=windows, sequence_length=length).ids
    found = {}
    for width in bits:
        parts = []
        for start in range(0, len(cut), AT_ONCE):
            part = cut[start : start + AT_ONCE]
            pairs = zip(
                part,
                model_logits(source, "cpu").logits(part),
                model_logits(Rounded(source, width), "cpu").logits(part),  # type: ignore[arg-type]
                strict=True,
            )
            for ids, original, rounded in pairs:
                quality = measure_window(
                    ids, predictions(rounded, "target"), predictions(original, "reference")
                )
                assert quality.compared is not None
                parts.append(quality.compared)
        found[width] = means_of(parts)
        yield f"{Path(model).name}, {width} bits", found[width]
    if len(bits) > 1:
        yield f"{bits[0]} to {bits[1]} bits", found[bits[0]] - found[bits[1]]


def coverage(random: np.random.Generator, pool: Values, method: Method, count: int) -> float:
    """Share of samples whose interval holds the mean of the pool."""
    truth = float(pool.mean())
    covered = 0
    for _ in range(TRIALS):
        low, high = method(pool[random.integers(0, len(pool), count)])
        covered += low <= truth <= high
    return covered / TRIALS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a directory of safetensors, a .gguf file, or demo")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--text", default="speech")
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--sequence-length", type=int, default=256)
    options = parser.parse_args()
    random = np.random.default_rng(SEED)
    pools = synthetic(random)
    if options.model:
        sizes = (options.windows, options.sequence_length)
        pools = dict(real(options.model, options.bits, options.text, *sizes))
    for name, pool in pools.items():
        skewness = float(((pool - pool.mean()) ** 3).mean() / pool.std() ** 3)
        spread = float(pool.std() / abs(pool.mean()))
        print(f"{name}: {len(pool)} windows, spread {spread:.2f}, skewness {skewness:.2f}")
        for count in SIZES:
            row = (
                f"{how} {coverage(random, pool, each, count):.1%}" for how, each in METHODS.items()
            )
            print(f"  {count:3} windows: {', '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
