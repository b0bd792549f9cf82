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
from edgeq_backends.torch.writer import GrowingLayer, cache_name

TOKENS = 512  # that are read at once; more would hold larger tables of attention in memory
LAST_ONLY = "logits_to_keep"  # what most models call the argument that spares a long text's logits
CUTTABLE = (DynamicLayer, GrowingLayer)
"""Layers of a cache that hold every token's keys and values; windows and states hold less."""


class TransformersSpeaker:
    """A transformers model with its cache; see `edgeq.talking.speakers.Speaker`."""

    def __init__(self, model: Any, make_cache: Callable[[], Cache], library: str) -> None:
        self._model, self._make_cache, self.library = model, make_cache, library
        self._cache_name = cache_name(model)
        known = signature(model.forward).parameters
        self._options = {LAST_ONLY: 1} if LAST_ONLY in known else {}
        self._cache: Any = None

    def begin(self, room: int) -> None:
        """Start an empty text; the cache grows as it must."""
        self._cache = self._make_cache()

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones, where every layer of the cache can."""
        if not all(type(layer) in CUTTABLE for layer in self._cache.layers):
            return False
        for layer in self._cache.layers:
            if layer.keys is not None:
                layer.keys = layer.keys[..., :length, :]
                layer.values = layer.values[..., :length, :]
        return True

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens. Shapes: gives (vocabulary,) float32, the logits behind the last."""
        device, kept = self._model.device, {self._cache_name: self._cache, "use_cache": True}
        for start in range(0, len(ids), TOKENS):
            tokens = torch.tensor([list(ids[start : start + TOKENS])], device=device)
            with quiet():  # some weights are unpacked at the first use, with a bar
                logits = self._model(input_ids=tokens, **kept, **self._options).logits[0, -1]
        found: NumpyArray = logits.float().cpu().numpy()
        return found

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

        super().__init__(model, make_cache, f"torch {torch.__version__}")


class GptqModelSpeaker(TransformersSpeaker):
    """A GPTQ directory in GPTQModel's kernels, in the type that its config states."""

    def __init__(self, path: Path) -> None:
        GptqModelLogits.check_installed()
        model = load_model(path)
        library = f"gptqmodel {version('gptqmodel')}"
        super().__init__(model, lambda: library_cache(model), library)


class CompressedTensorsSpeaker(TransformersSpeaker):
    """A compressed-tensors directory, in the type that its config states."""

    def __init__(self, path: Path) -> None:
        CompressedTensorsLogits.check_installed()
        model = load_compressed_tensors(path)
        library = f"compressed-tensors {version('compressed-tensors')}"
        super().__init__(model, lambda: library_cache(model), library)


def library_cache(model: Any) -> Cache:
    """Make the library's own cache, with a place for what blocks keep that do not attend."""
    return DynamicCache(config=model.config.get_text_config())
