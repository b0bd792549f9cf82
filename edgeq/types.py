"""The data that algorithms, backends, sources and exporters exchange."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = Any
"""An array of the backend in use: NumPy, torch or MLX. See the array contract in docs/decisions."""

NumpyArray = npt.NDArray[Any]

ZeroKind = Literal["symmetric", "integer", "offset"]
ScaleWeighting = Literal["diagonal", "conditional", "mean"]
ScaleDtype = Literal["float16", "bfloat16", "float32"]
LARGEST_OUTLIER_SHARE = 0.5  # of a layer's input columns: beyond it more bits are the better way


@dataclass(frozen=True, slots=True)
class SuperBlocks:
    """How scales are stored in two levels: a float for many columns times an integer per group.

    scale = super_scale * sub_scale and, where the grid has offsets, offset = -super_minimum *
    sub_minimum, with one float16 super_scale and super_minimum for each `columns` of a row. The
    integers lie between the two limits, both included; minimum_limits is None on a symmetric grid.
    Rows are a whole number of super-blocks wide.
    """

    columns: int
    scale_limits: tuple[int, int]
    minimum_limits: tuple[int, int] | None = None

    @staticmethod
    def integer_bits(limits: tuple[int, int]) -> int:
        """Count the bits that hold an integer between two limits."""
        return (limits[1] - limits[0]).bit_length()


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that a code may stand for: w = scale * level + offset.

    There is one scale and offset per row and group. zeros says where offsets may lie: "symmetric"
    -scale * 2 ** (bits - 1), "integer" -scale * z with an integer z in [0, 2 ** bits - 1], "offset"
    anywhere. Scales (and free offsets) are rounded to scale_dtype. group_size None means one group
    per row. A group size that does not divide in_features leaves a short last group.
    outlier_columns is the share of input columns that have values in scale_dtype beside their
    codes.

    A grid with a type is one of `edgeq.grids.types`, by llama.cpp's name. What is special about it
    is said by table and super_blocks. table has the level of each code where that is not the code
    itself, rising; offsets then are zero, and so may scales be. super_blocks says how scales are
    stored where that is not one float for each group; scale_dtype then is float32, since products
    of its two levels are exact in that.
    """

    bits: int
    group_size: int | None
    zeros: ZeroKind = "symmetric"
    scale_dtype: ScaleDtype = "float16"
    outlier_columns: float = 0.0
    type: str = ""
    table: tuple[int, ...] = ()
    super_blocks: SuperBlocks | None = None

    @property
    def max_code(self) -> int:
        return len(self.table) - 1 if self.table else int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """Give the level that stands for zero on a symmetric grid."""
        return 0 if self.table else int(2 ** (self.bits - 1))

    @property
    def level_limits(self) -> tuple[int, int]:
        """Give the lowest and the highest level."""
        return (self.table[0], self.table[-1]) if self.table else (0, self.max_code)

    def super_block_count(self, in_features: int) -> int:
        """Count the super-blocks of a row; none where scales have one level."""
        return 0 if self.super_blocks is None else in_features // self.super_blocks.columns

    def columns_per_group(self, in_features: int) -> int:
        return in_features if self.group_size is None else min(self.group_size, in_features)

    def group_count(self, in_features: int) -> int:
        return -(-in_features // self.columns_per_group(in_features))

    def group_bounds(self, in_features: int) -> Iterator[tuple[int, int]]:
        """Yield the first and one-past-last column of each group, in order."""
        width = self.columns_per_group(in_features)
        for start in range(0, in_features, width):
            yield start, min(start + width, in_features)

    def group_index(self, in_features: int) -> npt.NDArray[np.int64]:
        """Give the group of every column.

        Shapes: (in,).
        """
        return np.arange(in_features, dtype=np.int64) // self.columns_per_group(in_features)

    def outlier_count(self, in_features: int) -> int:
        """Count the columns that have values beside their codes.

        It is the nearest whole number, and at least one where there are any.
        """
        return max(1, round(self.outlier_columns * in_features)) if self.outlier_columns else 0


@dataclass(frozen=True, slots=True)
class Rounding:
    """The precision that a runtime computes with where it is less than float32.

    "int8" rounds the inputs of linear layers to 8 bits, and as many columns as it says share a
    scale (None: a whole row); "float16" and "bfloat16" round what every module gets and gives.
    """

    kind: Literal["int8", "float16", "bfloat16"]
    columns: int | None = None


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Second moments of a layer's inputs over calibration tokens.

    X is the input in the full-precision model, X_hat the input after earlier layers were quantized.
    D is None where no layer before this one was quantized or the recipe does not need it. Where D
    is of fewer tokens than H, paired_H is the H of those paired_tokens: X - X_hat is explained by
    X_hat of the same tokens only.

    Tokens that are weighed count by their weights in these means, and n_tokens and paired_tokens
    are how many would count as much alike: (sum w)^2 / sum w^2.

    Shapes: H = X_hat.T @ X_hat / n_tokens (in, in); D = (X - X_hat).T @ X_hat / n_tokens (in, in).
    """

    H: Array
    D: Array | None
    n_tokens: int
    paired_H: Array | None = None
    paired_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that the rows of an input are, by their numbers in all calibration windows.

    Token t of window w is number w * length + t, with length the tokens of a window.

    Shapes: numbers (rows,).
    """

    numbers: NumpyArray
    length: int

    @property
    def places(self) -> NumpyArray:
        """Give the share of its window that is read with each token. Shapes: (rows,)."""
        shares: NumpyArray = (self.numbers % self.length + 1) / self.length
        return shares


@dataclass(frozen=True, slots=True)
class OutlierColumns:
    """Hold what is added to the dequantized weight in some input columns.

    Exports write it as a narrow dense product.

    Shapes: columns (count,), rising; values (out, count), storable in the dtype that they were
    rounded to.
    """

    columns: NumpyArray
    values: Array


@dataclass(frozen=True, slots=True)
class Solution:
    """Hold what is chosen for a layer so far, in backend arrays: scales first, then codes.

    None stands for what no step has chosen yet. `QuantizedLinear` is the same in plain data, but
    that here codes are levels on a grid with a table of them.

    Shapes: scales and offsets (out, groups); codes (out, in); where scales have two levels,
    super_scales and, on a grid with offsets, super_minima (out, super-blocks).
    """

    scales: Array = None
    offsets: Array = None
    codes: Array = None
    outliers: OutlierColumns | None = None
    super_scales: Array = None
    super_minima: Array = None


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A solved layer: w = scales * codes + offsets, by the scale and offset of the column's group.

    On a grid with a table, the level of a code stands in the place of the code. Where scales have
    two levels, scales and offsets are the products, and super_scales and super_minima the floats.

    Outliers, where the grid has outlier columns, are added to that. Codes of these columns stand
    for zero, or as near as the grid comes: exactly zero unless grid.zeros is "offset".

    Shapes: codes (out, in) uint8, never packed; scales and offsets (out, groups) float32 whose
    values are exact in grid.scale_dtype (offsets only where grid.zeros is "offset"; otherwise they
    are an exact multiple of the scale). Outlier columns (count,) int32; their values (out, count)
    float32, exact in grid.scale_dtype. super_scales and super_minima (out, super-blocks) float32,
    exact in float16; None where the grid has none.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.float32]
    grid: Grid
    outliers: OutlierColumns | None = None
    super_scales: npt.NDArray[np.float32] | None = None
    super_minima: npt.NDArray[np.float32] | None = None

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """Give what scales multiply: the codes, or their levels where the grid has a table.

        Shapes: (out, in).
        """
        if not self.grid.table:
            return self.codes.astype(np.float32)
        return np.array(self.grid.table, dtype=np.float32)[self.codes]

    @property
    def sub_scales(self) -> npt.NDArray[np.int16]:
        """Give the integers of scales of two levels. Shapes: (out, groups)."""
        assert self.super_scales is not None
        return self._multiples(self.scales, self.super_scales)

    @property
    def sub_minima(self) -> npt.NDArray[np.int16]:
        """Give the integers of offsets of two levels. Shapes: (out, groups)."""
        assert self.super_minima is not None
        return self._multiples(-self.offsets, self.super_minima)

    def _multiples(self, products: NumpyArray, floats: NumpyArray) -> npt.NDArray[np.int16]:
        """Divide the products of each super-block by its float; nothing is a multiple of zero."""
        per_block = products.reshape(*floats.shape, -1)
        divisors = np.where(floats == 0, 1, floats)[:, :, None]
        return np.rint(per_block / divisors).astype(np.int16).reshape(products.shape)

    @property
    def zeros(self) -> npt.NDArray[np.float32]:
        """Give the zero points in code units, z = -offset / scale.

        They are whole numbers unless grid.zeros is "offset". A scale that a container rounded to
        zero tells nothing of its zero point, which then is the largest code.
        """
        told = self.scales != 0
        zeros = np.full_like(self.scales, self.grid.max_code)
        np.divide(-self.offsets, self.scales, out=zeros, where=told)
        return zeros if self.grid.zeros == "offset" else np.rint(zeros)

    def dequantized(self) -> npt.NDArray[np.float32]:
        """Compute the weights that codes and outliers stand for.

        Shapes: (out, in).
        """
        index = self.grid.group_index(self.codes.shape[1])
        weights = self.levels
        weights *= self.scales[:, index]
        weights += self.offsets[:, index]
        if self.outliers is not None:
            weights[:, self.outliers.columns] += self.outliers.values
        return weights


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the reader of an export finds it, rows in the checkpoint's order.

    layer is the solution that the file holds, recovered from its bytes, None for a dense tensor.
    weights are what the container's own library makes of the same bytes; of a dense tensor they are
    in the type it is stored in. labels are what a manifest states of the files in the words of the
    format: "type", and where it states them "file" and "outliers". bits is the width that a code
    has in the file, scale_dtype the type of scales in a container that has several.

    Shapes: weights (out, in), or that of the dense tensor.
    """

    weights: NumpyArray
    layer: QuantizedLinear | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    bits: int | None = None
    scale_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """A linear layer and where its weight lies among the tensors of a checkpoint.

    name is the layer's module, tensor what holds its weight, bias what holds its bias, if any.
    expert is its number in a mixture of experts. A weight may be a part of its tensor: rows are the
    first and one-past-last one of a fused matrix, and a tensor of three axes is a stack of experts.
    transposed: the tensor has inputs before outputs.

    Shapes: shape is (out, in), of the layer; stored is that of its tensor where it differs.
    """

    name: str
    tensor: str
    shape: tuple[int, int]
    bias: str | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False
    expert: int | None = None
    stored: tuple[int, ...] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Give the shape of the tensor that holds the weight."""
        return self.shape if self.stored is None else self.stored

    @property
    def stored_bias(self) -> tuple[int, ...]:
        """Give the shape of the tensor that holds the bias: the weight's without its inputs."""
        *before, first, second = self.stored_shape
        return (*before, second if self.transposed else first)

    def weight_in(self, tensor: NumpyArray) -> NumpyArray:
        """Find the layer's weight in its tensor, without a copy.

        Shapes: (out, in).
        """
        weight = tensor[self.expert] if tensor.ndim == 3 else tensor
        weight = weight.T if self.transposed else weight
        return weight if self.rows is None else weight[slice(*self.rows)]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Give the shape that the whole tensor is solved in, as one matrix.

        Shapes: (out, in), a stack with the rows of one expert after those of the other.
        """
        *stack, first, second = self.stored_shape
        rows, columns = (second, first) if self.transposed else (first, second)
        return (math.prod(stack) * rows, columns)

    @property
    def place(self) -> tuple[int, int]:
        """Give the first and one-past-last row of the layer in this matrix."""
        *stack, first, second = self.stored_shape
        rows = second if self.transposed else first
        start = rows * (self.expert or 0) if stack else 0
        own = (0, rows) if self.rows is None else self.rows
        return (start + own[0], start + own[1])

    def matrix_of(self, tensor: NumpyArray) -> NumpyArray:
        """Turn the whole tensor into this matrix."""
        turned = tensor.swapaxes(-1, -2) if self.transposed else tensor
        return turned.reshape(self.matrix_shape)

    def tensor_of(self, matrix: NumpyArray) -> NumpyArray:
        """Turn this matrix into the tensor as it is stored; the inverse of `matrix_of`."""
        *stack, first, second = self.stored_shape
        if not self.transposed:
            return matrix.reshape(self.stored_shape)
        turned = matrix.reshape(*stack, second, first).swapaxes(-1, -2)
        return np.ascontiguousarray(turned)

    def inside(self, block: str) -> "LinearSpec":
        """Name the same layer by complete names, in a block such as "model.layers.3"."""
        bias = None if self.bias is None else f"{block}.{self.bias}"
        name, tensor = f"{block}.{self.name}", f"{block}.{self.tensor}"
        return replace(self, name=name, tensor=tensor, bias=bias)


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A decoder block as it lies in the checkpoint.

    name is its module path ("model.layers.3"), linears are its linear layers in execution order and
    tensors all its tensor names, both by complete names.
    """

    index: int
    name: str
    linears: tuple[LinearSpec, ...]
    tensors: tuple[str, ...]
