"""Say, for each architecture of GGUF files, how they state the config of its model type.

A key of the file that is known neither here nor to `edgeq.sources.gguf_checks` is refused: it may
change what is computed. What
llama.cpp takes for granted of an architecture, and no file states, is `fixed`.

Source: llama.cpp, convert_hf_to_gguf.py (what is written) and src/models (what is computed).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeq.sources.gguf_metadata import (
    Metadata,
    decimal,
    decimal_or_nothing,
    flag,
    size,
    size_or_nothing,
)

Read = Callable[[Metadata, str], Any]
Keys = Mapping[str, tuple[str, Read]]

SIZES: Keys = {
    "block_count": ("num_hidden_layers", size),
    "embedding_length": ("hidden_size", size),
    "attention.head_count": ("num_attention_heads", size),
    "context_length": ("max_position_embeddings", size),
    "feed_forward_length": ("intermediate_size", size),
}
"""Keys that every file of a language model must have."""
HEADS = ("attention.head_count_kv", "attention.key_length", "attention.value_length")
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
NOTHING = (
    "vocab_size",
    "tensor_data_layout",
    "pooling_type",
    "attention.sliding_window_pattern",
)
"""Keys by which no logit changes, or that count beside others alone."""


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """How files of one architecture state the config of a model type.

    keys are those beside the ones of all, required those of them that a file must have. biases are
    config keys with the tensors of a block that are there where the key is true. every: all but
    every so many blocks slide, 0 where none does. rotated: a part of each head may be. at_rest are
    values, as in `edgeq.sources.gguf_checks`, that are other ones for this architecture. names are
    what the model type calls keys of a Llama's config; None for those that it does not have.
    """

    model_type: str
    transformers: str
    epsilon: tuple[str, str] = (EPSILONS[0], "rms_norm_eps")
    keys: Keys = field(default_factory=dict)
    required: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    every: int = 0
    rotated: bool = False
    at_rest: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    names: Mapping[str, str | None] = field(default_factory=dict)


QUERIES_KEYS_VALUES = ("attn_q", "attn_k", "attn_v")
ATTENTION = (*QUERIES_KEYS_VALUES, "attn_output")
GATED = ("ffn_gate", "ffn_up", "ffn_down")
PLAIN = ("ffn_up", "ffn_down")
OF_ATTENTION = {"attention_bias": ATTENTION}
OF_BOTH = {"attention_bias": ATTENTION, "mlp_bias": GATED}
OF_INPUTS = {"attention_bias": QUERIES_KEYS_VALUES}
TANH = "gelu_pytorch_tanh"
WINDOW: Keys = {"attention.sliding_window": ("sliding_window", size_or_nothing)}
SOFT_CAPS: Keys = {
    "attn_logit_softcapping": ("attn_logit_softcapping", decimal),
    "final_logit_softcapping": ("final_logit_softcapping", decimal),
}
LOGIT_SCALE: Keys = {"logit_scale": ("logit_scale", decimal)}
SCALES: Keys = {
    "attention.scale": ("attention_multiplier", decimal_or_nothing),
    "embedding_scale": ("embedding_multiplier", decimal_or_nothing),
    "residual_scale": ("residual_multiplier", decimal_or_nothing),
    "logit_scale": ("logits_scaling", decimal),
}
EXPERTS: Keys = {
    "expert_count": ("num_experts", size),
    "expert_used_count": ("num_experts_per_tok", size),
}
EXPERT_WIDTH: Keys = {"expert_feed_forward_length": ("moe_intermediate_size", size)}
SHARED_WIDTH: Keys = {
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size", size)
}
COUNTS = tuple(EXPERTS)

NO_KEY_HEADS: Mapping[str, str | None] = {"num_key_value_heads": None, "head_dim": None}
OF_GPT2: Mapping[str, str | None] = {
    **NO_KEY_HEADS,
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "rope_theta": None,
}
OF_BLOOM: Mapping[str, str | None] = {
    **NO_KEY_HEADS,
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "seq_length",
    "intermediate_size": None,
    "rope_theta": None,
}
OF_NEOX: Mapping[str, str | None] = {
    **NO_KEY_HEADS,
    "partial_rotary_factor": "rotary_pct",
    "rope_theta": "rotary_emb_base",
}
OF_FALCON: Mapping[str, str | None] = {
    "head_dim": None,
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "ffn_hidden_size",
}

LLAMA = GgufFamily("llama", "LlamaForCausalLM", biases=OF_BOTH, fixed={"hidden_act": "silu"})
MIXTRAL = GgufFamily(
    "mixtral",
    "MixtralForCausalLM",
    keys={
        "expert_count": ("num_local_experts", size),
        "expert_used_count": ("num_experts_per_tok", size),
    },
    required=COUNTS,
    fixed={"sliding_window": None},
)
OLMO2 = GgufFamily("olmo2", "Olmo2ForCausalLM")
OLMO3 = GgufFamily("olmo3", "Olmo3ForCausalLM", keys=WINDOW, every=4)

FAMILIES: Mapping[str, GgufFamily] = {
    "llama": LLAMA,
    "qwen2": GgufFamily("qwen2", "Qwen2ForCausalLM", fixed={"use_sliding_window": False}),
    "qwen3": GgufFamily(
        "qwen3", "Qwen3ForCausalLM", biases=OF_ATTENTION, fixed={"use_sliding_window": False}
    ),
    "qwen2moe": GgufFamily(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        keys={**EXPERTS, **EXPERT_WIDTH, **SHARED_WIDTH},
        required=COUNTS,
        biases={"qkv_bias": QUERIES_KEYS_VALUES},
        fixed={"norm_topk_prob": False, "decoder_sparse_step": 1, "use_sliding_window": False},
    ),
    "qwen3moe": GgufFamily(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        keys={**EXPERTS, **EXPERT_WIDTH},
        required=COUNTS,
        biases=OF_ATTENTION,
        fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "use_sliding_window": False},
    ),
    "olmoe": GgufFamily(
        "olmoe",
        "OlmoeForCausalLM",
        keys=EXPERTS,
        required=COUNTS,
        fixed={"norm_topk_prob": False},
    ),
    "gemma": GgufFamily(
        "gemma", "GemmaForCausalLM", fixed={"hidden_act": TANH, "hidden_activation": TANH}
    ),
    "gemma2": GgufFamily(
        "gemma2",
        "Gemma2ForCausalLM",
        keys={**WINDOW, **SOFT_CAPS},
        fixed={
            "hidden_activation": TANH,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        every=2,
    ),
    "gemma3": GgufFamily(
        "gemma3_text",
        "Gemma3ForCausalLM",
        keys={
            **WINDOW,
            "final_logit_softcapping": ("final_logit_softcapping", decimal_or_nothing),
            "rope.freq_base_swa": ("rope_local_base_freq", decimal),
        },
        fixed={"hidden_activation": TANH, "rope_local_base_freq": 10000.0},
        every=6,
    ),
    "phi2": GgufFamily(
        "phi",
        "PhiForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_eps"),
        fixed={"hidden_act": "gelu_new"},
        rotated=True,
    ),
    "phi3": GgufFamily(
        "phi3",
        "Phi3ForCausalLM",
        keys={
            **WINDOW,
            "rope.scaling.original_context_length": ("original_max_position_embeddings", size),
        },
        fixed={"hidden_act": "silu"},
        rotated=True,
    ),
    "smollm3": GgufFamily(
        "smollm3",
        "SmolLM3ForCausalLM",
        biases=OF_BOTH,
        fixed={"no_rope_layer_interval": 4, "use_sliding_window": False},
    ),
    "granite": GgufFamily(
        "granite",
        "GraniteForCausalLM",
        keys=SCALES,
        required=("logit_scale",),
        biases=OF_BOTH,
        at_rest={"rope.scaling.finetuned": (True,)},  # by which llama.cpp decides whether to rotate
    ),
    "olmo2": OLMO2,
    "olmo": GgufFamily(
        "olmo",
        "OlmoForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_eps"),
        keys={"attention.clamp_kqv": ("clip_qkv", decimal_or_nothing)},
        fixed={"hidden_act": "silu"},
    ),
    "starcoder2": GgufFamily(
        "starcoder2",
        "Starcoder2ForCausalLM",
        epsilon=(EPSILONS[1], "norm_epsilon"),
        biases={"use_bias": (*ATTENTION, *PLAIN)},
        fixed={"hidden_act": TANH, "sliding_window": None},
    ),
    "stablelm": GgufFamily(
        "stablelm",
        "StableLmForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_eps"),
        biases={"use_qkv_bias": QUERIES_KEYS_VALUES},
        fixed={"hidden_act": "silu"},
        rotated=True,
    ),
    "command-r": GgufFamily(
        "cohere",
        "CohereForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_eps"),
        keys=LOGIT_SCALE,
        required=("logit_scale",),
        fixed={"hidden_act": "silu"},
    ),
    "cohere2": GgufFamily(
        "cohere2",
        "Cohere2ForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_eps"),
        keys={**LOGIT_SCALE, **WINDOW},
        required=("logit_scale", "attention.sliding_window"),
        fixed={"hidden_act": "silu"},
        every=4,
    ),
    "seed_oss": GgufFamily(
        "seed_oss",
        "SeedOssForCausalLM",
        biases={**OF_INPUTS, "attention_out_bias": ("attn_output",), "mlp_bias": GATED},
    ),
    "arcee": GgufFamily("arcee", "ArceeForCausalLM", fixed={"hidden_act": "relu2"}),
    "nemotron": GgufFamily(
        "nemotron",
        "NemotronForCausalLM",
        epsilon=(EPSILONS[1], "norm_eps"),
        biases={"attention_bias": ATTENTION, "mlp_bias": PLAIN},
        fixed={"hidden_act": "relu2"},
        rotated=True,
    ),
    "ernie4_5": GgufFamily(
        "ernie4_5", "Ernie4_5ForCausalLM", biases={"use_bias": (*ATTENTION, *GATED)}
    ),
    "exaone4": GgufFamily("exaone4", "Exaone4ForCausalLM", keys=WINDOW, every=4),
    "chatglm": GgufFamily("glm", "GlmForCausalLM", biases=OF_INPUTS, rotated=True),
    "glm4": GgufFamily("glm4", "Glm4ForCausalLM", biases=OF_INPUTS, rotated=True),
    "gpt2": GgufFamily(
        "gpt2",
        "GPT2LMHeadModel",
        epsilon=(EPSILONS[1], "layer_norm_epsilon"),
        fixed={"activation_function": "gelu_new"},
        names=OF_GPT2,
    ),
    "gptneox": GgufFamily(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_eps"),
        keys={"use_parallel_residual": ("use_parallel_residual", flag)},
        required=("use_parallel_residual",),
        biases={"attention_bias": ("attn_qkv", "attn_output")},
        fixed={"hidden_act": "gelu"},
        rotated=True,
        names=OF_NEOX,
    ),
    "bloom": GgufFamily(
        "bloom",
        "BloomForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_epsilon"),
        names=OF_BLOOM,
    ),
    "falcon": GgufFamily(
        "falcon",
        "FalconForCausalLM",
        epsilon=(EPSILONS[1], "layer_norm_epsilon"),
        fixed={"alibi": False, "parallel_attn": True, "multi_query": True, "activation": "gelu"},
        names=OF_FALCON,
    ),
    "hunyuan-dense": GgufFamily(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", biases=OF_ATTENTION
    ),
}
"""Families by the architecture that a file states; some hold several, see `family_of`."""


def family_of(metadata: Metadata) -> GgufFamily | None:
    """Choose the family of a file by its architecture, and by what tells relatives apart."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        return None
    if architecture == "llama" and metadata.get("llama.expert_count"):
        return MIXTRAL
    if architecture == "olmo2" and metadata.get("olmo2.attention.sliding_window"):
        return OLMO3
    return FAMILIES.get(architecture)
