"""Write MLX directories for mlx-lm: the models that it knows, in MLX's affine quantization."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeq.architectures.mlx import why_not_mlx
from edgeq.architectures.mlx_config import computes_windows, mlx_stacks, rounds_scale, short_tokens
from edgeq.decoder import ModelRecord, Shape
from edgeq.errors import BadInput
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid, NumpyArray, ScaleDtype
from edgeq_exporters.common.companions import (
    exported_companions,
    window_notes,
)
from edgeq_exporters.common.decoder import (
    Shapes,
    check_shape,
    claimed_grids,
    planned_grids,
    why_not_tensors,
)
from edgeq_exporters.common.manifest import Entry, quantized_entry
from edgeq_exporters.common.overhead import directory_overhead
from edgeq_exporters.common.safetensors_directory import (
    DirectoryContent,
    dense_dtype,
    make_dense,
    write_directory,
)
from edgeq_exporters.mlx.architecture import exported_config
from edgeq_exporters.mlx.format import FORMAT
from edgeq_exporters.mlx.stacks import stack_tensors, stacked, why_not_stacks
from edgeq_exporters.mlx.tensors import dense_kind, quantized_tensors, stored_bytes, why_not_grid


class MlxExporter:
    """Writes the directory that mlx-lm loads; offsets of integer zero points are rounded."""

    format = FORMAT
    settings: Mapping[str, Any] = MappingProxyType({})

    def reject_reason(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> str | None:
        """Say why this model on these grids cannot be written and what to change, or None.

        Shapes: grids maps each tensor name to its shape and its grid (None: dense).
        """
        return (
            why_not_mlx(record)
            or why_not_tensors(record.decoder, grids, _why_not_tensor, runtime="mlx-lm")
            or why_not_stacks(mlx_stacks(record.decoder), grids)
        )

    def notes(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Shapes
    ) -> list[str]:
        """Say what the files will not hold of the model as it is."""
        decoder = record.decoder
        if decoder.names.mlx is None:
            return []
        notes = [] if computes_windows(decoder) else list(window_notes(record, "mlx-lm"))
        short = short_tokens(decoder)
        if short is not None:
            notes.append(
                f"rotary factors in the file are those of texts of up to {short} tokens: "
                "beyond it transformers takes others, which mlx-lm does not"
            )
        if rounds_scale(decoder):
            notes.append(
                f"mlx-lm rounds the scale of embeddings, {decoder.embedding_scale:.6g}, "
                "to bfloat16, as the original does where it computes in that type"
            )
        return notes

    def why_not_grid(self, shape: Shape, grid: Grid) -> str | None:
        """Say what keeps a matrix on this grid out of the format and what to change, or None."""
        return why_not_grid(shape, grid)

    def planned_bytes(
        self, record: ModelRecord, grids: Shapes, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of all tensors in the shards; see `edgeq.format_parts.Exporter`."""
        dense = dense_dtype(record, grids)
        return sum(
            stored_bytes(shape, grid, dense_kind(name, dense))
            for name, (shape, grid) in grids.items()
        )

    def overhead_bytes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> int:
        """Count at most what the files hold beside weights; see `edgeq.format_parts.Exporter`."""
        return directory_overhead(record, companions)

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write the directory and list what was written, first the directory that mlx-lm is given.

        The tensors of one shard are in memory at a time. The same model gives the same bytes.

        Raises: BadInput, before anything is written, for a model with a `reject_reason`.
        """
        companions = model.companions()
        reason = self.reject_reason(model.record, companions, claimed_grids(model))
        if reason is not None:
            raise BadInput(f"export 'mlx': {reason}")
        grids = planned_grids(model)
        dense = dense_dtype(model.record, grids)
        stacks = mlx_stacks(model.record.decoder)
        stored = stacked(stacks, grids)
        content = DirectoryContent(
            format_name=self.format.name,
            label="mlx",
            sizes={
                name: stored_bytes(shape, grid, dense) for name, (shape, grid) in stored.items()
            },
            make=partial(_tensor, model, grids, dense, stacks),
            config=exported_config(model.record, stored),
            companions=exported_companions(model.record, companions),
        )
        return write_directory(content, destination)


def _why_not_tensor(_: str, shape: Shape, grid: Grid) -> str | None:
    return why_not_grid(shape, grid)


def _tensor(
    model: QuantizedModel,
    grids: Shapes,
    dense: ScaleDtype,
    stacks: Mapping[str, tuple[str, ...]],
    name: str,
) -> tuple[Mapping[str, NumpyArray], list[Entry]]:
    """Make what is stored of one tensor of the file, and the entries in the manifest.

    A stack has an entry for each expert.
    """
    if name not in stacks:
        stored, entry = _part(model, grids, dense, name, name)
        return stored, [entry]
    made = [
        _part(model, grids, dense, source, f"{name}[{number}]")
        for number, source in enumerate(stacks[name])
    ]
    if len({str(array.dtype) for stored, _ in made for array in stored.values()}) > 1 and all(
        grids[source][1] is None for source in stacks[name]
    ):  # one expert has numbers that others' type does not hold
        return _tensor(model, grids, "float32", stacks, name)
    return stack_tensors(name, [stored for stored, _ in made]), [entry for _, entry in made]


def _part(
    model: QuantizedModel, grids: Shapes, dense: ScaleDtype, source: str, name: str
) -> tuple[Mapping[str, NumpyArray], Entry]:
    """Make what is stored of one tensor of the model, and its entry under a name of the file."""
    shape, grid = grids[source]
    if grid is None:
        array = model.dense(source)
        check_shape("mlx", source, array.shape, shape)
        stored, entry = make_dense(source, array, dense_kind(source, dense))
        return stored, entry | {"name": name}
    layer = model.quantized(source)
    check_shape("mlx", source, layer.codes.shape, shape)
    tensors, held = quantized_tensors(source, layer)
    return tensors, quantized_entry(
        name=name, source=source, type_name="affine", layer=layer, stored=held
    )
