"""Write tokenizer files that onnxruntime-genai reads alike, and note where it does not.

It has a tokenizer of its own. What is rewritten means the same to the tokenizers library: other
steps for the same words. What onnxruntime-genai does was measured on text that mixes scripts,
signs and blanks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.sentencepiece import Blanks, blanks_of, written_blanks
from edgeq.architectures.tokenizer_file import SETTINGS_FILE, TOKENIZER_FILE
from edgeq.architectures.word_splits import GPT_2, WordSplit, split_by, splits_like, steps_of
from edgeq.files.json_files import json_bytes

Files = Mapping[str, bytes]
Json = Mapping[str, Any]

LINE_BREAKS = "a line break with spaces before and after it"
SLASHES = LINE_BREAKS + ", or a slash after other punctuation"
DIFFERS = {
    "llama-bpe": LINE_BREAKS,
    "smaug-bpe": LINE_BREAKS,
    "qwen2": LINE_BREAKS,
    "qwen35": LINE_BREAKS,
    "deepseek-v3": LINE_BREAKS,
    "tekken": SLASHES,
    "gpt-4o": SLASHES,
    "gpt-2": "",
    "smollm": "",
}
"""Ways of splitting words that onnxruntime-genai knows -> text where it splits differently."""
REWRITTEN = {"smollm": split_by(r"\p{N}", GPT_2)}
"""Ways of splitting that it knows in these steps alone."""
PREFIX_CLASS = "GemmaTokenizer"
"""The class under which it begins words at blanks alone, and begins a text with one."""


def runtime_files(files: Files) -> dict[str, bytes]:
    """Give tokenizer files that onnxruntime-genai reads as the tokenizers library reads these.

    Files that it reads so already keep their bytes.
    """
    tokenizer = _tokenizer(files)
    if tokenizer is None:
        return dict(files)
    blanks = _blanks(tokenizer)
    if blanks is not None and blanks.prefix:
        settings = json_object(files, SETTINGS_FILE)
        if settings.get("tokenizer_class") == PREFIX_CLASS:
            return dict(files)
        return {**files, SETTINGS_FILE: json_bytes(settings | {"tokenizer_class": PREFIX_CLASS})}
    if blanks is not None:
        normalizer, pre_tokenizer = written_blanks(prefix=False)
        changed = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    else:
        split = _split(tokenizer)
        if split is None or split.name not in REWRITTEN:
            return dict(files)
        steps = list(REWRITTEN[split.name])
        changed = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    if all(tokenizer.get(key) == part for key, part in changed.items()):
        return dict(files)
    return {**files, TOKENIZER_FILE: json_bytes({**tokenizer, **changed})}


def runtime_notes(files: Files) -> Iterator[str]:
    """Note text that onnxruntime-genai splits differently from transformers."""
    tokenizer = _tokenizer(files)
    if tokenizer is None:
        return
    blanks, split = _blanks(tokenizer), _split(tokenizer)
    if blanks is not None:
        yield from _blank_notes(tokenizer, blanks)
    elif split is None or split.name not in DIFFERS:
        yield (
            "onnxruntime-genai is not known to split text as this tokenizer does; "
            "use tokenizer.json with the tokenizers library to be sure of tokens"
        )
    elif DIFFERS[split.name]:
        yield (
            f"onnxruntime-genai splits text differently from transformers at "
            f"{DIFFERS[split.name]}: such text gets other tokens"
        )
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if blanks is None and normalizer is not None:
        yield (
            f"onnxruntime-genai does not normalize ({normalizer}): text that this changes gets "
            "other tokens than in transformers"
        )


def _blank_notes(tokenizer: Json, blanks: Blanks) -> Iterator[str]:
    if blanks.prefix:
        yield (
            f"{SETTINGS_FILE} names {PREFIX_CLASS}, for which onnxruntime-genai splits text as "
            "tokenizer.json does; transformers' class of that name does not"
        )
    if blanks.differs:
        yield (
            f"onnxruntime-genai begins with a blank {blanks.differs}; transformers does not, "
            "and has other tokens there"
        )
    added = {token["content"] for token in tokenizer.get("added_tokens") or []}
    pieces = (token for token in tokenizer["model"]["vocab"] if token not in added)
    if any("\n" in token and token.strip("\n") for token in pieces):
        yield (
            "onnxruntime-genai does not join line breaks with other text, as tokens of this "
            "model do: such text gets other tokens than in transformers"
        )


def _tokenizer(files: Files) -> Json | None:
    return json_object(files, TOKENIZER_FILE) if TOKENIZER_FILE in files else None


def _blanks(tokenizer: Json) -> Blanks | None:
    """Read how SentencePiece BPE writes blanks; None for other tokenizers and unknown ways.

    onnxruntime-genai begins texts with a blank where the decoder strips one.
    """
    model = tokenizer.get("model") or {}
    blanks = blanks_of(tokenizer) if model.get("byte_fallback") else None
    decoders = steps_of(tokenizer.get("decoder"), key="decoders")
    strips = any(step.get("type") == "Strip" for step in decoders)
    return None if blanks is not None and blanks.prefix and not strips else blanks


def _split(tokenizer: Json) -> WordSplit | None:
    model = tokenizer.get("model") or {}
    if model.get("byte_fallback") or "merges" not in model:
        return None
    looks_up = bool(model.get("ignore_merges"))
    found = splits_like(steps_of(tokenizer.get("pre_tokenizer")))
    alike = [split for split in found if split.whole_words == looks_up]
    return next(iter([*alike, *found]), None)
