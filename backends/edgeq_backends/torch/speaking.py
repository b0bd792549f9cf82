"""Let transformers models write text token by token, in torch.

Models are those that edgeq fills with the weights of a source, and directories as transformers
loads them with the library of their format.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from edgeq.architectures.families import families
from edgeq.protocols import ModelSource
from edgeq.types import NumpyArray
from edgeq_backends.torch.directories import (
    CompressedTensorsLogits,
    GptqModelLogits,
    load_compressed_tensors,
    load_model,
)
from edgeq_backends.torch.loading import quiet
from edgeq_backends.torch.model import whole_model
from edgeq_backends.torch.writer import POSITIONS, GrowingLayer, cache_name, positions

TOKENS = 512  # that are read at once; more would hold larger tables of attention in memory
LAST_ONLY = "logits_to_keep"  # what most models call the argument that spares a long text's logits
CUTTABLE = (DynamicLayer, GrowingLayer)
"""Layers of a cache that hold every token's keys and values; windows and states hold less."""


class TransformersSpeaker:
    """A transformers model with its cache; see `edgeq.talking.speakers.Speaker`.

    continues says whether several tokens may follow others in the cache. Where the library is not
    known to compute that, which holds for blocks that do not attend and for some attention, the
    whole text is read anew; single tokens always may.
    """

    longest: int | None = None

    def __init__(
        self, model: Any, make_cache: Callable[[], Cache], library: str, *, continues: bool
    ) -> None:
        self._model, self._make_cache, self.library = model, make_cache, library
        self._continues = continues
        self._cache_name = cache_name(model)
        known = signature(model.forward).parameters
        self._options = {LAST_ONLY: 1} if LAST_ONLY in known else {}
        self._takes_positions = POSITIONS in known
        self._cache: Any = None
        self._ids: list[int] = []

    def begin(self, room: int) -> None:
        """Start an empty text; the cache grows as it must."""
        self._cache, self._ids = self._make_cache(), []

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones, where every layer of the cache can."""
        if not self._continues or any(type(layer) not in CUTTABLE for layer in self._cache.layers):
            return False
        for layer in self._cache.layers:
            if layer.keys is not None:
                layer.keys = layer.keys[..., :length, :]
                layer.values = layer.values[..., :length, :]
        del self._ids[length:]
        return True

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens. Shapes: gives (vocabulary,) float32, the logits behind the last."""
        if not self._continues and self._ids and len(ids) > 1:
            whole = [*self._ids, *ids]
            self.begin(len(whole))
            return self.read(whole)
        at_once = TOKENS if self._continues else len(ids)
        for start in range(0, len(ids), at_once):
            logits = self._logits(ids[start : start + at_once])
        found: NumpyArray = logits.float().cpu().numpy()
        return found

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        tokens = torch.tensor([list(ids)], device=self._model.device)
        given = {self._cache_name: self._cache, "use_cache": True, **self._options}
        if self._takes_positions:
            given[POSITIONS] = positions(len(self._ids), tokens)
        with quiet():  # some weights are unpacked at the first use, with a bar
            logits: torch.Tensor = self._model(input_ids=tokens, **given).logits[0, -1]
        self._ids += ids
        return logits

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._cache = None


class TorchSpeaker(TransformersSpeaker):
    """The model of any source in torch, in float32."""

    def __init__(self, source: ModelSource, *, device: str = "cpu") -> None:
        model: Any = whole_model(source, device)
        attends = all(layer.attention for layer in source.record.decoder.layers)
        blocks = model.config.get_text_config().num_hidden_layers if attends else 0

        def make_cache() -> Cache:
            if attends:
                return Cache(layers=[GrowingLayer() for _ in range(blocks)])
            return library_cache(model)

        super().__init__(model, make_cache, f"torch {torch.__version__}", continues=attends)


class GptqModelSpeaker(TransformersSpeaker):
    """A GPTQ directory in GPTQModel's kernels, in the type that its config states."""

    def __init__(self, path: Path) -> None:
        GptqModelLogits.check_installed()
        model = load_model(path)
        library = f"gptqmodel {version('gptqmodel')}"
        super().__init__(
            model, lambda: library_cache(model), library, continues=is_described(model)
        )


class CompressedTensorsSpeaker(TransformersSpeaker):
    """A compressed-tensors directory, in the type that its config states."""

    def __init__(self, path: Path) -> None:
        CompressedTensorsLogits.check_installed()
        model = load_compressed_tensors(path)
        library = f"compressed-tensors {version('compressed-tensors')}"
        super().__init__(
            model, lambda: library_cache(model), library, continues=is_described(model)
        )


def library_cache(model: Any) -> Cache:
    """Make the library's own cache, with a place for what blocks keep that do not attend."""
    return DynamicCache(config=model.config.get_text_config())


def is_described(model: Any) -> bool:
    """Say whether a loaded model is of a family that has a file, all of which attend."""
    return str(model.config.get_text_config().model_type) in families()
