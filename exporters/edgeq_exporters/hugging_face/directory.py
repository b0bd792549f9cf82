"""Write directories for transformers and vLLM: linear layers packed, all other tensors dense.

How a layer is packed is left to the two formats, each a `LinearFormat`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeq.decoder import Decoder, ModelRecord, Shape
from edgeq.dtypes import NUMPY
from edgeq.errors import BadInput
from edgeq.format_parts import Format
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid, NumpyArray, QuantizedLinear, ScaleDtype
from edgeq.words import describe_grid
from edgeq_exporters.common.companions import exported_companions
from edgeq_exporters.common.decoder import (
    Shapes,
    check_shape,
    claimed_grids,
    planned_grids,
    why_not_tensors,
)
from edgeq_exporters.common.deviation import as_stored
from edgeq_exporters.common.manifest import Entry, hash_of_layer, quantized_entry
from edgeq_exporters.common.overhead import directory_overhead
from edgeq_exporters.common.safetensors_directory import (
    DirectoryContent,
    dense_dtype,
    make_dense,
    write_directory,
)

# What vLLM computes as one matrix: the first of its layers -> the matrix.
FUSED = {
    "self_attn.q_proj": "self_attn.qkv_proj",
    "mlp.gate_proj": "mlp.gate_up_proj",
}
IN_BLOCK = re.compile(r"(.*?)\.(\d+)\.(.*)")
"""The list of blocks, the number of one, and the module in it."""
NOT_COPIED = ("quantization", "quantization_config", "dtype", "torch_dtype")

Packed = tuple[Mapping[str, NumpyArray], QuantizedLinear]


@dataclass(frozen=True, slots=True)
class LinearFormat:
    """Says what two formats of this kind do differently.

    `pack` gives the tensors of a module's weight, and the layer as they hold it. `layer_bytes`
    counts their bytes. `settings` makes the quantization_config of a model from its description and
    the grids of its matrices inside of blocks. `transposed` says whether it holds layers whose
    weights have inputs before outputs, as GPT-2's.
    """

    name: str
    type_name: str
    why_not_grid: Callable[[Shape, Grid], str | None]
    layer_bytes: Callable[[Shape, Grid], int]
    pack: Callable[[str, QuantizedLinear], Packed]
    settings: Callable[[Decoder, Shapes], Mapping[str, Any]]
    transposed: bool = False


class LinearExporter:
    """Writes linear layers as a `LinearFormat` packs them; embedding and head are dense.

    A format of this kind is a subclass that names its description and its `LinearFormat`.
    """

    format: Format
    kind: LinearFormat
    settings: Mapping[str, Any] = MappingProxyType({})

    def reject_reason(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> str | None:
        """Say why this model on these grids cannot be written and what to change, or None."""
        return reject_reason(self.kind, record, grids)

    def notes(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> list[str]:
        """Say what the files will not hold of the model as it is."""
        return []

    def why_not_grid(self, shape: Shape, grid: Grid) -> str | None:
        """Say what keeps a matrix on this grid out of the format and what to change, or None."""
        return self.kind.why_not_grid(shape, grid)

    def planned_bytes(
        self, record: ModelRecord, grids: Shapes, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of all tensors in the shards; see `edgeq.format_parts.Exporter`."""
        return planned_bytes(self.kind, record, grids)

    def overhead_bytes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> int:
        """Count at most what the files hold beside weights; see `edgeq.format_parts.Exporter`."""
        return directory_overhead(record, companions)

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write the directory, which is the first of the paths that are returned.

        Raises: BadInput, before anything is written, for a model with a `reject_reason`.
        """
        return write(self.kind, model, destination)


def reject_reason(kind: LinearFormat, record: ModelRecord, grids: Shapes) -> str | None:
    """Say what keeps a model out of the format and what to change, or None."""
    linear = linear_tensors(record.decoder)

    def why_not(name: str, shape: Shape, grid: Grid) -> str | None:
        return kind.why_not_grid(shape, grid) if name in linear else None

    decoder = record.decoder
    reason = why_not_tensors(decoder, grids, why_not, runtime="transformers")
    return reason or why_not_layers(kind, decoder) or why_not_fused(decoder, grids)


def why_not_layers(kind: LinearFormat, decoder: Decoder) -> str | None:
    """Say which kind of linear layer of a model has no place in the format, or None."""
    for linear in decoder.linears():
        if len(linear.stored_shape) > 2:
            return (
                f"tensor '{linear.tensor}' is a stack of experts; {kind.name} has a place for "
                "experts of their own only, use another format"
            )
        if linear.transposed and not kind.transposed:
            return (
                f"tensor '{linear.tensor}' has inputs before outputs (Conv1D); "
                f"runtimes read {kind.name} into Linear layers only, choose format gptq"
            )
    return None


def linear_tensors(decoder: Decoder) -> set[str]:
    """List the weights of linear layers inside of blocks; no other tensor is packed."""
    return {linear.tensor for linear in decoder.linears()}


def why_not_fused(decoder: Decoder, grids: Shapes) -> str | None:
    """Say which layers vLLM computes as one matrix but lie on different grids; None if none do."""
    for index, layer in enumerate(decoder.layers):
        block = decoder.block_name(index)
        for site in (site for site in layer.sites if site[0].name in FUSED):
            found = [grids.get(each.inside(block).tensor, ((), None))[1] for each in site]
            if len(set(found)) > 1:
                described = ["dense" if grid is None else describe_grid(grid) for grid in found]
                kinds = ", ".join(described)
                names = ", ".join(linear.name.rsplit(".", 1)[-1] for linear in site)
                return (
                    f"layer '{block}': vLLM fuses {names}, which have {kinds}; give them one grid"
                )
    return None


def planned_bytes(kind: LinearFormat, record: ModelRecord, grids: Shapes) -> int:
    """Count the bytes of all tensors in the shards; dense ones are in the type of the scales."""
    packed = linear_tensors(record.decoder)
    linear = {name: grids[name] for name in grids if name in packed}
    item_bytes = NUMPY[dense_dtype(record, linear)].itemsize
    total = 0
    for name, (shape, grid) in grids.items():
        if grid is None or name not in packed:
            total += prod(shape) * item_bytes
        else:
            total += kind.layer_bytes(shape, grid)
    return total


def write(kind: LinearFormat, model: QuantizedModel, destination: Path) -> list[Path]:
    """Write the directory and list what was written, first the directory that runtimes are given.

    The tensors of one shard are in memory at a time. The same model gives the same bytes.

    Raises: BadInput, before anything is written, for a model with a `reject_reason`.
    """
    reason = reject_reason(kind, model.record, claimed_grids(model))
    if reason is not None:
        raise BadInput(f"export '{kind.name}': {reason}")
    grids = planned_grids(model)
    packed = linear_tensors(model.record.decoder)
    linear = {name: grids[name] for name in grids if name in packed}
    dense = dense_dtype(model.record, linear)
    content = DirectoryContent(
        format_name=kind.name,
        label="pt",
        sizes={
            name: _bytes_of(shape, grid if name in linear else None, dense)
            for name, (shape, grid) in grids.items()
        },
        make=partial(_tensor, kind, model, grids, packed, dense),
        config=_config(kind, model.record, linear, dense),
        companions=exported_companions(model.record, model.companions()),
    )
    return write_directory(content, destination)


def _config(
    kind: LinearFormat, record: ModelRecord, linear: Shapes, dense: ScaleDtype
) -> dict[str, Any]:
    settled = record.settled_config()
    written = {key: value for key, value in settled.items() if key not in NOT_COPIED}
    written["architectures"] = [record.decoder.names.transformers]
    written["torch_dtype"] = dense
    if any(grid is not None for _, grid in linear.values()):
        written["quantization_config"] = kind.settings(record.decoder, linear)
    return written


def _bytes_of(shape: Shape, grid: Grid | None, dense: ScaleDtype) -> int:
    """Estimate the size of a tensor in the file, to plan shards with."""
    if grid is None:
        return prod(shape) * NUMPY[dense].itemsize
    codes = prod(shape) * grid.bits // 8
    groups = shape[0] * grid.group_count(shape[1])
    # A group has a scale of 2 or 4 bytes and a zero point of at most one; GPTQ also stores the
    # group of each input in 4 bytes.
    return codes + 6 * groups + 4 * shape[1]


def _tensor(
    kind: LinearFormat,
    model: QuantizedModel,
    grids: Shapes,
    packed: set[str],
    dense: ScaleDtype,
    name: str,
) -> tuple[Mapping[str, NumpyArray], Entry]:
    """Make what is stored of one tensor, and its entry in the manifest."""
    shape, grid = grids[name]
    if grid is None:
        array = model.dense(name)
        check_shape(kind.name, name, array.shape, shape)
        return make_dense(name, array, dense)
    layer = model.quantized(name)
    check_shape(kind.name, name, layer.codes.shape, shape)
    if name not in packed:
        return make_dense(
            name, layer.dequantized(), dense, digest=hash_of_layer(layer), solved_on=grid
        )
    computed = as_computed(name, layer, dense)
    tensors, stored = kind.pack(name.removesuffix(".weight"), computed)
    entry = quantized_entry(
        name=name, source=name, type_name=kind.type_name, layer=layer, stored=stored
    )
    return tensors, entry


def as_computed(name: str, layer: QuantizedLinear, dense: ScaleDtype) -> QuantizedLinear:
    """Round scales to the type of the dense tensors, as runtimes do when they load a directory.

    Raises: BadInput for a scale that this type cannot hold.
    """
    with np.errstate(over="ignore"):
        scales = layer.scales.astype(NUMPY[dense]).astype(np.float32)
    if not np.isfinite(scales).all():
        raise BadInput(
            f"tensor {name!r}: a scale of {np.abs(layer.scales).max():.6g} exceeds {dense}, "
            "in which the model is computed; use scale_dtype float32"
        )
    if np.array_equal(scales, layer.scales):
        return layer
    zeros = layer.zeros if layer.grid.zeros == "integer" else np.float32(layer.grid.middle)
    return as_stored(layer, scales, -scales * zeros)


def commonest_grid(linear: Shapes) -> Grid:
    """Find the grid of most weights, which becomes the default of a config."""
    weights: Counter[Grid] = Counter()
    for (rows, *columns), grid in linear.values():
        if grid is not None:
            weights[grid] += rows * columns[0]
    return weights.most_common(1)[0][0]


def layers_by_grid(linear: Shapes) -> Mapping[Grid | None, Sequence[str]]:
    """List the module paths of linear layers by grid; dense ones are under None."""
    modules: defaultdict[Grid | None, list[str]] = defaultdict(list)
    for name, (_, grid) in linear.items():
        modules[grid].append(name.removesuffix(".weight"))
    return modules


def with_dense_matrices(decoder: Decoder, linear: Shapes) -> Shapes:
    """Add the matrices of blocks that are no solved layer: some of their modules may be Linear."""
    others: dict[str, tuple[Shape, Grid | None]] = {}
    for index, layer in enumerate(decoder.layers):
        for name, shape in layer.others.items():
            if len(shape) == 2 and name.endswith(".weight"):
                others[f"{decoder.block_name(index)}.{name}"] = (shape, None)
    return {**linear, **others}


def patterns_of(modules: Iterable[str]) -> list[str]:
    """Make regular expressions that match these modules, and what vLLM fuses them into.

    Readers match from the start of a name. onnxruntime-genai matches whole tensor names, other
    readers module paths: so a pattern ends at a dot or at the end.
    """
    blocks: defaultdict[str, set[int]] = defaultdict(set)
    list_name = "model.layers"
    for module in modules:
        match = IN_BLOCK.fullmatch(module)
        assert match is not None, "layers lie in blocks"
        list_name = match[1]
        blocks[match[3]].add(int(match[2]))
    kinds: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for kind, numbers in blocks.items():
        kinds[tuple(sorted(numbers))].append(kind)
    start = re.escape(list_name)
    if list_name != "model.layers":  # other runtimes may have another name before the last part
        start = rf"(?:.*\.)?{re.escape(list_name.rpartition('.')[2])}"
    found = []
    for indices, of_blocks in kinds.items():
        fused = [name for first, name in FUSED.items() if first in of_blocks]
        names = "|".join(re.escape(kind) for kind in [*of_blocks, *fused])
        found.append(rf"{start}\.(?:{'|'.join(map(str, indices))})\.(?:{names})(?:\.|$)")
    return found
