"""Write GGUF files for llama.cpp: models whose weights lie in blocks of its own types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from edgeq.decoder import ModelRecord
from edgeq.errors import BadInput, NotInstalled
from edgeq.files.names import gguf_name
from edgeq.files.ownership import MODELFILE
from edgeq.files.storage import rename_when_stored, write_bytes
from edgeq.protocols import ModelDescription, QuantizedModel
from edgeq.types import Grid, NumpyArray
from edgeq.words import install
from edgeq_exporters.common.companions import legal_companions, window_notes
from edgeq_exporters.common.manifest import Entry, write_manifest
from edgeq_exporters.common.widening import widening_notes
from edgeq_exporters.gguf.architecture import names_of, why_not_architecture
from edgeq_exporters.gguf.blocks import bits_in_file, why_not_packable
from edgeq_exporters.gguf.format import FORMAT
from edgeq_exporters.gguf.llama_cpp import computes_windows
from edgeq_exporters.gguf.metadata import architecture_keys, rope_tensors
from edgeq_exporters.gguf.modelfile import modelfile
from edgeq_exporters.gguf.origin import origin_keys
from edgeq_exporters.gguf.super_blocks import PACKED
from edgeq_exporters.gguf.tensors import (
    PlannedTensor,
    Shapes,
    Source,
    dominating_type,
    find_sources,
    plan_tensors,
    planned_bytes,
    stored_tensor,
    type_notes,
    why_not_tensors,
    width_notes,
)
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

    from edgeq.files.gguf_reader import type_number
except ModuleNotFoundError as missing:
    raise NotInstalled(f"export 'gguf' needs the package gguf; {install('gguf')}") from missing

# llama.cpp's numbers (llama_ftype) for a file that is mostly of a type.
FILE_TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32},
    **{"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7},
    # K types have several, by what other types are mixed in; this is the one without
    **{"Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18},
    **{"IQ4_NL": 25, "IQ4_XS": 30, "TQ1_0": 36, "TQ2_0": 37, "Q2_0": 41},
}


DENSE_TYPES = {"F32", "F16", "BF16"}
NARROW_TYPES = {2: "Q2_K", 3: "Q3_K", 6: "Q6_K"}
"""Types whose blocks have codes of so many bits, where plain blocks have none."""


class GgufExporter:
    """Writes NAME-TYPE.gguf, a Modelfile, licences and manifest.json.

    Minima of integer zero points become float16.
    """

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

    def notes(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> list[str]:
        """Say what the file will not hold of the model as it is."""
        notes = tokenizer_notes(record.name, companions, record.tokens)
        decoder = record.decoder
        if decoder.names.gguf is None:
            return list(notes)
        cut = () if computes_windows(decoder) else window_notes(record, "llama.cpp")
        wider = widening_notes("GGUF", decoder, grids, bits_in_file, NARROW_TYPES)
        return [*cut, *wider, *type_notes(grids), *width_notes(decoder), *notes]

    def why_not_grid(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        """Say what keeps a matrix on this grid out of the format and what to change, or None."""
        return why_not_packable(shape, grid)

    def planned_bytes(
        self, record: ModelRecord, grids: Shapes, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of all tensors in the file; see `edgeq.format_parts.Exporter`."""
        return planned_bytes(record.decoder, grids, item_bytes)

    def overhead_bytes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> int:
        """Count the bytes of the GGUF file beside those of `planned_bytes`, by writing its header.

        What fills places up to whole units counts as if each took most.
        """
        shapes = record.decoder.tensor_shapes()
        sources = {name: Source(shape, None, "float32") for name, shape in shapes.items()}
        plan = plan_tensors(record.decoder, sources)
        factors = rope_tensors(record.decoder)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "header.gguf"
            writer = new_writer(Described(record, companions), plan, path)
            try:
                write_header(writer)
            finally:
                writer.close()
            header = path.stat().st_size
        filling = (1 + len(plan) + len(factors)) * (gguf.GGUF_DEFAULT_ALIGNMENT - 1)
        return header + filling + sum(array.nbytes for array in factors.values())

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write all files into the directory `destination`, first the one that runtimes are given.

        One tensor is in memory at a time, so every tensor is read twice: for its place, then for
        its bytes. The same model gives the same bytes.

        Raises: BadInput, before anything is written, for a model with a `reject_reason`.
        """
        sources = find_sources(model)
        grids = {name: (source.shape, source.grid) for name, source in sources.items()}
        reason = self.reject_reason(model.record, model.companions(), grids)
        if reason is not None:
            raise BadInput(f"export 'gguf': {reason}")
        plan = plan_tensors(model.record.decoder, sources)
        path = destination / gguf_name(model.record.name, type_label(model, plan))
        entries = write_gguf(model, plan, path)
        beside = legal_companions(model.companions())
        beside[MODELFILE] = modelfile(model.record, model.companions(), path.name)
        for name, data in beside.items():
            write_bytes(destination / name, data)
        manifest = write_manifest(
            destination, format_name=self.format.name, file=path.name, entries=entries
        )
        return [path, *(destination / name for name in beside), manifest]


def type_label(model: QuantizedModel, plan: Sequence[PlannedTensor]) -> str:
    """Say in a word what a file is made of: the type or mix asked for, else that of all its blocks.

    A file of several types without a name of their own has its bits per weight: "3.40bpw".
    """
    if model.type_asked is not None:
        return model.type_asked
    types = block_types(plan)
    if len(types) == 1:
        return f"{widened_label(model, plan)}{types.pop()}"
    weights = sum(int(np.prod(tensor.shape)) for tensor in plan)
    return f"{8 * sum(map(tensor_size, plan)) / weights:.2f}bpw"


def widened_label(model: QuantizedModel, plan: Sequence[PlannedTensor]) -> str:
    """Say "3bit-" before the type of blocks that hold wider codes than were solved, else nothing.

    Else files of 3 and of 4 bits would have one name.
    """
    tensors = [tensor for tensor in plan if tensor.name.startswith("blk.")]
    bits = set()
    for tensor in tensors:
        source = tensor.place.sources[0]
        grid = model.grid(source)
        if grid is not None:
            held = bits_in_file(source, tensor.shape, grid)
            bits.add((grid.bits, held))
    if len(bits) != 1:
        return ""
    solved, held = bits.pop()
    return f"{solved}bit-" if held is not None and held > solved else ""


def block_types(plan: Sequence[PlannedTensor]) -> set[str]:
    """List the types of matrices in blocks of the model; dense ones where there are no others."""
    types = {tensor.type_name for tensor in plan if tensor.name.startswith("blk.")}
    return types - DENSE_TYPES or {dominating_type(plan)}


def write_gguf(model: QuantizedModel, plan: Sequence[PlannedTensor], path: Path) -> list[Entry]:
    """Write the file under a temporary name, rename it, and return the manifest's entries."""
    partial = path.with_name(path.name + ".partial")
    writer = new_writer(model, plan, partial)
    try:
        write_header(writer)
        for array in rope_tensors(model.record.decoder).values():
            append_tensor(writer, array)
        entries = []
        for tensor in plan:
            stored, found = stored_tensor(model, tensor)
            append_tensor(writer, stored)
            entries += found
        writer.close()
        rename_when_stored(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return entries


@dataclass(frozen=True, slots=True)
class Described:
    """A model as far as the header of a file goes: without tensors."""

    record: ModelRecord
    files: Mapping[str, bytes]

    def companions(self) -> Mapping[str, bytes]:
        return self.files


def new_writer(
    model: ModelDescription, plan: Sequence[PlannedTensor], path: Path
) -> gguf.GGUFWriter:
    """Make the library's writer of a file, with all keys and places of tensors."""
    writer = gguf.GGUFWriter(path, names_of(model.record.decoder).architecture)
    _add_keys(writer, model, plan)
    for name, array in rope_tensors(model.record.decoder).items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    for tensor in plan:
        _add_tensor_info(writer, tensor)
    return writer


def write_header(writer: gguf.GGUFWriter) -> None:
    """Write everything that lies before the bytes of tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _add_keys(
    writer: gguf.GGUFWriter, model: ModelDescription, plan: Sequence[PlannedTensor]
) -> None:
    embedding = model.record.decoder.embedding
    vocab_size = next(tensor.shape[0] for tensor in plan if embedding in tensor.place.sources)
    writer.add_type("model")
    files = TokenizerFiles.read(model.companions(), model.record.tokens)
    writer.add_name(name_in_file(model.record.name, files))
    for key, text in origin_keys(model.record.origin):
        _add_key(writer, key, text)
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


def _add_tensor_info(writer: gguf.GGUFWriter, tensor: PlannedTensor) -> None:
    number, size = type_number(tensor.type_name), tensor_size(tensor)
    # The writer counts shapes in bytes for uint8 and in weights for other types. The type that the
    # file states is `number`, which the library need not have a name for.
    kind = cast(gguf.GGMLQuantizationType, number)
    writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)


def tensor_size(tensor: PlannedTensor) -> int:
    """Count the bytes of a tensor in the file."""
    weights = int(np.prod(tensor.shape))
    if tensor.type_name in PACKED:
        kind = PACKED[tensor.type_name]
        return weights // kind.columns * kind.block_bytes
    columns, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type_name]]
    return weights // columns * block_bytes


class StatedWrite(np.ndarray[Any, Any]):
    """An array whose own way to a file says why it could not be written: NumPy's loses that."""

    def tofile(self, fid: Any, sep: str = "", format: str = "%s") -> None:
        """Write the bytes of the array to an open file."""
        fid.write(np.asarray(self).reshape(-1).view(np.uint8).data)


def append_tensor(writer: gguf.GGUFWriter, array: NumpyArray) -> None:
    """Write the bytes of the next tensor. Raises: OSError with the system's reason."""
    writer.write_tensor_data(np.ascontiguousarray(array).view(StatedWrite))
