"""Describe decoders built of blocks with attention and a feed-forward part, as Llama's are.

Most families are such a decoder with small differences; their files say only those. Llama has norms
before both halves of a block, a gated feed-forward part and one rotary embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgeq.architectures.config_checks import (
    MOST_BLOCKS,
    head_dimension,
    key_value_heads,
    positive_integer,
)
from edgeq.architectures.rope import rope_of
from edgeq.decoder import Attention, Decoder, Experts, Layer, Mlp, Norm, NormPlace, Rope, Shape
from edgeq.errors import BadInput
from edgeq.runtime_names import RuntimeNames
from edgeq.types import LinearSpec

QUERIES_KEYS_VALUES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*QUERIES_KEYS_VALUES, "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# what transformers takes where Qwen's configs are silent
SLIDING_WINDOW = 4096
FIRST_SLIDING = 28
FULL, SLIDING = "full_attention", "sliding_attention"
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")

Config = Mapping[str, Any]

BEFORE: Mapping[NormPlace, str] = {
    "before attention": "input_layernorm",
    "before mlp": "post_attention_layernorm",
}
BEHIND: Mapping[NormPlace, str] = {
    "after attention": "post_attention_layernorm",
    "after mlp": "post_feedforward_layernorm",
}
AROUND: Mapping[NormPlace, str] = {
    "before attention": "input_layernorm",
    "after attention": "post_attention_layernorm",
    "before mlp": "pre_feedforward_layernorm",
    "after mlp": "post_feedforward_layernorm",
}
"""Names of the norms of a block by place: Llama's, those of OLMo 2, those of Gemma 2."""
MLX_STACKS = {name: f"mlp.switch_mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
"""Where most of mlx-lm's modules stack the experts of a block."""
HEAD_NORMS: Mapping[NormPlace, str] = {"queries": "self_attn.q_norm", "keys": "self_attn.k_norm"}


@dataclass(frozen=True, slots=True)
class LinearNames:
    """Names the linear layers of a block, by the order of their execution.

    inputs are those of queries, keys and values, or of the one that fuses them; up those of gate
    and up, of the one that fuses them, or of up alone where there is no gate.
    """

    inputs: tuple[str, ...] = QUERIES_KEYS_VALUES
    output: str = "self_attn.o_proj"
    up: tuple[str, ...] = MLP[:2]
    down: str = "mlp.down_proj"
    gated: bool = True


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Names what a mixture of experts holds in a block.

    router is the tensor that chooses, experts the list, of whose members gate, up and down are
    parts; shared are the gate, up and down that every token passes; others are further tensors.
    """

    router: str = "mlp.gate.weight"
    experts: str = "mlp.experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str | None = None
    shared_first: bool = True
    others: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences of a family from Llama.

    biased are the linear layers that have a bias, bias_keys the config keys that decide it; windows
    and ropes have those of every block, or one for all, mixtures whether it has experts. norms are
    the names of a block's norms by place, head_norms those of queries and keys. whole_norms: these
    are over all heads together. norm_bias: norms have one. activation overrides the config's.
    """

    biased: Sequence[str] = ()
    bias_keys: tuple[str, ...] = ()
    windows: Sequence[int | None] | int | None = None
    ropes: Sequence[Rope | None] | Rope | None = None
    norms: Mapping[NormPlace, str] = field(default_factory=lambda: BEFORE)
    head_norms: Mapping[NormPlace, str] = field(default_factory=dict)
    whole_norms: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    final_norm: str = "model.norm.weight"
    linears: LinearNames = LinearNames()
    activation: str | None = None
    scale: float | None = None
    soft_cap: float | None = None
    mixtures: Sequence[bool] = ()
    experts: Experts | None = None
    expert_names: ExpertNames = ExpertNames()


def llama_like(config: Config, names: RuntimeNames, own: Differences = Differences()) -> Decoder:
    """Describe a decoder of this kind from its config; `own` says where the family differs.

    Raises: BadInput naming the key.
    """
    hidden, blocks = positive_integer(config, "hidden_size"), block_count(config)
    windows = own.windows
    if windows is None or isinstance(windows, int):
        check_layer_types(config, blocks, window=config.get("sliding_window"))
        windows = [windows] * blocks
    ropes = own.ropes
    if ropes is None or isinstance(ropes, Rope):
        ropes = [ropes or rope_of(config)] * blocks
    mixtures = own.mixtures or [own.experts is not None] * blocks
    kinds: dict[tuple[Any, ...], Layer] = {}
    layers = []
    for window, rope, mixed in zip(windows, ropes, mixtures, strict=True):
        key = (window, id(rope), mixed)
        if key not in kinds:
            kinds[key] = make_layer(config, own, window, rope, own.experts if mixed else None)
        layers.append(kinds[key])
    longest = config.get("max_position_embeddings")
    epsilon = next((config[key] for key in EPSILONS if config.get(key) is not None), None)
    bias = own.final_norm.removesuffix("weight") + "bias"
    return Decoder(
        model_type=str(config["model_type"]),
        hidden=hidden,
        vocabulary=positive_integer(config, "vocab_size"),
        layers=tuple(layers),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        names=names,
        context=None if longest is None else positive_integer(config, "max_position_embeddings"),
        epsilon=None if epsilon is None else float(epsilon),
        bias_keys=own.bias_keys,
        final_norm=own.final_norm,
        norm=own.norm,
        others={bias: (hidden,)} if own.norm_bias and own.final_norm else {},
    )


def block_count(config: Config) -> int:
    """Read the number of blocks.

    Raises: BadInput, also for more than any model has.
    """
    count = positive_integer(config, "num_hidden_layers")
    if count > MOST_BLOCKS:
        raise BadInput(f"config: num_hidden_layers is {count}; it must be {MOST_BLOCKS} or less")
    return count


def make_layer(
    config: Config, own: Differences, window: int | None, rope: Rope | None, experts: Experts | None
) -> Layer:
    """Describe one block whose tokens attend to a window of so many tokens, or to all."""
    hidden = positive_integer(config, "hidden_size")
    width = head_dimension(config)
    heads, key_heads = positive_integer(config, "num_attention_heads"), key_value_heads(config)
    attention = Attention(
        heads,
        key_heads,
        width,
        rope,
        window,
        head_norms=bool(own.head_norms) and not own.whole_norms,
        whole_norms=own.whole_norms,
        scale=own.scale,
        soft_cap=own.soft_cap,
    )
    sites = attention_sites(own, attention, hidden)
    others: dict[str, Shape] = {}
    inner = experts.inner if experts else positive_integer(config, "intermediate_size")
    if experts is None:
        sites += mlp_sites(own.linears, own.biased, hidden, inner)
    else:
        sites += expert_sites(own.expert_names, experts, hidden)
        others = {own.expert_names.router: (experts.count, hidden), **own.expert_names.others}
    activation = own.activation or str(config.get("hidden_act", "silu"))
    return Layer(
        attention,
        Mlp(inner, activation, own.linears.gated, experts),
        tuple(sites),
        tuple(block_norms(own, attention, hidden)),
        others,
    )


def attention_sites(
    own: Differences, attention: Attention, hidden: int
) -> list[tuple[LinearSpec, ...]]:
    """List the linear layers of attention by the input that they read."""
    queries = attention.heads * attention.head_size
    keys = attention.key_heads * attention.head_size
    rows = [queries, keys, keys]
    if len(own.linears.inputs) == 1:
        rows = [sum(rows)]
    inputs = tuple(
        linear(own.biased, name, (count, hidden))
        for name, count in zip(own.linears.inputs, rows, strict=True)
    )
    return [inputs, (linear(own.biased, own.linears.output, (hidden, queries)),)]


def mlp_sites(
    names: LinearNames, biased: Sequence[str], hidden: int, inner: int
) -> list[tuple[LinearSpec, ...]]:
    """List the linear layers of a feed-forward part by the input that they read."""
    rows = 2 * inner if names.gated and len(names.up) == 1 else inner
    up = tuple(linear(biased, name, (rows, hidden)) for name in names.up)
    return [up, (linear(biased, names.down, (hidden, inner)),)]


def expert_sites(names: ExpertNames, experts: Experts, hidden: int) -> list[tuple[LinearSpec, ...]]:
    """List the linear layers of all experts by the input that they read, shared ones included."""
    sites: list[tuple[LinearSpec, ...]] = []
    for number in range(experts.count):
        path = f"{names.experts}.{number}"
        of_one = LinearNames(
            up=(f"{path}.{names.gate}", f"{path}.{names.up}"), down=f"{path}.{names.down}"
        )
        for site in mlp_sites(of_one, (), hidden, experts.inner):
            sites.append(tuple(replace(each, expert=number) for each in site))
    if names.shared is None or not experts.shared_inner:
        return sites
    path = names.shared
    shared = LinearNames(up=(f"{path}.gate_proj", f"{path}.up_proj"), down=f"{path}.down_proj")
    of_shared = mlp_sites(shared, (), hidden, experts.shared_inner)
    return of_shared + sites if names.shared_first else sites + of_shared


def linear(biased: Sequence[str], name: str, shape: tuple[int, int]) -> LinearSpec:
    """Describe a linear layer whose tensors are named after its module."""
    return LinearSpec(name, f"{name}.weight", shape, f"{name}.bias" if name in biased else None)


def block_norms(own: Differences, attention: Attention, hidden: int) -> list[Norm]:
    """List the norms of a block, with their places."""
    norms = [
        Norm(f"{name}.weight", hidden, place, f"{name}.bias" if own.norm_bias else None)
        for place, name in own.norms.items()
    ]
    counts = {"queries": attention.heads, "keys": attention.key_heads}
    for place, name in own.head_norms.items():
        heads = counts[place] if own.whole_norms else 1
        norms.append(Norm(f"{name}.weight", heads * attention.head_size, place))
    return norms


def expert_count(config: Config, *, silent: int) -> int:
    """Read the number of experts, under either key that transformers has for it.

    silent is the family's own where the config states none. Too many are refused with the values.

    Raises: BadInput.
    """
    keys = ("num_experts", "num_local_experts")
    key = next((key for key in keys if config.get(key) is not None), None)
    return silent if key is None else positive_integer(config, key)


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


def block_kinds(config: Config, *, every: int) -> list[str]:
    """Read which blocks slide: by layer_types, else all but every so many.

    0 stands for none that slides.

    Raises: BadInput naming the key.
    """
    count = block_count(config)
    check_layer_types(config, count, window=config.get("sliding_window"))
    stated = config.get("layer_types")
    if stated is not None:
        return list(stated)
    return [SLIDING if every and (index + 1) % every else FULL for index in range(count)]


def windows_of(config: Config, kinds: Sequence[str]) -> list[int | None]:
    """Give the window of every block by its kind.

    Raises: BadInput naming the key.
    """
    if SLIDING not in kinds:
        return [None] * len(kinds)
    window = positive_integer(config, "sliding_window")
    return [window if kind == SLIDING else None for kind in kinds]


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
