"""The safetensors files of a quantized checkpoint, written whole and checked as they are read.

A file holds the parts of solved tensors and untouched tensors; the grids lie in its metadata. How
codes are packed into words is said by `edgeq.grids.packing`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from edgeq.dtypes import CODE_NAMES, ITEM_BYTES, NUMPY
from edgeq.errors import BadInput, reason_of
from edgeq.files.storage import rename_when_stored
from edgeq.files.tensors import read_places
from edgeq.grids.packing import WORD_BITS, pack_words, unpack_words
from edgeq.types import (
    LARGEST_OUTLIER_SHARE,
    Grid,
    NumpyArray,
    OutlierColumns,
    QuantizedLinear,
    ScaleDtype,
    ZeroKind,
)

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of stored parts by name."""


def write_tensors(
    path: Path, quantized: Mapping[str, QuantizedLinear], dense: Mapping[str, NumpyArray]
) -> None:
    """Write one safetensors file of solved and untouched tensors, with the grids as metadata."""
    tensors: dict[str, NumpyArray] = {}
    for name, array in dense.items():
        tensors[name] = np.asarray(array, order="C")  # which keeps a number without axes
    grids = {}
    for name, layer in quantized.items():
        stored = NUMPY[layer.grid.scale_dtype]
        tensors[f"{name}.codes"] = pack_words(layer.codes, layer.grid.bits)
        tensors[f"{name}.scales"] = layer.scales.astype(stored)
        if layer.grid.zeros == "integer":
            tensors[f"{name}.zeros"] = layer.zeros.astype(np.uint8)
        if layer.grid.zeros == "offset":
            tensors[f"{name}.offsets"] = layer.offsets.astype(stored)
        if layer.outliers is not None:
            tensors[f"{name}.outlier_columns"] = layer.outliers.columns.astype(np.int32)
            tensors[f"{name}.outlier_values"] = layer.outliers.values.astype(stored)
        grids[name] = [*layer.codes.shape, *stored_grid(layer.grid)]
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    # one key of metadata: more would be written in random order
    save_file(tensors, temporary, metadata={"edgeq": json.dumps(grids)})
    rename_when_stored(temporary, path)


def stored_grid(grid: Grid) -> list[Any]:
    """Write a grid as metadata hold it, the share of outlier columns only where there are some."""
    outliers = [grid.outlier_columns] if grid.outlier_columns else []
    return [grid.bits, grid.group_size, grid.zeros, grid.scale_dtype, *outliers]


def stored_parts(name: str, shape: tuple[int, int], grid: Grid) -> Layout:
    """List the parts that a file holds of a solved tensor, with their types and shapes."""
    rows, columns = shape
    words = -(-columns * grid.bits // WORD_BITS)
    per_group = (rows, grid.group_count(columns))
    parts: dict[str, tuple[str, tuple[int, ...]]] = {}
    parts["codes"] = ("U32", (rows, words))
    parts["scales"] = (CODE_NAMES[grid.scale_dtype], per_group)
    if grid.zeros == "integer":
        parts["zeros"] = ("U8", per_group)
    if grid.zeros == "offset":
        parts["offsets"] = (CODE_NAMES[grid.scale_dtype], per_group)
    count = grid.outlier_count(columns)
    if count:
        parts["outlier_columns"] = ("I32", (count,))
        parts["outlier_values"] = (CODE_NAMES[grid.scale_dtype], (rows, count))
    return {f"{name}.{part}": layout for part, layout in parts.items()}


class TensorFile:
    """One safetensors file of a checkpoint, opened for reading.

    Solved tensors have the name of the weight that they stand for. Opening reads the header and
    compares it with the grids; values are checked when they are read.

    Raises: BadInput.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._places, self._metadata = read_places(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise self._damaged(f"cannot be read: {reason_of(error)}") from error
        self._layout: Layout = {
            name: (place.dtype, place.shape) for name, place in self._places.items()
        }
        self.grids = self._read_grids()
        parts: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, (shape, grid) in self.grids.items():
            parts |= stored_parts(name, shape, grid)
        self._check_layout(parts)
        self.names = sorted({*self.grids, *(name for name in self._layout if name not in parts)})

    def shape(self, name: str) -> tuple[int, ...]:
        return self.grids[name][0] if name in self.grids else self._layout[name][1]

    def grid(self, name: str) -> Grid | None:
        return self.grids[name][1] if name in self.grids else None

    def dense_dtype(self, name: str) -> str:
        return self._layout[name][0]

    def tensor_bytes(self, name: str) -> int:
        """Count the bytes of a tensor with everything that its grid needs."""
        parts = stored_parts(name, *self.grids[name]) if name in self.grids else [name]
        layouts = [self._layout[part] for part in parts]
        return sum(int(np.prod(shape)) * ITEM_BYTES[dtype] for dtype, shape in layouts)

    def dense(self, name: str) -> NumpyArray:
        """Read an untouched tensor. Raises: BadInput when it holds NaN or infinity."""
        return self._finite(name)

    def quantized(self, name: str) -> QuantizedLinear:
        """Read a solved tensor.

        Raises: BadInput when scales or offsets cannot be those of a solved tensor.
        """
        (_, columns), grid = self.grids[name]
        codes = unpack_words(self._array(f"{name}.codes"), grid.bits, columns)
        scales = self._finite(f"{name}.scales").astype(np.float32)
        if not scales.all():
            raise self._damaged(f"has a scale of zero in '{name}.scales'")
        if grid.zeros == "offset":
            offsets = self._finite(f"{name}.offsets").astype(np.float32)
        elif grid.zeros == "integer":
            zeros = self._array(f"{name}.zeros")
            if zeros.max(initial=0) > grid.max_code:
                raise self._damaged(f"has a zero point above {grid.max_code} in '{name}.zeros'")
            offsets = -scales * zeros.astype(np.float32)
        else:
            offsets = -scales * np.float32(grid.middle)
        return QuantizedLinear(codes, scales, offsets, grid, self._outliers(name))

    def _outliers(self, name: str) -> OutlierColumns | None:
        (_, in_features), grid = self.grids[name]
        if not grid.outlier_columns:
            return None
        columns = self._array(f"{name}.outlier_columns")
        if columns[0] < 0 or columns[-1] >= in_features or (np.diff(columns) <= 0).any():
            raise self._damaged(
                f"has other than rising columns below {in_features} in '{name}.outlier_columns'"
            )
        return OutlierColumns(columns, self._finite(f"{name}.outlier_values").astype(np.float32))

    def _finite(self, name: str) -> NumpyArray:
        array = self._array(name)
        if not np.isfinite(array).all():
            raise self._damaged(f"holds NaN or infinity in {name!r}")
        return array

    def _array(self, name: str) -> NumpyArray:
        return self._places[name].read()

    def _read_grids(self) -> dict[str, tuple[tuple[int, int], Grid]]:
        try:
            stored = json.loads(self._metadata.get("edgeq", "{}"))
            grids = {
                name: ((rows, columns), Grid(bits, group_size, zeros, dtype, *share))
                for name, (rows, columns, bits, group_size, zeros, dtype, *share) in stored.items()
            }
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged("has no readable grids in its metadata key 'edgeq'") from error
        for name, (shape, grid) in grids.items():
            if not all(map(_is_size, shape)) or not _is_valid(grid):
                raise self._damaged(f"has an unknown grid for {name!r}: {stored[name]}")
        return grids

    def _check_layout(self, parts: Layout) -> None:
        for name, layout in parts.items():
            if name not in self._layout:
                raise self._damaged(f"lacks {name!r}, which its grid needs")
            if self._layout[name] != layout:
                found, expected = _shown(self._layout[name]), _shown(layout)
                raise self._damaged(f"holds {name!r} as {found}, but its grid asks for {expected}")
        for name, (dtype, _) in self._layout.items():
            if name not in parts and dtype not in CODE_NAMES.values():
                raise self._damaged(
                    f"holds {name!r} as {dtype}; untouched tensors are F32, F16 or BF16"
                )

    def _damaged(self, what: str) -> BadInput:
        return BadInput(f"checkpoint file {str(self.path)!r} {what}; it is damaged, quantize again")


def _shown(layout: tuple[str, tuple[int, ...]]) -> str:
    dtype, shape = layout
    return f"{dtype} {list(shape)}"


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_valid(grid: Grid) -> bool:
    return (
        _is_size(grid.bits)
        and 2 <= grid.bits <= 8
        and (grid.group_size is None or _is_size(grid.group_size))
        and grid.zeros in get_args(ZeroKind)
        and grid.scale_dtype in get_args(ScaleDtype)
        and isinstance(grid.outlier_columns, float)
        and 0 <= grid.outlier_columns <= LARGEST_OUTLIER_SHARE
    )
