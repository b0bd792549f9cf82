"""Rebuild the tokenizer inside a GGUF file as tokenizer.json and its companions.

Byte-level BPE, and BPE of SentencePiece's kind: see `edgeq.sources.gguf_sentencepiece`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, processors

from edgeq.architectures.word_splits import WordSplit, known_names, named_split
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.sources.gguf_config import end_ids, token_id
from edgeq.sources.gguf_sentencepiece import UNKNOWN, sentencepiece_model, sentencepiece_parts

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF token types
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # GGUF's names of tokenizer models

Metadata = Mapping[str, Any]


def tokenizer_files(metadata: Metadata) -> dict[str, bytes]:
    """Write the tokenizer files and generation_config.json of a GGUF's vocabulary.

    Raises: UnsupportedModel for other tokenizers than BPE; BadInput for a damaged vocabulary.
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
    if model not in (BYTE_LEVEL, SENTENCEPIECE):
        raise UnsupportedModel(
            f"GGUF tokenizer model {model!r} is not supported; "
            "supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)"
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
    types = token_types(metadata, tokens)
    vocabulary = build_vocabulary(tokens, types)
    if is_sentencepiece(metadata):
        unknown = special_ids(metadata, tokens).get("unk")
        named = None if unknown is None else tokens[unknown]
        model = sentencepiece_model(metadata, vocabulary, types, named)
        parts = sentencepiece_parts(metadata)
    else:
        split = word_split(metadata)
        merges = read_merges(metadata, vocabulary)
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole_words)
        parts = byte_level_parts(split)
    empty: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "truncation": None,
        "padding": None,
    }
    empty |= {"post_processor": None, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    tokenizer = Tokenizer.from_str(json.dumps(empty | parts))
    tokenizer.model = model
    tokenizer.post_processor = build_post_processor(metadata, tokens)
    special = (CONTROL, UNKNOWN) if is_sentencepiece(metadata) else (CONTROL,)
    for kind in special:
        tokenizer.add_special_tokens(added_tokens(tokens, types, kind, special=True))
    tokenizer.add_tokens(added_tokens(tokens, types, USER_DEFINED, special=False))
    return tokenizer


def is_sentencepiece(metadata: Metadata) -> bool:
    return metadata.get("tokenizer.ggml.model") == SENTENCEPIECE


def word_split(metadata: Metadata) -> WordSplit:
    """Read which rule cuts a text into words.

    Raises: UnsupportedModel naming a rule that is not known.
    """
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    split = named_split(name)
    if split is None:
        known = ", ".join(known_names())
        raise UnsupportedModel(
            f"GGUF pre-tokenizer {name!r} is not supported; supported are {known}"
        )
    return split


def byte_level_parts(split: WordSplit) -> dict[str, Any]:
    """Write the parts of tokenizer.json around the model: how text is cut into words of bytes."""
    steps = list(split.steps)
    one_step = len(steps) == 1
    return {
        "normalizer": {"type": "NFC"} if split.composed else None,
        "pre_tokenizer": steps[0] if one_step else {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
        | {"use_regex": True},
    }


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
        if not isinstance(merge, str):
            raise BadInput(
                f"the GGUF's merge {merge!r:.60} is no text; convert the model to GGUF again"
            )
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or not {left, right, left + right} <= vocabulary.keys():
            raise BadInput(
                f"the GGUF's merge {merge!r} is not a pair of known tokens; "
                "convert the model to GGUF again"
            )
        pairs.append((left, right))
    return pairs


def added_tokens(
    tokens: Sequence[str], types: Sequence[int], kind: int, *, special: bool
) -> list[AddedToken]:
    """List the tokens of a kind, which are found in a text before anything else happens to it."""
    return [
        AddedToken(token, special=special, normalized=False)
        for token, token_kind in zip(tokens, types, strict=True)
        if token_kind == kind
    ]


def special_ids(metadata: Metadata, tokens: Sequence[str]) -> dict[str, int]:
    """Read the ids of bos, eos, unk and pad, where the GGUF states them.

    Raises: BadInput for an id beyond the vocabulary.
    """
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {name: token_id(metadata, key) for name, key in keys.items()}
    for name, index in found.items():
        if index is not None and not 0 <= index < len(tokens):
            raise BadInput(
                f"the GGUF's {name} token has id {index} in a vocabulary of {len(tokens)}; "
                "convert it again"
            )
    return {name: int(index) for name, index in found.items() if index is not None}


def adds_token(metadata: Metadata, name: str) -> bool:
    """Say whether a text is given a bos or eos token.

    Where the GGUF is silent, Llama 3, Mistral's Tekken and SentencePiece add one, at the beginning.
    """
    begins = is_sentencepiece(metadata) or word_split(metadata).begins
    default = name == "bos" and begins
    return bool(metadata.get(f"tokenizer.ggml.add_{name}_token", default))


def build_post_processor(metadata: Metadata, tokens: Sequence[str]) -> Any:
    """Put bos and eos around a text where the GGUF asks for it."""
    ids = special_ids(metadata, tokens)
    added = [name for name in ("bos", "eos") if name in ids and adds_token(metadata, name)]
    ends = {name: tokens[ids[name]] for name in added}
    byte_level = [] if is_sentencepiece(metadata) else [processors.ByteLevel(trim_offsets=False)]
    if not ends:
        return byte_level[0] if byte_level else None
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
    return processors.Sequence([*byte_level, template]) if byte_level else template


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
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if context is not None:
        config["model_max_length"] = int(context)
    return config
