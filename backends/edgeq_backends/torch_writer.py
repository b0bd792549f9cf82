"""Text that a transformers model writes itself, in torch."""

from collections.abc import Iterator
from typing import Any

import torch

from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.types import NumpyArray
from edgeq_backends.torch_model import whole_model


class TorchWriter:
    """The whole model in float32, with the cache of keys and values that its own code makes."""

    def __init__(self, source: ModelSource, allowed: NumpyArray, seed: int, *, device: str = "cpu") -> None:
        self._name, self._device = source.name, torch.device(device)
        self._model: Any = whole_model(source, device)
        self._allowed = torch.from_numpy(allowed).to(self._device)
        self._generator = torch.Generator(device=self._device).manual_seed(seed)

    def continue_text(self, first: NumpyArray) -> Iterator[NumpyArray]:
        newest, cache = torch.from_numpy(first.copy()).to(self._device), None
        while True:
            newest, cache = self._next(newest, cache)
            yield newest.cpu().numpy()

    @torch.inference_mode()
    def _next(self, newest: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        output = self._model(input_ids=newest[:, None], past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1].index_select(1, self._allowed)
        if not bool(torch.isfinite(logits).all()):
            raise BadInput(f"model {self._name!r} predicts NaN or infinity; it cannot write text, calibrate on a file")
        drawn = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=self._generator)
        return self._allowed[drawn[:, 0]], output.past_key_values
