"""What each export format holds, asked of the exporters themselves, and whether a checkpoint fits
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import NotInstalled
from edgeq.protocols import Exporter
from edgeq.registry import EXPORTERS, load_exporter
from edgeq.types import Grid, ZeroKind

BITS = range(2, 9)
GROUPS = (32, 64, 128, None)
ZEROS: tuple[ZeroKind, ...] = ("symmetric", "integer", "offset")
PROBE = (256, 1024)  # the shape of a layer that no rule about sizes keeps out

READ_BY = {
    "gguf": "llama.cpp and what is built on it",
    "onnx": "ONNX Runtime, onnxruntime-genai",
    "mlx": "mlx-lm",
    "gptq": "transformers with GPTQModel, vLLM, onnxruntime-genai's model builder",
    "compressed-tensors": "vLLM, transformers",
}
VERIFIED = {
    "gguf": "bytes by the `gguf` library; logits in llama.cpp",
    "onnx": "bytes by the `onnx` library and bit by bit; "
    "logits in ONNX Runtime, tokens in onnxruntime-genai",
    "mlx": "words by MLX and bit by bit; logits in mlx-lm",
    "gptq": "words by onnxruntime-genai's loader and bit by "
    "bit; logits in GPTQModel where it is installed",
    "compressed-tensors": "words by the `compressed-tensors` library "
    "and bit by bit; logits in transformers",
}


@dataclass(frozen=True, slots=True)
class Held:
    """What a format holds; zeros_without_loss are the kinds that it does not round again.

    outlier_columns: whether some columns of a layer may have values in full precision beside their
    codes.
    """

    name: str
    bits: Sequence[int]
    groups: Sequence[str]
    zeros: Sequence[str]
    zeros_without_loss: Sequence[str]
    embedding: str
    outlier_columns: bool


def formats(checkpoint: Checkpoint | None = None) -> list[dict[str, Any]]:
    """One row per format; with a checkpoint also whether it fits, and what keeps it out or is
    lost.
    """
    return [_row(name, checkpoint) for name in EXPORTERS]


def _row(name: str, checkpoint: Checkpoint | None) -> dict[str, Any]:
    try:
        exporter = load_exporter(name)
    except NotInstalled as error:
        return {"name": name, "missing": str(error)}
    row = asdict(held_by(exporter)) | {"read_by": READ_BY.get(name, "")}
    return row if checkpoint is None else row | fit(exporter, checkpoint)


def held_by(exporter: Exporter) -> Held:
    """Every grid is tried on a layer of a size that suits all formats."""
    fits = {
        (bits, group, zeros)
        for bits in BITS
        for group in GROUPS
        for zeros in ZEROS
        if exporter.why_not_grid(PROBE, Grid(bits, group, zeros)) is None
    }
    zeros = [kind for kind in ZEROS if any(kind == of_grid for *_, of_grid in fits)]
    return Held(
        exporter.name,
        [bits for bits in BITS if any(bits == of_grid for of_grid, *_ in fits)],
        [
            "row" if group is None else str(group)
            for group in GROUPS
            if any(group == of for _, of, _ in fits)
        ],
        zeros,
        [kind for kind in zeros if kind in exporter.zero_kinds],
        "dense" if exporter.linear_only else "quantized",
        exporter.why_not_grid(PROBE, Grid(4, 32, outlier_columns=0.01)) is None,
    )


def fit(exporter: Exporter, checkpoint: Checkpoint) -> dict[str, Any]:
    """Whether a checkpoint fits a format: "without loss", "with loss" or "no", and why."""
    grids = {
        name: (checkpoint.shape(name), checkpoint.grid(name)) for name in checkpoint.tensor_names()
    }
    reason = exporter.reject_reason(checkpoint.record, checkpoint.companions(), grids)
    if reason is not None:
        return {"fits": "no", "reason": reason}
    linear = {
        name: grid for name, (_, grid) in grids.items() if grid is not None and ".layers." in name
    }
    rounded = [name for name, grid in linear.items() if grid.zeros not in exporter.zero_kinds]
    outer = [name for name, (_, grid) in grids.items() if grid is not None and name not in linear]
    notes = []
    for kind, become in (
        ("integer", "whole zero points get rounded offsets"),
        ("offset", "free offsets are rounded"),
    ):
        names = [name for name in rounded if linear[name].zeros == kind]
        if names:
            notes.append(f"{len(names)} layers with {become}, such as {names[0]}")
    if exporter.linear_only and outer:
        notes.append(f"dense, as their codes say: {', '.join(outer)}")
    return {"fits": "with loss" if rounded else "without loss", "reason": "; ".join(notes)}


def markdown_table() -> str:
    """The table of docs/formats.md. Raises: NotInstalled when an exporter cannot be loaded."""
    header = (
        "format",
        "bits",
        "groups",
        "zero points",
        "outlier columns",
        "embedding, head",
        "who reads it",
        "verified in the tests by",
    )
    rows = [
        header,
        ("---",) * len(header),
        *(_markdown_row(load_exporter(name)) for name in EXPORTERS),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _markdown_row(exporter: Exporter) -> tuple[str, ...]:
    held = held_by(exporter)
    zeros = [
        kind if kind in held.zeros_without_loss else f"{kind} (rounded)" for kind in held.zeros
    ]
    columns: Sequence[Sequence[str]] = ([str(bits) for bits in held.bits], held.groups, zeros)
    texts = (
        "yes" if held.outlier_columns else "no",
        held.embedding,
        _known(READ_BY, exporter.name),
        _known(VERIFIED, exporter.name),
    )
    return (f"`{exporter.name}`", *(", ".join(column) for column in columns), *texts)


def _known(table: Mapping[str, str], name: str) -> str:
    assert name in table, f"edgeq.measuring.formats says nothing of {name}"
    return table[name]
