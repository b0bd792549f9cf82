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
from edgeq.grids.types import with_type
from edgeq.types import (
    LARGEST_OUTLIER_SHARE,
    Grid,
    NumpyArray,
    OutlierColumns,
    QuantizedLinear,
    ScaleDtype,
    SuperBlocks,
    ZeroKind,
)

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of stored parts by name."""
Parts = Mapping[str, Mapping[str, NumpyArray]]
"""Numbers by tensor and part: floats, and codes, a byte each."""


def write_tensors(
    path: Path,
    quantized: Mapping[str, QuantizedLinear],
    dense: Mapping[str, NumpyArray],
    *,
    flush: bool = True,
) -> None:
    """Write one safetensors file of solved and untouched tensors, with the grids as metadata.

    Without flush it is left to the caller when its bytes have to be on the disk.
    """
    tensors: dict[str, NumpyArray] = {}
    for name, array in dense.items():
        tensors[name] = np.asarray(array, order="C")  # which keeps a number without axes
    grids = {}
    for name, layer in quantized.items():
        parts = parts_of(layer)
        tensors |= {f"{name}.{part}": array for part, array in parts.items()}
        grids[name] = [*layer.codes.shape, *stored_grid(layer.grid)]
    # one key of metadata: more would be written in random order
    _save(path, tensors, {"edgeq": json.dumps(grids)}, flush=flush)


def _save(
    path: Path,
    tensors: Mapping[str, NumpyArray],
    metadata: Mapping[str, str] | None,
    *,
    flush: bool = True,
) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
    rename_when_stored(temporary, path, flush=flush)


def parts_of(layer: QuantizedLinear) -> dict[str, NumpyArray]:
    """Make the parts of a solved tensor that `stored_parts` lists."""
    grid = layer.grid
    stored = NUMPY[grid.scale_dtype]
    parts: dict[str, NumpyArray] = {"codes": pack_words(layer.codes, grid.bits)}
    if layer.super_scales is None:
        parts["scales"] = layer.scales.astype(stored)
    else:
        parts["super_scales"] = layer.super_scales.astype(np.float16)
        parts["sub_scales"] = packed_integers(layer.sub_scales, grid, "sub_scales")
    if layer.super_minima is not None:
        parts["super_minima"] = layer.super_minima.astype(np.float16)
        parts["sub_minima"] = packed_integers(layer.sub_minima, grid, "sub_minima")
    elif grid.zeros == "offset":
        parts["offsets"] = layer.offsets.astype(stored)
    if grid.zeros == "integer":
        parts["zeros"] = layer.zeros.astype(np.uint8)
    if layer.outliers is not None:
        parts["outlier_columns"] = layer.outliers.columns.astype(np.int32)
        parts["outlier_values"] = layer.outliers.values.astype(stored)
    return parts


def integer_limits(grid: Grid, part: str) -> tuple[int, int]:
    """Give the limits of the integers of two-level scales or minima: "sub_scales", "sub_minima"."""
    assert grid.super_blocks is not None
    blocks = grid.super_blocks
    limits = blocks.scale_limits if part == "sub_scales" else blocks.minimum_limits
    assert limits is not None
    return limits


def packed_integers(integers: NumpyArray, grid: Grid, part: str) -> NumpyArray:
    """Pack integers into as many bits as their limits need, the lowest as 0."""
    limits = integer_limits(grid, part)
    fields = (integers - limits[0]).astype(np.uint8)
    return pack_words(fields, SuperBlocks.integer_bits(limits))


def _words_of(grid: Grid, part: str, columns: int) -> int:
    """Count the words of a row that hold its integers."""
    bits = SuperBlocks.integer_bits(integer_limits(grid, part))
    return -(-grid.group_count(columns) * bits // WORD_BITS)


def stored_grid(grid: Grid) -> list[Any]:
    """Write a grid as metadata hold it; without a share of outliers or a type if it has none."""
    outliers = [grid.outlier_columns] if grid.outlier_columns else []
    types = [grid.type] if grid.type else []
    return [grid.bits, grid.group_size, grid.zeros, grid.scale_dtype, *outliers, *types]


def read_grid(
    bits: Any, group_size: Any, zeros: Any, scale_dtype: Any, *others: Any
) -> Grid | None:
    """Read what `stored_grid` wrote; None for what no grid of edgeq's is."""
    named = others if others and isinstance(others[-1], str) else (*others, "")
    *share, type = named
    if len(share) > 1:
        return None
    plain = Grid(bits, group_size, zeros, scale_dtype, *share)
    return with_type(plain, type) if _is_valid(plain) else None


def stored_parts(name: str, shape: tuple[int, int], grid: Grid) -> Layout:
    """List the parts that a file holds of a solved tensor, with their types and shapes."""
    rows, columns = shape
    words = -(-columns * grid.bits // WORD_BITS)
    per_group = (rows, grid.group_count(columns))
    parts: dict[str, tuple[str, tuple[int, ...]]] = {}
    per_super_block = (rows, grid.super_block_count(columns))
    parts["codes"] = ("U32", (rows, words))
    if grid.super_blocks is None:
        parts["scales"] = (CODE_NAMES[grid.scale_dtype], per_group)
    else:
        parts["super_scales"] = ("F16", per_super_block)
        parts["sub_scales"] = ("U32", (rows, _words_of(grid, "sub_scales", columns)))
    if grid.zeros == "integer":
        parts["zeros"] = ("U8", per_group)
    if grid.zeros == "offset" and grid.super_blocks is None:
        parts["offsets"] = (CODE_NAMES[grid.scale_dtype], per_group)
    elif grid.zeros == "offset":
        parts["super_minima"] = ("F16", per_super_block)
        parts["sub_minima"] = ("U32", (rows, _words_of(grid, "sub_minima", columns)))
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

    def changed(self, numbers: Parts) -> dict[str, NumpyArray]:
        """Give those stored arrays that numbers by tensor and part make others, by their names.

        The part of a tensor that is not solved is "values".

        Raises: ValueError for numbers that their part does not hold.
        """
        found = {}
        for tensor, parts in numbers.items():
            for part, values in parts.items():
                name = tensor if tensor not in self.grids else f"{tensor}.{part}"
                before = self._array(name)
                if part == "codes":
                    stored, back = self._packed(tensor, values)
                else:
                    stored = values.astype(before.dtype)
                    back = stored.astype(values.dtype)
                if stored.shape != before.shape or not np.array_equal(back, values):
                    raise ValueError(f"{name!r} of {before.dtype} does not hold its new values")
                if stored.tobytes() != before.tobytes():
                    found[name] = stored
        return found

    def _packed(self, tensor: str, codes: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        """Pack codes as they are stored; gives also what is read of them."""
        (_, columns), grid = self.grids[tensor]
        stored = pack_words(codes, grid.bits)
        return stored, unpack_words(stored, grid.bits, columns)

    def write_with(self, path: Path, changed: Mapping[str, NumpyArray]) -> None:
        """Write the file again with other arrays in the place of some; all else keeps its bytes."""
        arrays = {
            name: changed[name] if name in changed else place.read()
            for name, place in self._places.items()
        }
        _save(path, arrays, self._metadata or None)

    def quantized(self, name: str) -> QuantizedLinear:
        """Read a solved tensor.

        Raises: BadInput when scales or offsets cannot be those of a solved tensor.
        """
        (_, columns), grid = self.grids[name]
        codes = unpack_words(self._array(f"{name}.codes"), grid.bits, columns)
        if codes.max(initial=0) > grid.max_code:
            raise self._damaged(f"has a code above {grid.max_code} in '{name}.codes'")
        if grid.super_blocks is not None:
            return self._of_two_levels(name, codes, grid)
        scales = self._finite(f"{name}.scales").astype(np.float32)
        if not scales.all() and not grid.table:
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

    def _of_two_levels(self, name: str, codes: NumpyArray, grid: Grid) -> QuantizedLinear:
        """Read a tensor whose scales are floats of super-blocks times integers of groups."""
        assert grid.super_blocks is not None
        floats, integers = f"{name}.super_scales", f"{name}.sub_scales"
        super_scales, scales = self._products(name, "scales")
        if not super_scales.all():
            raise self._damaged(f"has a scale of zero in {floats!r}")
        if not scales.all() and not grid.table:
            raise self._damaged(f"has a scale of zero in {integers!r}")
        super_minima, offsets = None, -scales * np.float32(grid.middle)
        if grid.super_blocks.minimum_limits is not None:
            super_minima, minima = self._products(name, "minima")
            offsets = -minima
        outliers = self._outliers(name)
        return QuantizedLinear(codes, scales, offsets, grid, outliers, super_scales, super_minima)

    def _products(self, name: str, kind: str) -> tuple[NumpyArray, NumpyArray]:
        """Read the floats of super-blocks, and their products with the integers of groups."""
        (_, columns), grid = self.grids[name]
        stored = self._finite(f"{name}.super_{kind}").astype(np.float32)
        low, high = integer_limits(grid, f"sub_{kind}")
        groups = grid.group_count(columns)
        words = self._array(f"{name}.sub_{kind}")
        fields = unpack_words(words, SuperBlocks.integer_bits((low, high)), groups)
        integers = fields.astype(np.float32) + np.float32(low)
        per_block = groups // grid.super_block_count(columns)
        return stored, np.repeat(stored, per_block, axis=1) * integers

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
            read = {
                name: ((rows, columns), read_grid(*grid))
                for name, (rows, columns, *grid) in stored.items()
            }
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged("has no readable grids in its metadata key 'edgeq'") from error
        grids = {}
        for name, (shape, grid) in read.items():
            if grid is None or not all(map(_is_size, shape)) or not _fills(shape[1], grid):
                raise self._damaged(f"has an unknown grid for {name!r}: {stored[name]}")
            grids[name] = (shape, grid)
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


def _fills(columns: int, grid: Grid) -> bool:
    """Say whether rows are whole super-blocks, where the grid has any."""
    return grid.super_blocks is None or columns % grid.super_blocks.columns == 0


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
