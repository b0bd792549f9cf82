"""Where a checkpoint keeps its decoder blocks, and whether its tensors fit its config."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeq.architectures.model_config import head_dimension, key_value_heads, positive_integer
from edgeq.errors import BadInput
from edgeq.types import BlockSpec

BLOCK = re.compile(r"^(.*\.layers\.(\d{1,6}))\.")

# Linear layers in execution order.
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def find_blocks(config: Config, shapes: Shapes) -> tuple[BlockSpec, ...]:
    """The decoder blocks in execution order, found by tensor names and checked against the config.

    Raises: BadInput if a block or tensor is missing, has no place in the model or contradicts the
    config.
    """
    members: dict[int, list[str]] = {}
    prefixes: dict[int, str] = {}
    for name in shapes:
        if match := BLOCK.match(name):
            index = int(match[2])
            members.setdefault(index, []).append(name)
            prefixes[index] = match[1]
    check_block_count(sorted(members), positive_integer(config, "num_hidden_layers"))
    check_shapes(config, shapes, [prefixes[index] for index in sorted(members)])
    return tuple(make_block(index, prefixes[index], members[index]) for index in sorted(members))


def make_block(index: int, name: str, tensors: Sequence[str]) -> BlockSpec:
    return BlockSpec(
        index, name, tuple(f"{name}.{linear}" for linear in (*ATTENTION, *MLP)), tuple(tensors)
    )


def check_block_count(indices: Sequence[int], expected: int) -> None:
    first_gap = next((place for place, index in enumerate(indices) if place != index), len(indices))
    if first_gap < expected:
        raise BadInput(
            f"block {first_gap} of {expected} has no tensors; "
            "the checkpoint is incomplete, fetch or make it again"
        )
    if indices[-1] >= expected:
        raise BadInput(
            f"the checkpoint holds {len(indices)} blocks "
            f"but config says num_hidden_layers {expected};"
            " correct config.json"
        )


def check_shapes(config: Config, shapes: Shapes, blocks: Sequence[str]) -> None:
    """Compare all tensors with those that the config asks for. Raises: BadInput naming the first
    that differs.
    """
    expected = expected_outer_shapes(config)
    of_block = expected_block_shapes(config)
    for block in blocks:
        expected |= {f"{block}.{name}": shape for name, shape in of_block.items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise BadInput(
                f"tensor {name!r} is missing; the checkpoint is incomplete, fetch or make it again"
            )
        if shapes[name] != shape:
            raise BadInput(
                f"tensor {name!r} has shape {shapes[name]} but "
                f"config asks for {shape}; use the config.json"
                " that belongs to these weights"
            )
    for name in shapes:
        if name not in expected and not is_redundant(name, config):
            raise BadInput(_no_place(name, config, of_block))


def _no_place(name: str, config: Config, of_block: Shapes) -> str:
    advice = "use the config.json that belongs to these weights"
    if name.endswith(".bias") and config.get("model_type") == "llama":
        advice = "for biases set attention_bias or mlp_bias in config.json"
    return (
        f"tensor {name!r} has no place in a {config.get('model_type')} "
        "model with this config, whose blocks hold "
        f"{', '.join(of_block)}; {advice}"
    )


def is_redundant(tensor: str, config: Config) -> bool:
    """Whether a tensor is stored but computed anew by every runtime: a copy of a tied head, rotary
    tables.
    """
    tied_head = tensor == "lm_head.weight" and bool(config.get("tie_word_embeddings", False))
    return tied_head or tensor.endswith(".rotary_emb.inv_freq")


def expected_outer_shapes(config: Config) -> dict[str, Shape]:
    hidden_size = positive_integer(config, "hidden_size")
    vocabulary = (positive_integer(config, "vocab_size"), hidden_size)
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": vocabulary,
        "model.norm.weight": (hidden_size,),
    }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = vocabulary
    return shapes


def expected_block_shapes(config: Config) -> dict[str, Shape]:
    """Shapes of all tensors of a block by name inside the block: matrices, their biases, norms."""
    linears, biased = expected_linear_shapes(config), biased_linears(config)
    shapes: dict[str, Shape] = {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": linears[name][:1] for name in biased}
    return shapes | {f"{name}.weight": (positive_integer(config, "hidden_size"),) for name in NORMS}


def biased_linears(config: Config) -> Sequence[str]:
    """Linear layers of a block that have a bias in transformers."""
    if config.get("model_type") == "qwen2":
        return ATTENTION[:3]
    if config.get("model_type") != "llama":
        return ()
    return (
        *(ATTENTION if config.get("attention_bias") else ()),
        *(MLP if config.get("mlp_bias") else ()),
    )


def expected_linear_shapes(config: Config) -> dict[str, Shape]:
    """Shapes of a block's matrices by name inside the block."""
    hidden_size = positive_integer(config, "hidden_size")
    inner = positive_integer(config, "intermediate_size")
    width = head_dimension(config)
    queries, keys = (
        positive_integer(config, "num_attention_heads") * width,
        key_value_heads(config) * width,
    )
    attention = (
        (queries, hidden_size),
        (keys, hidden_size),
        (keys, hidden_size),
        (hidden_size, queries),
    )
    mlp = ((inner, hidden_size), (inner, hidden_size), (hidden_size, inner))
    return dict(zip((*ATTENTION, *MLP), (*attention, *mlp), strict=True))
