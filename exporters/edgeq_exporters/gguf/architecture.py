"""Say which models llama.cpp computes, and where their tensors lie in a GGUF file.

Keys are left to `edgeq_exporters.gguf.metadata`, tokenizers and the bytes of tensors to others.
"""

import re

import gguf

from edgeq.architectures.features import PARTIAL_ROTARY
from edgeq.architectures.llama_cpp_tensors import FileTensor, file_tensors
from edgeq.architectures.requirements import (
    why_not_activation,
    why_not_biases,
    why_not_features,
    why_not_heads,
    why_not_named,
    why_not_stated,
)
from edgeq.architectures.rope import why_not_rope
from edgeq.decoder import Decoder
from edgeq.runtime_names import GgufNames
from edgeq_exporters.gguf.llama_cpp import why_not_habits


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
        or why_not_habits(decoder)
    )


def gguf_tensors(decoder: Decoder) -> list[FileTensor]:
    """List the tensors of a model's file by name, by the table of the gguf library."""
    known = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[names_of(decoder).architecture], len(decoder.layers))

    def find(tensor: str) -> str | None:
        return table.get_name(tensor, try_suffixes=(".weight", ".bias"))

    return sorted(file_tensors(decoder, find), key=lambda tensor: file_order(tensor.name))


def file_order(name: str) -> tuple[int, str]:
    """Make the key that sorts GGUF names: model-wide tensors first, then blocks by number."""
    block = re.match(r"blk\.(\d+)\.", name)
    return (int(block[1]) if block else -1, name)
