"""Translate a checkpoint's tokenizer.json to GGUF metadata: what all kinds of tokenizers share.

Words and merges are left to `byte_level` and `sentencepiece`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.llama_cpp import END_KEYS, KNOWN_ENDS
from edgeq.architectures.tokenizer_library import parse_tokenizer
from edgeq.architectures.word_splits import steps_of
from edgeq.decoder import TokenIds
from edgeq.errors import reason_of
from edgeq_exporters.gguf.byte_level import byte_level_keys, byte_level_notes, why_not_byte_level
from edgeq_exporters.gguf.sentencepiece import (
    sentencepiece_keys,
    sentencepiece_notes,
    sentencepiece_vocabulary,
    why_not_sentencepiece,
)

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF

SPECIAL_TOKENS = {"bos": "begin", "unknown": "unknown", "padding": "pad"}
"""GGUF's names of special tokens -> the field of a model's record with their ids."""

KNOWN_KINDS = (
    "GGUF export knows byte-level BPE of the kinds that docs/reference/formats.md lists, "
    "and SentencePiece BPE with byte_fallback"
)
IN_CONFIGS = {"unknown": "unk", "padding": "pad", "eot": "eos", "eom": "eos"}
"""GGUF's names of special tokens -> those of configs, where they differ."""

PHI_3 = re.compile("phi-?3", re.IGNORECASE)
PHI_3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
KEEPS_BLANKS = {"<unk>", "<s>", "<|endoftext|>"}
"""What a name of Phi-3 has llama.cpp look for, and those that take no blanks behind them."""

FILE = "tokenizer.json"
Json = Mapping[str, Any]
Value = str | bool | int | list[str] | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Holds what a checkpoint says about its tokenizer; a file that it lacks is empty."""

    data: bytes
    tokenizer: Json
    tokens: TokenIds

    @classmethod
    def read(cls, companions: Mapping[str, bytes], tokens: TokenIds) -> "TokenizerFiles":
        return cls(
            data=companions.get(FILE, b""),
            tokenizer=json_object(companions, FILE),
            tokens=tokens,
        )

    @property
    def is_sentencepiece(self) -> bool:
        return bool(self.tokenizer["model"].get("byte_fallback"))

    def ids(self) -> dict[str, int]:
        """Map each token to its id, added tokens included."""
        ids = dict(self.tokenizer["model"]["vocab"])
        added_tokens = self.tokenizer.get("added_tokens") or []
        return ids | {added["content"]: added["id"] for added in added_tokens}


def why_not_tokenizer(
    companions: Mapping[str, bytes], tokens: TokenIds, *, vocab_size: int
) -> str | None:
    """Say what keeps a tokenizer out of GGUF and what to change, or None.

    Raises: BadInput for a file that is not a JSON object.
    """
    if FILE not in companions:
        return (
            "the model has no tokenizer.json; "
            "save one next to it with transformers' save_pretrained"
        )
    files = TokenizerFiles.read(companions, tokens)
    damage = _why_not_readable(files.data)
    if damage is not None:
        return damage
    reason = _why_not_model(files.tokenizer.get("model") or {})
    if reason is None:
        why_not = why_not_sentencepiece if files.is_sentencepiece else why_not_byte_level
        reason = why_not(files.tokenizer, files.data)
    if reason is not None:
        return f"{reason}; {KNOWN_KINDS}"
    return _why_not_ids(files, vocab_size)


def _why_not_ids(files: TokenizerFiles, vocab_size: int) -> str | None:
    largest = max(files.ids().values(), default=-1)
    special = special_ids(files)
    if largest >= vocab_size:
        return (
            f"token id {largest} lies outside the {vocab_size} rows of the embedding; "
            "use this model's own tokenizer"
        )
    for name, token_id in special.items():
        if token_id >= vocab_size:
            return (
                f"{IN_CONFIGS.get(name, name)}_token_id {token_id} lies outside the {vocab_size} "
                "rows of the embedding; correct it in the model's files"
            )
    if "eos" not in special:
        return (
            "none of the model's files names an end-of-sequence token; "
            "set eos_token in tokenizer_config.json"
        )
    return None


def tokenizer_keys(
    companions: Mapping[str, bytes], tokens: TokenIds, template: str | None, *, vocab_size: int
) -> Iterator[tuple[str, Value]]:
    """Make the metadata of a tokenizer that `why_not_tokenizer` accepts; an int is a uint32."""
    files = TokenizerFiles.read(companions, tokens)
    vocabulary, types = padded_vocabulary(files.tokenizer, vocab_size=vocab_size)
    if files.is_sentencepiece:
        yield from sentencepiece_keys(files.tokenizer, vocabulary)
        vocabulary, types = sentencepiece_vocabulary(files.tokenizer, files.data, vocabulary, types)
    else:
        yield from byte_level_keys(files.tokenizer, files.data)
    yield "tokenizer.ggml.tokens", vocabulary
    yield "tokenizer.ggml.token_type", types
    yield from _special_keys(files)
    if template is not None:
        yield "tokenizer.chat_template", template


def _special_keys(files: TokenizerFiles) -> Iterator[tuple[str, bool | int]]:
    for name, token_id in special_ids(files).items():
        yield f"tokenizer.ggml.{name}_token_id", token_id
    # Without its key, llama.cpp decides on bos by the name of the pre-tokenizer, and adds no eos.
    yield "tokenizer.ggml.add_bos_token", adds_token(files, "bos")
    if adds_token(files, "eos"):
        yield "tokenizer.ggml.add_eos_token", True


def padded_vocabulary(tokenizer: Json, *, vocab_size: int) -> tuple[list[str], list[int]]:
    """List tokens and their types by id; ids without a token become unused [PADn]."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, token_id in tokenizer["model"]["vocab"].items():
        tokens[token_id] = token
        types[token_id] = NORMAL
    for added in tokenizer.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def special_ids(files: TokenizerFiles) -> dict[str, int]:
    """Give the ids of special tokens by the names that GGUF's keys have for them."""
    found = {name: getattr(files.tokens, field) for name, field in SPECIAL_TOKENS.items()}
    return {name: ids[0] for name, ids in found.items() if ids} | keyed_ends(files)


def keyed_ends(files: TokenizerFiles) -> dict[str, int]:
    """Give ends of text the keys that GGUF has: the usual end, then those of unknown names.

    llama.cpp finds the others by their names, and would mistake them for ends of turns in a key.
    """
    if not files.tokens.end:
        return {}
    first, *others = files.tokens.end
    is_known = _is_known(files)
    unknown = [id for id in others if not is_known(id)]
    return dict(zip(END_KEYS, [first, *unknown], strict=False))


def tokenizer_notes(name: str, companions: Mapping[str, bytes], tokens: TokenIds) -> Iterator[str]:
    """Note where llama.cpp splits text differently, and where it does not stop."""
    if FILE not in companions:
        return
    files = TokenizerFiles.read(companions, tokens)
    model = files.tokenizer.get("model") or {}
    if _why_not_model(model) is None:
        if files.is_sentencepiece:
            yield from sentencepiece_notes(files.tokenizer)
        else:
            yield from byte_level_notes(files.tokenizer, files.data)
        yield from _name_notes(name, files)
        yield from _flag_notes(name, files.tokenizer)
    yield from _end_notes(files)


def name_in_file(name: str, files: TokenizerFiles) -> str:
    """Give the name of a model that a file states: llama.cpp takes Phi-3's for its tokenizer's.

    It then has special tokens take the blanks behind them, and loads no file without four of them.
    """
    return name if takes_blanks_like_phi_3(files.tokenizer) else PHI_3.sub("phi_3", name)


def takes_blanks_like_phi_3(tokenizer: Json) -> bool:
    """Say whether just those added tokens take blanks behind them that do under Phi-3's name."""
    added = tokenizer.get("added_tokens") or []
    texts = {token["content"] for token in added}
    takers = {token["content"] for token in added if token.get("rstrip")}
    others = any(token.get("lstrip") or token.get("single_word") for token in added)
    return PHI_3_TOKENS <= texts and takers == texts - KEEPS_BLANKS and not others


def _name_notes(name: str, files: TokenizerFiles) -> Iterator[str]:
    stated = name_in_file(name, files)
    if stated != name:
        yield (
            f"the file states the name {stated!r}: llama.cpp would give a model of the name "
            f"{name!r} the special tokens of Phi-3, which are not its own"
        )


def _flag_notes(name: str, tokenizer: Json) -> Iterator[str]:
    """Note the added tokens that take blanks beside them, or stand as whole words alone."""
    if PHI_3.search(name) and takes_blanks_like_phi_3(tokenizer):
        return
    added = tokenizer.get("added_tokens") or []
    flags = ("lstrip", "rstrip", "single_word")
    found = [token["content"] for token in added if any(token.get(flag) for flag in flags)]
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield (
            f"token {found[0]!r}{others} takes blanks beside it, or is a whole word, "
            "in transformers; llama.cpp keeps blanks and finds it anywhere"
        )


def _end_notes(files: TokenizerFiles) -> Iterator[str]:
    """Note ends of text for which GGUF has no key left and llama.cpp no name."""
    keyed, is_known = keyed_ends(files).values(), _is_known(files)
    for id in files.tokens.end:
        if id not in keyed and not is_known(id):
            yield (
                f"GGUF has keys for {len(END_KEYS)} ends of text: "
                f"llama.cpp will not stop at token {id}"
            )


def _is_known(files: TokenizerFiles) -> Callable[[int], bool]:
    known = {id for token, id in files.ids().items() if token in KNOWN_ENDS}
    return lambda id: id in known


def adds_token(files: TokenizerFiles, name: str) -> bool:
    """Say whether encoding a text puts the bos token before it, or the eos token after it."""
    token_id = special_ids(files).get(name)
    if token_id is None:
        return False
    end = 0 if name == "bos" else -1
    pieces = [template[end] for template in _templates(files.tokenizer)]
    ends = [piece.get("SpecialToken", {}).get("id") for piece in pieces]
    return token_id in [files.ids().get(token) for token in ends if token is not None]


def _why_not_readable(tokenizer: bytes) -> str | None:
    """Say why the tokenizers library cannot load the file, or None.

    Reasons are wrong types, unknown parts, merges without tokens.
    """
    try:
        parse_tokenizer(tokenizer)
    except ValueError as error:
        return f"tokenizer.json is malformed ({reason_of(error)}); use this model's own tokenizer"
    return None


def _why_not_model(model: Json) -> str | None:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        return f"the tokenizer is of type {kind}"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"the tokenizer is BPE with {option} {model[option]!r}"
    return None


def _templates(tokenizer: Json) -> list[list[Json]]:
    """List what each template of the post-processor makes of a single text, in pieces."""
    steps = steps_of(tokenizer.get("post_processor"), key="processors")
    return [
        step["single"]
        for step in steps
        if step.get("type") == "TemplateProcessing" and step.get("single")
    ]
