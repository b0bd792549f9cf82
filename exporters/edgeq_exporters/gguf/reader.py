"""Read exported GGUF files back: codes are unpacked here, weights by the gguf library.

Nothing is shared with the exporter. The order of rows comes from the file's own metadata.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from edgeq.errors import BadInput, reason_of
from edgeq.files.gguf_header import check_header
from edgeq.files.plain_files import read_array
from edgeq.types import Grid, NumpyArray, QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of

COLUMNS = 32
BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
WITH_MINIMUM = ("Q4_1", "Q5_1")
ROPE_FACTORS = f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight"
ROTATED_TENSOR = re.compile(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)")
PAIRS_NEIGHBOURS = ("llama", "arcee", "granite", "mistral3", "smollm3")
PAIRS_HALVES = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "phi3")
"""Architectures by what rotates together in llama.cpp, its `llama_model_rope_type` (NORM, NEOX)."""


class GgufReader:
    """Reads a GGUF file back; rows of q and k get the checkpoint's order.

    It implements ExportReader. The order is llama.cpp's rule for the architecture.
    """

    def __init__(self, directory: Path) -> None:
        path = next(iter(sorted(directory.glob("*.gguf"))), directory / "model.gguf")
        self.file = path.name
        self.settings: Mapping[str, Any] = {}
        try:
            check_header(path)
            reader = gguf.GGUFReader(path)
            self._rotary = _rotary_of(reader)
        # the library checks little itself: damage shows as whatever it then stumbles over
        except Exception as error:
            raise BadInput(
                f"{str(path)!r} cannot be read ({reason_of(error)}); export again"
            ) from error
        self._path = path
        self.library = f"gguf {version('gguf')}"
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def tensor_names(self) -> Sequence[str]:
        return sorted(set(self._tensors) - {ROPE_FACTORS})

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid = grid_of(entry)
        if entry["name"] not in self._tensors:
            raise BadInput("the file holds no tensor of this name")
        tensor = self._tensors[entry["name"]]
        kind = tensor.tensor_type.name
        mapped = tensor.data  # reading the map would end the process if the file became shorter
        data = read_array(self._path, mapped.dtype, mapped.size, offset=tensor.data_offset)
        data = data.reshape(mapped.shape)
        labels = {"type": kind}
        rows = self._rotary.places(tensor.name, len(data))
        if grid is None:
            dense = data.view(ml_dtypes.bfloat16) if kind == "BF16" else data
            return StoredTensor(_taken(dense, rows), labels=labels)
        if kind not in BITS:
            raise BadInput(f"the file holds type {kind}, which has no codes of {grid.bits} bits")
        codes, scales, offsets = _taken_apart(_taken(data, rows), kind, grid)
        weights = gguf.dequantize(data, tensor.tensor_type)
        layer = QuantizedLinear(codes, scales, offsets, grid)
        return StoredTensor(_taken(weights, rows), layer, labels, BITS[kind])


@dataclass(frozen=True, slots=True)
class Rotary:
    """Says which rows of q and k llama.cpp rotates together.

    These are neighbours, or rows half of the rotated ones apart. `size` is the rows of a head,
    `rotated` how many of them, from the first, are rotated. `heads` counts heads by tensor.
    """

    neighbours: bool
    heads: Mapping[str, int]
    size: int
    rotated: int

    def places(self, name: str, rows: int) -> NumpyArray | None:
        """Find where the rows of the checkpoint lie in the file; None for rows in their order.

        Checkpoints pair row i of a head with row i + rotated / 2. Where llama.cpp pairs neighbours,
        these two are rows 2 i and 2 i + 1 of the file.

        Raises: ValueError for a tensor of other rows than its heads have.
        """
        part = ROTATED_TENSOR.fullmatch(name)
        if part is None or not self.neighbours:
            return None
        heads = self.heads[part[1]]
        if heads * self.size != rows or not 0 <= self.rotated <= self.size:
            raise ValueError(
                f"{rows} rows are not {heads} heads of {self.size}, {self.rotated} of them rotated"
            )
        pairs = range(self.rotated // 2)
        first, second = [2 * i for i in pairs], [2 * i + 1 for i in pairs]
        in_head = np.array([*first, *second, *range(self.rotated, self.size)])
        starts = self.size * np.arange(heads)
        places: NumpyArray = (starts[:, np.newaxis] + in_head).reshape(-1)
        return places


def _rotary_of(reader: gguf.GGUFReader) -> Rotary:
    """Read from the metadata what the order of rows depends on, with llama.cpp's defaults.

    Raises: ValueError for an architecture whose rule is not known here.
    """

    def number(key: str, default: int | None = None) -> int:
        name = key.format(arch=architecture)
        if default is not None and name not in reader.fields:
            return default
        return int(reader.fields[name].contents())

    architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    if architecture not in (*PAIRS_NEIGHBOURS, *PAIRS_HALVES):
        raise ValueError(f"the order of rows is not known for architecture {architecture!r}")
    heads = number(gguf.Keys.Attention.HEAD_COUNT)
    size = number(gguf.Keys.Attention.KEY_LENGTH, number(gguf.Keys.LLM.EMBEDDING_LENGTH) // heads)
    return Rotary(
        architecture in PAIRS_NEIGHBOURS,
        {"q": heads, "k": number(gguf.Keys.Attention.HEAD_COUNT_KV, heads)},
        size,
        number(gguf.Keys.Rope.DIMENSION_COUNT, size),
    )


def _taken(array: NumpyArray, rows: NumpyArray | None) -> NumpyArray:
    return array if rows is None else array[rows]


def _taken_apart(
    data: NumpyArray, kind: str, grid: Grid
) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """Take blocks apart into codes, scales and offsets.

    The blocks of a group repeat its numbers; those of the first block are returned.

    Shapes: data (out, bytes) -> codes (out, in), scales and offsets (out, groups).
    """
    bits = BITS[kind]
    numbers = 2 if kind in WITH_MINIMUM else 1
    block_bytes = 2 * numbers + COLUMNS * bits // 8  # float16 numbers, then codes
    blocks = np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1, block_bytes)
    floats = blocks[..., : 2 * numbers].copy().view("<f2").astype(np.float32)
    codes = _codes(blocks[..., 2 * numbers :], bits).reshape(len(data), -1)
    first = [low // COLUMNS for low, _ in grid.group_bounds(codes.shape[1])]
    scales = floats[:, first, 0]
    if numbers == 2:
        return codes, scales, floats[:, first, 1]
    narrowed = codes - np.uint8(2 ** (bits - 1) - grid.middle)
    return narrowed, scales, -scales * np.float32(grid.middle)


def _codes(fields: NumpyArray, bits: int) -> NumpyArray:
    """Unpack the codes of blocks.

    Shapes: (out, blocks, bytes) -> (out, blocks, 32).
    """
    turned: NumpyArray = fields ^ np.uint8(0x80)
    if bits == 8:
        return turned
    low: NumpyArray = np.concatenate([fields[..., -16:] & 15, fields[..., -16:] >> 4], axis=-1)
    if bits == 4:
        return low
    fifth: NumpyArray = np.unpackbits(fields[..., :4], axis=-1, bitorder="little") << np.uint8(4)
    joined: NumpyArray = low | fifth
    return joined
