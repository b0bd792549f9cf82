"""Read a GGUF file as if it were the checkpoint that it was converted from.

Its header is checked by `edgeq.files.gguf_header` before the gguf library reads it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf

from edgeq.architectures.blocks import find_blocks
from edgeq.architectures.chat_template import OLDER_FILE
from edgeq.architectures.record import Evidence, read_record
from edgeq.errors import BadInput, reason_of
from edgeq.files.gguf_header import check_header
from edgeq.files.gguf_reader import Reader
from edgeq.files.json_files import json_bytes
from edgeq.sources.fingerprint import hash_model
from edgeq.sources.gaps import StoredBytes, check_gaps, row_bytes
from edgeq.sources.gguf_checks import check_computed
from edgeq.sources.gguf_config import build_config, check_whole_model
from edgeq.sources.gguf_origin import origin_in
from edgeq.sources.gguf_rope import FACTORS, LONG_FACTORS, SHORT_FACTORS
from edgeq.sources.gguf_tensors import Part, check_types, decode_whole, parts_of
from edgeq.sources.gguf_tokenizer import tokenizer_files
from edgeq.sources.refusals import check_content
from edgeq.types import BlockSpec, NumpyArray

WIDE_RANGE = "gemma"
ROPE_TENSORS = (FACTORS, LONG_FACTORS, SHORT_FACTORS)


class GgufFile:
    """A GGUF as a ModelSource, with the names, row order, experts and config of Hugging Face.

    Quantized tensors become float32. The library maps the file to read its header; tensors are
    read one at a time, by ordinary reads.

    Raises: BadInput or UnsupportedModel, each with one line.
    """

    def __init__(
        self, path: Path, *, name: str | None = None, repository: str | None = None
    ) -> None:
        reader = open_reader(path)
        self.path = path
        self.metadata = read_metadata(reader, path)
        check_whole_model(self.metadata, path)
        stored = {tensor.name: tensor for tensor in reader.tensors}
        check_types(stored)
        config = build_config(
            self.metadata,
            vocab_size=vocabulary_size(stored, path),
            tensors=stored.keys(),
            rope_factors={
                name: decode_whole(stored[name], path) for name in ROPE_TENSORS if name in stored
            },
            dtype=computed_dtype(reader.tensors, str(self.metadata.get("general.architecture"))),
        )
        own_name = str(self.metadata.get("general.name") or path.stem)
        template = self.metadata.get("tokenizer.chat_template")
        # among JSON, as line ends of a template in a file of its own are those of a text file
        stated = json_bytes({"chat_template": None if template is None else str(template)})
        self.record = read_record(name or own_name, config, Evidence({OLDER_FILE: stated}))
        self.record = replace(self.record, origin=origin_in(self.metadata, repository))
        check_computed(self.metadata, self.record.decoder)
        weights = {name: stored[name] for name in stored if name not in ROPE_TENSORS}
        self.parts = parts_of(weights, self.record.decoder)
        self.decoder_blocks = find_blocks(self.record.decoder, self.shapes())
        check_gaps(self.stored_bytes_of(tensor) for tensor in self.parts)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.shape(name) for name in self.parts}

    def tensor_names(self) -> Sequence[str]:
        return tuple(self.parts)

    def shape(self, tensor_name: str) -> tuple[int, ...]:
        return self.part(tensor_name).shape

    def part(self, tensor_name: str) -> Part:
        if tensor_name not in self.parts:
            raise BadInput(
                f"{self.path} holds no tensor {tensor_name!r}; convert the model to GGUF again"
            )
        return self.parts[tensor_name]

    def read(self, tensor_name: str) -> NumpyArray:
        """Read one tensor as the checkpoint has it: row order, one expert, norms less one.

        float16 and bfloat16 stay, all other types become float32.
        """
        return self.part(tensor_name).read(self.path)

    def stored_as(self, tensor_name: str) -> str:
        return str(self.part(tensor_name).tensor.tensor_type.name)

    def tensor_bytes(self, tensor_name: str) -> int:
        return self.part(tensor_name).bytes

    def stored_bytes_of(self, tensor_name: str) -> StoredBytes:
        """Say where a tensor's bytes lie."""
        part = self.part(tensor_name)
        row = row_bytes(part.bytes, part.shape)
        return StoredBytes(tensor_name, self.path, part.start, part.bytes, row)

    def stored_bytes(self) -> int:
        return self.path.stat().st_size

    def location(self) -> Path:
        return self.path

    def blocks(self) -> Sequence[BlockSpec]:
        return self.decoder_blocks

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        return tokenizer_files(self.metadata)

    def companions(self) -> Mapping[str, bytes]:
        """Rebuild tokenizer and generation settings from the GGUF's vocabulary.

        Raises: UnsupportedModel, BadInput.
        """
        return self.files

    def fingerprint(self) -> str:
        return hash_model(self.record.config(), self.shapes(), [self.path])


def open_reader(path: Path) -> gguf.GGUFReader:
    """Map a file and read its header.

    Raises: BadInput for a damaged file.
    """
    check_content(path)
    try:
        check_header(path)
        return Reader(path)
    # The reader checks little itself: damage shows as whatever NumPy or Python then stumbles over.
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
        MemoryError,
        RecursionError,
        OSError,
    ) as error:
        raise unreadable(path, error) from None


def read_metadata(reader: gguf.GGUFReader, path: Path) -> dict[str, Any]:
    try:
        return {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: BaseException) -> BadInput:
    return BadInput(
        f"{path} is not a readable GGUF file ({reason_of(error)}); "
        "it is damaged or incomplete, fetch it again"
    )


def computed_dtype(tensors: Sequence[gguf.ReaderTensor], architecture: str) -> str:
    """Choose the type to compute in: bfloat16 for a file that is mostly of it, whose range it has.

    So for Gemmas, whose activations exceed float16. float16 for all others: numbers of blocks are
    in float16.
    """
    if architecture.startswith(WIDE_RANGE):
        return "bfloat16"
    counts: Counter[gguf.GGMLQuantizationType] = Counter()
    for tensor in tensors:
        counts[tensor.tensor_type] += int(tensor.n_elements)
    commonest = counts.most_common(1)[0][0] if counts else None
    return "bfloat16" if commonest == gguf.GGMLQuantizationType.BF16 else "float16"


def vocabulary_size(stored: Mapping[str, gguf.ReaderTensor], path: Path) -> int:
    if "token_embd.weight" not in stored:
        raise BadInput(
            f"{path} has no tensor 'token_embd.weight'; give a GGUF file of a whole model"
        )
    return int(stored["token_embd.weight"].shape[-1])
