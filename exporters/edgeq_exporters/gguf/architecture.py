"""Translate the description of a model to GGUF: tensor names, row order and metadata.

Tokenizers and the bytes of tensors are left to the modules beside this one.
"""

import re
from collections.abc import Iterator

import gguf
import numpy as np
import numpy.typing as npt

from edgeq.architectures.features import PARTIAL_ROTARY
from edgeq.architectures.requirements import (
    why_not_activation,
    why_not_biases,
    why_not_features,
    why_not_heads,
    why_not_named,
    why_not_stated,
)
from edgeq.architectures.rope import llama3_factors, why_not_rope
from edgeq.decoder import Decoder, GgufNames


def names_of(decoder: Decoder) -> GgufNames:
    """Give llama.cpp's names for a model that `why_not_architecture` accepts."""
    assert decoder.names.gguf is not None
    return decoder.names.gguf


def why_not_architecture(decoder: Decoder) -> str | None:
    """Say what keeps a model out of llama.cpp's architectures and what to change, or None."""
    return (
        why_not_named(decoder, "gguf", "GGUF export knows")
        or why_not_stated(decoder, "GGUF")
        or why_not_features(decoder, "llama.cpp", names_of(decoder).computes)
        or why_not_activation(decoder, "llama.cpp", names_of(decoder).activations)
        or why_not_biases(decoder, "llama.cpp", names_of(decoder).biased)
        or why_not_heads(decoder, "llama.cpp", plain=names_of(decoder).plain_heads)
        or why_not_rope(
            decoder,
            "llama.cpp",
            names_of(decoder).rope_kinds,
            partial=PARTIAL_ROTARY in names_of(decoder).computes,
        )
    )


def gguf_names(decoder: Decoder) -> dict[str, str]:
    """Map a checkpoint's tensor names to llama.cpp's, by the table of the gguf library."""
    known = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[names_of(decoder).architecture], len(decoder.layers))
    found = {
        tensor: table.get_name(tensor, try_suffixes=(".weight", ".bias"))
        for tensor in decoder.tensor_shapes()
    }
    return {tensor: name for tensor, name in found.items() if name is not None}


def file_order(name: str) -> tuple[int, str]:
    """Make the key that sorts GGUF names: model-wide tensors first, then blocks by number."""
    block = re.match(r"blk\.(\d+)\.", name)
    return (int(block[1]) if block else -1, name)


def row_order(source_name: str, decoder: Decoder) -> npt.NDArray[np.intp] | None:
    """Give the order in which GGUF stores the rows of a tensor; None for the checkpoint's order.

    Checkpoints rotate rows of q and k that lie half a head apart. For some architectures llama.cpp
    rotates neighbouring rows instead: each head then goes from [2, head / 2] to [head / 2, 2].

    Shapes: (out,).
    """
    if not names_of(decoder).adjacent_rotary:
        return None
    attention = decoder.attention
    for projection, heads in (("q_proj", attention.heads), ("k_proj", attention.key_heads)):
        if f".self_attn.{projection}." in source_name:
            rows = np.arange(heads * attention.head_size, dtype=np.intp)
            return rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return None


def architecture_keys(
    decoder: Decoder, *, vocab_size: int
) -> Iterator[tuple[str, int | float | str]]:
    """Make the metadata of the architecture, under the keys that llama.cpp reads.

    An int is stored as uint32, a float as float32.
    """
    arch = names_of(decoder).architecture
    attention = decoder.attention
    assert decoder.context is not None
    assert decoder.epsilon is not None
    yield f"{arch}.block_count", len(decoder.layers)
    assert decoder.whole_context is not None
    yield f"{arch}.context_length", decoder.whole_context
    yield f"{arch}.embedding_length", decoder.hidden
    yield f"{arch}.feed_forward_length", decoder.inner
    yield f"{arch}.attention.head_count", attention.heads
    yield f"{arch}.attention.head_count_kv", attention.key_heads
    if attention.head_size * attention.heads != decoder.hidden:
        yield f"{arch}.attention.key_length", attention.head_size
        yield f"{arch}.attention.value_length", attention.head_size
    yield f"{arch}.attention.layer_norm_rms_epsilon", decoder.epsilon
    yield f"{arch}.rope.dimension_count", attention.head_size
    yield f"{arch}.rope.freq_base", decoder.rope.theta
    if decoder.rope.kind == "linear":
        yield f"{arch}.rope.scaling.type", "linear"
        yield f"{arch}.rope.scaling.factor", float(decoder.rope.settings["factor"])
    yield f"{arch}.vocab_size", vocab_size


def rope_factors(decoder: Decoder) -> npt.NDArray[np.float32] | None:
    """Compute the divisors of Llama 3.1's rotary frequencies; None for other rope types.

    Shapes: (head / 2,).
    """
    attention = decoder.attention
    if decoder.rope.kind != "llama3":
        return None
    return llama3_factors(decoder.rope, attention.head_size).astype(np.float32)
