"""Write ONNX graphs for ONNX Runtime and onnxruntime-genai, with blocks of 2, 4 or 8 bits."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeq.decoder import Decoder, ModelRecord, Shape
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput
from edgeq.files.json_files import json_bytes
from edgeq.files.storage import write_bytes
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid, NumpyArray, QuantizedLinear
from edgeq_exporters.common.companions import exported_companions
from edgeq_exporters.common.decoder import Shapes, check_shape, claimed_grids, why_not_tensors
from edgeq_exporters.common.manifest import (
    Entry,
    quantized_entry,
    sha256_of,
    tensor_entry,
    write_manifest,
)
from edgeq_exporters.onnx.architecture import (
    genai_config,
    rotary_tables,
    why_not_decoder,
)
from edgeq_exporters.onnx.blocks import (
    Container,
    Operator,
    container_of,
    held_by_blocks,
    is_widened,
    matrix_bytes,
    why_not_grid,
)
from edgeq_exporters.onnx.decoder import COSINES, SINES, decoder_model
from edgeq_exporters.onnx.format import ACCURACY_LEVELS, FORMAT
from edgeq_exporters.onnx.graph import GraphBuilder, Matrix
from edgeq_exporters.onnx.tensors import (
    DataFile,
    Part,
    block_parts,
    dense_part,
    new_data_file,
    outlier_names,
    outlier_parts,
    whole_number_parts,
)
from edgeq_exporters.onnx.tokenizer import runtime_files, runtime_notes

FILE_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SHIPPED_LEVEL = 4  # rounds activations to 8 bits; many times faster than level 0
FLOAT32_BYTES = 4
LOOKED_UP_BITS = 8  # with qdq: Gather has no 4-bit types


class OnnxExporter:
    """Writes model.onnx, its external data, genai_config.json and tokenizer files.

    Activations are float32. With `accuracy_level` 4 ONNX Runtime rounds them to 8 bits, which is
    what makes it fast; 0 computes in float32. With `qdq` weights are standard DequantizeLinear
    nodes instead of ONNX Runtime's own quantized operators. Free offsets are accepted up to
    4 bits, without `qdq`, and not for an embedding.
    """

    format = FORMAT

    def __init__(self, *, accuracy_level: int | None = None, qdq: bool = False) -> None:
        if qdq and accuracy_level is not None:
            raise BadInput(
                "accuracy level: a graph of standard operators (qdq) has none; "
                "give one to ONNX Runtime when you run it"
            )
        if accuracy_level is None:
            accuracy_level = SHIPPED_LEVEL
        if accuracy_level not in ACCURACY_LEVELS:
            raise BadInput(
                f"accuracy level {accuracy_level} is not known; "
                "choose 0 (float32) to 4 (8-bit activations)"
            )
        self.accuracy_level = accuracy_level
        self.qdq = qdq

    def reject_reason(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> str | None:
        """Say why this model on these grids cannot be written and what to change, or None.

        Shapes: grids maps each tensor name to its shape and its grid (None: dense).
        """
        reason = why_not_decoder(record.decoder)
        if reason is not None:
            return reason
        return why_not_tensors(record.decoder, grids, self._why_not_tensor, runtime="the graph")

    def notes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> list[str]:
        """Say what the files will not hold of the model as it is, and where the runtime differs."""
        return list(runtime_notes(companions))

    def why_not_grid(self, shape: Shape, grid: Grid) -> str | None:
        """Say what keeps a matrix on this grid out of the format and what to change, or None."""
        return self._why_not_tensor("", shape, grid)

    def planned_bytes(
        self, record: ModelRecord, grids: Shapes, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of the data file: tensors, and the rotary tables of every position."""
        total = rotary_bytes(record.decoder)
        for name, (shape, grid) in grids.items():
            if grid is None:
                item = FLOAT32_BYTES if len(shape) == 1 else item_bytes[name]
                total += math.prod(shape) * item
                continue
            computing = [name]
            if self.qdq and name == EMBEDDING and record.decoder.tied_head:
                computing.append(HEAD)  # the head's product has a copy of the embedding
            total += sum(self._matrix_bytes(module, shape, grid) for module in computing)
        return total

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write the directory and list what was written, first the model.onnx that runtimes load.

        One tensor is in memory at a time. The same model gives the same bytes.

        Raises: BadInput, before anything is written, for a model with a `reject_reason`.
        """
        companions = model.companions()
        reason = self.reject_reason(model.record, companions, claimed_grids(model))
        if reason is not None:
            raise BadInput(f"export 'onnx': {reason}")
        decoder = model.record.decoder
        with new_data_file(destination / DATA_NAME) as data:
            entries = [self._write_tensor(model, name, data) for name in decoder.tensor_shapes()]
            cosines, sines = rotary_tables(decoder)
            data.add(dense_part(COSINES, cosines))
            data.add(dense_part(SINES, sines))
        files = {
            FILE_NAME: self._graph(model, data),
            "config.json": json_bytes(model.record.settled_config()),
            "genai_config.json": json_bytes(genai_config(model.record, companions, file=FILE_NAME)),
        }
        beside = runtime_files(exported_companions(model.record, companions))
        files |= {name: beside[name] for name in sorted(beside) if name not in files}
        for name, content in files.items():
            write_bytes(destination / name, content)
        manifest = write_manifest(
            destination,
            format_name=self.format.name,
            file=FILE_NAME,
            entries=entries,
            settings=self.settings,
        )
        model_file, *others = (destination / name for name in files)
        return [model_file, destination / DATA_NAME, *others, manifest]

    @property
    def settings(self) -> Mapping[str, Any]:
        """State the options of the graph, for the manifest.

        A graph with qdq has no accuracy level: the session that runs it has one.
        """
        level = {} if self.qdq else {"accuracy_level": self.accuracy_level}
        return {**level, "qdq": self.qdq, "activations": "float32"}

    def _why_not_tensor(self, name: str, shape: Shape, grid: Grid) -> str | None:
        if name == EMBEDDING and grid.outlier_columns:
            return (
                "an embedding is looked up and holds no outlier columns; "
                "keep outlier_columns 0 for it"
            )
        return why_not_grid(shape, grid, self._operator(name))

    def _operator(self, name: str) -> Operator:
        """Name the operator that reads a matrix; a tied head reads the codes of its embedding."""
        if self.qdq:
            return "DequantizeLinear"
        return "GatherBlockQuantized" if name == EMBEDDING else "MatMulNBits"

    def _container(self, name: str, columns: int, grid: Grid) -> Container:
        container = container_of(columns, grid, self._operator(name))
        if self.qdq and name == EMBEDDING:
            return replace(container, bits=LOOKED_UP_BITS)
        return container

    def _matrix_bytes(self, name: str, shape: Shape, grid: Grid) -> int:
        container = self._container(name, shape[1], grid)
        return matrix_bytes(shape, grid, container, state_middle=name == EMBEDDING)

    def _write_tensor(self, model: QuantizedModel, name: str, data: DataFile) -> Entry:
        """Write the initializers of one tensor and describe what became of it."""
        grid = model.grid(name)
        expected = model.record.decoder.tensor_shapes()[name]
        if grid is None:
            array = model.dense(name)
            check_shape("onnx", name, array.shape, expected)
            part = dense_part(name, array)
            data.add(part)
            return _dense_entry(name, array, part)
        layer = model.quantized(name)
        check_shape("onnx", name, layer.codes.shape, expected)
        container = self._container(name, layer.codes.shape[1], grid)
        for part in self._parts(model, name, layer, container):
            data.add(part)
        entry = quantized_entry(
            name=name,
            source=name,
            type_name=container.operator,
            layer=layer,
            stored=held_by_blocks(layer),
            widened=is_widened(grid, container),
        )
        held = {} if layer.outliers is None else {"outliers": list(outlier_names(name))}
        return entry | {"file": DATA_NAME} | held

    def _parts(
        self, model: QuantizedModel, name: str, layer: QuantizedLinear, container: Container
    ) -> Iterator[Part]:
        if layer.outliers is not None:
            yield from outlier_parts(name, layer.outliers, layer.grid)
        if not self.qdq:
            yield from block_parts(name, layer, container, state_middle=name == EMBEDDING)
            return
        yield from whole_number_parts(name, layer, container, rows_first=name == EMBEDDING)
        if name == EMBEDDING and HEAD not in model.record.decoder.tensor_shapes():
            head = self._container(HEAD, layer.codes.shape[1], layer.grid)
            yield from whole_number_parts(HEAD, layer, head, rows_first=False)

    def _graph(self, model: QuantizedModel, data: DataFile) -> bytes:
        builder = GraphBuilder(dict(data.initializers), self.accuracy_level)
        graph = decoder_model(model.record.decoder, builder, self._matrices(model))
        content: bytes = graph.SerializeToString(deterministic=True)
        return content

    def _matrices(self, model: QuantizedModel) -> dict[str, Matrix]:
        """List matrices by the module that computes with them; a tied head is its embedding."""
        tensors = model.record.decoder.tensor_shapes()
        shapes = {name: shape for name, shape in tensors.items() if len(shape) == 2}
        matrices = {}
        for name in {**shapes, HEAD: shapes[EMBEDDING]}:
            held = name if name in shapes else EMBEDDING
            rows, columns = shapes[held]
            grid = model.grid(held)
            container = None if grid is None else self._container(name, columns, grid)
            # With qdq a tied head has a copy: products want columns first, lookups rows.
            initializer = name if self.qdq and grid is not None else held
            outliers = grid is not None and bool(grid.outlier_columns)
            module = name.removesuffix(".weight")
            matrices[module] = Matrix(initializer, rows, columns, container, outliers)
        return matrices


def rotary_bytes(decoder: Decoder) -> int:
    """Count the bytes of the cosines and sines of every position, each half a head in float32."""
    return (decoder.context or 0) * decoder.attention.head_size * FLOAT32_BYTES


def _dense_entry(name: str, array: NumpyArray, part: Part) -> Entry:
    entry = tensor_entry(
        name=name,
        source=name,
        type_name=CODE_NAMES[str(part.data.dtype)],
        grid=None,
        status="dense",
        deviation=0.0,
        digest=sha256_of(array),
        stored=sha256_of(part.data),
    )
    return entry | {"file": DATA_NAME}
