"""Write ONNX graphs for ONNX Runtime and onnxruntime-genai, with blocks of 2, 4 or 8 bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.decoder import ModelRecord, Shape
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput
from edgeq.files.json_files import json_bytes
from edgeq.files.storage import write_bytes
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid, NumpyArray
from edgeq_exporters.common.companions import exported_companions
from edgeq_exporters.common.decoder import Shapes, check_shape, claimed_grids, why_not_tensors
from edgeq_exporters.common.manifest import (
    Entry,
    quantized_entry,
    sha256_of,
    tensor_entry,
    write_manifest,
)
from edgeq_exporters.common.overhead import directory_overhead
from edgeq_exporters.common.widening import widening_notes
from edgeq_exporters.onnx.architecture import why_not_decoder
from edgeq_exporters.onnx.blocks import held_by_blocks, is_widened, why_not_grid
from edgeq_exporters.onnx.decoder import decoder_model
from edgeq_exporters.onnx.format import ACCURACY_LEVELS, FORMAT
from edgeq_exporters.onnx.genai import genai_config
from edgeq_exporters.onnx.graph import GraphBuilder
from edgeq_exporters.onnx.layout import Layout, operator_of
from edgeq_exporters.onnx.rotary import rotary_tables, tables_of
from edgeq_exporters.onnx.tensors import DataFile, Part, dense_part, new_data_file, outlier_names
from edgeq_exporters.onnx.tokenizer import runtime_files, runtime_notes

FILE_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
GENAI_NAME = "genai_config.json"
SHIPPED_LEVEL = 4  # rounds activations to 8 bits; many times faster than level 0


class OnnxExporter:
    """Writes model.onnx, its external data and tokenizer files.

    Models that onnxruntime-genai runs get its genai_config.json.

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
        layout = Layout(record.decoder, self.qdq)
        return why_not_tensors(record.decoder, grids, layout.why_not_tensor, runtime="the graph")

    def notes(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> list[str]:
        """Say what the files will not hold of the model as it is, and where the runtime differs."""
        decoder = record.decoder
        layout = Layout(decoder, self.qdq)

        def held(name: str, shape: Shape, grid: Grid) -> int:
            return layout.container(name, shape[-1], grid).bits

        wider = list(widening_notes("ONNX", decoder, grids, held, {}))
        if decoder.names.genai is not None:
            return [*wider, *runtime_notes(companions)]
        kind = decoder.model_type
        return [*wider, f"onnxruntime-genai does not run model type {kind}; ONNX Runtime does"]

    def why_not_grid(self, shape: Shape, grid: Grid) -> str | None:
        """Say what keeps a matrix on this grid out of the format and what to change, or None."""
        return why_not_grid(shape, grid, operator_of(self.qdq, looked_up=False))

    def planned_bytes(
        self, record: ModelRecord, grids: Shapes, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of the data file: tensors, and the rotary tables of every position."""
        return Layout(record.decoder, self.qdq).planned_bytes(grids, item_bytes)

    def overhead_bytes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> int:
        """Count at most what the files hold beside weights; see `edgeq.format_parts.Exporter`."""
        return directory_overhead(record, companions)

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
        layout = Layout(decoder, self.qdq)
        with new_data_file(destination / DATA_NAME) as data:
            entries = [write_tensor(model, layout, name, data) for name in decoder.tensor_shapes()]
            for tables in tables_of(decoder):
                cosines, sines = rotary_tables(decoder, tables)
                data.add(dense_part(tables.cosines, cosines))
                data.add(dense_part(tables.sines, sines))
        files = {
            FILE_NAME: self._graph(model, layout, data),
            "config.json": json_bytes(model.record.settled_config()),
        }
        if decoder.names.genai is not None:
            settings = genai_config(model.record, companions, file=FILE_NAME)
            files[GENAI_NAME] = json_bytes(settings)
        beside = exported_companions(model.record, companions)
        if decoder.names.genai is not None:
            beside = runtime_files(beside)
        own = {*files, GENAI_NAME}
        files |= {name: beside[name] for name in sorted(beside) if name not in own}
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

    def _graph(self, model: QuantizedModel, layout: Layout, data: DataFile) -> bytes:
        builder = GraphBuilder(dict(data.initializers), self.accuracy_level)
        graph = decoder_model(model.record.decoder, builder, layout.matrices(model))
        content: bytes = graph.SerializeToString(deterministic=True)
        return content


def write_tensor(model: QuantizedModel, layout: Layout, name: str, data: DataFile) -> Entry:
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
    for part in layout.parts(name, layer):
        data.add(part)
    container = layout.container(name, layer.codes.shape[1], grid)
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
