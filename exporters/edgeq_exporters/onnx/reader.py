"""Read exported ONNX graphs back: initializers by the onnx library, blocks as operators say.

Nothing is shared with the exporter: what an initializer is for is found from the graph.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.checker import ValidationError

from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput, reason_of
from edgeq.files.json_files import read_json
from edgeq.files.ownership import leads_out
from edgeq.types import Grid, NumpyArray, OutlierColumns, QuantizedLinear, StoredTensor
from edgeq_exporters.common.manifest import grid_of

PARTS = (".scales", ".zero_points", ".outlier_columns", ".outlier_values")
WEIGHT_INPUTS = {"MatMulNBits": 1, "GatherBlockQuantized": 0, "DequantizeLinear": 0}
PRODUCTS = ("MatMulNBits", "MatMul")
LOOKUPS = ("Gather", "GatherBlockQuantized")
IDS, LOGITS = "input_ids", "logits"
BEHIND_HEAD = ("Add", "Mul", "Div", "Tanh")  # its bias, scaled and soft-capped logits
FORWARDED = ("Reshape", "Gather")  # may stand between an initializer and what takes it apart
# where operators take cos_cache and sin_cache
ROTARY_INPUTS = {"GroupQueryAttention": slice(7, 9), "RotaryEmbedding": slice(2, 4)}
LOOKED_UP_AXIS = 2  # of DequantizeLinear behind a Gather: (batch, tokens, columns)
SIGNED = (TensorProto.INT4, TensorProto.INT8)
BITS_OF = {TensorProto.UINT4: 4, TensorProto.UINT8: 8, TensorProto.INT4: 4, TensorProto.INT8: 8}
BLOCK_BITS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Held:
    """Holds a quantized matrix as an operator reads it.

    Shapes: codes (out, in), scales and zeros (out, blocks).
    """

    codes: NumpyArray
    scales: NumpyArray
    zeros: NumpyArray
    block_size: int
    middle: int
    """The code that stands for zero where no zero points are stored."""

    bits: int
    outliers: OutlierColumns | None = None
    outlier_names: tuple[str, ...] = ()

    def weights(self) -> NumpyArray:
        of_column = np.arange(self.codes.shape[1]) // self.block_size
        weights: NumpyArray = self.scales[:, of_column] * (self.codes - self.zeros[:, of_column])
        if self.outliers is not None:
            weights[:, self.outliers.columns] += self.outliers.values
        return weights

    def layer(self, grid: Grid) -> QuantizedLinear:
        """Give the layer as it was solved.

        The blocks of a group repeat its numbers; those of the first block are taken. Codes of a
        symmetric grid get its middle back.
        """
        first = [low // self.block_size for low, _ in grid.group_bounds(self.codes.shape[1])]
        scales = self.scales[:, first]
        zeros = self.zeros[:, first]
        shift = self.middle - grid.middle if grid.zeros == "symmetric" else 0
        codes = (self.codes - shift).astype(np.uint8)
        offsets = -scales * (zeros - np.float32(shift))
        return QuantizedLinear(codes, scales, offsets, grid, self.outliers)


class OnnxReader:
    """Reads an ONNX graph back; all operators that read a matrix must find the same one.

    It implements ExportReader.
    """

    def __init__(self, directory: Path) -> None:
        self.library = f"onnx {version('onnx')}"
        self._directory = directory
        self._tied = bool(read_json(directory / "config.json").get("tie_word_embeddings", False))
        path = next(iter(sorted(directory.glob("*.onnx"))), directory / "model.onnx")
        self.file = path.name
        self._read_from: set[str] = set()
        try:
            self._index(onnx.load(str(path), load_external_data=False).graph)
        except (OSError, DecodeError, IndexError) as error:
            raise BadInput(
                f"{str(path)!r} cannot be read ({reason_of(error)}); export again"
            ) from error

    def _index(self, graph: GraphProto) -> None:
        """Note which node makes, reads and forwards what, and what the graph shows of options."""
        _check_names(graph)
        self._initializers = {each.name: each for each in graph.initializer}
        self._producers = {node.output[0]: node for node in graph.node}
        self._consumers = {name: node for node in graph.node for name in node.input}
        self._sums = {
            name: node for node in graph.node if node.op_type == "Add" for name in node.input
        }
        self._forwarded = {
            node.output[0]: node.input[0] for node in graph.node if node.op_type in FORWARDED
        }
        self._ends = {
            node.input[0]: node.input[2] for node in graph.node if node.op_type == "Slice"
        }
        self._tables = {
            name
            for node in graph.node
            if node.op_type in ROTARY_INPUTS
            for name in node.input[ROTARY_INPUTS[node.op_type]]
        }
        self._readers: dict[str, list[NodeProto]] = {}
        for node in (node for node in graph.node if node.op_type in WEIGHT_INPUTS):
            weight = self._origin(node.input[WEIGHT_INPUTS[node.op_type]])
            self._readers.setdefault(weight, []).append(node)
        self._embedding = next(
            (
                self._origin(node.input[0])
                for node in graph.node
                if node.op_type in LOOKUPS and node.input[1] == IDS
            ),
            "",
        )
        self._head = self._weight_behind(LOGITS)
        self.settings = _settings_of(graph)

    def _weight_behind(self, value: str) -> str:
        """Find the weight of the last product before a value; empty where there is none."""
        for _ in range(len(self._producers)):
            node = self._producers.get(value)
            if node is None or node.op_type not in (*PRODUCTS, *BEHIND_HEAD):
                break
            if node.op_type in PRODUCTS:
                weight = self._producers.get(node.input[1])
                if weight is not None and weight.op_type == "DequantizeLinear":
                    return self._origin(weight.input[0])
                return self._origin(node.input[1])
            value = node.input[0]
        return ""

    def tensor_names(self) -> Sequence[str]:
        external = {
            name
            for name, each in self._initializers.items()
            if each.data_location == TensorProto.EXTERNAL
        }
        parts = {f"{name}{part}" for name in self._readers for part in PARTS}
        copies = {self._head} if self._has_copy() else set()
        return sorted((external | set(self._readers)) - parts - copies - self._tables)

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        grid = grid_of(entry)
        name = str(entry["name"])
        self._read_from = set()
        if grid is None:
            array = self._array(name)
            return StoredTensor(array, labels=self._labels(CODE_NAMES[str(array.dtype)]))
        if name not in self._readers:
            raise BadInput("no operator of the graph reads it as quantized weights")
        first, *others = self._nodes(name)
        held = self._held(first)
        weights = held.weights()
        for node in others:
            if not np.array_equal(self._held(node).weights(), weights):
                raise BadInput(f"node {node.name!r} reads other weights than {first.name!r}")
        labels = self._labels(first.op_type)
        if held.outliers is not None:
            labels["outliers"] = list(held.outlier_names)
        return StoredTensor(weights, held.layer(grid), labels, held.bits)

    def _labels(self, type_name: str) -> dict[str, Any]:
        """Give the type of the tensor read last, and the file that all its parts lie in.

        Raises: BadInput for parts in several files.
        """
        if len(self._read_from) != 1:
            raise BadInput(f"its parts lie in several files ({', '.join(sorted(self._read_from))})")
        return {"type": type_name, "file": next(iter(self._read_from))}

    def _nodes(self, name: str) -> list[NodeProto]:
        """Find the operators that read a matrix, or a copy of it."""
        copies = self._readers[self._head] if name == self._embedding and self._has_copy() else []
        return [*self._readers[name], *copies]

    def _has_copy(self) -> bool:
        """Say whether a tied head has initializers of its own.

        Standard operators look up rows but multiply by columns.
        """
        return self._tied and self._head != self._embedding and self._head in self._readers

    def _held(self, node: NodeProto) -> Held:
        held = self._codes(node)
        found = self._outliers(node)
        return held if found is None else replace(held, outliers=found[0], outlier_names=found[1])

    def _outliers(self, node: NodeProto) -> tuple[OutlierColumns, tuple[str, str]] | None:
        """Find outlier columns: a product of some inputs, added to that of all of them."""
        product = self._consumers[node.output[0]] if node.op_type == "DequantizeLinear" else node
        total = self._sums.get(product.output[0]) if product.op_type in PRODUCTS else None
        if total is None:
            return None
        others = [name for name in total.input if name != product.output[0]]
        narrow = self._producers.get(others[0]) if others else None
        if narrow is None or narrow.op_type != "MatMul":
            return None  # a bias is added, or nothing
        picked = self._producers[narrow.input[0]]
        values = narrow.input[1]
        if picked.op_type != "Gather" or picked.input[0] != product.input[0]:
            raise BadInput(f"node {narrow.name!r} multiplies other inputs than {product.name!r}")
        if values not in self._initializers:
            values = self._producers[values].input[0]  # a cast to float32
        names = (picked.input[1], values)
        columns = self._array(names[0]).astype(np.int32)
        return OutlierColumns(columns, self._array(values).T.astype(np.float32)), names

    def _codes(self, node: NodeProto) -> Held:
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "DequantizeLinear":
            return self._numbers([self._origin(name) for name in node.input], settings)
        origins = [self._origin(name) for name in node.input]
        data, scales, *zeros = [name for name in origins if name in self._initializers]
        bits = settings["bits"]
        if bits not in BLOCK_BITS:
            raise BadInput(f"node {node.name!r} states {bits!r:.40} bits")
        of_blocks = self._array(scales)
        codes = _unpacked(self._array(data).reshape(len(of_blocks), -1), bits)
        columns = codes.shape[1]
        end = self._ends.get(node.output[0])
        if "K" in settings:
            columns = settings["K"]
        elif end is not None:
            columns = int(self._array(end)[0])
        middle = 2 ** (bits - 1)
        found = self._array(zeros[0]) if zeros else np.full(of_blocks.shape, middle, np.float32)
        if found.dtype == np.uint8:
            found = _unpacked(found, bits)[:, : of_blocks.shape[1]].astype(np.float32)
        return Held(codes[:, :columns], of_blocks, found, settings["block_size"], middle, bits)

    def _numbers(self, names: Sequence[str], settings: Mapping[str, Any]) -> Held:
        """Read weights of DequantizeLinear, which hold columns first unless rows are looked up."""
        kind = self._initializers[names[0]].data_type
        arrays = [self._array(name) for name in names]
        if settings["axis"] != LOOKED_UP_AXIS:
            arrays = [array.T for array in arrays]
        codes, scales, *zeros = arrays
        found = zeros[0].astype(np.float32) if zeros else np.zeros(scales.shape, np.float32)
        bits = BITS_OF[kind]
        middle = 0 if kind in SIGNED else 2 ** (bits - 1)
        return Held(codes.astype(np.int16), scales, found, settings["block_size"], middle, bits)

    def _origin(self, name: str) -> str:
        origin: str = self._forwarded.get(name, name)
        return origin

    def _array(self, name: str) -> NumpyArray:
        """Read an initializer.

        Raises: BadInput for bytes that are missing, or lie elsewhere.
        """
        tensor = TensorProto()  # loading changes it
        tensor.CopyFrom(self._initializers[name])
        if tensor.data_location == TensorProto.EXTERNAL:
            self._check_place(tensor)
        try:
            array: NumpyArray = numpy_helper.to_array(tensor, base_dir=str(self._directory))
        except (OSError, ValidationError) as error:
            raise BadInput(f"its bytes cannot be read ({reason_of(error)})") from error
        is_bfloat16 = tensor.data_type == TensorProto.BFLOAT16
        return array.astype(ml_dtypes.bfloat16) if is_bfloat16 else array

    def _check_place(self, tensor: TensorProto) -> None:
        """Note the file of a tensor, and refuse more bytes than it has: the library reserves them.

        Raises: BadInput.
        """
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        path = self._directory / location
        if not location or leads_out(location) or path.is_symlink() or not path.is_file():
            raise BadInput(f"its bytes lie in {location!r}, which is no file of the export")
        numbers = math.prod(tensor.dims)
        if min(tensor.dims, default=1) < 0 or numbers > 2 * path.stat().st_size:
            raise BadInput(
                f"its shape {list(tensor.dims)} has more numbers than {location!r} holds"
            )
        self._read_from.add(location)


def _check_names(graph: GraphProto) -> None:
    """Refuse names that are no text, which the library gives as bytes. Raises: BadInput."""
    names = [each.name for each in graph.initializer]
    for node in graph.node:
        names += [node.name, node.op_type, *node.input, *node.output]
    damaged = next((name for name in names if not isinstance(name, str)), None)
    if damaged is not None:
        raise BadInput(f"the graph cannot be read (a name {damaged!r:.80} in it is no UTF-8 text)")


def _settings_of(graph: GraphProto) -> dict[str, Any]:
    """Read off a graph what it was exported with; what it does not show is left out."""
    operators = {node.op_type for node in graph.node}
    levels = {
        attribute.i
        for node in graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    types = {value.type.tensor_type.elem_type for value in graph.output}
    found: dict[str, Any] = {}
    if operators & {*WEIGHT_INPUTS}:
        found["qdq"] = "DequantizeLinear" in operators
    if levels:
        found["accuracy_level"] = min(levels) if len(levels) == 1 else sorted(levels)
    if types == {TensorProto.FLOAT}:
        found["activations"] = "float32"
    return found


def _unpacked(packed: NumpyArray, bits: int) -> NumpyArray:
    """Unpack numbers of 2, 4 or 8 bits, lowest bits first.

    Shapes: (rows, bytes) -> (rows, bytes * 8 / bits).
    """
    places = np.arange(0, 8, bits, dtype=np.uint8)
    spread = packed[..., np.newaxis] >> places & np.uint8(2**bits - 1)
    return spread.reshape(len(packed), -1).astype(np.int16)
