"""Name the ways in which byte-level BPE splits text into words, as llama.cpp and tokenizer.json do.

One table serves both ways: GGUF files that are written, and those that are read. Each row's steps
were compared with llama.cpp's own expression on a vocabulary whose merges cross every border
between words, so that any other border shows in the ids.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
Step = dict[str, Any]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
BLANKS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = WORD + r"|\p{N}{1,3}" + SIGNS + BLANKS
QWEN_2 = WORD + r"|\p{N}" + SIGNS + BLANKS
QWEN_35 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + BLANKS
)
SEED = WORD + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + BLANKS
JAIS_2 = (
    WORD
    + r"|\p{N}{1,3}"
    + SIGNS
    + r"|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)"
    + r"|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
)
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
EXAONE_MOE = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    + r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001
CHINESE = "[一-龥\u3040-ゟ\u30a0-ヿ]+"
DEEPSEEK_3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*" + BLANKS
)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def cased_words(ending: str, numbers: str) -> str:
    """Write the expression of words that begin anew where a capital follows, as in GPT-4o's."""
    start, upper = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
    lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}"
    return words + "|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + BLANKS


def isolated(expression: str) -> Step:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


def byte_level(*, by_gpt2_words: bool) -> Step:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": by_gpt2_words,
    }


def split_by(*expressions: str) -> tuple[Step, ...]:
    """Give the steps that split by one expression after the other, and then write bytes."""
    return (*map(isolated, expressions), byte_level(by_gpt2_words=False))


SINGLE_DIGITS: Step = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True, slots=True)
class WordSplit:
    """Describes one way of splitting: llama.cpp's name, and the steps of tokenizer.json.

    others are further names under which llama.cpp splits alike. whole_words says whether it looks
    words up before it merges. differs names the text that llama.cpp splits differently;
    digits_apart says that digits stand apart from other signs in tokenizer.json alone, so that no
    token may hold both.
    begins says that texts begin with bos where a file is silent, composed that tokenizers of this
    kind bring text into NFC. Only rows that are written name a tokenizer.json's way.
    """

    name: str
    steps: tuple[Step, ...]
    others: tuple[str, ...] = ()
    whole_words: bool = False
    begins: bool = False
    differs: str = ""
    digits_apart: bool = False
    composed: bool = False
    written: bool = True


CASES = "marks, and capitals or small letters beyond ASCII"
WORD_SPLITS = (
    WordSplit(
        "llama-bpe",
        split_by(LLAMA_3),
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        whole_words=True,
        begins=True,
    ),
    WordSplit("smaug-bpe", split_by(LLAMA_3), ("dbrx", "chatglm-bpe", "glm4")),
    WordSplit("qwen2", split_by(QWEN_2), ("deepseek-r1-qwen", "megrez"), composed=True),
    WordSplit("stablelm2", split_by(QWEN_2), ("hunyuan", "grok-2"), written=False),
    WordSplit("qwen35", split_by(QWEN_35), composed=True),
    WordSplit(
        "gpt-2",
        (byte_level(by_gpt2_words=True),),
        ("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "mellum"),
    ),
    WordSplit(
        "smollm",
        (SINGLE_DIGITS, byte_level(by_gpt2_words=True)),
        ("starcoder", "refact", "command-r", "exaone", "codeshell", "minerva-7b"),
    ),
    # llama.cpp's own expressions, for files that are read
    WordSplit(
        "falcon",
        split_by(r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, r"[0-9][0-9][0-9]"),
        written=False,
    ),
    WordSplit(
        "falcon",
        (
            {"type": "Punctuation", "behavior": "Contiguous"},
            byte_level(by_gpt2_words=True),
            {"type": "Digits", "individual_digits": False},
            isolated("[0-9][0-9][0-9]"),
        ),
        digits_apart=True,
    ),
    WordSplit(
        "tekken",
        split_by(cased_words("", r"\p{N}")),
        whole_words=True,
        begins=True,
        differs=CASES,
    ),
    WordSplit(
        "gpt-4o",
        split_by(cased_words(CONTRACTIONS + "?", r"\p{N}{1,3}")),
        ("llama4", "kanana2"),
        differs=CASES,
    ),
    WordSplit(
        "deepseek-v3",
        split_by(r"\p{N}{1,3}", CHINESE, DEEPSEEK_3),
        ("hunyuan-dense", "joyai-llm"),
        differs="~ beside other signs",
    ),
    WordSplit("seed-coder", split_by(SEED)),
    WordSplit("jais-2", split_by(JAIS_2)),
    WordSplit("bailingmoe", split_by(BAILING), ("bailingmoe2", "llada-moe")),
    WordSplit("exaone-moe", split_by(EXAONE_MOE)),
    WordSplit("bloom", split_by(BLOOM), ("poro-chat", "gpt3-finnish")),
    WordSplit("viking", (isolated(BLOOM), SINGLE_DIGITS, byte_level(by_gpt2_words=False))),
    # Punctuation alone, then GPT-2's words, then digits in threes from the left.
    WordSplit(
        "default",
        split_by(r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]"),
        written=False,
    ),
)
OPTIONS = {
    "Split": ("pattern", "behavior", "invert"),
    "ByteLevel": ("add_prefix_space", "use_regex"),
    "Digits": ("individual_digits",),
    "Punctuation": ("behavior",),
}
"""Types of steps -> the options that change words; trim_offsets, for one, does not."""
DEFAULTS = {"add_prefix_space": True, "use_regex": True, "invert": False, "behavior": "Isolated"}


def steps_of(part: Json | None, *, key: str = "pretokenizers") -> list[Json]:
    """List the steps of a part of tokenizer.json, which is one step or a sequence of them."""
    if part is None:
        return []
    return list(part[key]) if part.get("type") == "Sequence" else [part]


def splits_like(steps: Sequence[Json]) -> list[WordSplit]:
    """List the known ways of splitting that these steps of tokenizer.json are."""
    key = _key(steps)
    return [split for split in WORD_SPLITS if split.written and _key(split.steps) == key]


def named_split(name: str) -> WordSplit | None:
    """Find how llama.cpp splits under a name, tokenizer.ggml.pre; None for one that is unknown."""
    found = (split for split in WORD_SPLITS if name in (split.name, *split.others))
    return next(found, None)


def known_names() -> list[str]:
    """List all names under which files are read."""
    return sorted({name for split in WORD_SPLITS for name in (split.name, *split.others)})


def _key(steps: Sequence[Json]) -> str:
    """Write steps so that equal text means equal words."""
    reduced = [_reduced(step) for step in steps]
    if len(reduced) == 2 and _removes_nothing(reduced[0]):
        reduced[0] |= {"behavior": "Isolated", "invert": False}
    return json.dumps(reduced, sort_keys=True)


def _removes_nothing(step: Step) -> bool:
    """Say whether a step removes what its expression does not find, and finds all.

    Older files write so what newer ones isolate. An expression of the table that ends in blanks of
    any kind finds letters, numbers, blanks and what is none of these.
    """
    if (step["type"], step.get("behavior"), step.get("invert")) != ("Split", "Removed", True):
        return False
    return str(step["pattern"].get("Regex")).endswith(r"|\s+")


def _reduced(step: Json) -> Step:
    kind = str(step.get("type"))
    options = OPTIONS.get(kind, tuple(step))
    kept = {"type": kind} | {name: step.get(name, DEFAULTS.get(name)) for name in options}
    if kind == "Split":
        pattern = dict(step.get("pattern") or {})
        if "Regex" in pattern:  # a line end may be written as itself
            pattern["Regex"] = pattern["Regex"].replace("\r", r"\r").replace("\n", r"\n")
        kept["pattern"] = pattern
    return kept
