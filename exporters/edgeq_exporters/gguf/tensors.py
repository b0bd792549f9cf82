"""Turn the tensors of a solved model into those of a GGUF file, each with its entries.

A tensor of the file may hold several of the model: the experts of a block lie in one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeq.architectures.llama_cpp_tensors import FileTensor
from edgeq.decoder import Decoder
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid, NumpyArray, QuantizedLinear
from edgeq.words import describe_grid
from edgeq_exporters.common.manifest import (
    Entry,
    hash_of_layer,
    quantized_entry,
    sha256_of,
    tensor_entry,
)
from edgeq_exporters.gguf.architecture import gguf_tensors
from edgeq_exporters.gguf.blocks import (
    block_type,
    held_by_blocks,
    is_kept_dense,
    is_widened,
    pack_blocks,
    tensor_bytes,
    why_not_packable,
)

Shapes = Mapping[str, tuple[tuple[int, ...], Grid | None]]
ALWAYS_FLOAT32 = re.compile(r"(blk\.\d+\.ffn_gate_inp(_shexp)?|position_embd)\.weight")
"""Small matrices that llama.cpp's own converter never rounds: routers and tables of positions."""

NEW_TYPES = {"Q2_0": "llama.cpp b9916 (July 2026)"}
"""Types that not every llama.cpp in use reads, with the first release that does."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the model as it is found: its shape, its number type where it is dense."""

    shape: tuple[int, ...]
    grid: Grid | None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """Describes a tensor of the file before its bytes exist."""

    place: FileTensor
    type_name: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.place.name


def find_sources(model: QuantizedModel) -> dict[str, Source]:
    """Read every tensor once, one after the other, for its shape."""
    return {name: _found(model, name) for name in model.tensor_names()}


def _found(model: QuantizedModel, name: str) -> Source:
    grid = model.grid(name)
    if grid is not None:
        return Source(model.quantized(name).codes.shape, grid)
    array = model.dense(name)
    return Source(array.shape, None, str(array.dtype))


def plan_tensors(decoder: Decoder, sources: Mapping[str, Source]) -> list[PlannedTensor]:
    """List name, type and shape of every tensor, in the order of the file.

    For tensors that `why_not_tensors` accepts.
    """
    stored = decoder.tensor_shapes()
    planned = []
    for place in gguf_tensors(decoder):
        first = sources[place.sources[0]]
        shape = first.shape
        if len(stored[place.sources[0]]) == 3:
            shape = stored[place.sources[0]]
        if place.transposed and (first.grid is None or len(shape) == 3):
            shape = (*shape[:-2], shape[-1], shape[-2])
        if place.stacked:
            shape = (len(place.sources), *shape)
        planned.append(PlannedTensor(place, _type_of(place, first), shape))
    return planned


def _type_of(place: FileTensor, source: Source) -> str:
    if source.grid is not None:
        kind = block_type(source.grid)
        assert kind is not None
        return "F16" if is_kept_dense(source.shape) else kind.name
    # llama.cpp adds and multiplies vectors in float32 and accepts no other type for them.
    if len(source.shape) == 1 or ALWAYS_FLOAT32.fullmatch(place.name):
        return "F32"
    return CODE_NAMES[str(source.dtype)]


def why_not_tensors(decoder: Decoder, grids: Shapes) -> str | None:
    """Say why the first tensor that does not fit stays out of the file; None when all fit."""
    places = gguf_tensors(decoder)
    known = {source for place in places for source in place.sources}
    for name, (shape, grid) in grids.items():
        if decoder.is_redundant(name):
            continue
        if name not in known:
            assert decoder.names.gguf is not None
            architecture = decoder.names.gguf.architecture
            return f"tensor '{name}' has no place in GGUF's {architecture} architecture"
        reason = None if grid is None else why_not_packable(shape, grid)
        if reason is not None:
            return f"tensor '{name}': {reason}"
    for name in sorted(known - set(grids)):
        return (
            f"the model has no tensor '{name}', which config.json asks for; "
            "add it or correct config.json"
        )
    return next(filter(None, (_why_not_alike(place, grids) for place in places)), None)


def _why_not_alike(place: FileTensor, grids: Shapes) -> str | None:
    """Refuse experts that one tensor of the file cannot hold, because its blocks have one type."""
    found = [grids[source][1] for source in place.sources]
    kinds = [None if grid is None else block_type(grid) for grid in found]
    for grid, kind in zip(found, kinds, strict=True):
        if kind != kinds[0]:
            one, other = (
                "dense" if each is None else describe_grid(each) for each in (found[0], grid)
            )
            return (
                f"the experts of '{place.name}' lie on other grids ({one} and {other}), and GGUF "
                "has one type for all of them; quantize the experts of a block alike"
            )
    return None


def planned_bytes(decoder: Decoder, grids: Shapes, item_bytes: Mapping[str, int]) -> int:
    """Count the bytes of all tensors in the file."""
    wide = set()
    if decoder.names.gguf is not None:
        for place in gguf_tensors(decoder):
            wide |= set(place.sources) if ALWAYS_FLOAT32.fullmatch(place.name) else set()
    return sum(
        tensor_bytes(shape, grid, 4 if name in wide else item_bytes[name])
        for name, (shape, grid) in grids.items()
    )


def type_notes(grids: Shapes) -> Iterator[str]:
    """Note types of blocks that only newer releases of llama.cpp read."""
    for kind, release in NEW_TYPES.items():
        count = sum(grid is not None and grid.type == kind for _, grid in grids.values())
        if count:
            yield (
                f"{count} tensors lie in blocks of {kind}, which {release} and later releases "
                "read; older ones, and what is built on them, refuse the file"
            )


def width_notes(decoder: Decoder) -> Iterator[str]:
    """Note layers whose rows do not divide into blocks: they are dense in the file."""
    widths: dict[int, str] = {}
    for linear in decoder.linears():
        if is_kept_dense(linear.shape):
            widths.setdefault(linear.shape[-1], linear.name)
    for width, name in sorted(widths.items()):
        yield (
            f"layers of {width} inputs, such as {name}, lie in the file as dense float16 weights: "
            f"GGUF's blocks hold 32 columns, and {width} is no multiple of 32"
        )


def stored_tensor(model: QuantizedModel, tensor: PlannedTensor) -> tuple[NumpyArray, list[Entry]]:
    """Make the bytes of a tensor, and describe what became of each one that it is made of."""
    parts, entries = [], []
    for number, source in enumerate(tensor.place.sources):
        # a reader finds an expert under the name of the stack and its number
        name = f"{tensor.name}[{number}]" if tensor.place.stacked else tensor.name
        store = _quantized if model.grid(source) is not None else _dense
        part, entry = store(model, tensor, source, name)
        parts.append(part)
        entries.append(entry)
    return parts[0] if len(parts) == 1 else np.concatenate(parts), entries


def _quantized(
    model: QuantizedModel, tensor: PlannedTensor, source: str, name: str
) -> tuple[NumpyArray, Entry]:
    layer, rows = model.quantized(source), tensor.place.rows
    written = layer if rows is None else reordered(layer, rows)
    if tensor.type_name == "F16":
        return _weights_in_float16(layer, written, source, name)
    entry = quantized_entry(
        name=name,
        source=source,
        type_name=tensor.type_name,
        layer=layer,
        stored=held_by_blocks(layer),
        widened=is_widened(layer.grid),
    )
    return pack_blocks(written), entry


def _weights_in_float16(
    layer: QuantizedLinear, written: QuantizedLinear, source: str, name: str
) -> tuple[NumpyArray, Entry]:
    weights = layer.dequantized()
    with np.errstate(over="ignore"):
        stored = weights.astype(np.float16)
    if not np.isfinite(stored).all():
        raise BadInput(
            f"tensor '{source}' has weights up to {np.abs(weights).max():.6g}, which exceed "
            "float16, as which GGUF holds it; leave this tensor dense"
        )
    entry = tensor_entry(
        name=name,
        source=source,
        type_name="F16",
        grid=None,
        status="dense",
        deviation=float(np.abs(stored.astype(np.float64) - weights).max()),
        digest=hash_of_layer(layer),
        stored=sha256_of(stored),
        solved_on=layer.grid,
    )
    return written.dequantized().astype(np.float16), entry


def _dense(
    model: QuantizedModel, tensor: PlannedTensor, source: str, name: str
) -> tuple[NumpyArray, Entry]:
    place, array = tensor.place, model.dense(source)
    stored = array.astype(np.float32) if tensor.type_name == "F32" else array
    found = stored  # what a reader that undoes everything finds
    if place.added:
        stored = stored + np.float32(place.added)
        found = stored - np.float32(place.added)
    entry = tensor_entry(
        name=name,
        source=source,
        type_name=tensor.type_name,
        grid=None,
        status="dense",
        deviation=float(np.abs(found.astype(np.float64) - array.astype(np.float64)).max(initial=0)),
        digest=sha256_of(array),
        stored=sha256_of(found),
    )
    turned = stored.swapaxes(-1, -2) if place.transposed and stored.ndim > 1 else stored
    ordered = turned if place.rows is None else turned[place.rows]
    as_bits = ordered.view(np.uint16) if tensor.type_name == "BF16" else ordered
    return np.ascontiguousarray(as_bits), entry


def reordered(layer: QuantizedLinear, rows: NumpyArray) -> QuantizedLinear:
    """Put the rows of a layer in another order; groups run along the columns and stay whole."""
    parts = {
        name: getattr(layer, name)[rows]
        for name in ("codes", "scales", "offsets", "super_scales", "super_minima")
        if getattr(layer, name) is not None
    }
    return replace(layer, **parts)


def dominating_type(plan: Sequence[PlannedTensor]) -> str:
    """Find the type of most weights in blocks; embedding and head may have one of their own."""
    weights: dict[str, int] = {}
    for tensor in plan:
        if tensor.name.startswith("blk."):
            count = int(np.prod(tensor.shape))
            weights[tensor.type_name] = weights.get(tensor.type_name, 0) + count
    return max(weights, key=lambda kind: weights[kind])
