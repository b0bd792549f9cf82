"""Compute how sure a mean over windows of text is: 95 % intervals, with windows as the sample.

Tokens of one window depend on one another, so the mean of a window counts as one observation. Means
of windows are not normal: divergences are skewed, and now and then a window costs several times as
much as others. Student's t interval then misses on one side, and Hall's correction for skewness
misses where tails are heavy on both sides, as those of differences are. An interval here reaches
as far as either. It needs no sign, no draws and no assumption on how windows are spread.

`python -m benchmarks.intervals` measures what it covers, beside other methods: at 16 windows 94 to
96 of 100, of real divergences and of distributions as skewed as an exponential one. Where rare
windows dominate the mean it covers less (92 of 100 for a Pareto tail of exponent 3), as no method
knows of windows that are not in the sample.

Source: Hall, On the Removal of Skewness by Transformation, J. R. Statist. Soc. B 54 (1992).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Interval = list[float] | None
Values = npt.NDArray[np.float64]

NORMAL_QUANTILE = 1.959963984540054  # 97.5 % of a normal distribution lies below it
FIRST_QUANTILES = {1: 12.706204736, 2: 4.302652730}  # of Student's t; the series starts at 3
FEWEST_FOR_SKEWNESS = 8  # windows
SAME = 1e-12  # of the mean: a spread below it is rounding


def mean_interval(values: Values, groups: Sequence[str] | None = None) -> Interval:
    """Compute the 95 % interval of a mean of windows; None for a single window.

    Windows of several groups are those of texts that were chosen and not drawn: the spread between
    groups does not count, that within each does.

    Shapes: values (windows,); groups one name per window.
    """
    strata = [values] if groups is None else split(values, groups)
    if any(len(each) < 2 for each in strata):
        return None
    mean = float(values.mean())
    shares = [len(each) / len(values) for each in strata]
    variances = [
        share**2 * each.var(ddof=1) / len(each) for share, each in zip(shares, strata, strict=True)
    ]
    error = math.sqrt(sum(variances))
    if error <= SAME * abs(mean):
        return [mean, mean]
    freedom = sum(variances) ** 2 / sum(
        variance**2 / (len(each) - 1) for variance, each in zip(variances, strata, strict=True)
    )
    third = sum(share**3 * third_moment(each) for share, each in zip(shares, strata, strict=True))
    quantile, skewness = t_quantile(freedom), third / error**3
    below, above = (without_skewness(t, skewness) for t in (quantile, -quantile))
    return [mean - max(quantile, below) * error, mean - min(-quantile, above) * error]


def split(values: Values, groups: Sequence[str]) -> list[Values]:
    """Split windows by their group, in the order of the groups."""
    names = np.asarray(groups)
    return [values[names == name] for name in dict.fromkeys(groups)]


def third_moment(values: Values) -> float:
    """Estimate the third central moment of a mean, without bias.

    Of few values it would be noise that moves an end of the interval far away, and is left out.
    """
    count = len(values)
    if count < FEWEST_FOR_SKEWNESS:
        return 0.0
    cubes = float(((values - values.mean()) ** 3).sum())
    return cubes / ((count - 1) * (count - 2) * count)


def without_skewness(t: float, skewness: float) -> float:
    """Find which studentized mean Hall's cubic takes to t.

    The cubic x + b x^2 / 3 + b^2 x^3 / 27 + b / 6 is that of the skewness b of the mean.
    """
    if abs(skewness) < SAME:
        return t
    root = float(np.cbrt(1 + skewness * (t - skewness / 6)))
    return 3 / skewness * (root - 1)


def t_quantile(freedom: float) -> float:
    """Compute the 97.5 % quantile of Student's t, to three decimals.

    Freedom below 3 counts as the whole number below it.

    Source: the expansion of Fisher and Cornish, Technometrics 2 (1960).
    """
    if freedom < 3:
        return FIRST_QUANTILES[max(1, int(freedom))]
    z = NORMAL_QUANTILE
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def share_interval(shares: Values, groups: Sequence[str] | None, tokens: int) -> Interval:
    """Compute the 95 % interval of a share, such as of tokens that agree; it stays within 0 and 1.

    Wilson's interval, for as many independent tokens as give the spread between windows: fewer
    than there are, as tokens of a window depend on one another.

    Shapes: shares (windows,). tokens is how many there are in all windows.
    """
    found = mean_interval(shares, groups)
    if found is None:
        return None
    mean = float(shares.mean())
    half = (found[1] - found[0]) / 2 / NORMAL_QUANTILE
    count = tokens if half == 0 else min(tokens, mean * (1 - mean) / half**2)
    return wilson(mean, count) if count > 0 else found


def wilson(share: float, count: float) -> list[float]:
    """Compute Wilson's 95 % interval of a share of so many independent trials.

    Source: Wilson, J. Am. Statist. Assoc. 22 (1927).
    """
    square = NORMAL_QUANTILE**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    spread = share * (1 - share) / count + square / (4 * count**2)
    half = NORMAL_QUANTILE / (1 + square / count) * math.sqrt(spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]
