"""Call llama.cpp's own quantizer and forward pass through its C API, with nothing compiled.

The libraries are those of llama.cpp v0.5.0, as `npm pack @node-llama-cpp/linux-x64@3.22.1` brings
them (package/bins/linux-x64 of what it unpacks to). Benchmarks and tests compare with them; edgeq
itself does not need them. Numbers of types are those of the package `gguf`.

The structures are stated as v0.5.0 has them. Defaults at known places are checked first, so that
another version is refused and not misread.
"""

import ctypes as c
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, LlamaFileType

LIBRARIES = ("libggml-base*.so", "libggml.*so", "libllama.*so")  # each needs those before it
KEPT_MESSAGES = 20
PRODUCT = b"MUL_MAT"
FLOAT32 = int(GGMLQuantizationType.F32)
WEIGHTS = ("blk.", ".weight")  # llama-imatrix leaves embedding and head out too

# Of llama_context_params: where a field lies, and what its default says of the layout.
SIZES_AT, SIZES = 0, (512, 2048, 512)  # n_ctx, n_batch, n_ubatch
THREADS_AT, THREADS = 28, (4, 4)  # n_threads, n_threads_batch
CALLBACK_AT, LAST_BEFORE_CALLBACK = 88, (84, -1.0)  # cb_eval; defrag_thold
OTHER_VERSION = "these libraries have another layout than llama.cpp v0.5.0"


class Opaque(c.Structure):
    """Holds parameters that go by value and of which few places are known.

    It is longer than any of them: the callee reads and writes as much as it knows.
    """

    _fields_ = (("bytes", c.c_ubyte * 256),)


class QuantizeParameters(c.Structure):
    """llama_model_quantize_params."""

    _fields_ = (
        ("nthread", c.c_int32),
        ("ftype", c.c_int),
        ("output_tensor_type", c.c_int),
        ("token_embedding_type", c.c_int),
        ("allow_requantize", c.c_bool),
        ("quantize_output_tensor", c.c_bool),
        ("only_copy", c.c_bool),
        ("pure", c.c_bool),
        ("keep_split", c.c_bool),
        ("dry_run", c.c_bool),
        ("imatrix", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("tt_overrides", c.c_void_p),
        ("prune_layers", c.c_void_p),
    )


class Importance(c.Structure):
    """llama_model_imatrix_data."""

    _fields_ = (("name", c.c_char_p), ("data", c.POINTER(c.c_float)), ("size", c.c_size_t))


class TypeOverride(c.Structure):
    """llama_model_tensor_override: a regular expression of names, and a type."""

    _fields_ = (("pattern", c.c_char_p), ("type", c.c_int))


class Batch(c.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


class Tensor(c.Structure):
    """ggml_tensor."""

    _fields_ = (
        ("type", c.c_int),
        ("buffer", c.c_void_p),
        ("ne", c.c_int64 * 4),
        ("nb", c.c_size_t * 4),
        ("op", c.c_int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", c.c_void_p * 10),
        ("view_src", c.c_void_p),
        ("view_offs", c.c_size_t),
        ("data", c.c_void_p),
        ("name", c.c_char * 64),
        ("extra", c.c_void_p),
    )


ON_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
ON_EVAL = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.c_bool, c.c_void_p)
POINTER, TEXT, INT = c.c_void_p, c.c_char_p, c.c_int32
FUNCTIONS: Mapping[str, tuple[Any, Sequence[Any]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (ON_LOG, POINTER)),
    "llama_model_default_params": (Opaque, ()),
    "llama_model_load_from_file": (POINTER, (TEXT, Opaque)),
    "llama_model_get_vocab": (POINTER, (POINTER,)),
    "llama_vocab_n_tokens": (INT, (POINTER,)),
    "llama_model_free": (None, (POINTER,)),
    "llama_context_default_params": (Opaque, ()),
    "llama_init_from_model": (POINTER, (POINTER, Opaque)),
    "llama_get_memory": (POINTER, (POINTER,)),
    "llama_memory_clear": (None, (POINTER, c.c_bool)),
    "llama_batch_init": (Batch, (INT, INT, INT)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (INT, (POINTER, Batch)),
    "llama_get_logits": (c.POINTER(c.c_float), (POINTER,)),
    "llama_free": (None, (POINTER,)),
    "llama_model_quantize_default_params": (QuantizeParameters, ()),
    "llama_model_quantize": (c.c_uint32, (TEXT, TEXT, c.POINTER(QuantizeParameters))),
}
"""Of llama.h: what each returns, and what it takes."""


class LlamaError(Exception):
    """llama.cpp failed, with its last messages, or is of another version."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Says what types a file gets: llama.cpp's name of the file, such as Q3_K_S, and exceptions.

    pure gives every matrix the type of the name, else llama.cpp mixes. embedding is the type of
    embedding and head; tensors are types by regular expressions of tensors' names.
    """

    file_type: str
    pure: bool = False
    embedding: str | None = None
    tensors: Sequence[tuple[str, str]] = ()


class LlamaCpp:
    """llama.cpp's libraries of one folder."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        base, ggml, self._llama = (
            c.CDLL(str(find_library(folder, pattern)), mode=c.RTLD_GLOBAL) for pattern in LIBRARIES
        )
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self._llama, name)
            function.restype, function.argtypes = result, arguments
        self.threads = threads
        self._messages: deque[str] = deque(maxlen=KEPT_MESSAGES)
        self._on_log = ON_LOG(
            lambda _, text, __: self._messages.append(text.decode(errors="replace"))
        )
        self._llama.llama_log_set(self._on_log, None)
        ggml.ggml_backend_load_all_from_path.argtypes = [TEXT]
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        self._llama.llama_backend_init()
        base.ggml_op_name.restype, base.ggml_op_name.argtypes = TEXT, [c.c_int]
        self._name_of_operation = base.ggml_op_name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, f"llama_{name}")

    def failed(self, what: str) -> LlamaError:
        """Make the error of a call that failed, from what llama.cpp said last."""
        return LlamaError(f"{what}: {''.join(self._messages).strip() or 'no message'}")

    @contextmanager
    def opened(self, path: Path, length: int, on_eval: Any = None) -> Iterator["Model"]:
        """Load a file for windows of up to so many tokens; free it afterwards.

        Raises: LlamaError.
        """
        model = self.model_load_from_file(str(path).encode(), self.model_default_params())
        if not model:
            raise self.failed(f"llama.cpp cannot load {path}")
        context = self.init_from_model(model, self._context_parameters(length, on_eval))
        if not context:
            raise self.failed(f"llama.cpp cannot run {path}")
        batch = self.batch_init(length, 0, 1)
        try:
            yield Model(self, model, context, batch)
        finally:
            self.batch_free(batch)
            self.free(context)
            self.model_free(model)

    def _context_parameters(self, length: int, on_eval: Any) -> Opaque:
        parameters = bytearray(bytes(self.context_default_params().bytes))
        place, before = LAST_BEFORE_CALLBACK
        known = (
            struct.unpack_from("<III", parameters, SIZES_AT) == SIZES
            and struct.unpack_from("<ii", parameters, THREADS_AT) == THREADS
            and struct.unpack_from("<f", parameters, place) == (before,)
        )
        if not known:
            raise LlamaError(OTHER_VERSION)
        struct.pack_into("<III", parameters, SIZES_AT, length, length, length)
        struct.pack_into("<ii", parameters, THREADS_AT, self.threads, self.threads)
        if on_eval is not None:
            address = c.cast(on_eval, POINTER).value
            struct.pack_into("<Q", parameters, CALLBACK_AT, address)
        return Opaque.from_buffer_copy(parameters)

    def importance(
        self, path: Path, windows: npt.NDArray[np.integer]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Measure the mean square of every input of every linear layer, as llama-imatrix does.

        Shapes: windows (count, length); results, by the weight's name, (in,).
        Raises: LlamaError.
        """
        sums: dict[str, npt.NDArray[np.float64]] = {}
        rows: dict[str, int] = {}
        odd: list[str] = []  # an error would not leave the callback

        def on_eval(address: int, asks: bool, _: int) -> bool:
            tensor = Tensor.from_address(address)
            if self._name_of_operation(tensor.op) != PRODUCT:
                return not asks
            name = Tensor.from_address(tensor.src[0]).name.decode()
            X = Tensor.from_address(tensor.src[1])
            if not (name.startswith(WEIGHTS[0]) and name.endswith(WEIGHTS[1])):
                return not asks
            if asks:
                return True
            if X.type != FLOAT32:
                odd.append(name)
                return True
            inputs = values_of(X)
            sums[name] = sums.get(name, 0.0) + np.einsum("ti,ti->i", inputs, inputs, dtype=float)
            rows[name] = rows.get(name, 0) + len(inputs)
            return True

        callback = ON_EVAL(on_eval)
        with self.opened(path, windows.shape[1], callback) as model:
            for window in windows:
                model.run(window)
        if odd:
            raise LlamaError(f"the inputs of {odd[0]} are not float32; {OTHER_VERSION}")
        return {name: (sums[name] / rows[name]).astype(np.float32) for name in sums}

    def quantize(
        self,
        source: Path,
        output: Path,
        choice: Choice,
        importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        """Write a file of llama.cpp's own rounding, by an importance matrix where one is given.

        Raises: LlamaError.
        """
        parameters = self.model_quantize_default_params()
        seen = (parameters.nthread, parameters.ftype, parameters.quantize_output_tensor)
        if seen != (0, LlamaFileType.MOSTLY_Q8_0, True) or parameters.imatrix:
            raise LlamaError(OTHER_VERSION)
        parameters.nthread, parameters.pure = self.threads, choice.pure
        parameters.ftype = LlamaFileType[f"MOSTLY_{choice.file_type}"]
        if choice.embedding:
            number = GGMLQuantizationType[choice.embedding]
            parameters.output_tensor_type = parameters.token_embedding_type = number
        matrix = as_importance(importance or {})
        if importance:
            parameters.imatrix = c.cast(matrix, POINTER)
        overrides = as_overrides(choice.tensors)
        if choice.tensors:
            parameters.tt_overrides = c.cast(overrides, POINTER)
        partial = output.with_name(f"{output.name}.partial")
        paths = str(source).encode(), str(partial).encode()
        if self.model_quantize(*paths, c.byref(parameters)):
            raise self.failed(f"llama.cpp cannot make {output}")
        partial.rename(output)


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded file, with room for one window."""

    library: LlamaCpp
    model: int
    context: int
    batch: Batch

    def run(self, window: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Run a window from an empty cache, all of its tokens through all blocks.

        Of tokens whose logits nobody asks for, the last block would compute next to nothing.

        Raises: LlamaError.
        """
        library, batch = self.library, self.batch
        library.memory_clear(library.get_memory(self.context), True)
        batch.n_tokens = len(window)
        for place, token in enumerate(window):
            batch.token[place], batch.pos[place] = int(token), place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = True
        if library.decode(self.context, batch):
            raise library.failed("llama.cpp cannot run a window")

    def logits(self, window: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Compute what follows each token.

        Shapes: (tokens,) -> (tokens, vocabulary).
        """
        self.run(window)
        vocabulary = self.library.vocab_n_tokens(self.library.model_get_vocab(self.model))
        found = self.library.get_logits(self.context)
        return np.ctypeslib.as_array(found, (len(window), vocabulary)).copy()


def find_library(folder: Path, pattern: str) -> Path:
    """Find one of the libraries.

    Raises: LlamaError that says where they come from.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise LlamaError(
            f"no {pattern} in {str(folder)!r}; npm pack @node-llama-cpp/linux-x64@3.22.1, unpack "
            "it, and give its package/bins/linux-x64"
        )
    return found[0]


def values_of(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Look at the numbers of a float32 tensor as rows."""
    width, *others = tensor.ne
    count = int(np.prod(others))
    address = c.cast(tensor.data, c.POINTER(c.c_float))
    return np.ctypeslib.as_array(address, (count, width))


def as_importance(values: Mapping[str, npt.NDArray[np.float32]]) -> Any:
    """Lay importances out as llama.cpp takes them: an entry without a name is the end."""
    array = (Importance * (len(values) + 1))()
    for entry, (name, each) in zip(array, values.items(), strict=False):
        kept = np.ascontiguousarray(each, np.float32)
        entry.name, entry.size = name.encode(), kept.size
        entry.data = (c.c_float * kept.size).from_buffer_copy(kept)
    return array


def as_overrides(tensors: Sequence[tuple[str, str]]) -> Any:
    """Lay types of tensors out as llama.cpp takes them."""
    array = (TypeOverride * (len(tensors) + 1))()
    for entry, (pattern, name) in zip(array, tensors, strict=False):
        entry.pattern, entry.type = pattern.encode(), GGMLQuantizationType[name]
    return array
