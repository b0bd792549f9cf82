"""Tiny models and tokenizers for the GGUF tests."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from edgeq.architectures.record import Evidence, read_record
from edgeq.decoder import ModelRecord
from edgeq.types import Grid, NumpyArray, OutlierColumns, QuantizedLinear

VOCAB_SIZE = 320  # more rows than the tokenizer has tokens, so that padding is written too

CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS_AND_SPACE = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTIONS_AND_WORDS + r"|\p{N}{1,3}" + SIGNS_AND_SPACE
QWEN2 = CONTRACTIONS_AND_WORDS + r"|\p{N}" + SIGNS_AND_SPACE
TEXT = "It's 2026: the café's 12345 mice don't sleep.\n\n  They'LL  run\t away!! \U0001f42d x=1\n"


@dataclass
class MemoryModel:
    """A solved model that lies in dictionaries."""

    config: Mapping[str, Any]
    layers: dict[str, QuantizedLinear] = field(default_factory=dict)
    arrays: dict[str, NumpyArray] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    name: str = "tiny"
    type_asked: str | None = None

    @property
    def record(self) -> ModelRecord:
        return read_record(self.name, self.config, Evidence(self.files))

    def tensor_names(self) -> list[str]:
        return sorted([*self.layers, *self.arrays])

    def grid(self, tensor_name: str) -> Grid | None:
        return self.layers[tensor_name].grid if tensor_name in self.layers else None

    def quantized(self, tensor_name: str) -> QuantizedLinear:
        return self.layers[tensor_name]

    def dense(self, tensor_name: str) -> NumpyArray:
        return self.arrays[tensor_name]

    def companions(self) -> dict[str, bytes]:
        return self.files

    def weights(self) -> dict[str, NumpyArray]:
        """All tensors in float32, quantized ones as their codes say."""
        dense = {name: array.astype(np.float32) for name, array in self.arrays.items()}
        return dense | {name: layer.dequantized() for name, layer in self.layers.items()}


def random_layer(
    rng: np.random.Generator, shape: tuple[int, int], grid: Grid, *, size: float = 1.0
) -> QuantizedLinear:
    """Random codes with scales of both signs on a grid; weights are about as large as `size`."""
    if grid.super_blocks is not None:
        return of_two_levels(rng, shape, grid, size=size)
    codes = rng.integers(0, grid.max_code + 1, shape).astype(np.uint8)
    groups = (shape[0], grid.group_count(shape[1]))
    scales = (
        size / largest_level(grid) * rng.uniform(0.5, 1.5, groups) * rng.choice([-1, 1], groups)
    )
    scales = as_stored(scales, grid)
    if grid.zeros == "offset":
        offsets = as_stored(-scales * grid.max_code * rng.uniform(0.3, 0.7, groups), grid)
    else:
        zeros = (
            grid.middle if grid.zeros == "symmetric" else rng.integers(0, grid.max_code + 1, groups)
        )
        offsets = (-scales * zeros).astype(np.float32)
    layer = QuantizedLinear(codes, scales, offsets, grid)
    return layer if not grid.outlier_columns else with_outliers(rng, layer, size=size)


def largest_level(grid: Grid) -> int:
    return max(-grid.table[0], grid.table[-1]) if grid.table else grid.max_code


def of_two_levels(
    rng: np.random.Generator, shape: tuple[int, int], grid: Grid, *, size: float
) -> QuantizedLinear:
    """Random codes and integers but zero, with floats of both signs for each super-block."""
    assert grid.super_blocks is not None
    rows, columns = shape
    codes = rng.integers(0, grid.max_code + 1, shape).astype(np.uint8)
    groups, blocks = grid.group_count(columns), grid.super_block_count(columns)

    def level(limits: tuple[int, int], most: float, *, zero: bool) -> tuple[Any, Any]:
        low, high = limits
        signs = rng.choice([-1, 1], (rows, blocks))
        floats = (most / high * rng.uniform(0.5, 1.5, (rows, blocks)) * signs).astype("<f2")
        integers = rng.integers(low, high + 1, (rows, groups))
        integers = integers if zero else np.where(integers == 0, 1, integers)
        return floats.astype(np.float32), integers

    most = size / largest_level(grid)
    d, scales = level(grid.super_blocks.scale_limits, most, zero=False)
    minima, least = None, None
    if grid.super_blocks.minimum_limits is not None:
        minima, least = level(grid.super_blocks.minimum_limits, size, zero=True)
    return products_of(codes, grid, d, scales, minima, least)


def products_of(
    codes: NumpyArray,
    grid: Grid,
    super_scales: NumpyArray,
    sub_scales: NumpyArray,
    super_minima: NumpyArray | None = None,
    sub_minima: NumpyArray | None = None,
) -> QuantizedLinear:
    """Make a layer of the numbers of both levels."""
    per_block = sub_scales.shape[1] // super_scales.shape[1]
    scales = (np.repeat(super_scales, per_block, axis=1) * sub_scales).astype(np.float32)
    offsets = -scales * np.float32(grid.middle)
    if super_minima is not None:
        offsets = -(np.repeat(super_minima, per_block, axis=1) * sub_minima).astype(np.float32)
    return QuantizedLinear(codes, scales, offsets, grid, None, super_scales, super_minima)


def with_outliers(
    rng: np.random.Generator, layer: QuantizedLinear, *, size: float
) -> QuantizedLinear:
    """Random columns of twice the size, where the codes stand for zero or the value next to it."""
    rows, in_features = layer.codes.shape
    columns = np.sort(
        rng.choice(in_features, layer.grid.outlier_count(in_features), replace=False)
    ).astype(np.int32)
    zeros = np.clip(np.rint(layer.zeros), 0, layer.grid.max_code)[
        :, layer.grid.group_index(in_features)
    ]
    codes = layer.codes.copy()
    codes[:, columns] = zeros[:, columns]
    values = as_stored(2 * size * rng.standard_normal((rows, len(columns))), layer.grid)
    return replace(layer, codes=codes, outliers=OutlierColumns(columns, values))


def as_stored(values: NumpyArray, grid: Grid) -> NumpyArray:
    if grid.scale_dtype == "bfloat16":
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return values.astype(grid.scale_dtype).astype(np.float32)


def splitting(kind: str) -> tuple[Any, Any]:
    """Normalizer and pre-tokenizer of a family."""
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=kind in ("gpt-2", "smollm")
    )
    steps_of: dict[str, list[Any]] = {
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA_3), "isolated")],
        "smaug-bpe": [pre_tokenizers.Split(Regex(LLAMA_3), "isolated")],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated")],
    }
    steps = pre_tokenizers.Sequence([*steps_of[kind], byte_level]) if steps_of[kind] else byte_level
    return (normalizers.NFC() if kind == "qwen2" else None), steps


def byte_level_bpe(kind: str = "smollm", *, template: bool = False) -> Tokenizer:
    """Make a small tokenizer that the caller may change."""
    return Tokenizer.from_str(trained_bpe(kind, template))


@functools.cache
def trained_bpe(kind: str, template: bool) -> str:
    """Train a tokenizer on a few lines; gives its tokenizer.json.

    Its vocabulary: 3 special tokens, 256 bytes, a few dozen merges.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    normalizer, tokenizer.pre_tokenizer = splitting(kind)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|bos|>", "<|eos|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, "the mice run to the 12 cafes, 345 of them"] * 4, trainer)
    tokenizer.add_tokens(["<tool>"])
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)]
        )
    return tokenizer.to_str()


def tokenizer_files(
    kind: str = "smollm", *, template: bool = False, **settings: object
) -> dict[str, bytes]:
    named = {
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": {"content": "<|pad|>"},
    } | settings
    text = trained_bpe(kind, template)
    return {"tokenizer.json": text.encode(), "tokenizer_config.json": json.dumps(named).encode()}


def english_tokenizer() -> Tokenizer:
    """Make a tokenizer of single ASCII characters; it writes all others as unknown."""
    characters = ["\n", *map(chr, range(32, 127))]
    specials = ["<|bos|>", "<|eos|>", "<|pad|>"]
    vocabulary = {token: id for id, token in enumerate(specials + characters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.add_special_tokens(specials)
    return tokenizer


ONE_BLOCK: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": True,
}

SMALL_LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
}


def one_block_model(files, *, rows=VOCAB_SIZE):
    """The smallest model that llama.cpp loads, with so many rows of its embedding."""
    linears = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    linears += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    norms = ["input_layernorm", "post_attention_layernorm"]
    arrays: dict[str, NumpyArray] = {
        f"model.layers.0.{name}.weight": np.ones((32, 32), np.float32) for name in linears
    }
    arrays |= {f"model.layers.0.{name}.weight": np.ones(32, np.float32) for name in norms}
    arrays |= {
        "model.norm.weight": np.ones(32, np.float32),
        "model.embed_tokens.weight": np.ones((rows, 32), "f4"),
    }
    return MemoryModel(ONE_BLOCK | {"vocab_size": rows}, arrays=arrays, files=files)
