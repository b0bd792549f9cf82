"""Build nodes of an ONNX graph: lookups, products and norms of dense or quantized matrices.

Which nodes a model has is left to `decoder`; this module knows no architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgeq.types import LinearSpec
from edgeq_exporters.onnx.blocks import Container
from edgeq_exporters.onnx.tensors import inline_part, outlier_names

CONTRIB = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Describes a matrix by the name of its initializer.

    A dense one has no `container`. `outliers` says whether some of its columns have values in
    full precision beside the codes.

    Shapes: (rows, columns), as (out, in).
    """

    name: str
    rows: int
    columns: int
    container: Container | None
    outliers: bool = False


Matrices = Mapping[str, Matrix]
"""Matrices by the name of the tensor, without its ".weight"."""


@dataclass(slots=True)
class GraphBuilder:
    """Collects nodes in execution order.

    A node is named after its first output, and methods return that name. `accuracy_level` is
    MatMulNBits's: 0 computes in float32, 4 rounds activations to 8 bits.
    """

    initializers: dict[str, TensorProto]
    accuracy_level: int
    nodes: list[NodeProto] = field(default_factory=list)

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        *outputs: str,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        ordered = dict(sorted(attributes.items()))  # the same graph has the same bytes
        name = outputs[0]
        node = helper.make_node(operator, inputs, outputs, name=name, domain=domain, **ordered)
        self.nodes.append(node)
        return name

    def constant(self, name: str, values: Any, dtype: type[np.generic]) -> str:
        self.initializers[name] = inline_part(name, values, dtype)
        return name

    def lookup(self, matrix: Matrix, ids: str, output: str) -> str:
        """Look up rows of a matrix by token id, in float32.

        Shapes: ids (batch, tokens) -> (batch, tokens, columns).
        """
        if matrix.container is None:
            if self._is_float(matrix):
                return self.add("Gather", [matrix.name, ids], output)
            stored = self.add("Gather", [matrix.name, ids], f"{output}.stored")
            return self._as_float(stored, output)
        if matrix.container.operator == "DequantizeLinear":
            return self._lookup_dequantized(matrix, matrix.container, ids, output)
        return self._lookup_blocks(matrix, matrix.container, ids, output)

    def _lookup_blocks(self, matrix: Matrix, container: Container, ids: str, output: str) -> str:
        shape = self.constant(f"{output}.packed_shape", [matrix.rows, -1], np.int64)
        packed = self.add("Reshape", [matrix.name, shape], f"{output}.packed")
        filled = matrix.columns % container.block_size > 0
        rows = self.add(
            "GatherBlockQuantized",
            [packed, ids, f"{matrix.name}.scales", f"{matrix.name}.zero_points"],
            f"{output}.filled" if filled else output,
            domain=CONTRIB,
            bits=container.bits,
            block_size=container.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        if not filled:
            return rows
        first = self.constant(f"{output}.first", [0], np.int64)
        end = self.constant(f"{output}.end", [matrix.columns], np.int64)
        axis = self.constant(f"{output}.axis", [2], np.int64)
        return self.add("Slice", [rows, first, end, axis], output)

    def _lookup_dequantized(
        self, matrix: Matrix, container: Container, ids: str, output: str
    ) -> str:
        """Look rows of codes up, and dequantize only these."""
        names = self._numbers(matrix)
        rows = [self.add("Gather", [name, ids], f"{output}.{name}") for name in names]
        return self.add("DequantizeLinear", rows, output, axis=2, block_size=container.block_size)

    def multiply(self, matrix: Matrix, value: str, output: str) -> str:
        """Multiply by a matrix: a linear layer without its bias.

        Shapes: value (..., columns) -> (..., rows).
        """
        if not matrix.outliers:
            return self._multiply_held(matrix, value, output)
        codes = self._multiply_held(matrix, value, f"{output}.codes")
        outliers = self._multiply_outliers(matrix, value, output)
        return self.add("Add", [codes, outliers], output)

    def _multiply_outliers(self, matrix: Matrix, value: str, output: str) -> str:
        """Multiply the inputs of the outlier columns by the values of these columns."""
        columns, values = outlier_names(matrix.name)
        if self.initializers[values].data_type != TensorProto.FLOAT:
            values = self._as_float(values, f"{output}.outlier_values")
        inputs = self.add("Gather", [value, columns], f"{output}.outlier_inputs", axis=-1)
        return self.add("MatMul", [inputs, values], f"{output}.outliers")

    def _multiply_held(self, matrix: Matrix, value: str, output: str) -> str:
        if matrix.container is None:
            weight = matrix.name
            if not self._is_float(matrix):
                weight = self._as_float(weight, f"{output}.dense")
            transposed = self.add("Transpose", [weight], f"{output}.transposed", perm=[1, 0])
            return self.add("MatMul", [value, transposed], output)
        if matrix.container.operator == "DequantizeLinear":
            numbers = self._numbers(matrix)
            name = f"{output}.dequantized"
            block_size = matrix.container.block_size
            weight = self.add("DequantizeLinear", numbers, name, axis=0, block_size=block_size)
            return self.add("MatMul", [value, weight], output)
        return self._multiply_blocks(matrix, matrix.container, value, output)

    def _multiply_blocks(
        self, matrix: Matrix, container: Container, value: str, output: str
    ) -> str:
        inputs = [value, matrix.name, f"{matrix.name}.scales"]
        if container.zeros != "middle":
            inputs.append(f"{matrix.name}.zero_points")
        return self.add(
            "MatMulNBits",
            inputs,
            output,
            domain=CONTRIB,
            K=matrix.columns,
            N=matrix.rows,
            bits=container.bits,
            block_size=container.block_size,
            accuracy_level=self.accuracy_level,
        )

    def _numbers(self, matrix: Matrix) -> list[str]:
        names = [matrix.name, f"{matrix.name}.scales", f"{matrix.name}.zero_points"]
        return [name for name in names if name in self.initializers]

    def _is_float(self, matrix: Matrix) -> bool:
        return self.initializers[matrix.name].data_type == TensorProto.FLOAT

    def _as_float(self, value: str, output: str) -> str:
        return self.add("Cast", [value], output, to=TensorProto.FLOAT)

    def norm(self, value: str, weight: str, output: str, *, epsilon: float) -> str:
        """Add a root-mean-square norm in standard operators.

        ONNX Runtime makes one node of them when it loads the graph. That node, its
        SimplifiedLayerNormalization, claims to belong to ONNX's own domain, which does not have
        it: no checker accepts a graph that contains one.
        """
        two = self.constant(f"{output}.two", 2.0, np.float32)
        axes = self.constant(f"{output}.axes", [-1], np.int64)
        small = self.constant(f"{output}.epsilon", epsilon, np.float32)
        square = self.add("Pow", [value, two], f"{output}.square")
        mean = self.add("ReduceMean", [square, axes], f"{output}.mean", keepdims=1)
        variance = self.add("Add", [mean, small], f"{output}.variance")
        root = self.add("Sqrt", [variance], f"{output}.root")
        normalized = self.add("Div", [value, root], f"{output}.normalized")
        return self.add("Mul", [normalized, weight], output)

    def split(self, value: str, outputs: Sequence[str], widths: Sequence[int]) -> list[str]:
        """Take the columns of a value apart, as a fused matrix gives them."""
        sizes = self.constant(f"{outputs[0]}.widths", widths, np.int64)
        self.add("Split", [value, sizes], *outputs, axis=-1)
        return list(outputs)

    def scale(self, value: str, factor: float, output: str) -> str:
        """Multiply by a number; by 1 adds nothing."""
        if factor == 1:
            return value
        return self.add(
            "Mul", [value, self.constant(f"{output}.factor", factor, np.float32)], output
        )


def add_linear(builder: GraphBuilder, matrices: Matrices, linear: LinearSpec, value: str) -> str:
    """Add a linear layer, with its bias if it has one, by its complete name."""
    matrix = matrices[linear.tensor.removesuffix(".weight")]
    if linear.bias is None:
        return builder.multiply(matrix, value, linear.name)
    product = builder.multiply(matrix, value, f"{linear.name}.product")
    return builder.add("Add", [product, linear.bias], linear.name)


def sorted_initializers(builder: GraphBuilder) -> list[TensorProto]:
    return [builder.initializers[name] for name in sorted(builder.initializers)]


def float_value(name: str, shape: Sequence[str | int]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def id_value(name: str, shape: Sequence[str | int]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)
