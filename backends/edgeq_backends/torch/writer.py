"""Let a transformers model write text, in torch."""

from collections.abc import Iterator
from inspect import signature
from itertools import count
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.types import NumpyArray
from edgeq_backends.torch.block_by_block import block_by_block
from edgeq_backends.torch.empty import quiet_library
from edgeq_backends.torch.model import whole_model

POSITIONS = "position_ids"
"""What most models call the argument with the places of tokens in their text."""
ROOM = 256  # tokens by which keys and values grow


class GrowingLayer(DynamicLayer):
    """Keys and values of a block in buffers with room to spare.

    The library's own layer copies all of them every step.

    Shapes: keys and values (texts, heads, tokens, width) are views of what the buffers hold.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = 0 if self.keys is None else self.keys.shape[2]
        end = start + key_states.shape[2]
        if start == 0:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = [key_states[:, :, :0], value_states[:, :, :0]]
        for place, new in enumerate((key_states, value_states)):
            if self._buffers[place].shape[2] < end:
                grown = new.new_empty(*new.shape[:2], end + ROOM, new.shape[3])
                grown[:, :, :start] = self._buffers[place][:, :, :start]
                self._buffers[place] = grown
            self._buffers[place][:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


def cache_name(model: torch.nn.Module) -> str:
    """Name the argument that takes keys and values.

    That is `cache` from transformers 5.24 on, `past_key_values` before.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def positions(held: int, tokens: torch.Tensor) -> torch.Tensor:
    """Give the places of tokens behind those that a cache holds.

    A model counts by the first layer of its cache alone, which holds none where it does not attend.

    Shapes: (texts, tokens).
    """
    texts, count = tokens.shape
    places = torch.arange(held, held + count, device=tokens.device)
    return places[None].expand(texts, count)


class TorchWriter:
    """The model in float32, and the keys and values of what it wrote so far.

    The whole of it, or of its blocks only so many as resident says, the first ones: the weights of
    the others are read for every token.
    """

    def __init__(
        self,
        source: ModelSource,
        allowed: NumpyArray,
        seed: int,
        *,
        device: str = "cpu",
        resident: int | None = None,
    ) -> None:
        self._name, self._device = source.record.name, torch.device(device)
        self._model: Any = (
            whole_model(source, device)
            if resident is None
            else block_by_block(source, device, resident)
        )
        self._attends = all(layer.attention for layer in source.record.decoder.layers)
        self._cache_name = cache_name(self._model)
        self._takes_positions = POSITIONS in signature(self._model.forward).parameters
        self._allowed = torch.from_numpy(allowed).to(self._device)
        self._generator = torch.Generator(device=self._device).manual_seed(seed)

    def continue_text(self, first: NumpyArray) -> Iterator[NumpyArray]:
        newest = torch.from_numpy(first.copy()).to(self._device)
        cache = self._empty_cache()
        for held in count():
            newest = self._next(newest, cache, held)
            yield newest.cpu().numpy()

    def _empty_cache(self) -> Cache:
        """Make the cache of a text: of keys and values alone, where all blocks are known to attend.

        Else the library's own, with a place for what other blocks keep.
        """
        if not self._attends:
            return DynamicCache(config=self._model.config.get_text_config())
        return Cache(layers=[GrowingLayer() for _ in range(self._model.config.num_hidden_layers)])

    @torch.inference_mode()
    def _next(self, newest: torch.Tensor, cache: Cache, held: int) -> torch.Tensor:
        tokens = newest[:, None]
        kept = {self._cache_name: cache, "use_cache": True}
        if self._takes_positions:
            kept[POSITIONS] = positions(held, tokens)
        with quiet_library():
            logits = self._model(input_ids=tokens, **kept).logits[:, -1]
        logits = logits.index_select(1, self._allowed)
        if not bool(torch.isfinite(logits).all()):
            raise BadInput(
                f"model {self._name!r} predicts NaN or infinity; "
                "it cannot write text, calibrate on a file"
            )
        drawn = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=self._generator)
        return self._allowed[drawn[:, 0]]
