"""Read exported GGUF files back: codes are unpacked here, weights by the gguf library.

Nothing is shared with the exporter. What was done to a tensor comes from the file's own metadata.
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
from edgeq.files.gguf_reader import Reader, dequantize
from edgeq.files.plain_files import read_array
from edgeq.types import Grid, NumpyArray, QuantizedLinear, StoredTensor
from edgeq.words import describe_grid
from edgeq_exporters.common.manifest import grid_of
from edgeq_exporters.gguf.read_super_blocks import BITS_OF_TYPES, typed_layer

COLUMNS = 32
BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
WITH_MINIMUM = ("Q4_1", "Q5_1")
OF_ROPE = tuple(
    f"{gguf.TENSOR_NAMES[kind]}.weight"
    for kind in (
        gguf.MODEL_TENSOR.ROPE_FREQS,
        gguf.MODEL_TENSOR.ROPE_FACTORS_LONG,
        gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT,
    )
)
ROTATED_TENSOR = re.compile(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)")
FUSED_TENSOR = re.compile(r"blk\.\d+\.attn_qkv\.(?:weight|bias)")
NORM_WEIGHT = re.compile(r"(?:blk\.\d+\.)?\w*_norm\.weight")
EXPERT = re.compile(r"(.+)\[(\d+)\]")
PAIRS_NEIGHBOURS = ("llama", "arcee", "granite", "granitemoe", "mistral3", "olmo", "smollm3")
PAIRS_HALVES = (
    *("gemma", "gemma2", "gemma3", "exaone4", "hunyuan-dense", "nemotron", "olmo2", "olmoe"),
    *("phi2", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "seed_oss", "stablelm"),
    *("starcoder2", "gptneox", "falcon"),
)
NEIGHBOURS_IN_BOTH = ("chatglm", "cohere2", "command-r", "ernie4_5", "glm4")
ROTATES_NOTHING = ("bloom", "gpt2")
"""Architectures by what rotates together in llama.cpp, its `llama_model_rope_type` (NORM, NEOX).

Checkpoints pair halves, but for those that pair neighbours themselves.
"""
UNGROUPED = ("bloom", "falcon", "gptneox")
"""Architectures whose checkpoints fuse queries, keys and values group by group of heads."""
PLUS_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
"""Architectures whose checkpoints have norm weights without the 1 that is added to them."""
TRANSPOSED = {"gpt2": re.compile(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight")}
"""By architecture: what its checkpoints have with inputs before outputs, where it is dense."""


class GgufReader:
    """Reads a GGUF file back; rows of q and k get the checkpoint's order.

    It implements ExportReader. The order is llama.cpp's rule for the architecture.
    """

    def __init__(self, directory: Path) -> None:
        path = next(iter(sorted(directory.glob("*.gguf"))), None)
        if path is None:
            raise BadInput(f"{str(directory)!r} has no .gguf file; export again")
        self.file = path.name
        self.settings: Mapping[str, Any] = {}
        try:
            check_header(path)
            reader = Reader(path)
            self._layout = _layout_of(reader)
        # the library checks little itself: damage shows as whatever it then stumbles over
        except Exception as error:
            raise BadInput(
                f"{str(path)!r} cannot be read ({reason_of(error)}); export again"
            ) from error
        self._path = path
        self.library = f"gguf {version('gguf')}"
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def tensor_names(self) -> Sequence[str]:
        """List what manifests name: each expert of a stack by its number."""
        names = []
        for name, tensor in self._tensors.items():
            if name in OF_ROPE:
                continue
            count = int(tensor.shape[2]) if len(tensor.shape) == 3 else 0
            names += [f"{name}[{number}]" for number in range(count)] if count else [name]
        return sorted(names)

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid = grid_of(entry)
        expert = EXPERT.fullmatch(entry["name"])
        name = expert[1] if expert else entry["name"]
        if name not in self._tensors:
            raise BadInput("the file holds no tensor of this name")
        tensor = self._tensors[name]
        kind = tensor.tensor_type.name
        data = self._data(tensor, None if expert is None else int(expert[2]))
        labels = {"type": kind}
        rows = self._layout.places(name, len(data))
        if grid is None:
            dense = data.view(ml_dtypes.bfloat16) if kind == "BF16" else data
            return StoredTensor(self._layout.restored(name, dense, rows), labels=labels)
        if kind not in BITS and kind not in BITS_OF_TYPES:
            raise BadInput(f"the file holds type {kind}, which has no codes of {grid.bits} bits")
        if grid.type != (kind if kind in BITS_OF_TYPES else ""):
            raise BadInput(f"the file holds type {kind}, the manifest states {describe_grid(grid)}")
        ordered = _taken(data, rows)
        layer = typed_layer(ordered, grid) if grid.type else _taken_apart(ordered, kind, grid)
        weights = dequantize(data, tensor.tensor_type)
        bits = BITS_OF_TYPES[kind] if grid.type else BITS[kind]
        return StoredTensor(_taken(weights, rows), layer, labels, bits)

    def _data(self, tensor: gguf.ReaderTensor, expert: int | None) -> NumpyArray:
        """Read the bytes of a tensor, or of one expert in a stack.

        Reading the map would end the process if the file became shorter.
        """
        mapped, start = tensor.data, tensor.data_offset
        shape, size = mapped.shape, mapped.size
        if expert is not None:
            shape, size = shape[1:], size // shape[0]
            start += expert * size * mapped.dtype.itemsize
        data: NumpyArray = read_array(self._path, mapped.dtype, size, offset=start)
        return data.reshape(shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Says what was done to the tensors of a checkpoint on their way into the file.

    heads counts heads by tensor, size is the rows of a head, rotated how many of them, from the
    first, are rotated.
    """

    architecture: str
    heads: Mapping[str, int]
    size: int
    rotated: int

    def places(self, name: str, rows: int) -> NumpyArray | None:
        """Find where the rows of the checkpoint lie in the file; None for rows in their order.

        Raises: ValueError for a tensor of other rows than its heads have.
        """
        if FUSED_TENSOR.fullmatch(name) and self.architecture in UNGROUPED:
            return self._places_of_groups(rows)
        part = ROTATED_TENSOR.fullmatch(name)
        if part is None or self.architecture not in PAIRS_NEIGHBOURS:
            return None
        heads = self.heads[part[1]]
        if heads * self.size != rows or not 0 <= self.rotated <= self.size:
            raise ValueError(
                f"{rows} rows are not {heads} heads of {self.size}, {self.rotated} of them rotated"
            )
        # the checkpoint pairs row i with row i + rotated / 2: the file's rows 2 i and 2 i + 1
        pairs = range(self.rotated // 2)
        first, second = [2 * i for i in pairs], [2 * i + 1 for i in pairs]
        in_head = np.array([*first, *second, *range(self.rotated, self.size)])
        starts = self.size * np.arange(heads)
        places: NumpyArray = (starts[:, np.newaxis] + in_head).reshape(-1)
        return places

    def _places_of_groups(self, rows: int) -> NumpyArray:
        """Find the rows of groups: some heads of queries, then one of keys, then one of values."""
        queries, keys = self.heads["q"], self.heads["k"]
        if (queries + 2 * keys) * self.size != rows or queries % keys:
            raise ValueError(f"{rows} rows are not {queries} + 2 x {keys} heads of {self.size}")
        in_group = queries // keys
        heads: list[int] = []
        for group in range(keys):
            heads += [group * in_group + i for i in range(in_group)]
            heads += [queries + group, queries + keys + group]
        starts = self.size * np.array(heads)
        places: NumpyArray = (starts[:, np.newaxis] + np.arange(self.size)).reshape(-1)
        return places

    def restored(self, name: str, dense: NumpyArray, rows: NumpyArray | None) -> NumpyArray:
        """Undo what was done to a dense tensor."""
        array = _taken(dense, rows)
        turned = TRANSPOSED.get(self.architecture)
        if turned is not None and turned.fullmatch(name):
            array = np.ascontiguousarray(array.T)
        if self.architecture in PLUS_ONE and NORM_WEIGHT.fullmatch(name):
            array = array - np.float32(1)
        return array


def _layout_of(reader: gguf.GGUFReader) -> Layout:
    """Read from the metadata what the order of rows depends on, with llama.cpp's defaults.

    Raises: ValueError for an architecture whose rule is not known here.
    """

    def number(key: str, default: int | None = None) -> int:
        name = key.format(arch=architecture)
        if default is not None and name not in reader.fields:
            return default
        return int(reader.fields[name].contents())

    architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    known = (*PAIRS_NEIGHBOURS, *PAIRS_HALVES, *NEIGHBOURS_IN_BOTH, *ROTATES_NOTHING)
    if architecture not in known:
        raise ValueError(f"the order of rows is not known for architecture {architecture!r}")
    heads = number(gguf.Keys.Attention.HEAD_COUNT)
    size = number(gguf.Keys.Attention.KEY_LENGTH, number(gguf.Keys.LLM.EMBEDDING_LENGTH) // heads)
    return Layout(
        architecture,
        {"q": heads, "k": number(gguf.Keys.Attention.HEAD_COUNT_KV, heads)},
        size,
        number(gguf.Keys.Rope.DIMENSION_COUNT, size),
    )


def _taken(array: NumpyArray, rows: NumpyArray | None) -> NumpyArray:
    return array if rows is None else array[rows]


def _taken_apart(data: NumpyArray, kind: str, grid: Grid) -> QuantizedLinear:
    """Take one-level blocks apart into codes, scales and offsets.

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
        return QuantizedLinear(codes, scales, floats[:, first, 1], grid)
    narrowed = codes - np.uint8(2 ** (bits - 1) - grid.middle)
    return QuantizedLinear(narrowed, scales, -scales * np.float32(grid.middle), grid)


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
