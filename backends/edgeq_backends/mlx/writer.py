"""Let an mlx-lm model write text, in MLX."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import mlx.core as mx
import numpy as np

from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.types import NumpyArray
from edgeq_backends.mlx.model import (
    block_by_block,
    check_window,
    model_definition,
    whole_model,
)


class MlxWriter:
    """The model in float32, with mlx-lm's cache of keys and values.

    The whole of it, or of its blocks only so many as resident says, the first ones: the weights of
    the others are read for every token.
    """

    def __init__(
        self, source: ModelSource, allowed: NumpyArray, seed: int, *, resident: int | None = None
    ) -> None:
        self._source, self._name = source, source.record.name
        self._model: Any = (
            whole_model(source) if resident is None else block_by_block(source, resident)
        )
        self._allowed = mx.array(allowed.astype(np.int32))
        self._key = mx.random.key(seed)

    def continue_text(self, first: NumpyArray) -> Iterator[NumpyArray]:
        newest = mx.array(first.astype(np.int32))
        cache = model_definition("cache").make_prompt_cache(self._model)
        for written in count(2):
            check_window(self._source, written)
            newest = self._next(newest, cache)
            yield np.array(newest).astype(np.int64)

    def _next(self, newest: mx.array, cache: list[Any]) -> mx.array:
        logits = mx.take(self._model(newest[:, None], cache=cache)[:, -1], self._allowed, axis=1)
        self._key, key = mx.random.split(self._key)
        drawn = self._allowed[mx.random.categorical(logits, axis=1, key=key)]
        finite = mx.isfinite(logits).all()
        mx.eval(drawn, finite, self._key, [of_block.state for of_block in cache])
        if not finite.item():
            raise BadInput(
                f"model {self._name!r} predicts NaN or infinity; "
                "it cannot write text, calibrate on a file"
            )
        return drawn
