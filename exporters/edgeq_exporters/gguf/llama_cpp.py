"""State what llama.cpp does by itself for an architecture, whatever the keys of a file say.

What it reads from keys is written by `edgeq_exporters.gguf.metadata`.
Source: src/llama-model.cpp and src/models of llama.cpp, build b9190.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgeq.architectures.features import WINDOWS
from edgeq.architectures.rope import distinct_ropes
from edgeq.decoder import Attention, Decoder

YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
"""Settings of YaRN that llama.cpp's graphs have no keys for."""
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # by which llama.cpp knows these sizes of Gemma


@dataclass(frozen=True, slots=True)
class Own:
    """The habits of one architecture.

    head: it wants a head of its own, takes the embedding for it, or either. normed_experts: the
    weights of chosen experts sum to one, or do not; None where a key says. divided_logits: its key
    is what logits are divided by. unrotated: every so manieth block does not rotate.
    sliding_rotate: only blocks with a window do. period: the last of so many blocks sees
    everything, and the others have a window; 0 where no block has one. only_blocks: it has windows
    in models of so many blocks alone; 0 for any. always_slides: it has them whatever keys say.
    all_key_heads: it has as many heads of keys as of queries. all_biases: it wants every bias that
    it has a place for.
    """

    head: Literal["own", "embedding", "either"] = "either"
    normed_experts: bool | None = None
    divided_logits: bool = False
    unrotated: int = 0
    sliding_rotate: bool = False
    period: int = 0
    only_blocks: int = 0
    always_slides: bool = False
    all_key_heads: bool = False
    all_biases: bool = False


ARCHITECTURES: Mapping[str, Own] = {
    "bloom": Own(unrotated=1),
    "cohere2": Own(head="embedding", period=4, sliding_rotate=True, always_slides=True),
    "command-r": Own(head="embedding"),
    "exaone4": Own(period=4, sliding_rotate=True, only_blocks=64, always_slides=True),
    "gemma": Own(head="embedding"),
    "gemma2": Own(head="embedding", period=2, always_slides=True),
    "gemma3": Own(head="either", period=6),
    "gpt2": Own(unrotated=1),
    "gptneox": Own(head="own", all_biases=True),
    "granite": Own(divided_logits=True),
    "granitemoe": Own(divided_logits=True, normed_experts=True),
    "llama": Own(normed_experts=True),
    "nemotron": Own(head="own"),
    "olmo2": Own(head="own", period=4),
    "olmoe": Own(head="own", normed_experts=False, all_key_heads=True),
    "phi2": Own(head="own"),
    "qwen2moe": Own(normed_experts=False),
    "qwen3moe": Own(normed_experts=True),
    "smollm3": Own(unrotated=4),
    "stablelm": Own(head="own"),
    "starcoder2": Own(all_biases=True),
}


def own_of(decoder: Decoder) -> Own:
    """Give the habits of the architecture that a model has in llama.cpp."""
    assert decoder.names.gguf is not None
    own = ARCHITECTURES.get(decoder.names.gguf.architecture, Own())
    if own.only_blocks not in (0, len(decoder.layers)):
        return replace(own, period=0, sliding_rotate=False, always_slides=False)
    return own


def windows_of(decoder: Decoder) -> list[int | None]:
    """List the windows of all blocks, None for those that see everything."""
    return [None if layer.attention is None else layer.attention.window for layer in decoder.layers]


def period_of(decoder: Decoder) -> int | None:
    """Find the period in which llama.cpp computes the windows of a model, or None.

    The last block of each period sees everything; one such block at least is needed.
    """
    windows = windows_of(decoder)
    if not own_of(decoder).period or len({each for each in windows if each is not None}) > 1:
        return None
    slides = [window is not None for window in windows]
    for period in range(1, len(slides) + 1):
        if slides == [(index + 1) % period != 0 for index in range(len(slides))]:
            return period
    return None


def computes_windows(decoder: Decoder) -> bool:
    """Say whether llama.cpp computes the windows of a model as they are."""
    assert decoder.names.gguf is not None
    return WINDOWS in decoder.names.gguf.computes and period_of(decoder) is not None


def sliding_blocks(decoder: Decoder) -> list[bool]:
    """Say of every block whether it slides for llama.cpp, by the keys that are written."""
    own, count = own_of(decoder), len(decoder.layers)
    windows = windows_of(decoder)
    if any(windows) and computes_windows(decoder):
        return [window is not None for window in windows]
    return [own.always_slides and (index + 1) % own.period != 0 for index in range(count)]


def context_of(decoder: Decoder) -> int:
    """Count the tokens of the longest text: up to the window where llama.cpp computes none."""
    whole = decoder.context if computes_windows(decoder) else decoder.whole_context
    assert whole is not None
    return whole


def why_not_habits(decoder: Decoder) -> str | None:
    """Say what llama.cpp computes otherwise by itself than a model does, or None."""
    own, kind = own_of(decoder), decoder.model_type
    if own.head == "own" and decoder.tied_head:
        return (
            f"the head of this {kind} model is its embedding, but llama.cpp's "
            "has one of its own; choose another format"
        )
    if own.head == "embedding" and not decoder.tied_head:
        return (
            f"this {kind} model has a head of its own, but llama.cpp's is its embedding; "
            "choose another format"
        )
    if own.all_key_heads and decoder.attention.heads != decoder.attention.key_heads:
        return (
            f"num_key_value_heads {decoder.attention.key_heads}: llama.cpp's {kind} has a key head "
            f"for each of the {decoder.attention.heads} heads; choose another format"
        )
    return (
        _why_not_yarn(decoder)
        or _why_not_biases(decoder, own)
        or _why_not_experts(decoder, own)
        or _why_not_scale(decoder)
        or _why_not_blocks(decoder, own)
    )


def _why_not_yarn(decoder: Decoder) -> str | None:
    """Refuse YaRN between other frequencies than those that llama.cpp takes, whatever keys say."""
    for rope in distinct_ropes(decoder):
        for key, taken in YARN.items():
            stated = rope.settings.get(key)
            if rope.kind == "yarn" and stated is not None and stated != taken:
                return (
                    f"{key} {stated} of rope type 'yarn': llama.cpp computes it with {taken}; "
                    "choose another format"
                )
    return None


def _why_not_biases(decoder: Decoder, own: Own) -> str | None:
    assert decoder.names.gguf is not None
    for linear in decoder.layers[0].linears:
        if own.all_biases and linear.bias is None and linear.name in decoder.names.gguf.biased:
            return (
                f"{linear.name} has no bias, and llama.cpp's {decoder.model_type} needs one; "
                "choose another format"
            )
    return None


def _why_not_experts(decoder: Decoder, own: Own) -> str | None:
    for layer in decoder.layers:
        experts = None if layer.mlp is None else layer.mlp.experts
        if experts is None or own.normed_experts in (None, experts.normed):
            continue
        does, not_here = ("", "do not") if own.normed_experts else (" not", "do")
        return (
            f"norm_topk_prob: in llama.cpp the weights of a {decoder.model_type} model's experts "
            f"are{does} made to sum to one, here they {not_here}; choose another format"
        )
    return None


def _why_not_scale(decoder: Decoder) -> str | None:
    """Refuse scales of scores other than those that llama.cpp goes by for Gemma."""
    assert decoder.names.gguf is not None
    architecture, attention = decoder.names.gguf.architecture, decoder.attention
    if architecture not in LAYERS_OF_27B or attention.scale is None:
        return None
    width = attention.head_size
    if len(decoder.layers) == LAYERS_OF_27B[architecture]:
        width = decoder.hidden // attention.heads
    stated = attention.scale**-2
    if abs(stated - width) < 1e-6 * width:
        return None
    return (
        f"query_pre_attn_scalar {stated:.6g}: llama.cpp divides the scores of this "
        f"{decoder.model_type} model by the root of {width}; choose another format"
    )


def _why_not_blocks(decoder: Decoder, own: Own) -> str | None:
    """Refuse blocks that rotate, or do not, or slide, otherwise than llama.cpp's."""
    attentions = [layer.attention for layer in decoder.layers if layer.attention is not None]
    slides = sliding_blocks(decoder)
    if all(slides):
        return (
            f"all blocks of this {decoder.model_type} model slide in llama.cpp, which needs one "
            "that sees everything; choose another format"
        )
    for index, attention in enumerate(attentions):
        expected = True
        if own.unrotated:
            expected = (index + 1) % own.unrotated != 0
        if own.sliding_rotate:
            expected = slides[index]
        if (attention.rope is not None) != expected:
            verb = "rotates" if expected else "does not rotate"
            return (
                f"block {index} of a {decoder.model_type} model {verb} in llama.cpp, "
                "and here it is the other way round; choose another format"
            )
    if not (own.sliding_rotate or len(distinct_ropes(decoder)) > 1):
        return None
    if period_of(decoder) is not None and _rotate_alike(attentions):
        return None
    return (
        f"blocks of this {decoder.model_type} model slide or rotate in an order "
        "that llama.cpp does not compute: it goes by periods; choose another format"
    )


def _rotate_alike(attentions: Sequence[Attention]) -> bool:
    """Say whether all blocks with a window rotate by one rule, and all without one."""
    kinds = {(each.window is not None, id(each.rope)) for each in attentions if each.rope}
    return len(kinds) == len({slides for slides, _ in kinds})
