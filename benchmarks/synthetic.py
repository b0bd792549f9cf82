"""Write random checkpoints of any shape, sharded as the hub's are, to measure memory and time on.

    uv run python -m benchmarks.synthetic OUT --hidden 512 --inner 1408 --heads 8 --blocks 4
    uv run python -m benchmarks.synthetic OUT --like llama-2-70b --outline

With --outline only config and index are written, no weights.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgeq.architectures.record import read_record

Config = dict[str, Any]
SHAPES: Mapping[str, Mapping[str, int]] = {
    "llama-3.2-1b": {
        "hidden": 2048,
        "inner": 8192,
        "heads": 32,
        "key_heads": 8,
        "vocabulary": 128256,
        "blocks": 16,
        "tied": True,
    },
    "llama-3.2-3b": {
        "hidden": 3072,
        "inner": 8192,
        "heads": 24,
        "key_heads": 8,
        "vocabulary": 128256,
        "blocks": 28,
        "tied": True,
    },
    "llama-2-7b": {
        "hidden": 4096,
        "inner": 11008,
        "heads": 32,
        "key_heads": 32,
        "vocabulary": 32000,
        "blocks": 32,
    },
    "llama-2-70b": {
        "hidden": 8192,
        "inner": 28672,
        "heads": 64,
        "key_heads": 8,
        "vocabulary": 32000,
        "blocks": 80,
    },
}


def make_config(
    *,
    hidden: int,
    inner: int,
    heads: int,
    blocks: int,
    key_heads: int | None = None,
    vocabulary: int = 320,
    tied: int = False,
) -> Config:
    """Make the config.json of a Llama of these sizes."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads or heads,
        "num_hidden_layers": blocks,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": bool(tied),
        "hidden_act": "silu",
        "dtype": "bfloat16",
    }


def shards_of(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    """Divide tensors among files: one for each block, one for what lies outside of them."""
    decoder = read_record("synthetic", config).decoder
    count = len(decoder.layers) + 1
    files = {f"model-{1:05d}-of-{count:05d}.safetensors": decoder.outer_shapes()}
    for index, layer in enumerate(decoder.layers):
        block = decoder.block_name(index)
        shapes = {f"{block}.{name}": shape for name, shape in layer.tensor_shapes().items()}
        files[f"model-{index + 2:05d}-of-{count:05d}.safetensors"] = shapes
    return files


def random_tensor(
    rng: np.random.Generator, name: str, shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Draw a tensor: norms are ones, matrices keep the size of their inputs."""
    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    size = 1.0 if "embed" in name else 1 / math.sqrt(shape[1])
    drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(size)
    return drawn.astype(ml_dtypes.bfloat16)


def byte_tokenizer() -> str:
    """Make a tokenizer whose tokens are the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())


def write_checkpoint(folder: Path, config: Config, *, outline: bool = False, seed: int = 0) -> Path:
    """Write the checkpoint, or with `outline` all of it but the weights; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    files = shards_of(config)
    for file, shapes in files.items():
        if not outline:
            tensors = {name: random_tensor(rng, name, shape) for name, shape in shapes.items()}
            save_file(tensors, folder / file, metadata={"format": "pt"})
    total = 2 * sum(math.prod(shape) for shapes in files.values() for shape in shapes.values())
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(byte_tokenizer(), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--like", choices=SHAPES, help="sizes of a known model; others given win")
    for size in ("hidden", "inner", "heads", "key-heads", "vocabulary", "blocks"):
        parser.add_argument(f"--{size}", type=int)
    parser.add_argument("--outline", action="store_true", help="no weights")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    output, like, outline = given.pop("output"), given.pop("like", None), given.pop("outline")
    sizes = {**SHAPES[like], **given} if like else given
    write_checkpoint(output, make_config(**sizes), outline=outline)


if __name__ == "__main__":
    main()
