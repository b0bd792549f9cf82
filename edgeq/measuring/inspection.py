"""`edgeq inspect`: what lies in a model, a checkpoint or a GGUF file, without running it."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.ownership import MANIFEST_FILE
from edgeq.measuring.targets import find_export, open_model
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import bits_per_weight
from edgeq.registry import find_format
from edgeq.words import edgeq_command


def open_named(name: str) -> ModelSource:
    """Open whatever has tensors to look at: a model, a checkpoint, an export that is a model.

    Raises: BadInput, UnsupportedModel, NotInstalled.
    """
    exported = find_export(name)
    if exported is not None and not find_format(exported.kind).is_model:
        is_own = (Path(name).expanduser() / MANIFEST_FILE).is_file()
        read_by = f", which {edgeq_command('verify', name)} reads back" if is_own else ""
        raise BadInput(
            f"{name!r} is an export of format {exported.kind!r}{read_by}; "
            "to see tensors give the checkpoint it was made from"
        )
    return open_model(name if exported is None else str(exported.path))


def inspect_model(name: str) -> dict[str, Any]:
    """List tensors, sizes and bits per weight of whatever a user can name."""
    source = open_named(name)
    result = {
        "model": source.record.name,
        "kind": "quantized checkpoint" if isinstance(source, Checkpoint) else "model",
        "architecture": source.record.decoder.model_type,
        "blocks": len(source.blocks()),
        "parameters": parameter_count(source),
        "bytes": source.stored_bytes(),
        "bits_per_weight": bits_per_weight(stored_tensors(source), source.record.decoder)["model"],
        "tensors": tensor_rows(source),
    }
    if isinstance(source, Checkpoint):
        result["recipe"] = source.head["recipe"]
    return result


def parameter_count(source: ModelSource) -> int:
    return sum(math.prod(source.shape(name)) for name in source.tensor_names())


def stored_tensors(source: ModelSource) -> dict[str, tuple[tuple[int, ...], int]]:
    """Find the shape and the bytes of every tensor; tokenizers and headers do not count."""
    return {name: (source.shape(name), source.tensor_bytes(name)) for name in source.tensor_names()}


def tensor_rows(source: ModelSource) -> list[dict[str, Any]]:
    """Count tensors of equal name, shape and storage across blocks together."""
    rows: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    for name in source.tensor_names():
        without_index = ".".join("*" if part.isdigit() else part for part in name.split("."))
        rows[without_index, source.shape(name), source.stored_as(name)] += 1
    return [
        {"name": name, "count": count, "shape": list(shape), "stored_as": stored}
        for (name, shape, stored), count in rows.items()
    ]
