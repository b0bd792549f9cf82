"""Write GGUF files for llama.cpp: Llama-like models with one-level block quantization."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeq.decoder import Decoder, ModelRecord
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput, NotInstalled, install
from edgeq.files.storage import rename_when_stored
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid, NumpyArray, QuantizedLinear
from edgeq_exporters.common.companions import window_notes
from edgeq_exporters.common.manifest import (
    Entry,
    quantized_entry,
    sha256_of,
    tensor_entry,
    write_manifest,
)
from edgeq_exporters.gguf.architecture import (
    architecture_keys,
    file_order,
    gguf_names,
    names_of,
    rope_factors,
    row_order,
    why_not_architecture,
)
from edgeq_exporters.gguf.blocks import (
    block_type,
    held_by_blocks,
    is_widened,
    pack_blocks,
    tensor_bytes,
    why_not_packable,
)
from edgeq_exporters.gguf.format import FORMAT
from edgeq_exporters.gguf.tokenizer import (
    TokenizerFiles,
    Value,
    name_in_file,
    tokenizer_keys,
    tokenizer_notes,
    why_not_tokenizer,
)

try:
    import gguf
except ModuleNotFoundError as missing:
    raise NotInstalled(f"export 'gguf' needs the package gguf; {install('gguf')}") from missing

FILE_NAME = "model.gguf"
ROPE_FACTORS = "rope_freqs.weight"
# llama.cpp's numbers (llama_ftype) for a file that is mostly of a type.
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7}

Shapes = Mapping[str, tuple[tuple[int, ...], Grid | None]]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """Describes a tensor of the file before its bytes exist."""

    name: str
    source: str
    type_name: str
    shape: tuple[int, ...]
    grid: Grid | None


class GgufExporter:
    """Writes model.gguf and manifest.json; minima of integer zero points become float16."""

    format = FORMAT
    settings: Mapping[str, Any] = MappingProxyType({})

    def reject_reason(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> str | None:
        """Say why this model on these grids cannot be written and what to change, or None.

        Shapes: grids maps each tensor name to its shape and its grid (None: dense).
        """
        decoder = record.decoder
        reason = why_not_architecture(decoder)
        if reason is None and decoder.embedding not in grids:
            reason = f"the model has no tensor '{decoder.embedding}', which GGUF needs"
        if reason is None:
            rows = grids[decoder.embedding][0][0]
            reason = why_not_tokenizer(companions, record.tokens, vocab_size=rows)
        return reason or why_not_tensors(decoder, grids)

    def notes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> list[str]:
        """Say what the file will not hold of the model as it is."""
        notes = tokenizer_notes(record.name, companions, record.tokens)
        return [*window_notes(record, "llama.cpp"), *notes]

    def why_not_grid(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        """Say what keeps a matrix on this grid out of the format and what to change, or None."""
        return why_not_packable(shape, grid)

    def planned_bytes(
        self, record: ModelRecord, grids: Shapes, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of all tensors in the file; see `edgeq.protocols.Exporter`."""
        return sum(
            tensor_bytes(shape, grid, item_bytes[name]) for name, (shape, grid) in grids.items()
        )

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write both files into the directory `destination`.

        One tensor is in memory at a time, so every tensor is read twice: for its place, then for
        its bytes. The same model gives the same bytes.

        Raises: BadInput, before anything is written, for a model with a `reject_reason`.
        """
        plan = plan_tensors(model)
        grids = {tensor.source: (tensor.shape, tensor.grid) for tensor in plan}
        reason = self.reject_reason(model.record, model.companions(), grids)
        if reason is not None:
            raise BadInput(f"export 'gguf': {reason}")
        path = destination / FILE_NAME
        entries = write_gguf(model, plan, path)
        name = self.format.name
        manifest = write_manifest(destination, format_name=name, file=FILE_NAME, entries=entries)
        return [path, manifest]


def why_not_tensors(decoder: Decoder, grids: Shapes) -> str | None:
    """Say why the first tensor that does not fit stays out of the file; None when all fit."""
    names = gguf_names(decoder)
    for name, (shape, grid) in grids.items():
        if decoder.is_redundant(name):
            continue
        if name not in names:
            architecture = names_of(decoder).architecture
            return f"tensor '{name}' has no place in GGUF's {architecture} architecture"
        reason = None if grid is None else why_not_packable(shape, grid)
        if reason is not None:
            return f"tensor '{name}': {reason}"
    return None


def plan_tensors(model: QuantizedModel) -> list[PlannedTensor]:
    """List name, type and shape of every tensor, in the order of the file."""
    decoder = model.record.decoder
    names = {} if decoder.names.gguf is None else gguf_names(decoder)
    kept = (name for name in model.tensor_names() if not decoder.is_redundant(name))
    planned = (_planned(model, name, names.get(name, name)) for name in kept)
    return sorted(planned, key=lambda tensor: file_order(tensor.name))


def _planned(model: QuantizedModel, source: str, name: str) -> PlannedTensor:
    grid = model.grid(source)
    if grid is not None:
        kind = block_type(grid)
        type_name = kind.name if kind else ""
        return PlannedTensor(name, source, type_name, model.quantized(source).codes.shape, grid)
    array = model.dense(source)
    # llama.cpp adds and multiplies vectors in float32 and accepts no other type for them.
    type_name = "F32" if array.ndim == 1 else CODE_NAMES[str(array.dtype)]
    return PlannedTensor(name, source, type_name, array.shape, None)


def write_gguf(model: QuantizedModel, plan: Sequence[PlannedTensor], path: Path) -> list[Entry]:
    """Write the file under a temporary name, rename it, and return the manifest's entries."""
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, names_of(model.record.decoder).architecture)
    factors = rope_factors(model.record.decoder)
    _add_keys(writer, model, plan)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for tensor in plan:
        _add_tensor_info(writer, tensor)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            append_tensor(writer, factors)
        entries = [_write_tensor(writer, model, tensor) for tensor in plan]
        writer.close()
        rename_when_stored(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return entries


def _add_keys(
    writer: gguf.GGUFWriter, model: QuantizedModel, plan: Sequence[PlannedTensor]
) -> None:
    embedding = model.record.decoder.embedding
    vocab_size = next(tensor.shape[0] for tensor in plan if tensor.source == embedding)
    writer.add_type("model")
    files = TokenizerFiles.read(model.companions(), model.record.tokens)
    writer.add_name(name_in_file(model.record.name, files))
    for key, number in architecture_keys(model.record.decoder, vocab_size=vocab_size):
        _add_key(writer, key, number)
    writer.add_file_type(FILE_TYPES[dominating_type(plan)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    record = model.record
    for key, value in tokenizer_keys(
        model.companions(), record.tokens, record.template, vocab_size=vocab_size
    ):
        _add_key(writer, key, value)


def _add_key(writer: gguf.GGUFWriter, key: str, value: Value | float) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def dominating_type(plan: Iterable[PlannedTensor]) -> str:
    """Find the type of most weights in blocks; embedding and head may have one of their own."""
    weights: Counter[str] = Counter()
    for tensor in plan:
        if tensor.name.startswith("blk."):
            weights[tensor.type_name] += int(np.prod(tensor.shape))
    return weights.most_common(1)[0][0]


def _add_tensor_info(writer: gguf.GGUFWriter, tensor: PlannedTensor) -> None:
    kind = gguf.GGMLQuantizationType[tensor.type_name]
    block_columns, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    size = int(np.prod(tensor.shape)) // block_columns * block_bytes
    # The writer counts shapes in bytes for uint8 and in weights for other types. The type that the
    # file states is `kind`.
    writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)


class StatedWrite(np.ndarray[Any, Any]):
    """An array whose own way to a file says why it could not be written: NumPy's loses that."""

    def tofile(self, fid: Any, sep: str = "", format: str = "%s") -> None:
        """Write the bytes of the array to an open file."""
        fid.write(np.asarray(self).reshape(-1).view(np.uint8).data)


def append_tensor(writer: gguf.GGUFWriter, array: NumpyArray) -> None:
    """Write the bytes of the next tensor. Raises: OSError with the system's reason."""
    writer.write_tensor_data(np.ascontiguousarray(array).view(StatedWrite))


def _write_tensor(writer: gguf.GGUFWriter, model: QuantizedModel, tensor: PlannedTensor) -> Entry:
    """Write the bytes of one tensor and describe what became of it."""
    rows = row_order(tensor.source, model.record.decoder)
    if tensor.grid is None:
        return _write_dense(writer, model, tensor, rows)
    layer = model.quantized(tensor.source)
    written = layer if rows is None else reordered(layer, rows)
    append_tensor(writer, pack_blocks(written))
    return quantized_entry(
        name=tensor.name,
        source=tensor.source,
        type_name=tensor.type_name,
        layer=layer,
        stored=held_by_blocks(layer),
        widened=is_widened(tensor.grid),
    )


def _write_dense(
    writer: gguf.GGUFWriter, model: QuantizedModel, tensor: PlannedTensor, rows: NumpyArray | None
) -> Entry:
    array = model.dense(tensor.source)
    stored = _stored(array, tensor.type_name)
    append_tensor(writer, stored if rows is None else stored[rows])
    return tensor_entry(
        name=tensor.name,
        source=tensor.source,
        type_name=tensor.type_name,
        grid=None,
        status="dense",
        deviation=0.0,
        digest=sha256_of(array),
        stored=sha256_of(stored),
    )


def reordered(layer: QuantizedLinear, rows: NumpyArray) -> QuantizedLinear:
    """Put the rows of a layer in another order; groups run along the columns and stay whole."""
    return replace(
        layer, codes=layer.codes[rows], scales=layer.scales[rows], offsets=layer.offsets[rows]
    )


def _stored(array: NumpyArray, type_name: str) -> NumpyArray:
    stored = array.astype(np.float32) if type_name == "F32" else array
    return np.ascontiguousarray(stored.view(np.uint16) if type_name == "BF16" else stored)
