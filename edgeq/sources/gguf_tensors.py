"""Read tensors of a GGUF file as those of the checkpoint that it was converted from.

Which tensors make up which is said by `edgeq.architectures.llama_cpp_tensors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np

from edgeq.architectures.llama_cpp_tensors import FileTensor, file_tensors, reversed_rows
from edgeq.decoder import Decoder
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.files.gguf_reader import dequantize
from edgeq.files.plain_files import read_array
from edgeq.types import NumpyArray

INTEGER_TYPES = frozenset(
    {
        gguf.GGMLQuantizationType.I8,
        gguf.GGMLQuantizationType.I16,
        gguf.GGMLQuantizationType.I32,
        gguf.GGMLQuantizationType.I64,
    }
)

Stored = Mapping[str, gguf.ReaderTensor]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a checkpoint: a tensor of the file, or one of the experts stacked in it.

    shape is the one that the checkpoint has.
    """

    tensor: gguf.ReaderTensor
    rule: FileTensor
    expert: int
    shape: Shape

    @property
    def bytes(self) -> int:
        """Count the bytes of the part in the file."""
        return int(self.tensor.n_bytes) // len(self.rule.sources)

    @property
    def start(self) -> int:
        """Give the place of the first byte of the part in the file."""
        return int(self.tensor.data_offset) + self.expert * self.bytes

    def read(self, path: Path) -> NumpyArray:
        """Read the values as the checkpoint has them, in a new array.

        float16 and bfloat16 stay where nothing is computed, all other types become float32.

        Raises: BadInput naming tensor and type if the library cannot decode it, or the file if it
        became shorter.
        """
        rule, weights = self.rule, decode(self.tensor, path, start=self.start, size=self.bytes)
        weights = weights.reshape(file_shape(self.tensor)[rule.stacked :])
        if rule.rows is not None:
            weights = weights[reversed_rows(rule.rows)]
        if rule.transposed:
            weights = weights.T
        if rule.added:
            with np.errstate(over="ignore", invalid="ignore"):  # who reads says so
                weights = weights.astype(np.float32) - np.float32(rule.added)
        return weights.reshape(self.shape)


def file_shape(tensor: gguf.ReaderTensor) -> Shape:
    """Give the shape of a tensor; GGUF lists the innermost dimension first."""
    return tuple(int(size) for size in reversed(tensor.shape))


def parts_of(stored: Stored, decoder: Decoder) -> dict[str, Part]:
    """Find all tensors of a checkpoint in a file, by their names in the checkpoint.

    Raises: UnsupportedModel for a tensor of the file that the model has no place for; BadInput for
    experts that are not as many as the metadata states.
    """
    rules = {rule.name: rule for rule in (*rules_of(decoder), head_rule(decoder))}
    shapes = {**decoder.tensor_shapes(), decoder.head: (decoder.vocabulary, decoder.hidden)}
    parts: dict[str, Part] = {}
    for name, tensor in stored.items():
        rule = rules.get(name)
        if rule is None:
            raise UnsupportedModel(
                f"GGUF tensor {name!r} is no part of a {decoder.model_type} model with this "
                "metadata; give its safetensors"
            )
        shape = file_shape(tensor)
        if rule.stacked and shape[0] != len(rule.sources):
            raise BadInput(
                f"GGUF tensor {name!r} has shape {shape}, but the metadata states "
                f"{len(rule.sources)} experts; convert the model to GGUF again"
            )
        shape = shape[1:] if rule.stacked else shape
        for expert, source in enumerate(rule.sources):
            of_source = without_ones(shape[::-1] if rule.transposed else shape, shapes[source])
            parts[source] = Part(tensor, rule, expert, of_source)
    return parts


def rules_of(decoder: Decoder) -> list[FileTensor]:
    """List what a file of this model may hold, by the names of the gguf library's own table."""
    names = decoder.names.gguf
    if names is None:
        raise UnsupportedModel(
            f"a GGUF of a {decoder.model_type} model is not supported; give its safetensors"
        )
    table = name_table(names.architecture, len(decoder.layers))
    return file_tensors(decoder, lambda name: table.get_name(name, (".weight", ".bias")))


def head_rule(decoder: Decoder) -> FileTensor:
    """Say where a head of its own lies, which files of a tied model may hold too."""
    return FileTensor("output.weight", (decoder.head,))


@cache
def name_table(architecture: str, blocks: int) -> gguf.TensorNameMap:
    """Make the gguf library's table of names for an architecture with so many blocks."""
    known = gguf.MODEL_ARCH_NAMES
    return gguf.get_tensor_name_map(
        next(key for key in known if known[key] == architecture), blocks
    )


def without_ones(found: Shape, wanted: Shape) -> Shape:
    """Give the shape that is wanted where the one found has but axes of size 1 more or less."""
    bare = [[size for size in shape if size != 1] for shape in (found, wanted)]
    return wanted if bare[0] == bare[1] else found


def check_types(stored: Stored) -> None:
    """Refuse tensors of whole numbers.

    Raises: BadInput naming the first one.
    """
    for name, tensor in stored.items():
        if tensor.tensor_type in INTEGER_TYPES:
            kind = tensor.tensor_type.name
            raise BadInput(
                f"GGUF tensor {name!r} is stored as {kind}; weights must be of a floating type"
            )


def decode_whole(tensor: gguf.ReaderTensor, path: Path) -> NumpyArray:
    """Read all values of a tensor from its file, as `decode` does."""
    values = decode(tensor, path, start=int(tensor.data_offset), size=int(tensor.n_bytes))
    return values.reshape(file_shape(tensor))


def decode(tensor: gguf.ReaderTensor, path: Path, *, start: int, size: int) -> NumpyArray:
    """Read values of a tensor from so many bytes of its file into a new array of rows.

    Types that only store numbers keep their dtype, but float64 becomes float32.

    Raises: BadInput naming tensor and type if the library cannot decode it, or the file if it
    became shorter.
    """
    mapped = tensor.data  # only its type and shape: reading it would end the process in that case
    data = read_array(path, mapped.dtype, size // mapped.dtype.itemsize, offset=start)
    # infinity and NaN are found, and named, by who reads
    with np.errstate(over="ignore", invalid="ignore"):
        return _decode(tensor, data.reshape(-1, mapped.shape[-1]))


def _decode(tensor: gguf.ReaderTensor, data: NumpyArray) -> NumpyArray:
    kind = tensor.tensor_type
    if kind == gguf.GGMLQuantizationType.BF16:
        return data.view(ml_dtypes.bfloat16)
    if kind == gguf.GGMLQuantizationType.F64:
        return data.astype(np.float32)
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return data
    try:
        return dequantize(data, kind)
    except NotImplementedError:
        raise BadInput(
            f"GGUF tensor {tensor.name!r} is of type {kind.name}, which cannot be decoded; "
            "give a GGUF of another type, best F16"
        ) from None
