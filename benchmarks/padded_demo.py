"""Widen the demo to what K-quants divide, with the same function: 576 columns become 768.

    uv run python -m benchmarks.padded_demo OUT.gguf            zeros, and three more heads of zeros
    uv run python -m benchmarks.padded_demo OUT.gguf --turned   then take the weights off any grid

The demo's own weights were born on a 4-bit grid that Q4_K almost contains. Turned, every norm is
folded into the layers behind it and the stream between blocks is turned by a random orthogonal
matrix: the function stays, all 768 columns carry weight, and the head is a matrix of its own. Both
are GGUF files in float16. Zeros come first in a row, where no reader takes them for a lost end.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from edgeq.sources.demo import find_demo

MULTIPLE = 256  # columns of a super-block
KEY = "llama"
WIDTH, HEADS = f"{KEY}.embedding_length", f"{KEY}.attention.head_count"
CACHE_HEADS = f"{KEY}.attention.head_count_kv"
EPSILON = f"{KEY}.attention.layer_norm_rms_epsilon"
EMBEDDING, HEAD, LAST_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
READS = {  # behind each norm of a block, what reads it
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "ffn_norm": ("ffn_gate", "ffn_up"),
}
WRITES = ("attn_output", "ffn_down")
Weights = dict[str, npt.NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--turned", action="store_true", help="by a random orthogonal matrix")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists; choose another file, or remove it")
    seed = arguments.seed if arguments.turned else None
    widen(find_demo(), arguments.output, seed)


def widen(model: Path, output: Path, seed: int | None) -> None:
    """Write a widened Llama, turned by the matrix of a seed where one is given."""
    reader = gguf.GGUFReader(model)
    weights, changed = padded(read_weights(reader), reader)
    write(reader, output, weights if seed is None else turned(weights, seed), changed)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def read_weights(reader: gguf.GGUFReader) -> Weights:
    """Dequantize all tensors.

    Shapes: (out, in), or (in,) of norms.
    """
    return {
        tensor.name: np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        for tensor in reader.tensors
    }


def padded(weights: Weights, reader: gguf.GGUFReader) -> tuple[Weights, dict[str, Any]]:
    """Put zeros before columns and heads, and give the keys that change with them.

    A norm divides by the mean square of 768 columns instead of 576, so that its weight and its
    epsilon are scaled by the share of the columns that are not zero.
    """
    width, heads, cache = (value(reader, key) for key in (WIDTH, HEADS, CACHE_HEADS))
    size, shared = width // heads, heads // cache
    wide = -(-width // MULTIPLE) * MULTIPLE
    more = wide // size
    changed = {
        WIDTH: wide,
        HEADS: more,
        CACHE_HEADS: more // shared,
        EPSILON: value(reader, EPSILON) * width / wide,
    }
    rows = {
        "attn_q": wide,
        "attn_k": more // shared * size,
        "attn_v": more // shared * size,
        "attn_output": wide,
        "ffn_down": wide,
    }
    found = {}
    for name, weight in weights.items():
        if weight.ndim == 1:
            found[name] = before(weight * np.sqrt(width / wide), wide)
        else:
            out, columns = weight.shape
            more_columns = wide if columns == width else columns
            found[name] = before(weight, rows.get(part_of(name), out), more_columns)
    return found, changed


def part_of(name: str) -> str:
    """Find what a tensor is in its block, such as attn_q of blk.3.attn_q.weight."""
    return name.split(".")[-2]


def before(weight: npt.NDArray[np.float32], *shape: int) -> npt.NDArray[np.float32]:
    """Put zeros before what an array has, up to a shape."""
    lacking = [(wanted - has, 0) for wanted, has in zip(shape, weight.shape, strict=True)]
    return np.pad(weight, lacking)


def turned(weights: Weights, seed: int) -> Weights:
    """Fold the norms into what reads them, and turn the stream between the blocks.

    E becomes E Q, what reads the stream W Q, what writes it Q.T W, and norms become ones: the mean
    square of a row does not change when it is turned.
    """
    width = weights[EMBEDDING].shape[1]
    square = np.random.default_rng(seed).standard_normal((width, width))
    Q = np.linalg.qr(square)[0].astype(np.float32)
    found = dict(weights)
    found[HEAD] = (weights.get(HEAD, weights[EMBEDDING]) * weights[LAST_NORM]) @ Q
    found[EMBEDDING] = weights[EMBEDDING] @ Q
    norm_of = {each: norm for norm, layers in READS.items() for each in layers}
    for name, weight in weights.items():
        part = part_of(name)
        if part in norm_of:
            found[name] = (weight * weights[name.replace(part, norm_of[part])]) @ Q
        elif part in WRITES:
            found[name] = Q.T @ weight
        elif weight.ndim == 1:
            found[name] = np.ones_like(weight)
    return found


def keys_of(reader: gguf.GGUFReader, changed: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Give all keys of a file, with those that a widened float16 file has otherwise."""
    changed = {**changed, "general.file_type": int(gguf.LlamaFileType.MOSTLY_F16)}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            yield key, changed.get(key, field.contents()), field.types


def write(
    reader: gguf.GGUFReader, output: Path, weights: Weights, changed: Mapping[str, Any]
) -> None:
    """Write a GGUF file with matrices in float16 and norms in float32."""
    writer = gguf.GGUFWriter(output, KEY)
    for key, content, types in keys_of(reader, changed):
        inner = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, content, types[0], sub_type=inner)
    for name, weight in weights.items():
        writer.add_tensor(name, weight.astype(np.float16 if weight.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
