"""The nearest value of a table of whole numbers, looked up by half steps.

Middles between two of them are whole or half, so that all numbers of one half step have the same
nearest value: a look at the list takes a fraction of a search.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from edgeq.types import NumpyArray


@lru_cache
def nearest_by_half_step(table: tuple[int, ...]) -> NumpyArray:
    """List the nearest value for ceil(2 x) from twice the lowest to twice the highest, then NaN.

    The lower of two as near is taken.
    """
    values = np.array(table, dtype=np.float64)
    steps = np.arange(2 * table[0], 2 * table[-1] + 1) / 2
    nearest = values[np.searchsorted((values[1:] + values[:-1]) / 2, steps)]
    return np.append(nearest, np.nan)


def half_step_limits(table: Sequence[int]) -> tuple[int, int]:
    """Give ceil(2 x) of the first and of the last number of the list that are no NaN."""
    return 2 * table[0], 2 * table[-1]


def nearest_in_table(x: NumpyArray, table: Sequence[int]) -> NumpyArray:
    """Do what `Backend.nearest` says, in NumPy."""
    low, high = half_step_limits(table)
    steps = np.clip(np.ceil(2 * x), low, high)
    places = np.where(np.isnan(steps), high + 1, steps).astype(np.int64) - low
    nearest: NumpyArray = nearest_by_half_step(tuple(table)).astype(x.dtype)[places]
    return nearest
