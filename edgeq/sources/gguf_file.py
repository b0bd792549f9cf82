"""Read a GGUF file of a Llama model as if it were the checkpoint that it was converted from.

Its header is checked by `edgeq.files.gguf_header` before the gguf library reads it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from edgeq.architectures.blocks import find_blocks
from edgeq.architectures.chat_template import OLDER_FILE
from edgeq.architectures.record import Evidence, read_record
from edgeq.decoder import Decoder
from edgeq.errors import BadInput, UnsupportedModel, reason_of
from edgeq.files.gguf_header import check_header
from edgeq.files.json_files import json_bytes
from edgeq.files.plain_files import read_array
from edgeq.sources.fingerprint import hash_model
from edgeq.sources.gaps import StoredBytes, check_gaps, row_bytes
from edgeq.sources.gguf_config import build_config
from edgeq.sources.gguf_tokenizer import tokenizer_files
from edgeq.sources.refusals import check_content
from edgeq.types import BlockSpec, NumpyArray

ROPE_FACTORS = "rope_freqs.weight"
INTEGER_TYPES = frozenset(
    {
        gguf.GGMLQuantizationType.I8,
        gguf.GGMLQuantizationType.I16,
        gguf.GGMLQuantizationType.I32,
        gguf.GGMLQuantizationType.I64,
    }
)


class GgufFile:
    """A Llama GGUF as a ModelSource, with the names, row order and config of Hugging Face.

    Quantized tensors become float32. The library maps the file to read its header; tensors are
    read one at a time, by ordinary reads.

    Raises: BadInput or UnsupportedModel, each with one line.
    """

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        reader = open_reader(path)
        self.path = path
        self.metadata = read_metadata(reader, path)
        stored = {tensor.name: tensor for tensor in reader.tensors}
        factors = stored.pop(ROPE_FACTORS, None)
        config = build_config(
            self.metadata,
            vocab_size=vocabulary_size(stored, path),
            tied="output.weight" not in stored,
            rope_factors=None if factors is None else decode(factors, path),
            dtype=computed_dtype(reader.tensors),
        )
        own_name = str(self.metadata.get("general.name") or path.stem)
        template = self.metadata.get("tokenizer.chat_template")
        # among JSON, as line ends of a template in a file of its own are those of a text file
        stated = json_bytes({"chat_template": None if template is None else str(template)})
        self.record = read_record(name or own_name, config, Evidence({OLDER_FILE: stated}))
        names = checkpoint_names(self.record.decoder)
        self.stored = {checkpoint_name(tensor, names): stored[tensor] for tensor in stored}
        check_types(stored)
        self.decoder_blocks = find_blocks(self.record.decoder, self.shapes())
        check_gaps(self.stored_bytes_of(tensor) for tensor in self.stored)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.shape(name) for name in self.stored}

    def tensor_names(self) -> Sequence[str]:
        return tuple(self.stored)

    def shape(self, tensor_name: str) -> tuple[int, ...]:
        # GGUF lists the innermost dimension first.
        return tuple(int(size) for size in reversed(self.tensor(tensor_name).shape))

    def tensor(self, tensor_name: str) -> gguf.ReaderTensor:
        if tensor_name not in self.stored:
            raise BadInput(
                f"{self.path} holds no tensor {tensor_name!r}; convert the model to GGUF again"
            )
        return self.stored[tensor_name]

    def read(self, tensor_name: str) -> NumpyArray:
        """Read one tensor with the rows in Hugging Face's order.

        float16 and bfloat16 stay, all other types become float32.
        """
        weights = decode(self.tensor(tensor_name), self.path)
        names = self.record.decoder.names.gguf
        if names is None or not names.adjacent_rotary:
            return weights
        attention = self.record.decoder.attention
        if tensor_name.endswith("self_attn.q_proj.weight"):
            return restore_rotary_rows(weights, heads=attention.heads)
        if tensor_name.endswith("self_attn.k_proj.weight"):
            return restore_rotary_rows(weights, heads=attention.key_heads)
        return weights

    def stored_as(self, tensor_name: str) -> str:
        return str(self.tensor(tensor_name).tensor_type.name)

    def tensor_bytes(self, tensor_name: str) -> int:
        return int(self.tensor(tensor_name).n_bytes)

    def stored_bytes_of(self, tensor_name: str) -> StoredBytes:
        """Say where a tensor's bytes lie."""
        tensor, size = self.tensor(tensor_name), self.tensor_bytes(tensor_name)
        row = row_bytes(size, self.shape(tensor_name))
        return StoredBytes(tensor_name, self.path, int(tensor.data_offset), size, row)

    def stored_bytes(self) -> int:
        return self.path.stat().st_size

    def location(self) -> Path:
        return self.path

    def blocks(self) -> Sequence[BlockSpec]:
        return self.decoder_blocks

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        return tokenizer_files(self.metadata)

    def companions(self) -> Mapping[str, bytes]:
        """Rebuild tokenizer and generation settings from the GGUF's vocabulary.

        Raises: UnsupportedModel, BadInput.
        """
        return self.files

    def fingerprint(self) -> str:
        return hash_model(self.record.config(), self.shapes(), [self.path])


def open_reader(path: Path) -> gguf.GGUFReader:
    """Map a file and read its header.

    Raises: BadInput for a damaged file.
    """
    check_content(path)
    try:
        check_header(path)
        return gguf.GGUFReader(path)
    # The reader checks little itself: damage shows as whatever NumPy or Python then stumbles over.
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
        MemoryError,
        RecursionError,
        OSError,
    ) as error:
        raise unreadable(path, error) from None


def read_metadata(reader: gguf.GGUFReader, path: Path) -> dict[str, Any]:
    try:
        return {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: BaseException) -> BadInput:
    return BadInput(
        f"{path} is not a readable GGUF file ({reason_of(error)}); "
        "it is damaged or incomplete, fetch it again"
    )


def computed_dtype(tensors: Sequence[gguf.ReaderTensor]) -> str:
    """Choose the type to compute in: bfloat16 for a file that is mostly of it, whose range it has.

    float16 for all others: numbers of blocks are in float16.
    """
    counts: Counter[gguf.GGMLQuantizationType] = Counter()
    for tensor in tensors:
        counts[tensor.tensor_type] += int(tensor.n_elements)
    commonest = counts.most_common(1)[0][0] if counts else None
    return "bfloat16" if commonest == gguf.GGMLQuantizationType.BF16 else "float16"


def vocabulary_size(stored: Mapping[str, gguf.ReaderTensor], path: Path) -> int:
    if "token_embd.weight" not in stored:
        raise BadInput(
            f"{path} has no tensor 'token_embd.weight'; give a GGUF file of a whole model"
        )
    return int(stored["token_embd.weight"].shape[-1])


def check_types(stored: Mapping[str, gguf.ReaderTensor]) -> None:
    """Refuse tensors of whole numbers.

    Raises: BadInput naming the first one.
    """
    for name, tensor in stored.items():
        if tensor.tensor_type in INTEGER_TYPES:
            kind = tensor.tensor_type.name
            raise BadInput(
                f"GGUF tensor {name!r} is stored as {kind}; weights must be of a floating type"
            )


def checkpoint_names(decoder: Decoder) -> dict[str, str]:
    """Map GGUF's names of a model's tensors to those of its checkpoint, by the library's table."""
    names = decoder.names.gguf
    assert names is not None
    known = gguf.MODEL_ARCH_NAMES
    architecture = next(key for key in known if known[key] == names.architecture)
    table = gguf.get_tensor_name_map(architecture, len(decoder.layers))
    of_tensor = {
        table.get_name(tensor, try_suffixes=(".weight", ".bias")): tensor
        for tensor in (*decoder.tensor_shapes(), decoder.head)
    }
    return {name: tensor for name, tensor in of_tensor.items() if name is not None}


def checkpoint_name(tensor: str, names: Mapping[str, str]) -> str:
    """Name a GGUF tensor as its checkpoint does.

    Raises: UnsupportedModel for unknown ones.
    """
    if tensor not in names:
        raise UnsupportedModel(
            f"GGUF tensor {tensor!r} is no part of a plain Llama model; give its safetensors"
        )
    return names[tensor]


def decode(tensor: gguf.ReaderTensor, path: Path) -> NumpyArray:
    """Read a tensor's values from its file into a new array.

    Types that only store numbers keep their dtype, but float64 becomes float32.

    Raises: BadInput naming tensor and type if the library cannot decode it, or the file if it
    became shorter.
    """
    mapped = tensor.data  # only its type and shape: reading it would end the process in that case
    data = read_array(path, mapped.dtype, mapped.size, offset=tensor.data_offset)
    # infinity and NaN are found, and named, by who reads
    with np.errstate(over="ignore", invalid="ignore"):
        return _decode(tensor, data.reshape(mapped.shape))


def _decode(tensor: gguf.ReaderTensor, data: NumpyArray) -> NumpyArray:
    kind = tensor.tensor_type
    if kind == gguf.GGMLQuantizationType.BF16:
        return data.view(ml_dtypes.bfloat16)
    if kind == gguf.GGMLQuantizationType.F64:
        return data.astype(np.float32)
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return data
    try:
        return gguf.quants.dequantize(data, kind)
    except NotImplementedError:
        raise BadInput(
            f"GGUF tensor {tensor.name!r} is of type {kind.name}, which cannot be decoded; "
            "give a GGUF of another type, best F16"
        ) from None


def restore_rotary_rows(weights: NumpyArray, *, heads: int) -> NumpyArray:
    """Undo the row order that the GGUF converter gives query and key projections.

    Per head the converter interleaves the two halves, [2, d/2] -> [d/2, 2], because llama.cpp
    rotates neighbours.

    Shapes: (heads * d, in) -> the same.
    """
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
