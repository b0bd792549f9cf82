import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from edgeq.architectures.word_splits import known_names
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.sources import open_source
from edgeq.sources.gguf_tokenizer import tokenizer_files

CALIBRATION = Path(__file__).parents[2] / "edgeq" / "data" / "calibration.txt"
AWKWARD = [
    "",
    " ",
    "   ",
    "\n",
    " \n \n\n  x",
    "\t\ttabs\t",
    "a\r\nb\r\rc\r\n",
    " leading and trailing ",
    "two  spaces   three    four",
    "0 12 345 6789 1234567890",
    "3.14159, 1,000,000 and 2nd-3rd x86_64",
    "٣٤٥ ½ ² Ⅷ ५६७",
    "don't I'll we've THEY'RE it'S he'd o'clock 'tis 'quoted'",
    "你好，世界。今天天气很好！",  # noqa: RUF001
    "日本語 と ひらがな 한국어 العربية עברית ไทย",
    "😀😃 family 👩‍👩‍👧 flag 🇩🇪 ❤️",
    "naïve café Ångström ﬁ ß ſ",  # noqa: RUF001
    "zero\u200bwidth \u00a0nbsp \u3000ideographic \ufeffmark",
    "!!! ... ??? -- ——(()) [[x]] {y}; $a+=b<c>^~|",
    "def f(x):\n    return x ** 2  # why?\n\n\nclass A:\n\tpass",
    "http://example.org/a?b=c&d=%20#e",
]
SPECIAL = [
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "x<|endoftext|>y <|im_end|> z",
    "<repo_name>a/b<file_sep>c<filename>",
    "<|im_start|",
]
PIECES = [
    "th",
    "e",
    "1",
    "2",
    "12",
    "123",
    "Ġ",
    "Ġa",
    "'s",
    "'S",
    "!!",
    "ĊĊ",
    "ĠĠ",
    "\u0120word",
    "ing",
    "é",
    "+=",
]


def calibration_lines(count):
    text = CALIBRATION.read_text(encoding="utf-8")
    pieces = [
        line[start : start + 300]
        for line in text.splitlines()
        for start in range(0, len(line), 300)
    ]
    return pieces[:: max(1, len(pieces) // count)]


def llama_vocabulary(path):
    """llama.cpp's own tokenizer of a GGUF file; the model must be kept as long as the
    vocabulary.
    """
    llama = pytest.importorskip("cyllama.llama.llama_cpp", reason="cyllama is not installed")
    llama.disable_logging()
    llama.llama_backend_init()
    llama.ggml_backend_load_all()
    parameters = llama.LlamaModelParams()
    parameters.n_gpu_layers = 0  # vocab_only would be enough, but this build aborts on it
    model = llama.LlamaModel(str(path), parameters)
    return model, model.get_vocab()


def assert_equal_to_llama(vocabulary, tokenizer, texts):
    for text in texts:
        assert tokenizer.encode(text).ids == list(
            vocabulary.tokenize(text, add_special=True, parse_special=True)
        ), text


def byte_alphabet():
    """The 256 characters that byte-level BPE writes for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [*map(chr, plain), *(chr(256 + place) for place in range(len(others)))]


def small_vocabulary(pre, texts):
    """Tokenizer metadata with the merges that a few texts need, so that how they are cut up shows
    in the ids.
    """
    tokens, merges = byte_alphabet(), []
    cut_everywhere = [character for text in texts for character in encoded_bytes(text)]
    for left, right in pairwise(cut_everywhere):
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    for pair in list(tokens[256:]):
        for right in ("1", "2", "s", "e", "Ġ", "Ċ"):
            if pair + right not in tokens:
                tokens.append(pair + right)
                merges.append(f"{pair} {right}")
    whole_words = [
        "Ġwhole",
        "whole",
        "123",
    ]  # no merges lead to them: only a look-up of whole words finds them
    tokens += [word for word in whole_words if word not in tokens]
    added = ["<s>", "</s>", "<|tool|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + added,
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3, 3, 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
    }


def encoded_bytes(text):
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = plain + [byte for byte in range(256) if byte not in plain]
    characters = dict(zip(order, byte_alphabet(), strict=True))
    return [characters[byte] for byte in text.encode()]


@pytest.fixture
def make_model(make_gguf, tiny_metadata, tiny_tensors):
    """A random model with a given vocabulary, as a GGUF file."""

    def make(metadata):
        table = np.zeros((len(metadata["tokenizer.ggml.tokens"]), 64), np.float32)
        tables = {"token_embd.weight": table, "output.weight": table}
        return make_gguf(tiny_metadata | metadata, tiny_tensors | tables)

    return make


@pytest.fixture(scope="module")
def demo():
    return open_source("demo")


@pytest.fixture(scope="module")
def demo_tokenizer(demo):
    return Tokenizer.from_buffer(demo.companions()["tokenizer.json"])


def test_the_demo_tokenizer_cuts_texts_as_llama_cpp_does(demo, demo_tokenizer):
    model, vocabulary = llama_vocabulary(demo.path)
    assert_equal_to_llama(vocabulary, demo_tokenizer, [*calibration_lines(300), *AWKWARD, *SPECIAL])
    del model


def test_transformers_loads_the_demo_tokenizer_and_decodes_what_it_encoded(
    demo, demo_tokenizer, tmp_path
):
    for name, content in demo.companions().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps(demo.record.config()))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*calibration_lines(50), *AWKWARD, *SPECIAL]:
        assert tokenizer(text)["input_ids"] == demo_tokenizer.encode(text).ids
    english = calibration_lines(1)[0]
    assert tokenizer.decode(tokenizer(english)["input_ids"]) == english
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert str(prompt).endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_the_demo_tokenizer_keeps_all_that_the_gguf_says(demo):
    content = json.loads(demo.companions()["tokenizer.json"])
    tokens = demo.metadata["tokenizer.ggml.tokens"]
    types = demo.metadata["tokenizer.ggml.token_type"]
    assert content["model"]["vocab"] == {token: index for index, token in enumerate(tokens)}
    assert [" ".join(pair) for pair in content["model"]["merges"]] == demo.metadata[
        "tokenizer.ggml.merges"
    ]
    control = [index for index, kind in enumerate(types) if kind == 3]
    assert [added["id"] for added in content["added_tokens"] if added["special"]] == control


QUICK = ("smollm", "llama-bpe", "smaug-bpe", "qwen2", "gpt-2", "default")
APPROXIMATE = ("tekken", "gpt-4o", "llama4", "kanana2", "deepseek-v3", "hunyuan-dense", "joyai-llm")
"""Names under which llama.cpp splits some text differently from what it names them after."""


@pytest.mark.parametrize(
    "pre",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in known_names()
        if name not in APPROXIMATE
    ],
)
def test_every_pre_tokenizer_cuts_texts_as_llama_cpp_does(pre, make_model):
    metadata = small_vocabulary(pre, AWKWARD)
    model, vocabulary = llama_vocabulary(make_model(metadata))
    tokenizer = Tokenizer.from_buffer(tokenizer_files(metadata)["tokenizer.json"])
    special = ["<s>a</s>", "x <|tool|> y", "a whole whole 123"]
    assert_equal_to_llama(vocabulary, tokenizer, [*calibration_lines(100), *AWKWARD, *special])
    del model


@pytest.mark.slow
@pytest.mark.parametrize("pre", APPROXIMATE)
def test_names_of_approximate_splits_cut_plain_text_as_llama_cpp_does(pre, make_model):
    metadata = small_vocabulary(pre, AWKWARD)
    model, vocabulary = llama_vocabulary(make_model(metadata))
    tokenizer = Tokenizer.from_buffer(tokenizer_files(metadata)["tokenizer.json"])
    texts = [text for text in AWKWARD if text.isascii() and "~" not in text]
    assert_equal_to_llama(vocabulary, tokenizer, [*texts, *SPECIAL, "a whole whole 123"])
    del model


@pytest.mark.parametrize(
    ("begin", "end"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_bos_and_eos_are_added_as_the_gguf_says(begin, end, make_model):
    metadata = small_vocabulary("llama-bpe", ["text"])
    metadata |= {"tokenizer.ggml.add_bos_token": begin, "tokenizer.ggml.add_eos_token": end}
    model, vocabulary = llama_vocabulary(make_model(metadata))
    files = tokenizer_files(metadata)
    assert_equal_to_llama(vocabulary, Tokenizer.from_buffer(files["tokenizer.json"]), ["some text"])
    config = json.loads(files["tokenizer_config.json"])
    assert (config["add_bos_token"], config["add_eos_token"]) == (begin, end)
    del model


def test_transformers_adds_the_same_bos_token_once(tmp_path):
    files = tokenizer_files(small_vocabulary("llama-bpe", ["text"]))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ids = AutoTokenizer.from_pretrained(tmp_path)("some text")["input_ids"]
    assert ids == Tokenizer.from_buffer(files["tokenizer.json"]).encode("some text").ids


def test_user_defined_tokens_are_added_but_not_special():
    content = json.loads(tokenizer_files(small_vocabulary("qwen2", ["text"]))["tokenizer.json"])
    assert {added["content"]: added["special"] for added in content["added_tokens"]} == {
        "<s>": True,
        "</s>": True,
        "<|tool|>": False,
    }


def test_fillers_for_ids_without_a_token_are_left_out():
    metadata = small_vocabulary("qwen2", ["text"])
    size = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [
        *metadata["tokenizer.ggml.tokens"],
        f"[PAD{size}]",
        f"[PAD{size + 1}]",
    ]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 5, 5]
    assert (
        Tokenizer.from_buffer(tokenizer_files(metadata)["tokenizer.json"]).get_vocab_size() == size
    )


@pytest.mark.parametrize(
    ("changes", "kind", "complaint"),
    [
        ({"tokenizer.ggml.model": "bert"}, UnsupportedModel, "'bert'"),
        ({"tokenizer.ggml.model": None}, UnsupportedModel, "None"),
        ({"tokenizer.ggml.pre": "deepseek-llm"}, UnsupportedModel, "'deepseek-llm'"),
        ({"tokenizer.ggml.tokens": []}, BadInput, "no vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, BadInput, "1 token types"),
        ({"tokenizer.ggml.merges": ["nonsense"]}, BadInput, "'nonsense'"),
        ({"tokenizer.ggml.merges": ["日 本"]}, BadInput, "'日 本'"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, BadInput, "1000000"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused_in_one_line(changes, kind, complaint):
    with pytest.raises(kind) as caught:
        tokenizer_files(small_vocabulary("qwen2", ["text"]) | changes)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_occurs_twice_is_refused_by_name():
    metadata = small_vocabulary("qwen2", ["text"])
    metadata["tokenizer.ggml.tokens"][5] = metadata["tokenizer.ggml.tokens"][6]
    with pytest.raises(BadInput, match="twice"):
        tokenizer_files(metadata)


def test_a_template_in_the_metadata_keeps_its_line_ends(make_gguf, tiny_metadata, tiny_tensors):
    template = "{{ messages }}\r\n\r"
    path = make_gguf(tiny_metadata | {"tokenizer.chat_template": template}, tiny_tensors)
    assert open_source(str(path)).record.template == template
