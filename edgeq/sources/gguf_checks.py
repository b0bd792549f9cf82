"""Compare the keys of a GGUF file that its config has no key for with what the model computes.

Files may state what llama.cpp takes for granted of an architecture. A value by which something else
would be computed is refused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgeq.decoder import Decoder, Experts
from edgeq.errors import UnsupportedModel
from edgeq.sources.gguf_families import GgufFamily, family_of
from edgeq.sources.gguf_metadata import Metadata

CLOSE = 1e-5  # of numbers that a file has in float32
GATING = {"softmax": 1, "sigmoid": 2}  # llama.cpp's numbers


def of_experts(value: Callable[[Experts], Any]) -> Callable[[Decoder], Any]:
    """Make the function that reads a value of a decoder's mixture: 0 without one."""

    def read(decoder: Decoder) -> Any:
        mixtures = (layer.mlp.experts for layer in decoder.layers if layer.mlp is not None)
        experts = next((each for each in mixtures if each is not None), None)
        return 0 if experts is None else value(experts)

    return read


def first_mixture(decoder: Decoder) -> int:
    """Count the blocks before the first one that has experts; 0 where none has."""
    mixed = [layer.mlp is not None and layer.mlp.experts is not None for layer in decoder.layers]
    return mixed.index(True) if any(mixed) else 0


def scale_of_scores(decoder: Decoder) -> float:
    """Give what scores are multiplied by."""
    attention = decoder.attention
    return attention.head_size**-0.5 if attention.scale is None else attention.scale


def theta_of_windows(decoder: Decoder) -> float:
    """Give the base by which blocks that slide rotate, or all where none does."""
    attentions = [layer.attention for layer in decoder.layers if layer.attention is not None]
    sliding = [each.rope for each in attentions if each.window is not None and each.rope]
    return sliding[0].theta if sliding else decoder.rope.theta


COMPUTED: Mapping[str, Callable[[Decoder], Any]] = {
    "attention.scale": scale_of_scores,
    "attention.sliding_window": lambda decoder: decoder.window,
    "attn_logit_softcapping": lambda decoder: decoder.attention.soft_cap,
    "final_logit_softcapping": lambda decoder: decoder.logit_cap,
    "embedding_scale": lambda decoder: decoder.embedding_scale,
    "residual_scale": lambda decoder: decoder.residual_scale,
    "logit_scale": lambda decoder: decoder.logit_scale,
    "use_parallel_residual": lambda decoder: decoder.parallel,
    "rope.freq_base_swa": theta_of_windows,
    "leading_dense_block_count": first_mixture,
    "expert_count": of_experts(lambda experts: experts.count),
    "expert_used_count": of_experts(lambda experts: experts.per_token),
    "expert_feed_forward_length": of_experts(lambda experts: experts.inner),
    "expert_shared_feed_forward_length": of_experts(lambda experts: experts.shared_inner),
    "expert_shared_count": of_experts(lambda experts: experts.shared_inner // experts.inner),
    "expert_gating_func": of_experts(lambda experts: GATING[experts.router]),
    "expert_weights_norm": of_experts(lambda experts: experts.normed),
    "expert_weights_scale": of_experts(lambda experts: experts.scale),
}
"""Keys with what a model computes; 0 states nothing in all of them but flags."""
AT_REST: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "nextn_predict_layers": (0,),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "router_logit_softcapping": (0,),
}
"""Keys of what no model here computes, with the values by which it is not asked for."""


def check_computed(metadata: Metadata, decoder: Decoder) -> None:
    """Refuse keys by which more or something else would be computed than the model computes.

    Raises: UnsupportedModel naming the first one.
    """
    family, architecture = family_of(metadata), metadata["general.architecture"]
    assert family is not None
    at_rest = {**AT_REST, **family.at_rest}
    for key, value in metadata.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in family.keys:
            continue
        if name in COMPUTED and not states(value, COMPUTED[name](decoder)):
            raise not_computed(key, value, family)
        if name in at_rest and name not in COMPUTED and value not in at_rest[name]:
            raise not_computed(key, value, family)


def states(value: Any, computed: Any) -> bool:
    """Say whether a key states what is computed, or nothing."""
    if isinstance(value, bool) or isinstance(computed, bool):
        return bool(value) == bool(computed)
    if not isinstance(value, int | float):
        return False
    return value == 0 or math.isclose(value, computed or 0, rel_tol=CLOSE)


def not_computed(key: str, value: Any, family: GgufFamily) -> UnsupportedModel:
    """Make the refusal of a key."""
    return UnsupportedModel(
        f"the GGUF has {key!r:.100} {value!r:.60}, by which a {family.model_type} model is "
        "not computed here; give another model"
    )
