"""Add the attention of a block to a graph: projections, norms of heads, rotation, cache.

Tables for rotating are computed by `rotary`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from edgeq.architectures.families.hunyuan_v1_dense import NORMED_LAST
from edgeq.decoder import Attention, Decoder, Layer
from edgeq_exporters.onnx.graph import CONTRIB, GraphBuilder, Matrices, add_linear
from edgeq_exporters.onnx.norms import NormNode, add_norm, add_norm_by_head, norm_node
from edgeq_exporters.onnx.rotary import RotaryTables, is_rotated_by_attention, tables_of

MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class Positions:
    """Names where the new tokens of each text stand, as operators want it.

    last is each text's last index and total the longest length, which GroupQueryAttention takes.
    ids are the positions of new tokens, by the cosines that they are rotated by: only where an
    operator asks for them.
    """

    last: str
    total: str
    ids: dict[str, str]


def is_rotated_apart(decoder: Decoder, attention: Attention) -> bool:
    """Say whether a node of its own rotates queries and keys, before GroupQueryAttention."""
    if attention.rope is None:
        return False
    return NORMED_LAST in decoder.traits or not is_rotated_by_attention(attention)


def add_positions(builder: GraphBuilder, decoder: Decoder) -> Positions:
    """Add what tells operators where new tokens stand, from the mask over cached and new ones."""
    axes = builder.constant(f"{MASK}.axes", [1], np.int64)
    one = builder.constant(f"{MASK}.one", [1], np.int64)
    axis = builder.constant(f"{MASK}.axis", 1, np.int64)
    lengths = builder.add("ReduceSum", [MASK, axes], f"{MASK}.lengths", keepdims=0)
    last = builder.add("Sub", [lengths, one], f"{MASK}.last")
    shape = builder.add("Shape", [MASK], f"{MASK}.shape")
    total = builder.add("Gather", [shape, axis], f"{MASK}.total")
    found = Positions(
        builder.add("Cast", [last], f"{MASK}.last_32", to=TensorProto.INT32),
        builder.add("Cast", [total], f"{MASK}.total_32", to=TensorProto.INT32),
        {},
    )
    asked = [tables for tables in tables_of(decoder) if _asks_for_ids(decoder, tables)]
    if not asked:
        return found
    ids = _position_ids(builder, lengths, axis)
    for tables in asked:
        found.ids[tables.cosines] = ids
        if tables.shorter is not None:
            found.ids[tables.cosines] = _behind_shorter(builder, ids, total, tables)
    return found


def _asks_for_ids(decoder: Decoder, tables: RotaryTables) -> bool:
    apart = any(
        is_rotated_apart(decoder, layer.attention)
        for layer in decoder.layers
        if layer.attention is not None and layer.attention.rope == tables.rope
    )
    return apart or tables.shorter is not None


def _position_ids(builder: GraphBuilder, lengths: str, axis: str) -> str:
    """Count the positions of new tokens, from 0 where nothing is cached.

    The mask of a first text that is padded on the right has fewer ones than there are new tokens;
    else as many tokens are cached as it has ones beyond the new ones.

    Shapes: (batch, tokens).
    """
    zero = builder.constant("positions.zero", 0, np.int64)
    step = builder.constant("positions.step", 1, np.int64)
    columns = builder.constant("positions.columns", [1], np.int64)
    shape = builder.add("Shape", ["input_ids"], "positions.shape")
    tokens = builder.add("Gather", [shape, axis], "positions.tokens")
    beyond = builder.add("Sub", [lengths, tokens], "positions.beyond")
    cached = builder.add("Max", [beyond, zero], "positions.cached")
    column = builder.add("Unsqueeze", [cached, columns], "positions.column")
    steps = builder.add("Range", [zero, tokens, step], "positions.steps")
    return builder.add("Add", [column, steps], "positions")


def _behind_shorter(builder: GraphBuilder, ids: str, total: str, tables: RotaryTables) -> str:
    """Move positions to the rows of longer texts, once a text is longer than the shorter ones."""
    assert tables.shorter is not None
    name = f"positions.{tables.cosines}"
    limit = builder.constant(f"{name}.shorter", tables.shorter, np.int64)
    longer = builder.add("Greater", [total, limit], f"{name}.is_longer")
    as_number = builder.add("Cast", [longer], f"{name}.number", to=TensorProto.INT64)
    rows = builder.add("Mul", [as_number, limit], f"{name}.rows")
    return builder.add("Add", [ids, rows], name)


@dataclass(frozen=True, slots=True)
class Attending:
    """Holds what the attention of all blocks shares."""

    builder: GraphBuilder
    decoder: Decoder
    matrices: Matrices
    positions: Positions
    tables: Sequence[RotaryTables]

    def add(self, index: int, layer: Layer, value: str) -> str:
        """Add the attention of a block, from its input to its output projection."""
        block, traits = self.decoder.block_name(index), layer.attention
        assert traits is not None
        output = layer.sites[1][0].inside(block)
        queries, keys, values = self._projected(block, layer, value)
        is_last = NORMED_LAST in self.decoder.traits
        if not is_last:
            queries, keys = self._normed(block, layer, (queries, keys))
        tables = next((each for each in self.tables if each.rope == traits.rope), None)
        in_operator: list[str] = []
        if tables is not None and is_rotated_apart(self.decoder, traits):
            queries = self._rotated(queries, traits, traits.heads, tables)
            keys = self._rotated(keys, traits, traits.key_heads, tables)
        elif tables is not None:
            in_operator = [tables.cosines, tables.sines]
            if tables.shorter is not None:
                in_operator.append(self.positions.ids[tables.cosines])
        if is_last:
            queries, keys = self._normed(block, layer, (queries, keys))
        inputs = [queries, keys, values]
        attended = self._attended(index, traits, inputs, in_operator)
        return add_linear(self.builder, self.matrices, output, attended)

    def _projected(self, block: str, layer: Layer, value: str) -> list[str]:
        traits = layer.attention
        assert traits is not None
        specs = [spec.inside(block) for spec in layer.sites[0]]
        found = [add_linear(self.builder, self.matrices, spec, value) for spec in specs]
        if len(found) > 1:
            return found
        names = [f"{block}.self_attn.{name}" for name in ("queries", "keys", "values")]
        heads = (traits.heads, traits.key_heads, traits.key_heads)
        rows = [count * traits.head_size for count in heads]
        return self.builder.split(found[0], names, rows)

    def _normed(self, block: str, layer: Layer, values: tuple[str, str]) -> tuple[str, str]:
        """Norm queries and keys where the model does, each head by itself or all together."""
        traits = layer.attention
        assert traits is not None
        queries, keys = values
        norm = layer.norm_at("queries")
        if norm is not None:
            heads = 1 if traits.whole_norms else traits.heads
            queries = self._norm(queries, norm_node(block, norm), heads)
        norm = layer.norm_at("keys")
        if norm is not None:
            heads = 1 if traits.whole_norms else traits.key_heads
            keys = self._norm(keys, norm_node(block, norm), heads)
        return queries, keys

    def _norm(self, value: str, norm: NormNode, heads: int) -> str:
        if heads == 1:
            return add_norm(self.builder, self.decoder, value, norm)
        return add_norm_by_head(self.builder, self.decoder, value, norm, heads)

    def _rotated(self, value: str, traits: Attention, heads: int, tables: RotaryTables) -> str:
        assert traits.rope is not None
        part = {}
        if tables.columns != traits.head_size:
            part = {"rotary_embedding_dim": tables.columns}
        ids = self.positions.ids[tables.cosines]
        return self.builder.add(
            "RotaryEmbedding",
            [value, ids, tables.cosines, tables.sines],
            f"{value}.rotated",
            domain=CONTRIB,
            num_heads=heads,
            interleaved=int(traits.rope.adjacent),
            **part,
        )

    def _attended(
        self, index: int, traits: Attention, inputs: Sequence[str], tables: Sequence[str]
    ) -> str:
        past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
        present = [f"present.{index}.{kind}" for kind in ("key", "value")]
        attributes: dict[str, Any] = {}
        if traits.window is not None:
            attributes["local_window_size"] = traits.window
        if traits.soft_cap is not None:
            attributes["softcap"] = float(traits.soft_cap)
        adjacent = bool(tables) and traits.rope is not None and traits.rope.adjacent
        scale = traits.head_size**-0.5 if traits.scale is None else traits.scale
        return self.builder.add(
            "GroupQueryAttention",
            [*inputs, *past, self.positions.last, self.positions.total, *tables],
            f"{self.decoder.block_name(index)}.self_attn",
            *present,
            domain=CONTRIB,
            num_heads=traits.heads,
            kv_num_heads=traits.key_heads,
            scale=scale,
            do_rotary=int(bool(tables)),
            rotary_interleaved=int(adjacent),
            **attributes,
        )
