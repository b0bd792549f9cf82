"""Let mlx-lm models write text token by token, in MLX."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from edgeq.architectures.mlx_config import alike_tokens
from edgeq.protocols import ModelSource
from edgeq.types import NumpyArray
from edgeq_backends.mlx.model import model_definition, whole_model

TOKENS = 512  # that are read at once, as in mlx-lm


class CachedModel:
    """An mlx-lm model with its cache; see `edgeq.talking.speakers.Speaker`."""

    longest: int | None = None

    def __init__(self, model: Any, library: str) -> None:
        self._model, self.library = model, library
        self._caches: Any = model_definition("cache")
        self._cache: list[Any] = []
        self._held = 0

    def begin(self, room: int) -> None:
        """Start an empty text; the cache grows as it must."""
        self._cache, self._held = self._caches.make_prompt_cache(self._model), 0

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones, where every layer of the cache can."""
        if not self._caches.can_trim_prompt_cache(self._cache):
            return False
        self._caches.trim_prompt_cache(self._cache, self._held - length)
        self._held = length
        return True

    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens. Shapes: gives (vocabulary,) float32, the logits behind the last."""
        for start in range(0, len(ids), TOKENS):
            tokens = mx.array([list(ids[start : start + TOKENS])], dtype=mx.int32)
            logits = self._model(tokens, cache=self._cache)[0, -1].astype(mx.float32)
            mx.eval(logits, [layer.state for layer in self._cache])
            self._held += tokens.shape[1]
        return np.array(logits)

    def close(self) -> None:
        """Let go of the model."""
        self._model, self._cache = None, []


class MlxSpeaker(CachedModel):
    """The model of any source in MLX, in float32.

    Raises: UnsupportedModel where mlx-lm would compute something else.
    """

    def __init__(self, source: ModelSource) -> None:
        super().__init__(whole_model(source), f"MLX {version('mlx')}")
        self.longest = alike_tokens(
            source.record.decoder
        )  # as far as mlx-lm computes what torch does


class MlxLmSpeaker(CachedModel):
    """A directory as mlx-lm loads it; on a CPU in float32, where MLX is far faster than in half.

    Raises: BadInput when mlx-lm cannot load the directory, or would run code that it brings.
    """

    def __init__(self, path: Path) -> None:
        from edgeq_backends.mlx.runtime import checked_model  # noqa: PLC0415 (which starts mlx-lm)

        model = checked_model(path)
        if mx.default_device().type == mx.cpu:
            model.set_dtype(mx.float32)
        super().__init__(model, f"mlx-lm {version('mlx-lm')}")
