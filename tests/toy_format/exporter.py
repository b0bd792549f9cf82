"""Writes toy files."""

import math

import numpy as np

from edgeq.errors import BadInput
from edgeq.files.storage import write_bytes
from edgeq_exporters.common.manifest import (
    quantized_entry,
    sha256_of,
    tensor_entry,
    write_manifest,
)
from edgeq_exporters.common.overhead import directory_overhead
from toy_format.format import FORMAT


class ToyExporter:
    format = FORMAT

    def __init__(self, *, deflate=False, numbers="plain", copies=1):
        self.deflate, self.numbers, self.copies = deflate, numbers, copies

    @property
    def settings(self):
        return {"deflate": self.deflate, "numbers": self.numbers, "copies": self.copies}

    def reject_reason(self, record, companions, grids):
        found = (self.why_not_grid(shape, grid) for shape, grid in grids.values() if grid)
        return next((reason for reason in found if reason), None)

    def notes(self, record, companions, grids):
        return []

    def why_not_grid(self, shape, grid):
        return "toys hold no outlier columns; leave them out" if grid.outlier_columns else None

    def planned_bytes(self, record, grids, item_bytes):
        return sum(
            4 * math.prod(shape)
            if grid is None
            else self.copies * math.prod(shape) + 8 * shape[0] * grid.group_count(shape[1])
            for shape, grid in grids.values()
        )

    def overhead_bytes(self, record, companions):
        return directory_overhead(record, companions)

    def write(self, model, destination):
        grids = {name: model.grid(name) for name in model.tensor_names()}
        shapes = {name: (model.quantized(name).codes.shape, g) for name, g in grids.items() if g}
        reason = self.reject_reason(model.record, model.companions(), shapes)
        if reason is not None:
            raise BadInput(f"export 'toy': {reason}")
        arrays, entries = {}, []
        for name, grid in grids.items():
            if grid is None:
                arrays[name] = np.asarray(model.dense(name), np.float32)
                entries.append(dense_entry(name, model.dense(name), arrays[name]))
                continue
            layer = model.quantized(name)
            offsets = -layer.offsets if self.numbers == "negated" else layer.offsets
            codes = np.repeat(layer.codes[np.newaxis], self.copies, axis=0)
            arrays |= {f"{name}|codes": codes, f"{name}|scales": layer.scales}
            arrays[f"{name}|offsets"] = offsets
            entry = quantized_entry(
                name=name,
                source=name,
                type_name="bytes",
                layer=layer,
                stored=layer,
                widened=grid.bits != 8,
            )
            entries.append(entry)
        path = destination / "model.toy"
        with path.open("wb") as file:
            (np.savez_compressed if self.deflate else np.savez)(file, **arrays)
        write_bytes(destination / "model.numbers.txt", self.numbers.encode())
        manifest = write_manifest(
            destination,
            format_name="toy",
            file=path.name,
            entries=entries,
            settings=self.settings,
        )
        return [path, destination / "model.numbers.txt", manifest]


def dense_entry(name, array, stored):
    return tensor_entry(
        name=name,
        source=name,
        type_name="F32",
        grid=None,
        status="dense",
        deviation=0.0,
        digest=sha256_of(array),
        stored=sha256_of(stored),
    )
