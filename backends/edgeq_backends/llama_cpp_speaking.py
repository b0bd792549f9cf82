"""Let llama.cpp write text token by token, with the tokenizer and the template of a GGUF file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.types import NumpyArray
from edgeq_backends.llama_cpp import (
    CACHE_OF_FLOAT32,
    FLASH_ATTENTION_OFF,
    check_loads,
    library_name,
    load_cyllama,
    load_model,
)

TOKENS = 512  # that are read at once, as llama.cpp's own programs do
NAMED = ("bos", "eos", "pad", "sep")
"""Special tokens that templates name and the binding knows."""


class LlamaCppSpeaker:
    """A GGUF file in llama.cpp on the CPU; see `edgeq.talking.speakers.Speaker`.

    With `exact` keys and values are float32, as in `LlamaCppLogits`; weights are the file's own.

    Raises: NotInstalled; BadInput for a file that llama.cpp cannot load.
    """

    longest: int | None = None

    def __init__(
        self, path: Path | str, *, threads: int | None = None, exact: bool = False
    ) -> None:
        self._llama = load_cyllama()
        check_loads(Path(path))
        self._threads, self._exact = threads or usable_threads(), exact
        self._model: Any = load_model(Path(path))
        self._context: Any = None
        self._held = 0
        self._batch: Any = self._llama.LlamaBatch(n_tokens=TOKENS, embd=0, n_seq_max=1)
        self.library = library_name()
        self.texts = LlamaCppTexts(self._model, Path(path))

    def begin(self, room: int) -> None:
        """Start an empty text with room for so many tokens."""
        self._close_context()
        parameters = self._llama.LlamaContextParams()
        parameters.n_ctx = room
        parameters.n_batch = parameters.n_ubatch = min(room, TOKENS)
        parameters.n_threads = parameters.n_threads_batch = self._threads
        if self._exact:
            parameters.type_k = parameters.type_v = CACHE_OF_FLOAT32
            parameters.flash_attn_type = FLASH_ATTENTION_OFF
        self._context = self._llama.LlamaContext(self._model, parameters)

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones, where the model's memory can."""
        if not self._context.memory_seq_rm(0, length, -1):
            return False
        self._held = length
        return True

    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens. Shapes: gives (vocabulary,) float32, the logits behind the last."""
        for start in range(0, len(ids), TOKENS):
            chunk = ids[start : start + TOKENS]
            self._batch.reset()
            for place, token in enumerate(chunk):
                is_last = place == len(chunk) - 1
                self._batch.add(token, self._held + place, [0], is_last)
            self._context.decode(self._batch)
            self._held += len(chunk)
        self._context.synchronize()
        return np.asarray(self._context.get_logits_ith(len(chunk) - 1), dtype=np.float32)

    def close(self) -> None:
        """Let go of the model."""
        self._close_context()
        self._model = None

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context, self._held = None, 0


def usable_threads() -> int:
    """Count the threads to compute with: as OMP_NUM_THREADS says, else the cores of this process.

    llama.cpp's threads wait for each other at every layer: one too many costs most of the speed.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isascii() and stated.isdigit() and int(stated):
        return int(stated)
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LlamaCppTexts:
    """Turns text into tokens and back as llama.cpp does; see `edgeq.talking.speakers.Texts`."""

    def __init__(self, model: Any, path: Path) -> None:
        self._vocabulary: Any = model.get_vocab()
        metadata: Mapping[str, str] = model.metadata()
        self.name = metadata.get("general.name") or path.stem
        self.template = metadata.get("tokenizer.chat_template") or None
        self.vocabulary = int(self._vocabulary.n_vocab)
        self.context: int | None = int(model.n_ctx_train) or None

    def is_end(self, token: int) -> bool:
        """Say whether a token ends a text or a turn."""
        return bool(self._vocabulary.is_eog(token))

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """Turn a text into tokens; begin puts those before it that the file asks for."""
        found = self._vocabulary.tokenize(text, add_special=False, parse_special=True)
        first = [self._vocabulary.token_bos()] if begin and self._vocabulary.get_add_bos() else []
        return [*first, *map(int, found)]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn tokens into text without special ones; broken characters become U+FFFD."""
        return str(self._vocabulary.detokenize(list(ids), False, False))

    def companions(self) -> Mapping[str, bytes]:
        """Give the special tokens that a template names, as a file of Hugging Face's would."""
        ids = {name: int(getattr(self._vocabulary, f"token_{name}")()) for name in NAMED}
        named = {
            f"{name}_token": self._vocabulary.get_text(id) for name, id in ids.items() if id >= 0
        }
        return {"tokenizer_config.json": json.dumps(named).encode()}
