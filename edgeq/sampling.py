"""Drawing tokens from a model's predictions."""

import numpy as np
import numpy.typing as npt

from edgeq.types import NumpyArray


def draw_tokens(logits: NumpyArray, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """One token per row at temperature 1. Shapes: (rows, vocabulary) -> (rows,)."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    reached = np.cumsum(weights, axis=1)
    drawn = random.random(len(logits))[:, None] * reached[:, -1:]
    drawn_tokens: npt.NDArray[np.int64] = np.minimum((reached <= drawn).sum(axis=1), logits.shape[1] - 1)
    return drawn_tokens
