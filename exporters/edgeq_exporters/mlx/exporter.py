"""Write MLX directories for mlx-lm: Llama-like models in MLX's affine quantization."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeq.architectures.mlx import why_not_mlx
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
from edgeq_exporters.common.safetensors_directory import (
    DirectoryContent,
    dense_dtype,
    make_dense,
    write_directory,
)
from edgeq_exporters.mlx.architecture import exported_config
from edgeq_exporters.mlx.format import FORMAT
from edgeq_exporters.mlx.tensors import quantized_tensors, stored_bytes, why_not_grid


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
        reason = why_not_mlx(record)
        if reason is not None:
            return reason
        return why_not_tensors(record.decoder, grids, _why_not_tensor, runtime="mlx-lm")

    def notes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> list[str]:
        """Say what the files will not hold of the model as it is."""
        return list(window_notes(record, "mlx-lm"))

    def why_not_grid(self, shape: Shape, grid: Grid) -> str | None:
        """Say what keeps a matrix on this grid out of the format and what to change, or None."""
        return why_not_grid(shape, grid)

    def planned_bytes(
        self, record: ModelRecord, grids: Shapes, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of all tensors in the shards; see `edgeq.protocols.Exporter`."""
        dense = dense_dtype(record, grids)
        return sum(stored_bytes(shape, grid, dense) for shape, grid in grids.values())

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
        content = DirectoryContent(
            format_name=self.format.name,
            label="mlx",
            sizes={name: stored_bytes(shape, grid, dense) for name, (shape, grid) in grids.items()},
            make=partial(_tensor, model, grids, dense),
            config=exported_config(model.record, grids),
            companions=exported_companions(model.record, companions),
        )
        return write_directory(content, destination)


def _why_not_tensor(_: str, shape: Shape, grid: Grid) -> str | None:
    return why_not_grid(shape, grid)


def _tensor(
    model: QuantizedModel, grids: Shapes, dense: ScaleDtype, name: str
) -> tuple[Mapping[str, NumpyArray], Entry]:
    """Make what is stored of one tensor, and its entry in the manifest."""
    shape, grid = grids[name]
    if grid is None:
        array = model.dense(name)
        check_shape("mlx", name, array.shape, shape)
        return make_dense(name, array, dense)
    layer = model.quantized(name)
    check_shape("mlx", name, layer.codes.shape, shape)
    tensors, stored = quantized_tensors(name, layer)
    return tensors, quantized_entry(
        name=name, source=name, type_name="affine", layer=layer, stored=stored
    )
