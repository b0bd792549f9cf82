"""Compute logits of a GGUF file in llama.cpp, to check exports in the runtime that users run."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.errors import BadInput, NotInstalled, reason_of
from edgeq.types import NumpyArray, Rounding
from edgeq.words import install

BLOCK_COLUMNS = 32  # of activations that share a scale where llama.cpp rounds them to 8 bits
# llama.cpp's own numbers
CACHE_OF_FLOAT32 = 0  # GGML_TYPE_F32
ALL_FLOAT32 = 0  # LLAMA_FTYPE_ALL_F32
FLASH_ATTENTION_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
FLOAT32_BYTES = 4
GIGABYTE = 1e9

LOADING = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:  # Windows, which leaves no core files
    pass
from cyllama.llama import llama_cpp
llama_cpp.disable_logging()
llama_cpp.llama_backend_init()
llama_cpp.ggml_backend_load_all()
parameters = llama_cpp.LlamaModelParams()
parameters.n_gpu_layers = 0
model = llama_cpp.LlamaModel(sys.argv[1], parameters)
sizes = llama_cpp.LlamaContextParams()
sizes.n_ctx = sizes.n_batch = sizes.n_ubatch = 8
llama_cpp.LlamaContext(model, sizes)
"""
"""What a process runs to load a file; it exits 1 where llama.cpp refuses the file by an error."""


class LlamaCppLogits:
    """A LogitSource over a GGUF file, on the CPU; every window starts from an empty cache.

    llama.cpp rounds activations to 8 bits and keeps a float16 cache, so its logits differ from
    those of a float32 model with equal weights. With `exact` it computes in float32 instead: on a
    copy of the file whose weights it has turned into float32 itself, which lies in the temporary
    directory while logits are asked for.

    Raises: NotInstalled without the extra llama-cpp; BadInput for a file that llama.cpp cannot
    load.
    """

    def __init__(
        self, path: Path | str, *, threads: int | None = None, exact: bool = False
    ) -> None:
        self._llama = load_cyllama()
        check_loads(Path(path))
        self._threads = threads or os.cpu_count() or 1
        self._path, self._exact = Path(path), exact
        self._model = load_model(self._path)
        self.vocabulary = int(self._model.get_vocab().n_vocab)
        self.context = int(self._model.n_ctx_train) or None
        self.library = library_name()
        self.rounding = None if exact else Rounding("int8", BLOCK_COLUMNS)

    @staticmethod
    def check_installed() -> None:
        """Refuse to go on without llama.cpp.

        Raises: NotInstalled.
        """
        load_cyllama()

    def logits(self, windows: np.ndarray[Any, Any]) -> Iterator[NumpyArray]:
        """Predict every token of each window.

        Shapes: windows (count, tokens) of token ids; yields (tokens, vocabulary) float32 per
        window.
        Raises: BadInput for token ids outside the vocabulary, and for an exact run without room for
        the copy.
        """
        self._check(windows)
        if not self._exact:
            yield from self._predict(self._model, windows)
            return
        with float32_copy(self._path, weights=int(self._model.n_params)) as copy:
            yield from self._predict(load_model(copy), windows)

    def _predict(self, model: Any, windows: np.ndarray[Any, Any]) -> Iterator[NumpyArray]:
        tokens = windows.shape[1]
        context = self._context(model, tokens)
        batch = self._llama.LlamaBatch(n_tokens=tokens, embd=0, n_seq_max=1)
        for window in windows:
            context.kv_cache_clear()
            batch.set_batch([int(token) for token in window], 0, True)
            context.decode(batch)
            context.synchronize()
            yield np.stack(
                [np.asarray(context.get_logits_ith(i), dtype=np.float32) for i in range(tokens)]
            )

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Turn a text into token ids by llama.cpp's own tokenizer; none are added at its ends."""
        ids = self._model.get_vocab().tokenize(text, add_special=False, parse_special=parse_special)
        return [int(token) for token in ids]

    def token_text(self, token: int) -> str | None:
        """Give the text of a token as the file has it; None for an id outside the vocabulary."""
        if not 0 <= token < self.vocabulary:
            return None
        return str(self._model.get_vocab().get_text(token))

    def _context(self, model: Any, tokens: int) -> Any:
        parameters = self._llama.LlamaContextParams()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = tokens
        parameters.n_threads = parameters.n_threads_batch = self._threads
        if self._exact:
            parameters.type_k = parameters.type_v = CACHE_OF_FLOAT32
            parameters.flash_attn_type = FLASH_ATTENTION_OFF  # it rounds keys and values
        return self._llama.LlamaContext(model, parameters)

    def _check(self, windows: np.ndarray[Any, Any]) -> None:
        if windows.ndim != 2 or windows.shape[1] == 0:
            raise BadInput(
                f"windows have shape {windows.shape}; pass (count, tokens) with at least one token"
            )
        if windows.size and not 0 <= windows.min() <= windows.max() < self.vocabulary:
            raise BadInput(
                f"token ids reach from {windows.min()} to {windows.max()}, "
                f"but the model's vocabulary has {self.vocabulary} tokens; "
                "use the tokenizer of this model"
            )


def load_model(path: Path) -> Any:
    """Load a GGUF file on the CPU; see `check_loads`, which comes first.

    Raises: NotInstalled; BadInput for a file that llama.cpp cannot load.
    """
    llama = load_cyllama()
    parameters = llama.LlamaModelParams()
    parameters.n_gpu_layers = 0
    try:
        return _model_class(llama)(str(path), parameters)
    # the binding raises a different type for each way a file can be wrong
    except Exception as failure:
        reason = " ".join(str(failure).split())
        raise BadInput(
            f"llama.cpp cannot load '{path}': {reason}; export it again, check the path, "
            "or update cyllama where the file has types that are newer than it"
        ) from failure


def check_loads(path: Path) -> None:
    """Have llama.cpp load a file in a process of its own first: on some damage it ends the process.

    Files that it refuses with an error pass: they are refused again, with the reason.

    Raises: BadInput.
    """
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    nothing = subprocess.DEVNULL
    command = [sys.executable, "-c", LOADING, str(path)]
    run = subprocess.run(
        command, env=environment, stdin=nothing, stdout=nothing, stderr=nothing, check=False
    )
    if run.returncode not in (0, 1):
        ended = f"signal {-run.returncode}" if run.returncode < 0 else f"status {run.returncode}"
        raise BadInput(
            f"llama.cpp cannot load '{path}': it ends the process ({ended}), the file is damaged; "
            "export it again or fetch it again"
        )


@contextmanager
def float32_copy(path: Path, *, weights: int) -> Iterator[Path]:
    """Have llama.cpp write a copy of a GGUF file with float32 weights, and remove it afterwards.

    weights is how many there are.

    Raises: BadInput when there is no room for it, or llama.cpp cannot write it.
    """
    llama = load_cyllama()
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        needed, free = FLOAT32_BYTES * weights, shutil.disk_usage(folder).free
        if needed > free:
            raise BadInput(
                f"llama.cpp computes in float32 on a copy of '{path}' that takes "
                f"{needed / GIGABYTE:.1f} GB in {tempfile.gettempdir()!r}, where "
                f"{free / GIGABYTE:.1f} GB are free; set TMPDIR to a directory with more room"
            )
        copy = Path(folder, "float32.gguf")
        parameters = llama.LlamaModelQuantizeParams()
        parameters.ftype = ALL_FLOAT32
        parameters.allow_requantize = parameters.pure = True
        try:
            llama.model_quantize(str(path), str(copy), parameters)
        except RuntimeError as failure:
            raise BadInput(
                f"llama.cpp cannot turn '{path}' into float32 ({reason_of(failure)}); "
                "check the file and the room in the temporary directory"
            ) from failure
        yield copy


def library_name() -> str:
    """Name llama.cpp with the version of its binding."""
    try:
        return f"llama.cpp (cyllama {version('cyllama')})"
    except PackageNotFoundError:  # a build of one's own
        return "llama.cpp"


@cache
def load_cyllama() -> Any:
    """Load the binding, started and silenced once per process.

    Raises: NotInstalled.
    """
    try:
        llama_cpp: Any = import_module("cyllama.llama.llama_cpp")
    except ImportError as missing:
        raise NotInstalled(
            f"llama.cpp needs the package cyllama; {install('llama-cpp')}"
        ) from missing
    llama_cpp.disable_logging()
    llama_cpp.llama_backend_init()
    llama_cpp.ggml_backend_load_all()
    return llama_cpp


@cache
def _model_class(llama_cpp: Any) -> Any:
    class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
        # reading logits asks the model for this, and cyllama 0.2 does not define it
        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    return Model
