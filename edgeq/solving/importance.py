"""Weigh the columns of a matrix by what a file says of its inputs, where no H was measured."""

import numpy as np

from edgeq.algorithms.damping import DEAD_FRACTION
from edgeq.types import NumpyArray


def column_weights(mean_squares: NumpyArray) -> NumpyArray:
    """Turn mean squares of inputs into weights of columns, of mean 1 in every row.

    Inputs that (almost) never were anything but zero weigh as much as the mean does, as they do
    where H was measured (`edgeq.algorithms.damping.settle_dead_columns`). Where all are such, all
    weigh alike.

    Shapes: (parts, in).
    """
    mean = mean_squares.mean(axis=1, keepdims=True)
    unit = np.where(mean > 0, mean, 1.0)
    weights = mean_squares / unit
    return np.where(weights <= DEAD_FRACTION, 1.0, weights)
