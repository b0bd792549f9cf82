"""Tokenizer keys of GGUF files against the tokenizers library, llama.cpp and the demo model's own
file.
"""

import json

import pytest
from tiny_models import (
    LLAMA_3,
    ONE_BLOCK,
    TEXT,
    VOCAB_SIZE,
    byte_level_bpe,
    one_block_model,
    tokenizer_files,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from edgeq.architectures.record import Evidence, read_record
from edgeq.errors import BadInput
from edgeq_backends.llama_cpp import LlamaCppLogits
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.gguf.tokenizer import tokenizer_keys, why_not_tokenizer

FAMILIES = ["llama-bpe", "smaug-bpe", "qwen2", "smollm", "gpt-2"]


def record_of(files, config=ONE_BLOCK):
    return read_record("m", config, Evidence(files))


def refusal(files, config=ONE_BLOCK):
    """Why these files are refused, when the model is opened or when it is exported."""
    try:
        tokens = record_of(files, config).tokens
        return why_not_tokenizer(files, tokens, vocab_size=config["vocab_size"])
    except BadInput as error:
        return str(error)


def keys_of(files, config=ONE_BLOCK):
    assert refusal(files, config) is None
    record = record_of(files, config)
    return dict(tokenizer_keys(files, record.tokens, record.template, vocab_size=VOCAB_SIZE))


@pytest.mark.parametrize("kind", FAMILIES)
def test_llama_cpp_splits_text_like_the_tokenizers_library(tmp_path, kind):
    files = tokenizer_files(kind)
    assert keys_of(files)["tokenizer.ggml.pre"] == kind
    file, *_ = GgufExporter().write(one_block_model(files), tmp_path)
    assert LlamaCppLogits(file).tokenize(TEXT) == byte_level_bpe(kind).encode(TEXT).ids


def test_special_and_added_tokens_are_found_in_text_by_llama_cpp(tmp_path):
    text = "the<|eos|> mice<tool> run"
    file, *_ = GgufExporter().write(one_block_model(tokenizer_files()), tmp_path)
    assert (
        LlamaCppLogits(file).tokenize(text, parse_special=True) == byte_level_bpe().encode(text).ids
    )


def test_the_vocabulary_is_padded_to_the_rows_of_the_embedding():
    keys = keys_of(tokenizer_files())
    tokenizer = byte_level_bpe()
    size = tokenizer.get_vocab_size()
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert tokens[:size] == [tokenizer.id_to_token(i) for i in range(size)]
    assert tokens[size:] == [f"[PAD{i}]" for i in range(size, VOCAB_SIZE)]
    special, added = [3, 3, 3], [4]
    assert types == special + [1] * (size - 4) + added + [5] * (VOCAB_SIZE - size)


def test_merges_may_be_pairs_or_lines():
    files = tokenizer_files()
    tokenizer = json.loads(files["tokenizer.json"])
    pairs = tokenizer["model"]["merges"]
    assert isinstance(pairs[0], list)
    lines = [" ".join(pair) for pair in pairs]
    tokenizer["model"]["merges"] = lines
    older = files | {"tokenizer.json": json.dumps(tokenizer).encode()}
    assert (
        keys_of(files)["tokenizer.ggml.merges"] == keys_of(older)["tokenizer.ggml.merges"] == lines
    )


def test_special_ids_come_from_the_tokenizer_and_then_from_the_config():
    keys = keys_of(tokenizer_files(), ONE_BLOCK | {"unk_token_id": 2, "eos_token_id": [7, 8]})
    found = [
        keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding")
    ]
    assert found == [0, 1, 2, 2]
    unnamed = keys_of(
        tokenizer_files(eos_token=None, bos_token=None), ONE_BLOCK | {"eos_token_id": [7, 8]}
    )
    assert unnamed["tokenizer.ggml.eos_token_id"] == 7
    assert "tokenizer.ggml.bos_token_id" not in unnamed


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (tokenizer_files(), False),
        (tokenizer_files(template=True), True),
        (tokenizer_files(add_bos_token=True), False),
        (tokenizer_files(template=True, add_bos_token=False), True),
    ],
)
def test_bos_is_added_where_transformers_adds_it(tmp_path, files, expected):
    assert keys_of(files)["tokenizer.ggml.add_bos_token"] is expected
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    settings = json.loads(files["tokenizer_config.json"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<|pad|>"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)("the mice")["input_ids"]
    assert (theirs[0] == 0) is expected
    unheard = settings.get("add_bos_token") is True and not expected
    assert ("add_bos_token" in " ".join(record_of(files).notes)) is unheard


def test_a_template_inside_a_sequence_adds_bos_as_well():
    files = tokenizer_files("llama-bpe", template=True)
    tokenizer = json.loads(files["tokenizer.json"])
    tokenizer["post_processor"] = {
        "type": "Sequence",
        "processors": [BYTE_LEVEL | {"add_prefix_space": True}, tokenizer["post_processor"]],
    }
    assert keys_of(files | {"tokenizer.json": json.dumps(tokenizer).encode()})[
        "tokenizer.ggml.add_bos_token"
    ]


def test_a_template_that_ends_with_eos_is_kept():
    files = tokenizer_files()
    assert "tokenizer.ggml.add_eos_token" not in keys_of(files)
    tokenizer = json.loads(files["tokenizer.json"])
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|eos|>", "type_id": 0}},
    ]
    special = {"<|eos|>": {"id": "<|eos|>", "ids": [1], "tokens": ["<|eos|>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": pieces,
        "special_tokens": special,
    }
    keys = keys_of(files | {"tokenizer.json": json.dumps(tokenizer).encode()})
    assert keys["tokenizer.ggml.add_eos_token"] and not keys["tokenizer.ggml.add_bos_token"]


def test_chat_templates_are_found_wherever_a_checkpoint_keeps_them():
    named = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}]
    assert keys_of(tokenizer_files(chat_template="A"))["tokenizer.chat_template"] == "A"
    assert keys_of(tokenizer_files(chat_template=named))["tokenizer.chat_template"] == "A"
    own_file = tokenizer_files(chat_template="old") | {"chat_template.jinja": b"A"}
    assert keys_of(own_file)["tokenizer.chat_template"] == "A"
    assert "tokenizer.chat_template" not in keys_of(tokenizer_files())


def changed(**parts):
    """Files of a working tokenizer with parts of tokenizer.json replaced."""
    files = tokenizer_files("gpt-2")
    tokenizer = json.loads(files["tokenizer.json"])
    model = tokenizer["model"] | parts.pop("model", {})
    return files | {"tokenizer.json": json.dumps(tokenizer | {"model": model} | parts).encode()}


def unmerged(word):
    """Files of a GPT-2-like tokenizer that looks words up, with one that no merges lead to."""
    files = changed(model={"ignore_merges": True})
    tokenizer = json.loads(files["tokenizer.json"])
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[word] = len(vocabulary) + len(tokenizer["added_tokens"])
    return files | {"tokenizer.json": json.dumps(tokenizer).encode()}


def saved(tokenizer):
    return tokenizer_files() | {"tokenizer.json": tokenizer.to_str().encode()}


def glassllm_like():
    """SentencePiece-like words with a BPE over characters, not bytes."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "▁": 1, "▁a": 2}, merges=[("▁", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


OTHER_REGEX = {
    "type": "Split",
    "pattern": {"Regex": r"\p{Lu}+"},
    "behavior": "Isolated",
    "invert": False,
}
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
REMOVED = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (saved(Tokenizer(models.Unigram([("a", -1.0)], 0, False))), "of type Unigram"),
        (saved(Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))), "of type WordPiece"),
        (saved(glassllm_like()), "Metaspace"),
        (changed(model={"byte_fallback": True}), "SentencePiece BPE with byte_fallback"),
        (changed(model={"dropout": 0.1}), "BPE with dropout 0.1"),
        (unmerged("whole"), "ignore_merges"),
        (changed(pre_tokenizer=None), '"pre_tokenizer": null'),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [OTHER_REGEX, BYTE_LEVEL]}),
            r"\\p{Lu}+",
        ),
        (
            changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [REMOVED, BYTE_LEVEL]}),
            "Removed",
        ),
        (
            changed(pre_tokenizer=BYTE_LEVEL | {"use_regex": True, "add_prefix_space": True}),
            "add_prefix_space",
        ),
        (changed(normalizer={"type": "Lowercase"}), "Lowercase"),
        ({}, "no tokenizer.json"),
        (tokenizer_files(eos_token=None), "end-of-sequence"),
    ],
)
def test_other_tokenizers_are_refused_and_named(files, words):
    reason = refusal(files)
    assert words in reason
    assert "\n" not in reason and len(reason) < 500


def whole(content):
    return tokenizer_files() | {"tokenizer.json": json.dumps(content).encode()}


def settings(**changed):
    return tokenizer_files() | {
        "tokenizer_config.json": json.dumps({"eos_token": "<|eos|>"} | changed).encode()
    }


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (whole({}), "tokenizer.json cannot be read"),
        (whole({"model": 5}), "tokenizer.json cannot be read"),
        (changed(model={"vocab": "x"}), "tokenizer.json cannot be read"),
        (changed(model={"vocab": {"a": "0"}, "merges": []}), "tokenizer.json cannot be read"),
        (changed(model={"merges": [["no", "such"]]}), "tokenizer.json cannot be read"),
        (changed(pre_tokenizer=5), "tokenizer.json cannot be read"),
        (changed(added_tokens=[{"id": "1"}]), "tokenizer.json cannot be read"),
        (changed(added_tokens=5), "tokenizer.json cannot be read"),
        (tokenizer_files() | {"tokenizer.json": b"\xff"}, "tokenizer.json"),
        (settings(chat_template=[5]), "chat template in tokenizer_config.json is malformed"),
        (settings(chat_template=5), "chat template in tokenizer_config.json is malformed"),
        (
            settings(chat_template=[{"name": "default"}]),
            "chat template in tokenizer_config.json is malformed",
        ),
        (
            settings(chat_template=[{"name": "default", "template": 5}]),
            "chat template in tokenizer_config.json",
        ),
        (settings(chat_template="\ud800"), "'tokenizer_config.json' of the model is not valid"),
        (
            tokenizer_files() | {"chat_template.jinja": b"\xff\xfe"},
            "chat template in chat_template.jinja is malformed",
        ),
        (whole([]), "tokenizer.json cannot be read"),
        (whole(None), "tokenizer.json cannot be read"),
        (tokenizer_files() | {"tokenizer_config.json": b"[]"}, "must hold an object"),
        (tokenizer_files() | {"special_tokens_map.json": b"5"}, "must hold an object"),
        (tokenizer_files() | {"tokenizer_config.json": b"[" * 100_000}, "not valid JSON"),
    ],
)
def test_malformed_files_are_refused_in_one_line(files, words):
    reason = refusal(files)
    assert words in reason
    assert "\n" not in reason and len(reason) < 500


def test_a_list_of_templates_without_a_default_gives_no_template():
    assert "tokenizer.chat_template" not in keys_of(
        settings(chat_template=[{"name": "tool_use", "template": "B"}])
    )


def test_a_special_token_beyond_the_embedding_is_refused():
    reason = refusal(tokenizer_files(), ONE_BLOCK | {"unk_token_id": 99999})
    assert "unk_token_id 99999 lies outside the 320 rows" in reason


def test_a_tokenizer_file_that_is_not_json_is_refused_by_name():
    files = tokenizer_files() | {"tokenizer_config.json": b"{"}
    with pytest.raises(BadInput, match=r"'tokenizer_config\.json' of the model is not valid JSON"):
        record_of(files)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused():
    assert "outside the 200 rows" in refusal(tokenizer_files(), ONE_BLOCK | {"vocab_size": 200})
