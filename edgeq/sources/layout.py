"""Where a checkpoint keeps its decoder blocks, and whether its tensors fit its config."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgeq.errors import BadInput, UnsupportedModel
from edgeq.types import BlockSpec

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2")
EXECUTION_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BLOCK = re.compile(r"^(.*\.layers\.(\d{1,6}))\.")

Shapes = Mapping[str, tuple[int, ...]]


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse models of other architectures and models that are quantized already. Raises: UnsupportedModel."""
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        raise UnsupportedModel(f"model_type {model_type!r} is not supported; give a model of type {supported}")
    if config.get("quantization_config"):
        raise UnsupportedModel("the model is quantized already; start from the full-precision checkpoint")


def positive_integer(values: Mapping[str, Any], key: str) -> int:
    """A size that the config must state. Raises: BadInput naming the key."""
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"config: {key} is {value!r}; it must be a positive whole number")
    return value


def head_dimension(config: Mapping[str, Any]) -> int:
    if config.get("head_dim") is not None:
        return positive_integer(config, "head_dim")
    heads = positive_integer(config, "num_attention_heads")
    hidden_size = positive_integer(config, "hidden_size")
    if hidden_size % heads:
        raise BadInput(
            f"config: hidden_size {hidden_size} is not a multiple of num_attention_heads {heads};"
            " correct one or state head_dim"
        )
    return hidden_size // heads


def find_blocks(config: Mapping[str, Any], shapes: Shapes) -> tuple[BlockSpec, ...]:
    """The decoder blocks in execution order, found by tensor names and checked against the config.

    Raises: BadInput if a block or tensor is missing or a shape contradicts the config.
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
    return tuple(make_block(index, prefixes[index], members[index], shapes) for index in sorted(members))


def make_block(index: int, name: str, tensors: Sequence[str], shapes: Shapes) -> BlockSpec:
    linears = [
        tensor.removesuffix(".weight") for tensor in tensors if tensor.endswith(".weight") and len(shapes[tensor]) == 2
    ]
    return BlockSpec(index, name, tuple(sorted(linears, key=execution_rank)), tuple(tensors))


def execution_rank(linear: str) -> int:
    """Place of a linear layer inside its block; sorting is stable, so unknown ones keep the file's order, last."""
    module = linear.rsplit(".", 1)[-1]
    return EXECUTION_ORDER.index(module) if module in EXECUTION_ORDER else len(EXECUTION_ORDER)


def check_block_count(indices: Sequence[int], expected: int) -> None:
    first_gap = next((place for place, index in enumerate(indices) if place != index), len(indices))
    if first_gap < expected:
        raise BadInput(f"block {first_gap} of {expected} has no tensors; the checkpoint is incomplete, fetch it again")
    if indices[-1] >= expected:
        raise BadInput(
            f"the checkpoint holds {len(indices)} blocks but config says num_hidden_layers {expected};"
            " correct config.json"
        )


def check_shapes(config: Mapping[str, Any], shapes: Shapes, blocks: Sequence[str]) -> None:
    """Compare the matrices with what the config says of them. Raises: BadInput naming the first that differs."""
    expected = expected_outer_shapes(config)
    for block in blocks:
        expected |= {f"{block}.{name}.weight": shape for name, shape in expected_linear_shapes(config).items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise BadInput(f"tensor {name!r} is missing; the checkpoint is incomplete, fetch it again")
        if shapes[name] != shape:
            raise BadInput(
                f"tensor {name!r} has shape {shapes[name]} but config asks for {shape}; use the config.json"
                " that belongs to these weights"
            )


def expected_outer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden_size = positive_integer(config, "hidden_size")
    vocabulary = (positive_integer(config, "vocab_size"), hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": vocabulary, "model.norm.weight": (hidden_size,)}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = vocabulary
    return shapes


def expected_linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's matrices by name inside the block."""
    hidden_size = positive_integer(config, "hidden_size")
    inner = positive_integer(config, "intermediate_size")
    heads = positive_integer(config, "num_attention_heads")
    # A config without num_key_value_heads, or with null, means one key head per query head.
    key_heads = heads if config.get("num_key_value_heads") is None else positive_integer(config, "num_key_value_heads")
    width = head_dimension(config)
    return {
        "self_attn.q_proj": (heads * width, hidden_size),
        "self_attn.k_proj": (key_heads * width, hidden_size),
        "self_attn.v_proj": (key_heads * width, hidden_size),
        "self_attn.o_proj": (hidden_size, heads * width),
        "mlp.gate_proj": (inner, hidden_size),
        "mlp.up_proj": (inner, hidden_size),
        "mlp.down_proj": (hidden_size, inner),
    }
