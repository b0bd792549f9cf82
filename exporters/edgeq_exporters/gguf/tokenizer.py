"""Translate byte-level BPE tokenizers from a checkpoint's tokenizer.json to GGUF metadata."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from edgeq.decoder import TokenIds
from edgeq.errors import BadInput, reason_of

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF

LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA_3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
WORD_PATTERNS = {LLAMA_3_WORDS: "llama-bpe", QWEN2_WORDS: "qwen2"}

CONFIGURED = {"bos": "begin", "eos": "end", "pad": "pad", "unk": "unknown"}
"""Hugging Face's names of special tokens -> the field of a model's record with their ids."""
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Hugging Face's names of special tokens -> GGUF's."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Holds what a checkpoint says about its tokenizer; a file that it lacks is empty."""

    tokenizer: Json
    settings: Json
    named: Json
    tokens: TokenIds
    template: bytes | None

    @classmethod
    def read(cls, companions: Mapping[str, bytes], tokens: TokenIds) -> "TokenizerFiles":
        return cls(
            tokenizer=_read(companions, "tokenizer.json"),
            settings=_read(companions, "tokenizer_config.json"),
            named=_read(companions, "special_tokens_map.json"),
            tokens=tokens,
            template=companions.get("chat_template.jinja"),
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
    damage = _why_not_readable(companions["tokenizer.json"]) or _why_not_template(files)
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
                f"{name}_token_id {token_id} lies outside the {vocab_size} rows of the embedding; "
                "correct it in config.json"
            )
    if "eos" not in special:
        return (
            "neither tokenizer_config.json nor config.json names an end-of-sequence token; "
            "set eos_token"
        )
    return None


def tokenizer_keys(
    companions: Mapping[str, bytes], tokens: TokenIds, *, vocab_size: int
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
    template = chat_template(files)
    if template is not None:
        yield "tokenizer.chat_template", template


def _special_keys(files: TokenizerFiles) -> Iterator[tuple[str, bool | int]]:
    for name, token_id in special_ids(files).items():
        yield f"tokenizer.ggml.{SPECIAL_TOKENS[name]}_token_id", token_id
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
    """Find the ids of the bos, eos, unk and pad tokens in the tokenizer's files or the config."""
    ids = files.ids()
    found = {}
    for name in SPECIAL_TOKENS:
        named = [_content(source.get(f"{name}_token")) for source in (files.settings, files.named)]
        configured = getattr(files.tokens, CONFIGURED[name])
        known = [ids[token] for token in named if token in ids]
        known += [token for token in configured if token >= 0]
        if known:
            found[name] = known[0]
    return found


def adds_token(files: TokenizerFiles, name: str) -> bool:
    """Say whether encoding a text puts the bos token before it, or the eos token after it."""
    token_id = special_ids(files).get(name)
    if token_id is None:
        return False
    end = 0 if name == "bos" else -1
    pieces = [template[end] for template in _templates(files.tokenizer)]
    ends = [piece.get("SpecialToken", {}).get("id") for piece in pieces]
    by_template = token_id in [files.ids().get(token) for token in ends if token is not None]
    return by_template or files.settings.get(f"add_{name}_token") is True


def chat_template(files: TokenizerFiles) -> str | None:
    """Read the default chat template, from its own file or from tokenizer_config.json.

    Raises: ValueError, KeyError or TypeError for templates that `why_not_tokenizer` refuses.
    """
    if files.template is not None:
        return files.template.decode()
    template = files.settings.get("chat_template")
    if isinstance(template, list):
        defaults = (named["template"] for named in template if named["name"] == "default")
        template = next(defaults, None)
    if template is None:
        return None
    if not isinstance(template, str):
        raise TypeError(f"a {type(template).__name__}")
    template.encode()  # JSON can also write halves of surrogate pairs
    return template


def _why_not_template(files: TokenizerFiles) -> str | None:
    try:
        chat_template(files)
    except (ValueError, KeyError, TypeError) as error:
        own_file = files.template is not None
        where = "chat_template.jinja" if own_file else "chat_template in tokenizer_config.json"
        return (
            f"{where} is malformed ({type(error).__name__}: {reason_of(error)}); "
            "it must be UTF-8 text, or a list of objects with name and template"
        )
    return None


def _why_not_readable(tokenizer: bytes) -> str | None:
    """Say why the tokenizers library cannot load the file, or None.

    Reasons are wrong types, unknown parts, merges without tokens.
    """
    try:
        Tokenizer.from_str(tokenizer.decode())
    except Exception as error:  # the library raises bare Exception for any malformed file
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


def _content(token: Any) -> str | None:
    """Give the text of a special token, which is named by it or by a description with it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read(companions: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        content = json.loads(companions.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"'{name}' of the model is not valid JSON: {reason_of(error)}; download the model again"
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"'{name}' of the model holds a JSON {type(content).__name__}; it must hold an object"
        )
    return content
