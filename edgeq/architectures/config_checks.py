"""Check the values of a config, whatever the family, and read the sizes that they imply.

Rotary embedding has rules of its own in `edgeq.architectures.rope`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from edgeq.architectures.rope import (
    check_rope,
    check_rotated,
    has_nested_rope,
    is_single,
)
from edgeq.errors import BadInput

MOST_LEVELS = 50  # of values inside of values; configs have three or four
LARGEST_SIZE = 2**31 - 1  # of signed 32-bit numbers, with which libraries count
FUNCTIONS = (
    "gelu gelu_10 gelu_accurate gelu_fast gelu_new gelu_python gelu_python_tanh "
    "gelu_pytorch_tanh hardswish laplace leaky_relu linear mish prelu quick_gelu relu "
    "relu2 relu6 sigmoid silu sqrtsoftplus swish tanh xielu"
).split()
"""The activation functions of transformers, by name."""

Config = Mapping[str, Any]


def check_nesting(config: Config) -> None:
    """Refuse a config that is nested deeper than Python copies and writes it.

    Raises: BadInput naming the key.
    """
    for key, value in config.items():
        level = [value]
        for _ in range(MOST_LEVELS):
            inside: list[Any] = []
            for each in level:
                if isinstance(each, Mapping):
                    inside += each.values()
                elif isinstance(each, list | tuple):
                    inside += each
            level = inside
        if level:
            raise BadInput(
                f"config: {key:.60} is nested more than {MOST_LEVELS} levels deep; "
                "use the config.json that belongs to these weights"
            )


def check_values(config: Config) -> None:
    """Refuse values of a wrong type or range.

    Raises: BadInput naming the key.
    """
    for key, (rule, holds) in OPTIONAL.items():
        if config.get(key) is not None and not holds(config[key]):
            raise BadInput(f"config: {key} is {config[key]!r:.60}; it must be {rule}")
    reached = config.get("num_experts_per_tok")
    for key in EXPERTS:
        count = config.get(key)
        if is_positive_integer(count) and is_positive_integer(reached) and reached > count:
            raise BadInput(
                f"config: num_experts_per_tok is {reached}, but {key} is {count}; "
                "use the config.json that belongs to these weights"
            )


def check_attention(config: Config) -> None:
    """Refuse sizes and rotary settings that contradict one another, in a family described here.

    Raises: BadInput naming the key.
    """
    for key, (rule, holds) in DESCRIBED.items():
        if config.get(key) is not None and not holds(config[key]):
            raise BadInput(f"config: {key} is {config[key]!r:.60}; it must be {rule}")
    if not has_nested_rope(config):
        check_rope(config)
        check_rotated(config, head_dimension(config))
    heads, key_heads = positive_integer(config, "num_attention_heads"), key_value_heads(config)
    if heads % key_heads:
        raise BadInput(
            f"config: num_attention_heads {heads} "
            f"is not a multiple of num_key_value_heads {key_heads}; "
            "use the config.json that belongs to these weights"
        )


def positive_integer(values: Mapping[str, Any], key: str) -> int:
    """Read a size that the config must state.

    Raises: BadInput naming the key.
    """
    value = values.get(key)
    if not is_positive_integer(value):
        raise BadInput(f"config: {key} is {value!r}; it must be a positive whole number")
    if value > LARGEST_SIZE:
        raise BadInput(f"config: {key} is {value!s:.40}; it must be {LARGEST_SIZE} or less")
    return value


def head_dimension(config: Config) -> int:
    """Read the columns of a head: even, because the rotary embedding turns pairs.

    Raises: BadInput.
    """
    if config.get("head_dim") is not None:
        width = positive_integer(config, "head_dim")
    else:
        heads = positive_integer(config, "num_attention_heads")
        hidden_size = positive_integer(config, "hidden_size")
        if hidden_size % heads:
            raise BadInput(
                f"config: hidden_size {hidden_size} "
                f"is not a multiple of num_attention_heads {heads}; "
                "correct one or state head_dim"
            )
        width = hidden_size // heads
    if width % 2:
        raise BadInput(
            f"config: heads are {width} wide; "
            "rotary embedding needs an even head_dim, give another model"
        )
    return width


def key_value_heads(config: Config) -> int:
    """Read the key heads; a config without the key, or with null, has one for each query head."""
    stated = config.get("num_key_value_heads") is not None
    return positive_integer(config, "num_key_value_heads" if stated else "num_attention_heads")


def is_positive_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and 0 <= value <= LARGEST_SIZE


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_token_ids(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    whole = all(isinstance(item, int) and not isinstance(item, bool) for item in listed)
    return whole and all(abs(item) <= LARGEST_SIZE for item in listed)


def _is_block_count(value: Any) -> bool:
    return _is_count(value) and value <= MOST_BLOCKS


def _is_expert_count(value: Any) -> bool:
    return _is_count(value) and value <= MOST_EXPERTS


Rule = tuple[str, Callable[[Any], bool]]
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# more than any model has; a damaged config must not ask for memory
MOST_EXPERTS = 10_000
MOST_BLOCKS = 10_000
COUNT: Rule = ("a whole number of 0 or more", _is_count)
SIZE: Rule = ("a positive whole number", is_positive_integer)
POSITIVE: Rule = ("a positive number that float32 holds", is_single)
COUNTS: Rule = ("a list of whole numbers", _are_counts)
FLAG: Rule = ("true or false", _is_flag)
TOKEN: Rule = ("a token id or a list of them", _are_token_ids)
# keys that may be absent or null
OPTIONAL: Mapping[str, Rule] = {
    "max_position_embeddings": SIZE,
    "rms_norm_eps": POSITIVE,
    "hidden_act": ("the name of a function, such as silu", lambda value: value in FUNCTIONS),
    "is_causal": ("true, as decoders are", lambda value: value is True),
    "attention_bias": FLAG,
    "use_sliding_window": FLAG,
    "sliding_window": COUNT,  # 0 where a model has none: families that slide ask for more
    "max_window_layers": COUNT,
    "layer_types": ("a list of names", _are_names),
    "mlp_bias": FLAG,
    "bos_token_id": TOKEN,
    "eos_token_id": TOKEN,
    "pad_token_id": TOKEN,
    **dict.fromkeys(EXPERTS, (f"a whole number up to {MOST_EXPERTS}", _is_expert_count)),
    **dict.fromkeys(
        ("n_layer", "num_layers", "n_layers"),
        (f"a whole number up to {MOST_BLOCKS}", _is_block_count),
    ),
}
FUNCTION = OPTIONAL["hidden_act"]
# those of families that are described here
DESCRIBED: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "logit_scale",
            "logits_scaling",
            "embedding_multiplier",
            "residual_multiplier",
            "attention_multiplier",
            "routed_scaling_factor",
            "clip_qkv",
            "layer_norm_eps",
            "layer_norm_epsilon",
            "norm_epsilon",
            "norm_eps",
        ),
        POSITIVE,
    ),
    **dict.fromkeys(
        (
            "use_bias",
            "use_qkv_bias",
            "qkv_bias",
            "bias",
            "attention_out_bias",
            "use_qk_norm",
            "qk_layernorm",
            "use_parallel_residual",
            "use_bidirectional_attention",
            "norm_topk_prob",
            "new_decoder_architecture",
            "multi_query",
            "parallel_attn",
            "alibi",
        ),
        FLAG,
    ),
    "no_rope_layers": COUNTS,
    "mlp_only_layers": COUNTS,
    "hidden_activation": FUNCTION,
    "decoder_sparse_step": SIZE,
}
