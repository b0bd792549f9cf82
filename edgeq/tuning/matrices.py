"""Make the matrix of a quantized tensor from its codes and floats, and take gradients back to them.

Written once for every framework, in operators that their arrays have in common.
"""

from collections.abc import Mapping

import numpy as np

from edgeq.tuning.model import Numbers
from edgeq.types import Array, Grid, LinearSpec, NumpyArray, QuantizedLinear

Parts = Mapping[str, Array]
"""Numbers of a tensor: "scales" and, with free offsets, "offsets"; or "super_scales" and
"super_minima" where scales have two levels; "codes" where these move; "values" of one that is not
quantized."""


def float_parts(layer: QuantizedLinear) -> dict[str, NumpyArray]:
    """List the stored floats of a solved tensor by part; all else in it are integers."""
    if layer.super_scales is not None:
        found = {"super_scales": layer.super_scales}
        return (
            found if layer.super_minima is None else {**found, "super_minima": layer.super_minima}
        )
    found = {"scales": layer.scales}
    return {**found, "offsets": layer.offsets} if layer.grid.zeros == "offset" else found


class TunedMatrix:
    """A quantized tensor as a function of its floats and, where they move, of its codes.

    w = scale * (level - zero) + offset, where symmetric grids and those with integer zero points
    have no offset and free offsets no zero. With two levels, scale = super_scale * sub_scale and
    offset = -super_minimum * sub_minimum. Gradients pass a code as if it were the position that it
    is nearest to; those of columns that outliers replace are zero.

    Shapes: the matrix (out, in).
    """

    def __init__(
        self, layer: QuantizedLinear, numbers: Numbers, *, moves_codes: bool = False
    ) -> None:
        self.grid: Grid = layer.grid
        self._numbers = numbers
        self._steps = numbers.put(layer.scales) if moves_codes else None
        self._codes = numbers.put(layer.codes)
        self._zeros = numbers.put(layer.zeros) if layer.grid.zeros == "integer" else None
        self._sub_scales = self._sub_minima = None
        if layer.super_scales is not None:
            self._sub_scales = numbers.put(layer.sub_scales.astype(np.float32))
        if layer.super_minima is not None:
            self._sub_minima = numbers.put(layer.sub_minima.astype(np.float32))
        self._outliers = self._solid = None
        if layer.outliers is not None:
            added = np.zeros(layer.codes.shape, np.float32)
            added[:, layer.outliers.columns] = layer.outliers.values
            self._outliers = numbers.put(added)
            solid = np.ones((1, layer.codes.shape[1]), np.float32)
            solid[:, layer.outliers.columns] = 0
            self._solid = numbers.put(solid)

    def matrix(self, parts: Parts) -> Array:
        """Compute the weights; gradients then are at the codes of these parts.

        Shapes: (out, in).
        """
        self._codes = parts.get("codes", self._codes)
        scales, offsets = self._of_groups(parts)
        weights = self._by_group(self._levels(), scales, offsets)
        return weights if self._outliers is None else weights + self._outliers

    def take_back(self, gradient: Array) -> dict[str, Array]:
        """Take the gradient of the matrix back to what moves. Shapes: (out, in)."""
        found = self._of_floats(gradient)
        if self._steps is not None:
            solid = gradient if self._solid is None else gradient * self._solid
            found["codes"] = self._by_group(solid, self._steps, None)
        return found

    def _of_floats(self, gradient: Array) -> dict[str, Array]:
        of_scales = self._group_sums(gradient * self._levels())
        if self._sub_scales is not None:
            of_blocks = self._block_sums(of_scales * self._sub_scales)
            if self._sub_minima is None:
                return {"super_scales": of_blocks}
            of_minima = -self._block_sums(self._group_sums(gradient) * self._sub_minima)
            return {"super_scales": of_blocks, "super_minima": of_minima}
        if self.grid.zeros != "offset":
            return {"scales": of_scales}
        return {"scales": of_scales, "offsets": self._group_sums(gradient)}

    def _levels(self) -> Array:
        """Give what scales multiply: levels less their zero points. Shapes: (out, in)."""
        levels = self._numbers.levels(self._codes, self.grid.table)
        if self._zeros is not None:
            return self._by_group(levels, None, -self._zeros)
        return levels - float(self.grid.middle) if self.grid.zeros == "symmetric" else levels

    def _of_groups(self, parts: Parts) -> tuple[Array, Array]:
        """Give scales and free offsets of groups, None where there are no offsets."""
        if self._sub_scales is None:
            return parts["scales"], parts.get("offsets")
        scales = self._spread(parts["super_scales"], self._sub_scales)
        if self._sub_minima is None:
            return scales, None
        return scales, -self._spread(parts["super_minima"], self._sub_minima)

    @staticmethod
    def _spread(floats: Array, integers: Array) -> Array:
        """Multiply the integers of groups by the float of their super-block."""
        rows, blocks = floats.shape
        return (integers.reshape(rows, blocks, -1) * floats[:, :, None]).reshape(integers.shape)

    def _block_sums(self, of_groups: Array) -> Array:
        """Add up what belongs to each super-block. Shapes: (out, groups) -> (out, super-blocks)."""
        rows, columns = self._codes.shape
        blocks = self.grid.super_block_count(columns)
        return of_groups.reshape(rows, blocks, -1).sum(2)

    def _by_group(self, x: Array, factors: Array, terms: Array) -> Array:
        """Compute x * factors + terms, each by the group of the column; None leaves one out."""
        parts = []
        for columns, groups, shape in self._pieces():
            piece = x[:, columns].reshape(shape)
            piece = piece if factors is None else piece * factors[:, groups, None]
            piece = piece if terms is None else piece + terms[:, groups, None]
            parts.append(piece.reshape(shape[0], -1))
        return parts[0] if len(parts) == 1 else self._numbers.joined(parts)

    def _group_sums(self, x: Array) -> Array:
        """Add up the columns of each group. Shapes: (out, in) -> (out, groups)."""
        parts = [x[:, columns].reshape(shape).sum(2) for columns, _, shape in self._pieces()]
        return parts[0] if len(parts) == 1 else self._numbers.joined(parts)

    def _pieces(self) -> list[tuple[slice, slice, tuple[int, int, int]]]:
        """Cut a row into its whole groups, and the shorter one behind them, if there is one."""
        rows, columns = self._codes.shape
        width = self.grid.columns_per_group(columns)
        whole = columns // width
        pieces = [(slice(0, whole * width), slice(0, whole), (rows, whole, width))]
        if columns % width:
            rest = (rows, 1, columns % width)
            pieces.append((slice(whole * width, columns), slice(whole, whole + 1), rest))
        return pieces


def tensor_of(linear: LinearSpec, matrix: Array) -> Array:
    """Turn a solved matrix into the tensor that holds the layer, in any framework."""
    *stack, first, second = linear.stored_shape
    if tuple(matrix.shape) != linear.matrix_shape or not linear.transposed:
        return matrix.reshape(linear.stored_shape)
    return matrix.reshape((*stack, second, first)).swapaxes(-1, -2)


def matrix_of(linear: LinearSpec, tensor: Array) -> Array:
    """Turn the tensor that holds a layer into the matrix that was solved; undoes `tensor_of`."""
    turned = tensor.swapaxes(-1, -2) if linear.transposed else tensor
    return turned.reshape(linear.matrix_shape)
