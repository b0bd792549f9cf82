"""Rebuild the byte-level BPE tokenizer inside a GGUF file as tokenizer.json and its companions."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from edgeq.errors import BadInput, UnsupportedModel
from edgeq.sources.gguf_config import end_ids

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF token types

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TIKTOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What llama.cpp does for "default": punctuation alone, then GPT-2's rule, then digits in threes
# from the left.
DEFAULT_PATTERNS = (r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]")

Metadata = Mapping[str, Any]


def split_by_gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def split_single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split_by_gpt2()])


def split_by(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def split_like_llama3() -> Any:
    return split_by(TIKTOKEN_PATTERN % 3)


def split_like_qwen2() -> Any:
    # Qwen writes \p{N}, which is \p{N}{1,1}; its own spelling keeps the file recognisable.
    return split_by(TIKTOKEN_PATTERN.replace("{1,%d}", ""))


def split_like_default() -> Any:
    return split_by(*DEFAULT_PATTERNS)


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "smollm": split_single_digits,
    "llama-bpe": split_like_llama3,
    "llama3": split_like_llama3,
    "smaug-bpe": split_like_llama3,
    "qwen2": split_like_qwen2,
    "gpt-2": split_by_gpt2,
    "default": split_like_default,
}
# whole words before merges, and a text begins with the bos token
LLAMA3_NAMES = ("llama-bpe", "llama3")


def tokenizer_files(metadata: Metadata) -> dict[str, bytes]:
    """Write the tokenizer files and generation_config.json of a GGUF's vocabulary.

    Raises: UnsupportedModel for other tokenizers than byte-level BPE; BadInput for a damaged
    vocabulary.
    """
    tokens = read_tokens(metadata)
    tokenizer = build_tokenizer(metadata, tokens)
    ids = special_ids(metadata, tokens)
    generation: dict[str, Any] = {
        f"{name}_token_id": ids[name] for name in ids if name not in ("eos", "unk")
    }
    ends = end_ids(metadata)
    if ends:
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": as_json(tokenizer_config(metadata, tokens)),
        "generation_config.json": as_json(generation),
    }


def as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def read_tokens(metadata: Metadata) -> Sequence[str]:
    """Read the vocabulary, in order of ids.

    Raises: UnsupportedModel, BadInput.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedModel(
            f"GGUF tokenizer model {model!r} is not supported; only gpt2 (byte-level BPE) is"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if (
        not isinstance(tokens, list)
        or not tokens
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise BadInput(
            "the GGUF has no vocabulary in tokenizer.ggml.tokens; convert the model to GGUF again"
        )
    return tokens


def token_types(metadata: Metadata, tokens: Sequence[str]) -> Sequence[int]:
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(types) != len(tokens):
        raise BadInput(
            f"the GGUF has {len(tokens)} tokens but {len(types)} token types; "
            "convert the model again"
        )
    return [int(kind) for kind in types]


def build_tokenizer(metadata: Metadata, tokens: Sequence[str]) -> Tokenizer:
    """Build the tokenizer: vocabulary, merges, special tokens, and the cuts before merging."""
    name = pre_tokenizer_name(metadata)
    types = token_types(metadata, tokens)
    vocabulary = build_vocabulary(tokens, types)
    merges = read_merges(metadata, vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in LLAMA3_NAMES)
    )
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = build_post_processor(metadata, tokens)
    tokenizer.add_special_tokens(added_tokens(tokens, types, CONTROL))
    tokenizer.add_tokens(added_tokens(tokens, types, USER_DEFINED))
    return tokenizer


def pre_tokenizer_name(metadata: Metadata) -> str:
    """Read which rule cuts a text into words.

    Raises: UnsupportedModel naming a rule that is not known.
    """
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnsupportedModel(
            f"GGUF pre-tokenizer {name!r} is not supported; supported are {known}"
        )
    return name


def build_vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Map tokens to ids, without the fillers [PAD7] that converters put at ids which no token has.

    Raises: BadInput for a token that is named twice.
    """
    fillers = {
        index
        for index, kind in enumerate(types)
        if kind == UNUSED and tokens[index] == f"[PAD{index}]"
    }
    used = [index for index in range(len(types)) if index not in fillers]
    vocabulary = {tokens[index]: index for index in used}
    if len(vocabulary) != len(used):
        twice = next(tokens[index] for index in used if vocabulary[tokens[index]] != index)
        raise BadInput(
            f"the GGUF's vocabulary names the token {twice!r} twice; "
            "convert the model to GGUF again"
        )
    return vocabulary


def read_merges(metadata: Metadata, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Read the pairs that BPE joins, most urgent first.

    Raises: BadInput if one is no pair of known tokens.
    """
    pairs = []
    for merge in metadata.get("tokenizer.ggml.merges", []):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or not {left, right, left + right} <= vocabulary.keys():
            raise BadInput(
                f"the GGUF's merge {merge!r} is not a pair of known tokens; "
                "convert the model to GGUF again"
            )
        pairs.append((left, right))
    return pairs


def added_tokens(tokens: Sequence[str], types: Sequence[int], kind: int) -> list[AddedToken]:
    """List the tokens of a kind, which are found in a text before anything else happens to it."""
    return [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, token_kind in zip(tokens, types, strict=True)
        if token_kind == kind
    ]


def special_ids(metadata: Metadata, tokens: Sequence[str]) -> dict[str, int]:
    """Read the ids of bos, eos, unk and pad, where the GGUF states them.

    Raises: BadInput for an id beyond the vocabulary.
    """
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    for name, index in found.items():
        if index is not None and not 0 <= index < len(tokens):
            raise BadInput(
                f"the GGUF's {name} token has id {index} in a vocabulary of {len(tokens)}; "
                "convert it again"
            )
    return {name: int(index) for name, index in found.items() if index is not None}


def adds_token(metadata: Metadata, name: str) -> bool:
    """Say whether a text is given a bos or eos token.

    Where the GGUF is silent, only Llama 3 adds one, at the beginning.
    """
    default = name == "bos" and pre_tokenizer_name(metadata) in LLAMA3_NAMES
    return bool(metadata.get(f"tokenizer.ggml.add_{name}_token", default))


def build_post_processor(metadata: Metadata, tokens: Sequence[str]) -> Any:
    """Put bos and eos around a text where the GGUF asks for it."""
    ids = special_ids(metadata, tokens)
    added = [name for name in ("bos", "eos") if name in ids and adds_token(metadata, name)]
    ends = {name: tokens[ids[name]] for name in added}
    byte_level = processors.ByteLevel(trim_offsets=False)
    if not ends:
        return byte_level
    before, after = ends.get("bos"), ends.get("eos")
    template = processors.TemplateProcessing(
        single=[token for token in (before, "$A", after) if token],
        pair=[
            f"{token}:{part}"
            for part, text in enumerate("AB")
            for token in (before, f"${text}", after)
            if token
        ],
        special_tokens=[(tokens[ids[name]], ids[name]) for name in ends],
    )
    return processors.Sequence([byte_level, template])


def tokenizer_config(metadata: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    """Write what tokenizer_config.json says beside tokenizer.json.

    That is special tokens by name, and the chat template.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, index in special_ids(metadata, tokens).items():
        config[f"{name}_token"] = tokens[index]
    for name in ("bos", "eos"):
        if f"tokenizer.ggml.add_{name}_token" in metadata or adds_token(metadata, name):
            config[f"add_{name}_token"] = adds_token(metadata, name)
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    if "llama.context_length" in metadata:
        config["model_max_length"] = int(metadata["llama.context_length"])
    return config
