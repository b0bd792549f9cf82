"""Tokenizers of every kind that is exported, trained on mixed text, and the runtimes that read
them.

Merges of byte-level ones cross every border between words, so that any border that a runtime sees
elsewhere shows in the tokens. SentencePiece itself trains the others.
"""

import functools
import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
from mixed_text import mixed_lines, shipped_lines
from tiny_models import one_block_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import generate_merges

from edgeq.architectures.word_splits import WORD_SPLITS
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.onnx.exporter import OnnxExporter

ROWS = 4096
TOKENS = 4000
GEMMA_PIECES = ("\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>", "[x]")
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BLANKS = {
    "prepend": (
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]},
        None,
    ),
    "gemma": (
        REPLACE,
        {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
    ),
} | {
    scheme: (
        None,
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
    )
    for scheme in ("never", "first", "always")
}
"""Normalizers and pre-tokenizers of published SentencePiece tokenizers."""


@dataclass(frozen=True)
class Kind:
    """A tokenizer.json, its named tokens, and those that lines of text have."""

    content: dict
    named: dict
    special: tuple

    @property
    def files(self):
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | self.named
        return {
            "tokenizer.json": json.dumps(self.content).encode(),
            "tokenizer_config.json": json.dumps(settings).encode(),
        }

    def tokenizer(self):
        return Tokenizer.from_str(json.dumps(self.content))


@functools.cache
def crossing_bpe():
    """Train byte-level BPE on whole lines: its tokens reach over all borders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*mixed_lines(), *shipped_lines()[:1500]], trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer.to_str()


def byte_level_kind(split, *, normalizer=None, crossing=True):
    """A tokenizer that splits words in one of the known ways."""
    steps = list(split.steps)
    content = json.loads(crossing_bpe() if crossing else split_bpe(split.name))
    content["normalizer"] = normalizer
    one_step = len(steps) == 1
    content["pre_tokenizer"] = (
        steps[0] if one_step else {"type": "Sequence", "pretokenizers": steps}
    )
    content["model"]["ignore_merges"] = split.whole_words
    named = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    return Kind(content, named, ("<|eos|>", "<tool>"))


@functools.cache
def split_bpe(name):
    """Train byte-level BPE on words that are split in one of the known ways."""
    (split,) = [split for split in WORD_SPLITS if split.written and split.name == name]
    content = json.loads(crossing_bpe())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(split.steps)}
    content |= {"added_tokens": []}
    content["model"] |= {"vocab": {}, "merges": []}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*mixed_lines(), *shipped_lines()[:1500]], trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer.to_str()


@functools.cache
def sentencepiece_model(pieces=()):
    """Train BPE by SentencePiece, with pieces of the user's own."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    lines = [line for text in mixed_lines() for line in text.splitlines() if line.strip()]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *shipped_lines()[:1500]]),
        model_writer=written,
        model_type="bpe",
        vocab_size=3000,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=list(pieces),
        allow_whitespace_only_pieces=True,
        character_coverage=0.995,  # leaves characters to bytes
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def sentencepiece_kind(blanks, pieces=("<tool>",)):
    """A tokenizer.json as transformers converts SentencePiece's model to it."""
    model = sentencepiece_model(pieces)
    tokens = [model.id_to_piece(id) for id in range(model.get_piece_size())]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    free = [id for id in range(len(tokens)) if not (model.is_control(id) or model.is_byte(id))]
    scores = {tokens[id]: model.get_score(id) for id in free if not model.is_unknown(id)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [*tokens[:3], *pieces]
    normalizer, pre_tokenizer = BLANKS[blanks]
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"id": "A", "type_id": 0}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[token], "content": token, "special": token in tokens[:3]} | flags
            for token in sorted(added, key=vocabulary.get)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": text}],
            "pair": [begin, {"Sequence": text}, {"Sequence": text | {"id": "B"}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([] if blanks in ("gemma", "never") else [STRIP]),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in generate_merges(vocabulary, scores)],
        },
    }
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Kind(content, named, ("</s>", "<s>", *pieces))


def saved(kind, folder):
    """Save the files of a tokenizer as transformers finds them."""
    folder.mkdir()
    for name, data in kind.files.items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def in_transformers(kind, folder):
    """Encode as transformers does, without tokens around a text."""
    tokenizer = AutoTokenizer.from_pretrained(saved(kind, folder))
    return lambda line: tokenizer(line, add_special_tokens=False)["input_ids"]


def vocabulary_of(path):
    """llama.cpp's tokenizer of a file; the model must live as long."""
    llama = pytest.importorskip("cyllama.llama.llama_cpp", reason="cyllama is not installed")
    llama.disable_logging()
    llama.llama_backend_init()
    llama.ggml_backend_load_all()
    parameters = llama.LlamaModelParams()
    parameters.n_gpu_layers = 0
    model = llama.LlamaModel(str(path), parameters)
    return model, model.get_vocab()


def in_llama_cpp(kind, folder):
    """Encode as llama.cpp does with the exported file, special tokens in text found."""
    folder.mkdir()
    path, *_ = GgufExporter().write(one_block_model(kind.files, rows=ROWS), folder)
    model, vocabulary = vocabulary_of(path)

    def encode(line, kept=model):
        ids = vocabulary.tokenize(line, add_special=False, parse_special=True)
        return [int(id) for id in ids]

    return encode


def in_genai(kind, folder):
    """Encode as onnxruntime-genai does with the exported directory."""
    genai = pytest.importorskip(
        "onnxruntime_genai", reason="no wheel for this system", exc_type=ImportError
    )
    folder.mkdir()
    OnnxExporter().write(one_block_model(kind.files, rows=ROWS), folder)
    tokenizer = genai.Tokenizer(str(folder))
    return lambda line: np.asarray(tokenizer.encode(line)).tolist()


def differing(first, second, lines):
    """The lines that two runtimes give different tokens for."""
    return [line for line in lines if list(first(line)) != list(second(line))]
