"""Nodes of an ONNX graph: lookups, products, norms, with matrices dense or quantized. Knows no
architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgeq_exporters.onnx.blocks import Container
from edgeq_exporters.onnx.tensors import inline_part, outlier_names

CONTRIB = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix by the name of its initializer; container None means dense. Shapes: (rows, columns),
    as (out, in).

    outliers: whether some of its columns have values in full precision beside the codes.
    """

    name: str
    rows: int
    columns: int
    container: Container | None
    outliers: bool = False


@dataclass(slots=True)
class GraphBuilder:
    """Nodes in execution order. Each is named after its first output, and methods return the name
    of that.

    accuracy_level is MatMulNBits's: 0 computes in float32, 4 rounds activations to 8 bits.
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
        self.nodes.append(
            helper.make_node(
                operator,
                inputs,
                outputs,
                name=outputs[0],
                domain=domain,
                **dict(sorted(attributes.items())),
            )
        )
        return outputs[0]

    def constant(self, name: str, values: Any, dtype: type[np.generic]) -> str:
        self.initializers[name] = inline_part(name, values, dtype)
        return name

    def lookup(self, matrix: Matrix, ids: str, output: str) -> str:
        """Rows of a matrix by token id, in float32. Shapes: ids (batch, tokens) -> (batch, tokens,
        columns).
        """
        if matrix.container is None:
            if self._is_float(matrix):
                return self.add("Gather", [matrix.name, ids], output)
            return self._as_float(
                self.add("Gather", [matrix.name, ids], f"{output}.stored"), output
            )
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
        bounds = {"first": [0], "end": [matrix.columns], "axis": [2]}
        return self.add(
            "Slice",
            [rows, *(self.constant(f"{output}.{k}", v, np.int64) for k, v in bounds.items())],
            output,
        )

    def _lookup_dequantized(
        self, matrix: Matrix, container: Container, ids: str, output: str
    ) -> str:
        """Only the rows that are looked up are dequantized."""
        names = self._numbers(matrix)
        rows = [self.add("Gather", [name, ids], f"{output}.{name}") for name in names]
        return self.add("DequantizeLinear", rows, output, axis=2, block_size=container.block_size)

    def multiply(self, matrix: Matrix, value: str, output: str) -> str:
        """A linear layer without its bias. Shapes: value (..., columns) -> (..., rows)."""
        if not matrix.outliers:
            return self._multiply_held(matrix, value, output)
        parts = [
            self._multiply_held(matrix, value, f"{output}.codes"),
            self._multiply_outliers(matrix, value, output),
        ]
        return self.add("Add", parts, output)

    def _multiply_outliers(self, matrix: Matrix, value: str, output: str) -> str:
        """The narrow dense product of the outlier columns' inputs."""
        columns, values = outlier_names(matrix.name)
        if self.initializers[values].data_type != TensorProto.FLOAT:
            values = self._as_float(values, f"{output}.outlier_values")
        inputs = self.add("Gather", [value, columns], f"{output}.outlier_inputs", axis=-1)
        return self.add("MatMul", [inputs, values], f"{output}.outliers")

    def _multiply_held(self, matrix: Matrix, value: str, output: str) -> str:
        if matrix.container is None:
            weight = (
                matrix.name
                if self._is_float(matrix)
                else self._as_float(matrix.name, f"{output}.dense")
            )
            transposed = self.add("Transpose", [weight], f"{output}.transposed", perm=[1, 0])
            return self.add("MatMul", [value, transposed], output)
        if matrix.container.operator == "DequantizeLinear":
            block_size = matrix.container.block_size
            weight = self.add(
                "DequantizeLinear",
                self._numbers(matrix),
                f"{output}.dequantized",
                axis=0,
                block_size=block_size,
            )
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
        """A root-mean-square norm in standard operators; ONNX Runtime makes one node of them when
        it loads the graph.

        Its SimplifiedLayerNormalization claims to belong to ONNX's own domain, which does not have
        it, so that no checker accepts a graph with one.
        """
        two = self.constant(f"{output}.two", 2.0, np.float32)
        axes = self.constant(f"{output}.axes", [-1], np.int64)
        small = self.constant(f"{output}.epsilon", epsilon, np.float32)
        square = self.add("Pow", [value, two], f"{output}.square")
        mean = self.add("ReduceMean", [square, axes], f"{output}.mean", keepdims=1)
        root = self.add(
            "Sqrt", [self.add("Add", [mean, small], f"{output}.variance")], f"{output}.root"
        )
        normalized = self.add("Div", [value, root], f"{output}.normalized")
        return self.add("Mul", [normalized, weight], output)

    def add_and_norm(
        self, residual: str, value: str, weight: str, output: str, *, epsilon: float
    ) -> tuple[str, str]:
        """The norm of a sum, and the sum."""
        total = f"{output}.residual"
        inputs = [residual, value, weight]
        self.add(
            "SkipSimplifiedLayerNormalization",
            inputs,
            output,
            "",
            "",
            total,
            domain=CONTRIB,
            epsilon=epsilon,
        )
        return output, total


def sorted_initializers(builder: GraphBuilder) -> list[TensorProto]:
    return [builder.initializers[name] for name in sorted(builder.initializers)]


def float_value(name: str, shape: Sequence[str | int]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def id_value(name: str, shape: Sequence[str | int]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


Matrices = Mapping[str, Matrix]
