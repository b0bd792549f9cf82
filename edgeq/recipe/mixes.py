"""llama.cpp's mixes of types: which tensor of which block gets which type.

A mix spends more bits on values, on what leads out of a block, and on the first and last blocks.
What a layer does in its block is known from the model's description.

Source: llama.cpp, src/llama-quant.cpp, llama_tensor_get_type and tensor_type_fallback.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgeq.decoder import Decoder, Layer
from edgeq.errors import UnsupportedModel
from edgeq.grids.types import GRIDS
from edgeq.recipe.type_names import BASES

Role = Literal["queries", "keys", "values", "fused", "output", "up", "down"]

NARROW: Mapping[str, str] = {
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
}
"""The type that takes over where rows do not divide into super-blocks; each has blocks of 32."""
LARGE_BLOCKS = 80
LARGE_FAMILIES = ("llama", "qwen2", "olmo")
"""Families whose models of 80 blocks llama.cpp knows as those of 70 billion weights."""
RAISED_EXPERTS = 8  # mixtures of so many experts have small attention, which gets more bits
MANY_QUERIES = 4  # heads of queries for each head of keys: values are small then


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts of a model that llama.cpp's mixes go by.

    head_share is the heads of queries for each head of keys, experts their number, 0 for none.
    """

    family: str
    blocks: int
    head_share: int
    experts: int
    large: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What a linear layer does in its block, and the number of this block."""

    role: Role
    block: int


def facts_of(decoder: Decoder) -> ModelFacts:
    """Gather the facts that mixes go by.

    Raises: UnsupportedModel where nothing but shapes is known of the blocks.
    """
    if any(layer.attention is None or layer.mlp is None for layer in decoder.layers):
        raise UnsupportedModel(
            f"llama.cpp's mixes go by what a layer does in its block, which is not described of "
            f"model_type '{decoder.model_type}'; choose one type for all, such as Q4_K"
        )
    attention = decoder.attention
    family = decoder.names.gguf.architecture if decoder.names.gguf else ""
    counts = [
        layer.mlp.experts.count for layer in decoder.layers if layer.mlp and layer.mlp.experts
    ]
    blocks = len(decoder.layers)
    grouped = family != "llama" or attention.heads != attention.key_heads
    large = blocks == LARGE_BLOCKS and family in LARGE_FAMILIES and grouped
    share = attention.heads // attention.key_heads
    return ModelFacts(family, blocks, share, max(counts, default=0), large)


def parts_of(decoder: Decoder) -> dict[str, Part]:
    """Find what every linear layer does, by complete names."""
    return {
        f"{decoder.block_name(index)}.{name}": Part(role, index)
        for index, layer in enumerate(decoder.layers)
        for name, role in roles_of(layer).items()
    }


def roles_of(layer: Layer) -> dict[str, Role]:
    """Find what the linear layers of a block do, from the order of their execution.

    Attention comes first, then what leads into and out of each feed-forward part in turn.
    """
    inputs, output, *others = layer.sites
    of_inputs: tuple[Role, ...] = ("queries", "keys", "values") if len(inputs) > 1 else ("fused",)
    roles = {each.name: role for each, role in zip(inputs, of_inputs, strict=True)}
    roles |= {each.name: "output" for each in output}
    for number, site in enumerate(others):
        roles |= {each.name: "down" if number % 2 else "up" for each in site}
    return roles


def mixed_type(mix: str, part: Part, facts: ModelFacts) -> str:
    """Give the type that a mix has for a linear layer, where its width allows it."""
    if part.role in ("values", "fused"):
        return _of_values(mix, part.block, facts)
    if part.role == "keys" and facts.experts == RAISED_EXPERTS:
        return "Q8_0"
    if part.role == "output":
        return _of_output(mix, facts)
    return _of_down(mix, part.block, facts) if part.role == "down" else BASES[mix]


def _of_values(mix: str, block: int, facts: ModelFacts) -> str:
    if facts.experts == RAISED_EXPERTS:
        return "Q8_0"
    chosen, many = BASES[mix], facts.head_share >= MANY_QUERIES
    match mix:
        case "Q2_K_M":
            chosen = "Q4_K" if many else "Q3_K"
        case "Q2_K_S" if many:
            chosen = "Q4_K"
        case "Q3_K_M":
            chosen = "Q5_K" if block < 2 else "Q4_K"
        case "Q3_K_L":
            chosen = "Q5_K"
        case "Q4_K_S" if block < 4:
            chosen = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if is_favoured(block, facts.blocks):
            chosen = "Q6_K"
    return "Q5_K" if facts.large and chosen in ("Q3_K", "Q4_K") else chosen


def _of_output(mix: str, facts: ModelFacts) -> str:
    base = BASES[mix]
    if facts.family == "falcon":
        return "Q4_K" if mix == "Q3_K_L" else base
    if facts.experts == RAISED_EXPERTS:
        raised = ("Q2_K_M", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
        return "Q5_K" if mix in raised else base
    return {"Q2_K_M": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, base)


def _of_down(mix: str, block: int, facts: ModelFacts) -> str:
    first, favoured = block < facts.blocks // 8, is_favoured(block, facts.blocks)
    falcon, very_first = facts.family == "falcon", block < facts.blocks // 16
    chosen = BASES[mix]
    match mix:
        case "Q2_K_M":
            chosen = "Q3_K"
        case "Q2_K_S" if first:
            chosen = "Q4_K"
        case "Q3_K_M" if very_first:
            chosen = "Q5_K"
        case "Q3_K_M" if not falcon or favoured:
            chosen = "Q4_K"
        case "Q3_K_L":
            chosen = "Q4_K" if falcon else "Q5_K"
        case "Q4_K_M" if falcon and favoured and not very_first:
            chosen = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if favoured:
            chosen = "Q6_K"
        case "Q4_K_S" if first and not falcon:
            chosen = "Q5_K"
    return chosen


def is_favoured(block: int, blocks: int) -> bool:
    """Say whether a block is among those that get more bits: first, last, every third between."""
    first, last = blocks // 8, 7 * blocks // 8
    return block < first or block >= last or (block - first) % 3 == 2


def embedding_types(base: str, decoder: Decoder) -> dict[str, str]:
    """Give the types that llama.cpp chooses for embedding and head, by their tensors.

    base is the type of most linear layers. A tied embedding is one with the head.
    """
    falcon = decoder.names.gguf is not None and decoder.names.gguf.architecture == "falcon"
    fits = decoder.hidden % columns_of(base) == 0
    head = "Q8_0" if falcon or not fits or base == "Q8_0" else "Q6_K"
    if decoder.tied_head:
        return {decoder.embedding: head}
    table = "Q4_K" if base in ("TQ1_0", "TQ2_0", "Q2_0") else base
    return {decoder.embedding: table, decoder.head: head}


def columns_of(type: str) -> int:
    """Give the columns that the width of a layer on a type is a multiple of."""
    grid = GRIDS[type]
    columns = grid.group_size if grid.super_blocks is None else grid.super_blocks.columns
    assert columns is not None
    return columns


def fitting_type(type: str, columns: int, narrow: str | None = None) -> str | None:
    """Give the type that holds rows of so many columns: this one, or the one that takes over.

    narrow is chosen instead of llama.cpp's own. None where neither does, and rows stay dense.
    """
    if columns % columns_of(type) == 0:
        return type
    other = narrow or NARROW.get(type)
    return other if other is not None and columns % columns_of(other) == 0 else None
