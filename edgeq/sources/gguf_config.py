"""Write the metadata of a GGUF file as the config.json of the checkpoint it was converted from.

What each architecture states is in `edgeq.sources.gguf_families`; tokenizer files are made by
`edgeq.sources.gguf_tokenizer`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgeq.architectures.llama_cpp import END_KEYS, KNOWN_ENDS, SENTENCEPIECE_IDS
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.sources.gguf_checks import AT_REST, COMPUTED, not_computed
from edgeq.sources.gguf_families import (
    EPSILONS,
    FAMILIES,
    HEADS,
    NOTHING,
    SIZES,
    GgufFamily,
    family_of,
)
from edgeq.sources.gguf_metadata import Metadata, decimal, size
from edgeq.sources.gguf_rope import SCALING_KEYS, rope_scaling, rotated_part, theta_of
from edgeq.types import NumpyArray

# Gemmas that divide scores by the root of hidden size / heads and not of the size of a head:
# llama.cpp knows them by their number of blocks
WIDE_SCORES = {"gemma2": 46, "gemma3": 62}
FULL, SLIDING = "full_attention", "sliding_attention"


def build_config(
    metadata: Metadata,
    *,
    vocab_size: int,
    tensors: Collection[str],
    rope_factors: Mapping[str, NumpyArray],
    dtype: str = "float16",
) -> dict[str, Any]:
    """Write what config.json of the same model says.

    tensors are the names of all in the file, rope_factors the ones among them that divide
    frequencies.

    Raises: BadInput if a hyper-parameter is missing or damaged; UnsupportedModel for architectures
    that are not known, and for what a config of the model type cannot say.
    """
    family = known_family(metadata)
    architecture = str(metadata["general.architecture"])
    head_dim = head_width(metadata, architecture)
    check_keys(metadata, architecture, family)
    config: dict[str, Any] = {
        "architectures": [family.transformers],
        "model_type": family.model_type,
        **family.fixed,
        **stated_sizes(metadata, architecture),
        "head_dim": head_dim,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": vocab_size,
        "torch_dtype": dtype,
        "rope_theta": theta_of(metadata, architecture),
        **stated_keys(metadata, architecture, family),
        **biases_of(tensors, family),
    }
    check_block_count(config, tensors)
    config |= silent_keys(config, family)
    if family.rotated:
        config["partial_rotary_factor"] = rotated(metadata, architecture, head_dim)
    if architecture in WIDE_SCORES:
        wide = config["num_hidden_layers"] == WIDE_SCORES[architecture]
        width = config["hidden_size"] // config["num_attention_heads"] if wide else head_dim
        config["query_pre_attn_scalar"] = width
    if family.every:
        config |= sliding_keys(metadata, architecture, family, config)
    scaling = rope_scaling(metadata, config, rope_factors)
    config |= by_kind(config, scaling) if family.model_type == "olmo3" else scaled(scaling)
    if family.model_type == "falcon":
        config |= generation_of(config, tensors)
    return renamed(config, family) | special_ids(metadata)


def generation_of(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Tell the Falcons of one key head, which is how the first ones are, from those that followed.

    Of these the first have a norm for attention and one for the feed-forward part.
    """
    two_norms = "blk.0.attn_norm_2.weight" in tensors
    newer = two_norms or config["num_key_value_heads"] > 1
    return {
        "new_decoder_architecture": newer,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
    }


def renamed(config: Mapping[str, Any], family: GgufFamily) -> dict[str, Any]:
    """Write the keys of a config as the model type calls them."""
    names = {key: family.names.get(key, key) for key in config}
    return {name: config[key] for key, name in names.items() if name is not None}


def check_whole_model(metadata: Metadata, path: Path) -> None:
    """Refuse files of another kind, such as an importance matrix or an adapter.

    Raises: UnsupportedModel.
    """
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(f"{path} is a GGUF file of type {kind!r:.60}; give that of a model")


def known_family(metadata: Metadata) -> GgufFamily:
    """Find the family of a file; refuse other architectures, and one part of several.

    Raises: UnsupportedModel.
    """
    family = family_of(metadata)
    if family is None:
        architecture = metadata.get("general.architecture")
        raise UnsupportedModel(
            f"GGUF architecture {architecture!r:.60} is not supported; "
            f"give one of {', '.join(FAMILIES)}"
        )
    if metadata.get("split.count", 1) != 1:
        raise UnsupportedModel(
            "the GGUF is one of several parts; join them with llama-gguf-split --merge"
        )
    return family


def head_width(metadata: Metadata, architecture: str) -> int:
    """Read the columns of a head: stated, or hidden size / heads.

    Raises: UnsupportedModel for values of another width than keys, or heads that cannot be rotated.
    """
    key, value = (f"{architecture}.attention.{name}_length" for name in ("key", "value"))
    if key in metadata:
        head_dim = size(metadata, key)
    else:
        hidden = size(metadata, f"{architecture}.embedding_length")
        head_dim = hidden // size(metadata, f"{architecture}.attention.head_count")
    check_width(metadata, value, head_dim)
    if head_dim < 2 or head_dim % 2:
        raise UnsupportedModel(
            f"the GGUF has heads of {head_dim}; rotary embedding needs an even size"
        )
    family = family_of(metadata)
    if family is not None and not family.rotated:
        check_width(metadata, f"{architecture}.rope.dimension_count", head_dim)
    return head_dim


def check_width(metadata: Metadata, key: str, head_dim: int) -> None:
    """Refuse a size that must be that of a head where it is stated.

    Raises: UnsupportedModel.
    """
    width = metadata.get(key, head_dim)
    if width != head_dim:
        raise UnsupportedModel(
            f"the GGUF has {key} {width!r:.60} but heads of {head_dim}; "
            "only equal sizes are supported"
        )


def rotated(metadata: Metadata, architecture: str, head_dim: int) -> float:
    """Read which part of a head is rotated: all of it where the file is silent.

    Raises: BadInput, UnsupportedModel.
    """
    key = f"{architecture}.rope.dimension_count"
    columns = size(metadata, key) if key in metadata else head_dim
    if columns > head_dim or columns % 2:
        raise UnsupportedModel(
            f"the GGUF has {key} {columns}, the columns that are rotated of heads of {head_dim}; "
            "only even numbers up to that are supported"
        )
    return rotated_part(head_dim, columns)


def check_block_count(config: Mapping[str, Any], tensors: Collection[str]) -> None:
    """Refuse a number of blocks that the file cannot hold, before any is described.

    Raises: BadInput.
    """
    count = config["num_hidden_layers"]
    if count > len(tensors):
        raise BadInput(
            f"the GGUF states {count} blocks, but it holds {len(tensors)} tensors; "
            "it is damaged or incomplete, fetch it again"
        )


def check_keys(metadata: Metadata, architecture: str, family: GgufFamily) -> None:
    """Refuse keys of the architecture that nothing here knows.

    Raises: UnsupportedModel naming the first one.
    """
    known = {*SIZES, *HEADS, *EPSILONS, *SCALING_KEYS, *NOTHING, *family.keys, *COMPUTED, *AT_REST}
    for key, value in metadata.items():
        name = key.removeprefix(f"{architecture}.")
        if name != key and name not in known:
            raise not_computed(key, value, family)


def stated_sizes(metadata: Metadata, architecture: str) -> dict[str, Any]:
    """Read what every file must state.

    Raises: BadInput.
    """
    sizes = {name: read(metadata, f"{architecture}.{key}") for key, (name, read) in SIZES.items()}
    heads, key_heads = (f"{architecture}.attention.head_count{end}" for end in ("", "_kv"))
    stated = key_heads if key_heads in metadata else heads
    return sizes | {"num_key_value_heads": size(metadata, stated)}


def stated_keys(metadata: Metadata, architecture: str, family: GgufFamily) -> dict[str, Any]:
    """Read the keys that are the family's own, and the epsilon of its norms.

    Raises: BadInput.
    """
    epsilon, name = family.epsilon
    found = {name: decimal(metadata, f"{architecture}.{epsilon}")}
    for key, (name, read) in family.keys.items():
        whole = f"{architecture}.{key}"
        if whole in metadata or key in family.required:
            found[name] = read(metadata, whole)
    # where the architecture has a value of its own, none is one too
    return {key: found[key] for key in found if found[key] is not None or key in family.fixed}


def biases_of(tensors: Collection[str], family: GgufFamily) -> dict[str, bool]:
    """Say which groups of linear layers have a bias, by the tensors of the first block."""
    return {
        key: all(f"blk.0.{name}.bias" in tensors for name in names)
        for key, names in family.biases.items()
    }


def silent_keys(config: Mapping[str, Any], family: GgufFamily) -> dict[str, Any]:
    """Give what llama.cpp takes where a file does not state it, and transformers otherwise."""
    silent: dict[str, Any] = {}
    names = {name for name, _ in family.keys.values()} - config.keys()
    if "moe_intermediate_size" in names:
        inner = config["intermediate_size"] // config["num_experts_per_tok"]
        silent["moe_intermediate_size"] = inner
    if "shared_expert_intermediate_size" in names:
        silent["shared_expert_intermediate_size"] = config["intermediate_size"]
    if "attention_multiplier" in names:
        silent["attention_multiplier"] = config["head_dim"] ** -0.5
    return silent


def sliding_keys(
    metadata: Metadata, architecture: str, family: GgufFamily, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Say of every block whether it slides: by the file's own pattern, or the architecture's.

    Raises: BadInput for a pattern of another length.
    """
    count, window = config["num_hidden_layers"], config.get("sliding_window")
    if window is None:
        return {"sliding_window": None, "layer_types": [FULL] * count}
    key = f"{architecture}.attention.sliding_window_pattern"
    stated = metadata.get(key, family.every)
    if isinstance(stated, list):
        if len(stated) != count:
            raise BadInput(
                f"the GGUF's {key} has {len(stated)} values for {count} blocks; "
                "convert the model to GGUF again"
            )
        return {"layer_types": [SLIDING if slides else FULL for slides in stated]}
    every = size({key: stated}, key)
    return {
        "layer_types": [FULL if (index + 1) % every == 0 else SLIDING for index in range(count)]
    }


def scaled(scaling: dict[str, Any] | None) -> dict[str, Any]:
    """Write the scaling of rotary embedding under the key of all models."""
    return {} if scaling is None else {"rope_scaling": scaling}


def by_kind(config: dict[str, Any], scaling: dict[str, Any] | None) -> dict[str, Any]:
    """Write rotary embedding by kind of block, where only full attention is scaled."""
    plain = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    return {"rope_parameters": {SLIDING: plain, FULL: {**plain, **(scaling or {})}}}


def special_ids(metadata: Metadata) -> dict[str, Any]:
    """Read the ids of the tokens that begin, end and pad a text, where the GGUF states them.

    Ends are all at which llama.cpp stops.
    """
    keys = {"bos_token_id": "bos", "pad_token_id": "padding", "unk_token_id": "unknown"}
    found = {name: token_id(metadata, key) for name, key in keys.items()}
    stated: dict[str, Any] = {name: int(id) for name, id in found.items() if id is not None}
    stated.setdefault("pad_token_id", None)  # else transformers takes one of the model type's own
    ends = end_ids(metadata)
    if ends:
        stated["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return stated


def token_id(metadata: Metadata, key: str) -> Any:
    """Read the id of a special token by its name in GGUF, or what llama.cpp takes without one."""
    known = SENTENCEPIECE_IDS if metadata.get("tokenizer.ggml.model") == "llama" else {}
    return metadata.get(f"tokenizer.ggml.{key}_token_id", known.get(key))


def end_ids(metadata: Metadata) -> list[int]:
    """List the ids of the tokens that end a text or a turn, those with keys of their own first."""
    keyed = [token_id(metadata, key) for key in END_KEYS]
    tokens = metadata.get("tokenizer.ggml.tokens")
    known = [index for index, token in enumerate(tokens or ()) if token in KNOWN_ENDS]
    return list(dict.fromkeys([int(id) for id in keyed if id is not None] + known))
