"""Intervals of means over windows: what they cover of a pool that is known, by resampling it."""

import math

import numpy as np
import pytest

from edgeq.measuring.intervals import mean_interval, share_interval, t_quantile, wilson

TRIALS = 2000  # their share is known to half a percent
TO_TWO_PERCENT = (0.93, 0.97)
T_TABLE = {4: 2.7764, 7: 2.3646, 15: 2.1314, 31: 2.0395, 63: 1.9983, 1000: 1.9623}
"""97.5 % quantiles of Student's t, as printed in tables."""


def pool_of_windows(rng, *, between, within, windows=2000, tokens=512):
    """Mean divergences of windows: tokens spread over decades, and windows are easy or hard."""
    easy = rng.normal(0, between, (windows, 1))
    divergences = np.exp(rng.normal(-4, within, (windows, tokens)) + easy)
    return divergences.mean(axis=1)


def coverage(rng, pool, interval, count):
    """The share of samples of so many windows whose interval holds the mean of the pool."""
    truth = pool.mean()
    samples = (pool[rng.integers(0, len(pool), count)] for _ in range(TRIALS))
    covered = sum(low <= truth <= high for low, high in map(interval, samples))
    return covered / TRIALS


@pytest.mark.parametrize("count", [16, 48])
@pytest.mark.parametrize(("between", "within"), [(0.0, 2.0), (0.3, 1.5), (0.5, 1.0)])
def test_intervals_of_divergences_cover_the_mean_of_their_pool(rng, between, within, count):
    pool = pool_of_windows(rng, between=between, within=within)
    low, high = TO_TWO_PERCENT
    assert low <= coverage(rng, pool, mean_interval, count) <= high


def test_intervals_cover_as_skewed_a_mean_as_that_of_exponential_windows(rng):
    pool = rng.exponential(size=100_000)
    low, high = TO_TWO_PERCENT
    assert low <= coverage(rng, pool, mean_interval, 16) <= high


def test_paired_differences_of_either_sign_are_covered(rng):
    hard = np.exp(rng.normal(0, 0.5, 4000))
    a, b = hard * rng.gamma(20, 0.05, 4000), hard * rng.gamma(20, 0.05, 4000) * 1.02
    low, high = TO_TWO_PERCENT
    assert low <= coverage(rng, a - b, mean_interval, 16) <= high
    assert low <= coverage(rng, b - a, mean_interval, 16) <= high


def test_texts_that_differ_do_not_widen_the_interval_of_their_mean(rng):
    """The texts were chosen: only the spread within each is chance."""
    texts = ["a"] * 12 + ["b"] * 12
    covered, widths = 0, []
    for _ in range(TRIALS):
        values = np.concatenate([rng.exponential(size=12), 50 + rng.exponential(size=12)])
        low, high = mean_interval(values, texts)
        covered += low <= 26 <= high
        widths.append(high - low)
    assert TO_TWO_PERCENT[0] <= covered / TRIALS <= TO_TWO_PERCENT[1]
    assert np.mean(widths) < 2


def test_shares_of_tokens_that_depend_on_one_another_are_covered(rng):
    """A window is easy or hard for all its tokens."""
    easy = np.clip(rng.normal(0.9, 0.04, 4000), 0, 1)
    pool = rng.binomial(256, easy) / 256
    low, high = TO_TWO_PERCENT
    found = coverage(rng, pool, lambda shares: share_interval(shares, None, 16 * 256), 16)
    assert low <= found <= high


def test_quantiles_are_those_of_tables():
    for freedom, expected in T_TABLE.items():
        assert t_quantile(freedom) == pytest.approx(expected, abs=1e-3)
    assert t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-6)
    assert t_quantile(2) == pytest.approx(4.3027, abs=1e-4)


def test_wilson_s_interval_is_that_of_its_paper():
    """The share p at either end is off by 1.96 of its own standard errors."""
    for end in wilson(0.3, 50):
        assert abs(0.3 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 50), rel=1e-6)
    assert wilson(1.0, 20)[1] == pytest.approx(1.0)
    assert wilson(0.0, 20)[0] == pytest.approx(0.0, abs=1e-12)


def test_equal_windows_have_a_mean_without_a_spread():
    assert mean_interval(np.full(5, 0.25)) == [0.25, 0.25]
    assert mean_interval(np.zeros(5)) == [0.0, 0.0]


@pytest.mark.parametrize("texts", [None, ["a"], ["a", "b"]])
def test_a_single_window_of_a_text_has_no_interval(texts):
    values = np.arange(1.0 if texts is None else float(len(texts)))
    assert mean_interval(values, texts) is None


def test_shares_that_are_all_one_are_known_as_well_as_so_many_tokens_tell():
    low, high = share_interval(np.ones(4), None, 400)
    assert (low, high) == pytest.approx(tuple(wilson(1.0, 400)))
