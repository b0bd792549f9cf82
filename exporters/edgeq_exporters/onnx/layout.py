"""Choose how each tensor of a model lies in the graph: which operator reads it, in what container.

Their bytes are made by `tensors`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from edgeq.decoder import Decoder, Shape
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid, QuantizedLinear
from edgeq_exporters.common.decoder import Shapes
from edgeq_exporters.onnx.blocks import (
    Container,
    Operator,
    container_of,
    matrix_bytes,
    why_not_grid,
)
from edgeq_exporters.onnx.graph import Matrix
from edgeq_exporters.onnx.rotary import rotary_bytes
from edgeq_exporters.onnx.tensors import Part, block_parts, outlier_parts, whole_number_parts

FLOAT32_BYTES = 4
LOOKED_UP_BITS = 8  # with qdq: Gather has no 4-bit types


@dataclass(frozen=True, slots=True)
class Layout:
    """Knows which tensor is looked up and which ones multiply.

    With qdq, weights are standard DequantizeLinear nodes; a tied head then has a copy of the
    embedding, since products want columns first and lookups rows.
    """

    decoder: Decoder
    qdq: bool

    def why_not_tensor(self, name: str, shape: Shape, grid: Grid) -> str | None:
        """Say what keeps a quantized tensor out of its operator and what to change, or None."""
        if self._is_looked_up(name) and grid.outlier_columns:
            return (
                "an embedding is looked up and holds no outlier columns; "
                "keep outlier_columns 0 for it"
            )
        return why_not_grid(shape, grid, operator_of(self.qdq, looked_up=self._is_looked_up(name)))

    def container(self, name: str, columns: int, grid: Grid) -> Container:
        """Choose the container of a quantized matrix; a tied head reads that of its embedding."""
        looked_up = self._is_looked_up(name)
        container = container_of(columns, grid, operator_of(self.qdq, looked_up=looked_up))
        return replace(container, bits=LOOKED_UP_BITS) if self.qdq and looked_up else container

    def parts(self, name: str, layer: QuantizedLinear) -> Iterator[Part]:
        """Make all initializers of a quantized matrix."""
        if layer.outliers is not None:
            yield from outlier_parts(name, layer.outliers, layer.grid)
        columns, looked_up = layer.codes.shape[1], self._is_looked_up(name)
        container = self.container(name, columns, layer.grid)
        if not self.qdq:
            yield from block_parts(name, layer, container, state_middle=looked_up)
            return
        yield from whole_number_parts(name, layer, container, rows_first=looked_up)
        if looked_up and self.decoder.tied_head:
            head = self.decoder.head
            container = self.container(head, columns, layer.grid)
            yield from whole_number_parts(head, layer, container, rows_first=False)

    def planned_bytes(self, grids: Shapes, item_bytes: Mapping[str, int]) -> int:
        """Count the bytes of the data file: tensors, and the rotary tables of every position."""
        total = rotary_bytes(self.decoder)
        for name, (shape, grid) in grids.items():
            if grid is None:
                item = FLOAT32_BYTES if len(shape) == 1 else item_bytes[name]
                total += math.prod(shape) * item
                continue
            computing = [name]
            if self.qdq and self._is_looked_up(name) and self.decoder.tied_head:
                computing.append(self.decoder.head)
            total += sum(self._matrix_bytes(module, shape, grid) for module in computing)
        return total

    def matrices(self, model: QuantizedModel) -> dict[str, Matrix]:
        """List matrices by the module that computes with them; a tied head is its embedding."""
        embedding, head = self.decoder.embedding, self.decoder.head
        tensors = self.decoder.tensor_shapes()
        shapes = {name: shape for name, shape in tensors.items() if len(shape) == 2}
        matrices = {}
        for name in {**shapes, head: shapes[embedding]}:
            held = name if name in shapes else embedding
            rows, columns = shapes[held]
            grid = model.grid(held)
            container = None if grid is None else self.container(name, columns, grid)
            initializer = name if self.qdq and grid is not None else held
            outliers = grid is not None and bool(grid.outlier_columns)
            module = name.removesuffix(".weight")
            matrices[module] = Matrix(initializer, rows, columns, container, outliers)
        return matrices

    def _is_looked_up(self, name: str) -> bool:
        return name == self.decoder.embedding

    def _matrix_bytes(self, name: str, shape: Shape, grid: Grid) -> int:
        container = self.container(name, shape[1], grid)
        return matrix_bytes(shape, grid, container, state_middle=self._is_looked_up(name))


def operator_of(qdq: bool, *, looked_up: bool) -> Operator:
    """Name the operator that reads a quantized matrix."""
    if qdq:
        return "DequantizeLinear"
    return "GatherBlockQuantized" if looked_up else "MatMulNBits"
