"""What each export format holds, as its description says, and whether a checkpoint fits it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.checkpoint.certificate import is_sealed
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import NotInstalled
from edgeq.files.json_files import read_json
from edgeq.files.ownership import MANIFEST_FILE
from edgeq.format_parts import Exporter, Format
from edgeq.grids.types import PLAIN
from edgeq.registry import all_formats, load_exporter
from edgeq.types import Grid, ZeroKind

BITS = range(2, 9)  # of a solution
GROUPS = (32, 64, 128, None)  # the usual ones, which stand for all that a format holds
ZEROS: tuple[ZeroKind, ...] = ("symmetric", "integer", "offset")


def formats(checkpoint: Checkpoint | None = None) -> list[dict[str, Any]]:
    """List every format; with a checkpoint, say whether it fits and what keeps it out or is lost.

    "missing" says what has to be installed before the format can be written.
    """
    return [_row(described, checkpoint) for described in all_formats()]


def _row(described: Format, checkpoint: Checkpoint | None) -> dict[str, Any]:
    row = {"name": described.name} | held_by(described) | {"read_by": described.read_by}
    try:
        exporter = load_exporter(described.name)
    except NotInstalled as error:
        return row | {"missing": str(error)}
    return row if checkpoint is None else row | fit(exporter, checkpoint)


def held_by(described: Format) -> dict[str, Any]:
    """List what a format holds of the bits, groups and zero points that a solution may have."""
    kinds = (*described.zero_kinds, *described.rounded_zero_kinds)
    zeros = [kind for kind in ZEROS if kind in kinds]
    groups = [size for size in GROUPS if described.groups.holds(size)]
    return {
        "bits": [bits for bits in BITS if described.holds_bits(bits)],
        "groups": ["row" if size is None else str(size) for size in groups],
        "zeros": zeros,
        "zeros_without_loss": [kind for kind in zeros if kind in described.zero_kinds],
        "scales_without_loss": list(described.scale_dtypes),
        "types": list(described.types),
        "embedding": described.embedding,
        "outlier_columns": described.outlier_columns,
        "options": [option.name for option in described.options],
    }


def types_of(row: Mapping[str, Any]) -> list[str]:
    """List the types that a format holds by name, with those that are plain bits and groups."""
    plain = [
        name
        for name, grid in PLAIN.items()
        if grid.bits in row["bits"]
        and grid.zeros in row["zeros_without_loss"]
        and str(grid.group_size) in row["groups"]
    ]
    return [*plain, *row["types"]]


def fit(exporter: Exporter, checkpoint: Checkpoint) -> dict[str, Any]:
    """Say whether a checkpoint fits a format: "without loss", "with loss" or "no", and why."""
    grids = checkpoint.grids()
    reason = exporter.reject_reason(checkpoint.record, checkpoint.companions(), grids)
    if reason is not None:
        return {"fits": "no", "reason": reason, "notes": []}
    quantized = {name: grid for name, (_, grid) in grids.items() if grid is not None}
    inside = {linear.tensor for linear in checkpoint.record.decoder.linears()}
    linear = {name: grid for name, grid in quantized.items() if name in inside}
    lost = _losses(exporter.format, linear, moved_by(checkpoint, exporter.format.name))
    outer = [name for name in quantized if name not in linear]
    dense = []
    if exporter.format.embedding == "dense" and outer:
        dense.append(f"dense, as their codes say: {', '.join(outer)}")
    fits = "with loss" if lost else "without loss"
    notes = list(exporter.notes(checkpoint.record, checkpoint.companions(), grids))
    return {"fits": fits, "reason": "; ".join([*lost, *dense]), "notes": notes}


def rounding_notes(
    exporter: Exporter, checkpoint: Checkpoint, folder: Path | None = None
) -> list[str]:
    """Say which layers an export rounds again, how, and how far that moves weights.

    folder is where the export lies; without it that in the checkpoint counts, if there is one.
    """
    inside = {linear.tensor for linear in checkpoint.record.decoder.linears()}
    grids = checkpoint.grids().items()
    linear = {name: grid for name, (_, grid) in grids if grid is not None and name in inside}
    place = checkpoint.path / exporter.format.name if folder is None else folder
    return _losses(exporter.format, linear, largest_move(place))


def moved_by(checkpoint: Checkpoint, format_name: str) -> float | None:
    """Find how far an export in a checkpoint moves weights, at most; None where there is none."""
    folder = checkpoint.path / format_name
    return largest_move(folder) if is_sealed(folder, checkpoint) else None


def largest_move(folder: Path) -> float | None:
    """Read from a manifest how far weights that were rounded again moved; None without one."""
    path = folder / MANIFEST_FILE
    tensors = read_json(path).get("tensors") if path.is_file() else None
    if not isinstance(tensors, list):
        return None
    moves = [
        each["largest_deviation"]
        for each in tensors
        if isinstance(each, dict) and each.get("status") == "rescaled"
    ]
    return max((move for move in moves if isinstance(move, int | float)), default=0.0)


def _losses(described: Format, linear: dict[str, Grid], moved: float | None) -> list[str]:
    """Say which layers a format rounds again, how, and how far weights move if that is known."""
    zeros = {
        "integer": "whole zero points get offsets that are rounded again",
        "offset": "free offsets that are rounded again",
    }
    rounded = {
        text: [name for name, grid in linear.items() if grid.zeros == kind]
        for kind, text in zeros.items()
        if kind not in described.zero_kinds
    }
    far = "" if moved is None else f"; weights move by at most {moved:.1g}"
    return [
        f"{len(names)} layers with {text}, such as {names[0]}{far}"
        for text, names in rounded.items()
        if names
    ]


def markdown_table() -> str:
    """Make the table of docs/reference/formats.md."""
    header = (
        "format",
        "bits",
        "groups",
        "zero points",
        "scale types",
        "types by llama.cpp's names",
        "outlier columns",
        "embedding, head",
        "who reads it",
        "verified in the tests by",
    )
    rows = [header, ("---",) * len(header), *map(_markdown_row, all_formats())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _markdown_row(described: Format) -> Sequence[str]:
    held = held_by(described)
    zeros = [
        kind if kind in held["zeros_without_loss"] else f"{kind} (rounded)"
        for kind in held["zeros"]
    ]
    return (
        f"`{described.name}`",
        ", ".join(map(str, held["bits"])),
        ", ".join(held["groups"]),
        ", ".join(zeros),
        ", ".join(held["scales_without_loss"]),
        ", ".join(held["types"]),
        "yes" if held["outlier_columns"] else "no",
        held["embedding"],
        described.read_by,
        described.verified_by,
    )
