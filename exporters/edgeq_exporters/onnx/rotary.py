"""Make the tables of cosines and sines by which the graph rotates queries and keys.

They are rounded as transformers rounds them; which block takes which table is left to `attention`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeq.architectures.rope import KINDS, distinct_ropes, frequencies, is_single, why_not_rope
from edgeq.decoder import Attention, Decoder, Rope
from edgeq.words import show_size

YARN, LONGROPE = "yarn", "longrope"
NEEDED = {
    YARN: ("factor", "original_max_position_embeddings"),
    LONGROPE: ("short_factor", "long_factor", "original_max_position_embeddings"),
}
OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
FAST, SLOW = 32.0, 1.0  # turns between which yarn interpolates where a config is silent
FLOAT32_BYTES = 4
LARGEST_TABLES = 2**29  # bytes, of a million positions; computing them takes four times as much
COLUMNS_MULTIPLE = 16  # GroupQueryAttention rotates no other number of columns
COSINES, SINES = "cos_cache", "sin_cache"

Table = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Describes the tables of one rotary embedding by the names of their initializers.

    longer: rows from `shorter` on are those of texts longer than so many tokens, which rotate
    otherwise.
    """

    rope: Rope
    columns: int
    cosines: str
    sines: str
    shorter: int | None = None


def rotated_columns(attention: Attention) -> int:
    """Count the columns of a head that are rotated, as transformers rounds a part of it."""
    return 0 if attention.rope is None else int(attention.head_size * attention.rope.part)


def is_rotated_by_attention(attention: Attention) -> bool:
    """Say whether GroupQueryAttention rotates these heads itself, beside attending."""
    columns = rotated_columns(attention)
    return columns % COLUMNS_MULTIPLE == 0 and attention.head_size % COLUMNS_MULTIPLE == 0


def tables_of(decoder: Decoder) -> list[RotaryTables]:
    """Describe the tables of a model, one pair for each distinct rotary embedding of its blocks."""
    ropes: list[Rope] = []
    for rope in distinct_ropes(decoder):
        if rope not in ropes:
            ropes.append(rope)
    found = []
    for number, rope in enumerate(ropes):
        attention = next(
            layer.attention
            for layer in decoder.layers
            if layer.attention is not None and layer.attention.rope == rope
        )
        suffix = f".{number}" if number else ""
        columns, shorter = rotated_columns(attention), _shorter(rope, decoder)
        found.append(RotaryTables(rope, columns, f"{COSINES}{suffix}", f"{SINES}{suffix}", shorter))
    return found


def _shorter(rope: Rope, decoder: Decoder) -> int | None:
    """Give the longest text that rotates by short factors, if longer ones are within context."""
    if rope.kind != LONGROPE:
        return None
    length = int(rope.settings["original_max_position_embeddings"])
    return length if length < (decoder.context or 0) else None


def why_not_rotary(decoder: Decoder) -> str | None:
    """Say what of a model's rotary embedding has no tables and what to change, or None."""
    reason = why_not_rope(decoder, "the graph", (*KINDS, YARN, LONGROPE), partial=True)
    if reason is not None:
        return reason
    for rope in distinct_ropes(decoder):
        missing = [key for key in NEEDED.get(rope.kind, ()) if rope.settings.get(key) is None]
        if missing:
            return (
                f"rope type '{rope.kind}' lacks {', '.join(missing)}; "
                "add it to the rope settings in config.json"
            )
    for tables in tables_of(decoder):
        reason = _why_not_columns(tables) or _why_not_numbers(tables.rope)
        if reason is not None:
            return reason
    size = rotary_bytes(decoder)
    if size <= LARGEST_TABLES:
        return None
    return (
        f"the graph holds rotary tables of all {decoder.context} positions, "
        f"{show_size(size)} of them; up to {show_size(LARGEST_TABLES)} are written, "
        "lower max_position_embeddings in the model's config.json"
    )


def _why_not_columns(tables: RotaryTables) -> str | None:
    columns = tables.columns
    if columns % 2 or not columns:
        return (
            f"{columns} columns of a head are rotated, by partial_rotary_factor "
            f"{tables.rope.part}; the graph rotates pairs, use another format"
        )
    if tables.rope.kind != LONGROPE:
        return None
    for key in ("short_factor", "long_factor"):
        factors = tables.rope.settings[key]
        if not isinstance(factors, list | tuple) or len(factors) != columns // 2:
            return (
                f"rope setting {key} must be a list of {columns // 2} numbers, "
                "one for each rotated pair; correct config.json"
            )
    return None


def _why_not_numbers(rope: Rope) -> str | None:
    """Refuse settings of yarn and longrope that no table follows from."""
    if rope.kind not in NEEDED:
        return None
    for key in OPTIONAL:
        value = rope.settings.get(key)
        if value is not None and not is_single(value):
            return f"rope setting {key} is {value!r:.60}; it must be a positive number"
    for key in ("short_factor", "long_factor"):
        wrong = [each for each in rope.settings.get(key) or () if not is_single(each)]
        if wrong:
            return f"rope setting {key} has {wrong[0]!r:.60}; it must have positive numbers"
    if rope.theta == 1 or rope.settings["original_max_position_embeddings"] <= 1:
        return (
            f"rope type '{rope.kind}' needs a rope_theta other than 1 and an "
            "original_max_position_embeddings above 1; correct config.json"
        )
    return None


def rotary_bytes(decoder: Decoder) -> int:
    """Count the bytes of the cosines and sines of every position, in float32."""
    return sum(
        FLOAT32_BYTES * tables.columns * ((decoder.context or 0) + (tables.shorter or 0))
        for tables in tables_of(decoder)
    )


def rotary_tables(decoder: Decoder, tables: RotaryTables) -> tuple[Table, Table]:
    """Compute cosines and sines of every position up to the model's longest context.

    Angles are rounded to float32 as transformers rounds them; the tables of far positions would
    differ otherwise. Where longer texts rotate otherwise, their positions follow.

    Shapes: (positions, rotated columns / 2) each.
    """
    assert decoder.context is not None
    factor = attention_factor(tables.rope, decoder.context)
    parts = list(_angles(decoder.context, tables))
    wide = np.concatenate(parts).astype(np.float64)  # the same table on every machine
    return (
        (factor * np.cos(wide)).astype(np.float32),
        (factor * np.sin(wide)).astype(np.float32),
    )


def _angles(context: int, tables: RotaryTables) -> Iterator[Table]:
    rope = tables.rope
    if rope.kind != LONGROPE:
        yield _turned(context, rotary_frequencies(rope, tables.columns))
        return
    shorter = context if tables.shorter is None else tables.shorter
    yield _turned(shorter, _divided(rope, tables.columns, "short_factor"))
    if tables.shorter is not None:
        yield _turned(context, _divided(rope, tables.columns, "long_factor"))


def _turned(positions: int, per_token: npt.NDArray[np.float64]) -> Table:
    steps = np.arange(positions, dtype=np.float32)[:, np.newaxis]
    return np.asarray(steps * per_token.astype(np.float32))


def _divided(rope: Rope, columns: int, key: str) -> npt.NDArray[np.float64]:
    """Compute the frequencies of longrope: plain ones divided by a factor for each pair."""
    plain = rope.theta ** (-np.arange(0, columns, 2, dtype=np.float64) / columns)
    return np.asarray(plain / np.asarray(rope.settings[key], np.float64))


def rotary_frequencies(rope: Rope, columns: int) -> npt.NDArray[np.float64]:
    """Compute the radians per token of each rotated pair.

    Shapes: (columns / 2,).
    """
    return _yarn(rope, columns) if rope.kind == YARN else frequencies(rope, columns)


def _yarn(rope: Rope, columns: int) -> npt.NDArray[np.float64]:
    """Compute the frequencies of yarn.

    Pairs that turn often within the first context stay, those that hardly turn are slowed by
    `factor`, and between them the two are mixed linearly in the number of the pair.

    Source: Peng et al., YaRN, ICLR 2024, as in transformers' modeling_rope_utils.py.
    """
    settings = rope.settings
    length = float(settings["original_max_position_embeddings"])
    plain = rope.theta ** (-np.arange(0, columns, 2, dtype=np.float64) / columns)

    def pair_of(turns: float) -> float:
        return columns * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = pair_of(settings.get("beta_fast") or FAST)
    high = pair_of(settings.get("beta_slow") or SLOW)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, columns - 1)
    width = high - low if high != low else 0.001  # as transformers avoids dividing by zero
    slowed = np.clip((np.arange(columns // 2) - low) / width, 0.0, 1.0)
    return np.asarray(plain * (1 - slowed) + plain / float(settings["factor"]) * slowed)


def attention_factor(rope: Rope, context: int) -> float:
    """Give what multiplies cosines and sines: 1 but for yarn and longrope, as in transformers."""
    settings = rope.settings
    if rope.kind not in (YARN, LONGROPE):
        return 1.0
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    if rope.kind == YARN:
        return _yarn_factor(rope)
    length = float(settings["original_max_position_embeddings"])
    stated = settings.get("factor")
    factor = context / length if stated is None else float(stated)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))


def _yarn_factor(rope: Rope) -> float:
    factor = float(rope.settings["factor"])

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    scales = [rope.settings.get(key) for key in ("mscale", "mscale_all_dim")]
    if scales[0] and scales[1]:
        return grown(float(scales[0])) / grown(float(scales[1]))
    return grown(1.0)
