"""Exported GGUF files, read back: blocks taken apart here, weights by the gguf library."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from edgeq.errors import BadInput, reason_of
from edgeq.types import Grid, NumpyArray, QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of
from edgeq_exporters.gguf.exporter import FILE_NAME, ROPE_FACTORS

COLUMNS = 32
BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
WITH_MINIMUM = ("Q4_1", "Q5_1")


class GgufReader:
    """An ExportReader."""

    def __init__(self, directory: Path) -> None:
        path = directory / FILE_NAME
        try:
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise BadInput(
                f"{str(path)!r} cannot be read ({reason_of(error)}); export again"
            ) from error
        self.library = f"gguf {version('gguf')}"
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._heads = _heads_of(reader)

    def tensor_names(self) -> Sequence[str]:
        return sorted(set(self._tensors) - {ROPE_FACTORS})

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid, tensor = grid_of(entry), self._tensors[entry["name"]]
        kind, data = tensor.tensor_type.name, np.asarray(tensor.data)
        if kind != entry["type"]:
            raise BadInput(f"the file holds type {kind} where the manifest says {entry['type']}")
        rows = _order_of(entry["name"], self._heads)
        if grid is None:
            dense = data.view(ml_dtypes.bfloat16) if kind == "BF16" else data
            return StoredTensor(_in_checkpoint_order(dense, rows))
        codes, scales, offsets = _taken_apart(_in_checkpoint_order(data, rows), kind, grid)
        weights = gguf.dequantize(data, tensor.tensor_type)
        return StoredTensor(
            _in_checkpoint_order(weights, rows), QuantizedLinear(codes, scales, offsets, grid)
        )


def _heads_of(reader: gguf.GGUFReader) -> dict[str, tuple[int, int]]:
    """Heads and their width of the projections whose rows llama.cpp stores in an order of its own.

    Its architecture llama rotates neighbouring rows (LLAMA_ROPE_TYPE_NORM), the others rows half a
    head apart, as checkpoints have them.
    """
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        return {}

    def number(key: str) -> int:
        return int(reader.fields[f"{architecture}.{key}"].contents())

    width = number("rope.dimension_count")
    heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
    return {name: (number(key), width) for name, key in heads.items()}


def _order_of(name: str, heads: Mapping[str, tuple[int, int]]) -> NumpyArray | None:
    """For each row in the file, its place in the checkpoint; None where that is the same."""
    for projection, (count, width) in heads.items():
        if f".{projection}." in name:
            pair, half = np.divmod(np.arange(width), 2)
            in_head = half * (width // 2) + pair
            order: NumpyArray = (np.arange(count)[:, np.newaxis] * width + in_head).reshape(-1)
            return order
    return None


def _in_checkpoint_order(array: NumpyArray, rows: NumpyArray | None) -> NumpyArray:
    if rows is None:
        return array
    ordered = np.empty_like(array)
    ordered[rows] = array
    return ordered


def _taken_apart(
    data: NumpyArray, kind: str, grid: Grid
) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """Codes, scales and offsets of blocks; of a group's blocks the first one speaks. Shapes: data
    (out, bytes).
    """
    bits, numbers = BITS[kind], 2 if kind in WITH_MINIMUM else 1
    blocks = (
        np.ascontiguousarray(data)
        .view(np.uint8)
        .reshape(len(data), -1, 2 * numbers + COLUMNS * bits // 8)
    )
    floats = blocks[..., : 2 * numbers].copy().view("<f2").astype(np.float32)
    codes = _codes(blocks[..., 2 * numbers :], bits).reshape(len(data), -1)
    first = [low // COLUMNS for low, _ in grid.group_bounds(codes.shape[1])]
    scales = floats[:, first, 0]
    if numbers == 2:
        return codes, scales, floats[:, first, 1]
    return (
        codes - np.uint8(2 ** (bits - 1) - grid.middle),
        scales,
        -scales * np.float32(grid.middle),
    )


def _codes(fields: NumpyArray, bits: int) -> NumpyArray:
    """Shapes: (out, blocks, bytes) -> (out, blocks, 32)."""
    turned: NumpyArray = fields ^ np.uint8(0x80)
    if bits == 8:
        return turned
    low: NumpyArray = np.concatenate([fields[..., -16:] & 15, fields[..., -16:] >> 4], axis=-1)
    if bits == 4:
        return low
    fifth: NumpyArray = np.unpackbits(fields[..., :4], axis=-1, bitorder="little") << np.uint8(4)
    joined: NumpyArray = low | fifth
    return joined
