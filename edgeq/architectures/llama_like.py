"""Describe decoders built like Llama: gated feed-forward, RMS norms, rotary embedding.

The norms come before both halves of a block. Most families are such a decoder with small
differences; their files say only those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.architectures.config_checks import head_dimension, key_value_heads, positive_integer
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Attention, Decoder, Layer, Mlp, Norm, RuntimeNames
from edgeq.errors import BadInput
from edgeq.types import LinearSpec

QUERIES_KEYS_VALUES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*QUERIES_KEYS_VALUES, "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
NORMS = ("input_layernorm", "post_attention_layernorm")
# what transformers takes where Qwen's configs are silent
SLIDING_WINDOW = 4096
FIRST_SLIDING = 28
FULL, SLIDING = "full_attention", "sliding_attention"
MOST_BLOCKS = 10_000  # more than any model has; a damaged config must not ask for memory

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences of a family from Llama.

    biased are the linear layers that have a bias, bias_keys the config keys that decide it; windows
    has the window of every block, or of all; head_norms: norms of queries and keys, head by head.
    """

    biased: Sequence[str] = ()
    bias_keys: tuple[str, ...] = ()
    windows: Sequence[int | None] | int | None = None
    head_norms: bool = False


def block_count(config: Config) -> int:
    """Read the number of blocks.

    Raises: BadInput, also for more than any model has.
    """
    count = positive_integer(config, "num_hidden_layers")
    if count > MOST_BLOCKS:
        raise BadInput(f"config: num_hidden_layers is {count}; it must be {MOST_BLOCKS} or less")
    return count


def llama_like(config: Config, names: RuntimeNames, own: Differences = Differences()) -> Decoder:
    """Describe a decoder of this kind from its config; `own` says where the family differs.

    Raises: BadInput naming the key.
    """
    hidden, blocks = positive_integer(config, "hidden_size"), block_count(config)
    windows = own.windows
    if windows is None or isinstance(windows, int):
        check_layer_types(config, blocks, window=config.get("sliding_window"))
        of_blocks: Sequence[int | None] = [windows] * blocks
    else:
        of_blocks = windows
    kinds = {window: make_layer(config, window, own) for window in set(of_blocks)}
    longest = config.get("max_position_embeddings")
    epsilon = config.get("rms_norm_eps")
    return Decoder(
        model_type=str(config["model_type"]),
        hidden=hidden,
        vocabulary=positive_integer(config, "vocab_size"),
        layers=tuple(kinds[window] for window in of_blocks),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        names=names,
        context=None if longest is None else positive_integer(config, "max_position_embeddings"),
        epsilon=None if epsilon is None else float(epsilon),
        bias_keys=own.bias_keys,
    )


def make_layer(config: Config, window: int | None, own: Differences) -> Layer:
    """Describe one block whose tokens attend to a window of so many tokens, or to all."""
    hidden, inner = (positive_integer(config, key) for key in ("hidden_size", "intermediate_size"))
    width = head_dimension(config)
    heads, key_heads = positive_integer(config, "num_attention_heads"), key_value_heads(config)
    shapes = {
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (key_heads * width, hidden),
        "self_attn.v_proj": (key_heads * width, hidden),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    biases = {name: f"{name}.bias" for name in own.biased}
    specs = {
        name: LinearSpec(name, f"{name}.weight", shape, biases.get(name))
        for name, shape in shapes.items()
    }
    sites = (QUERIES_KEYS_VALUES, ATTENTION[3:], MLP[:2], MLP[2:])
    norms = [Norm(f"{name}.weight", hidden) for name in NORMS]
    if own.head_norms:
        norms += [Norm(f"{name}.weight", width) for name in HEAD_NORMS]
    return Layer(
        Attention(heads, key_heads, width, rope_of(config), window, own.head_norms),
        Mlp(inner, str(config.get("hidden_act", "silu"))),
        tuple(tuple(specs[name] for name in site) for site in sites),
        tuple(norms),
    )


def check_layer_types(config: Config, count: int, *, window: int | None) -> None:
    """Refuse kinds of attention that the blocks of these families do not have, or too few names.

    A block that slides needs a window. Llama goes by it in its cache alone, but cannot be without.

    Raises: BadInput.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return
    if len(kinds) != count:
        raise BadInput(
            f"config: layer_types names {len(kinds)} blocks, but num_hidden_layers is {count}; "
            "use the config.json that belongs to these weights"
        )
    foreign = [kind for kind in kinds if kind not in (FULL, SLIDING)]
    if foreign:
        raise BadInput(
            f"config: layer_types has {foreign[0]!r:.60}; a {config['model_type']} model "
            f"has blocks of {FULL} and {SLIDING}, give another model"
        )
    if SLIDING in kinds and window is None:
        raise BadInput(
            f"config: layer_types has {SLIDING}, but the config states no window "
            "(sliding_window, use_sliding_window); "
            "use the config.json that belongs to these weights"
        )


def sliding_windows(config: Config) -> list[int | None]:
    """Read the windows of all blocks as Qwen's configs state them: which slide, and how wide.

    As transformers does: by layer_types where it is stated, else from max_window_layers on.
    Raises: BadInput naming the key.
    """
    count, kinds = block_count(config), config.get("layer_types")
    slides = config.get("use_sliding_window")
    stated = config.get("sliding_window", SLIDING_WINDOW)
    check_layer_types(config, count, window=stated if slides else None)
    if not slides:
        return [None] * count
    window = SLIDING_WINDOW
    if config.get("sliding_window") is not None:
        window = positive_integer(config, "sliding_window")
    if kinds is None:
        first = config.get("max_window_layers")
        first = FIRST_SLIDING if first is None else first
        return [window if index >= first else None for index in range(count)]
    return [window if kind == SLIDING else None for kind in kinds]
