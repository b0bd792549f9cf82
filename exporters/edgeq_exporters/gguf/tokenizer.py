"""Translate byte-level BPE tokenizers from a checkpoint's tokenizer.json to GGUF metadata."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.llama_cpp import END_KEYS, KNOWN_ENDS
from edgeq.architectures.tokenizer_library import parse_tokenizer
from edgeq.decoder import TokenIds
from edgeq.errors import reason_of

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF

LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA_3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
WORD_PATTERNS = {LLAMA_3_WORDS: "llama-bpe", QWEN2_WORDS: "qwen2"}

SPECIAL_TOKENS = {"bos": "begin", "unknown": "unknown", "padding": "pad"}
"""GGUF's names of special tokens -> the field of a model's record with their ids."""

IN_CONFIGS = {"unknown": "unk", "padding": "pad", "eot": "eos", "eom": "eos"}
"""GGUF's names of special tokens -> those of configs, where they differ."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Holds what a checkpoint says about its tokenizer; a file that it lacks is empty."""

    tokenizer: Json
    tokens: TokenIds

    @classmethod
    def read(cls, companions: Mapping[str, bytes], tokens: TokenIds) -> "TokenizerFiles":
        return cls(
            tokenizer=json_object(companions, "tokenizer.json"),
            tokens=tokens,
        )

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
    if "tokenizer.json" not in companions:
        return (
            "the model has no tokenizer.json; "
            "save one next to it with transformers' save_pretrained"
        )
    files = TokenizerFiles.read(companions, tokens)
    damage = _why_not_readable(companions["tokenizer.json"])
    if damage is not None:
        return damage
    reason = _why_not_model(files.tokenizer.get("model") or {})
    if reason is None and pre_tokenizer_name(files.tokenizer) is None:
        reason = _unknown_splitting(files.tokenizer)
    if reason is not None:
        return (
            f"{reason}; "
            "GGUF export knows byte-level BPE of the Llama 3, Qwen2, SmolLM and GPT-2 kinds"
        )
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
) -> Iterator[tuple[str, str | bool | int | list[str] | list[int]]]:
    """Make the metadata of a tokenizer that `why_not_tokenizer` accepts; an int is a uint32."""
    files = TokenizerFiles.read(companions, tokens)
    vocabulary, types = padded_vocabulary(files.tokenizer, vocab_size=vocab_size)
    yield "tokenizer.ggml.model", "gpt2"
    yield "tokenizer.ggml.pre", str(pre_tokenizer_name(files.tokenizer))
    yield "tokenizer.ggml.tokens", vocabulary
    yield "tokenizer.ggml.token_type", types
    merges = [_merge_line(merge) for merge in files.tokenizer["model"]["merges"]]
    if merges:  # the container has no empty lists
        yield "tokenizer.ggml.merges", merges
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


def pre_tokenizer_name(tokenizer: Json) -> str | None:
    """Give llama.cpp's name for how a tokenizer splits text into words; None if it has none.

    llama.cpp normalizes nothing. Qwen2's NFC leaves text unchanged that is composed already, as
    nearly all text is.
    """
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    name = _splitting_name(_steps(tokenizer.get("pre_tokenizer")))
    if normalizer is not None and (normalizer, name) != ("NFC", "qwen2"):
        return None
    takes_whole_words = bool(tokenizer["model"].get("ignore_merges"))
    # llama.cpp looks whole words up before it merges under the name llama-bpe. It splits text in
    # the same way under smaug-bpe, but does not look words up.
    if name == "llama-bpe":
        return name if takes_whole_words else "smaug-bpe"
    return None if takes_whole_words else name


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


def end_notes(companions: Mapping[str, bytes], tokens: TokenIds) -> Iterator[str]:
    """Note ends of text for which GGUF has no key left and llama.cpp no name."""
    if "tokenizer.json" not in companions:
        return
    files = TokenizerFiles.read(companions, tokens)
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
    if model.get("byte_fallback"):
        return "the tokenizer is SentencePiece BPE with byte_fallback"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"the tokenizer is BPE with {option} {model[option]!r}"
    return None


def _unknown_splitting(tokenizer: Json) -> str:
    """Describe an unknown way of splitting in one line, cut to what a terminal can show."""
    parts = {key: tokenizer.get(key) for key in ("normalizer", "pre_tokenizer")}
    found = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    merges = ", ignore_merges" if tokenizer["model"].get("ignore_merges") else ""
    return f"the tokenizer splits text in an unknown way ({found[:300]}{merges})"


def _splitting_name(steps: list[Json]) -> str | None:
    """Name the splitting of these steps by the options that change words; trim_offsets does not."""
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    by_gpt2_words = steps[-1].get("use_regex", True)
    before = steps[:-1]
    if by_gpt2_words:
        with_digits = "smollm" if _splits_digits(before) else None
        return with_digits if before else "gpt-2"
    return WORD_PATTERNS.get(_word_pattern(before))


def _splits_digits(steps: list[Json]) -> bool:
    return (
        len(steps) == 1
        and steps[0].get("type") == "Digits"
        and steps[0].get("individual_digits") is True
    )


def _word_pattern(steps: list[Json]) -> str:
    """Give the expression of a lone Split that keeps what it finds as words; empty if none."""
    if len(steps) != 1 or steps[0].get("type") != "Split":
        return ""
    if steps[0].get("behavior") != "Isolated" or steps[0].get("invert"):
        return ""
    return str(steps[0].get("pattern", {}).get("Regex", ""))


def _templates(tokenizer: Json) -> list[list[Json]]:
    """List what each template of the post-processor makes of a single text, in pieces."""
    steps = _steps(tokenizer.get("post_processor"), key="processors")
    return [
        step["single"]
        for step in steps
        if step.get("type") == "TemplateProcessing" and step.get("single")
    ]


def _steps(part: Json | None, *, key: str = "pretokenizers") -> list[Json]:
    if part is None:
        return []
    return list(part[key]) if part.get("type") == "Sequence" else [part]


def _merge_line(merge: str | list[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)
