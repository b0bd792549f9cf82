"""Read a Hugging Face checkpoint directory: config.json, safetensors files, tokenizer files.

Which tensors a model has to have is checked by `edgeq.architectures.blocks`.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from edgeq.architectures.blocks import find_blocks
from edgeq.architectures.record import Evidence, read_record
from edgeq.architectures.text_part import text_config, text_names
from edgeq.decoder import Decoder, passed_over
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput, reason_of
from edgeq.files.json_files import read_json
from edgeq.files.local_paths import file_without_local_paths, without_local_paths
from edgeq.files.ownership import COMPANION_FILES, leads_out
from edgeq.files.plain_files import open_file, read_array, read_file, what_to_do
from edgeq.sources.fingerprint import hash_model
from edgeq.sources.gaps import StoredBytes, check_gaps, row_bytes
from edgeq.sources.model_card import legal_files, read_origin
from edgeq.sources.reading import is_multiplied
from edgeq.sources.refusals import (
    SHARD_INDEX,
    SINGLE_FILE,
    check_content,
    check_names,
    explain_dtype,
    explain_no_weights,
)
from edgeq.types import BlockSpec, NumpyArray

COMPARED_NUMBERS = 1 << 20  # at a time: a few megabytes, however large an embedding is
STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The place of a tensor: its file, its first byte there, its dtype as safetensors names it."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class SafetensorsDirectory:
    """A checkpoint directory as a ModelSource.

    Opening reads headers only; tensors are read one at a time.

    Raises: BadInput or UnsupportedModel, each with one line.
    """

    def __init__(
        self, path: Path, *, name: str | None = None, repository: str | None = None
    ) -> None:
        files = weight_files(path)
        config = without_local_paths(read_model_json(path / "config.json"))
        self.directory = path
        self.files = tuple(files)
        stored = {tensor: place for file in files for tensor, place in read_header(file).items()}
        check_index(path, stored)
        legal, left_out = legal_files(path)
        companions = {**read_companions(path), **legal}
        notes: tuple[str, ...] = ()
        inner = text_config(config)
        if inner is not None:
            config, (stored, notes) = inner, text_part(stored)
        evidence = Evidence(companions, partial(holds_own_head, stored), commonest_dtype(stored))
        self.record = read_record(name or model_name(path), config, evidence)
        origin = read_origin(path, repository or repository_of(path))
        notes = (*self.record.notes, *notes, *left_out)
        self.record = replace(self.record, notes=notes, origin=origin)
        decoder = self.record.decoder
        if decoder.tied_head and decoder.embedding not in stored and decoder.head in stored:
            stored[decoder.embedding] = stored[decoder.head]  # either of the two may be saved
        stored = by_whole_names(decoder, stored)
        others = passed_over(decoder, stored)
        if others:
            self.record = replace(
                self.record, notes=(*self.record.notes, note_of_passed_over(others))
            )
        self.stored = {
            tensor: place
            for tensor, place in stored.items()
            if not (decoder.is_redundant(tensor) or tensor in others)
        }
        check_names(self.record.decoder, self.stored)
        check_dtypes(self.stored)
        self.decoder_blocks = find_blocks(self.record.decoder, self.shapes())
        weights = (name for name in self.stored if is_multiplied(self.record.decoder, name))
        check_gaps(self.stored_bytes_of(tensor) for tensor in weights)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor: place.shape for tensor, place in self.stored.items()}

    def tensor_names(self) -> Sequence[str]:
        return tuple(self.stored)

    def shape(self, tensor_name: str) -> tuple[int, ...]:
        return self.place(tensor_name).shape

    def place(self, tensor_name: str) -> StoredTensor:
        if tensor_name not in self.stored:
            raise BadInput(
                f"{self.directory} holds no tensor {tensor_name!r}; fetch the checkpoint again"
            )
        return self.stored[tensor_name]

    def read(self, tensor_name: str) -> NumpyArray:
        """Read one tensor in the dtype it is stored in; float64 becomes float32."""
        place = self.place(tensor_name)
        count = math.prod(place.shape)
        dtype = STORED_DTYPES[place.dtype]
        values = read_array(place.file, dtype, count, offset=place.offset).reshape(place.shape)
        with np.errstate(over="ignore"):  # infinity is found, and named, by who reads
            return values.astype(np.float32) if place.dtype == "F64" else values

    def stored_as(self, tensor_name: str) -> str:
        return self.place(tensor_name).dtype

    def tensor_bytes(self, tensor_name: str) -> int:
        place = self.place(tensor_name)
        return math.prod(place.shape) * STORED_DTYPES[place.dtype].itemsize

    def stored_bytes_of(self, tensor_name: str) -> StoredBytes:
        """Say where a tensor's bytes lie."""
        place, size = self.place(tensor_name), self.tensor_bytes(tensor_name)
        return StoredBytes(
            tensor_name, place.file, place.offset, size, row_bytes(size, place.shape)
        )

    def stored_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def location(self) -> Path:
        return self.directory

    def blocks(self) -> Sequence[BlockSpec]:
        return self.decoder_blocks

    def companions(self) -> Mapping[str, bytes]:
        return self.record.files

    def fingerprint(self) -> str:
        return hash_model(self.record.config(), self.shapes(), self.files)


def text_part(
    stored: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Pick the language model's tensors, under their names in a model of its own.

    Gives a note too on those that are left out.
    """
    names = text_names(stored)
    others = [name for name in stored if name not in names]
    first = sorted({name.removeprefix("model.").partition(".")[0] for name in others})
    left_out = (
        f"the language model alone is read; {len(others)} tensors of {', '.join(first)} "
        "are left out, and outputs are text-only models",
    )
    return {new: stored[old] for old, new in names.items()}, left_out if others else ()


def by_whole_names(decoder: Decoder, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Name tensors as the whole model does where it was saved without its head, as GPT-2 was.

    That is sound for a model whose head is its embedding: nothing is missing.
    """
    prefix, _, bare = decoder.blocks.partition(".")
    inside = any(name.startswith(f"{decoder.blocks}.") for name in stored)
    if inside or not decoder.tied_head or not any(name.startswith(f"{bare}.") for name in stored):
        return dict(stored)
    return {f"{prefix}.{name}": place for name, place in stored.items()}


def note_of_passed_over(names: Sequence[str]) -> str:
    """Say which tensors of a checkpoint are left out."""
    return (
        f"{len(names)} tensors that are no part of the model are left out, "
        f"as in transformers, such as {names[0]}"
    )


def model_name(path: Path) -> str:
    """Name a model after its directory, or the link that leads there.

    One in the hub's cache, where directories are named by hashes, has the name of its repository.
    """
    given = Path(os.path.abspath(path))  # not resolved: a link's name is the one that people see
    repository = None if given.is_symlink() else repository_of(path)
    return repository.split("/")[-1] if repository else given.name or "model"


def repository_of(path: Path) -> str | None:
    """Name the repository on the hub of a model in the hub's cache; None for other directories."""
    given = Path(os.path.abspath(path))
    for place in (given, given.resolve()):
        folder = place.parent.parent.name
        if place.parent.name == "snapshots" and folder.startswith("models--"):
            return "/".join(folder.split("--")[1:])
    return None


def commonest_dtype(stored: Mapping[str, StoredTensor]) -> str | None:
    """Find the type of most numbers, by the name that a config has for it."""
    counts: Counter[str] = Counter()
    for place in stored.values():
        counts[place.dtype] += math.prod(place.shape)
    names = {code: name for name, code in CODE_NAMES.items()}
    return names.get(counts.most_common(1)[0][0], "float32") if counts else None


def holds_own_head(stored: Mapping[str, StoredTensor], decoder: Decoder) -> bool:
    """Say whether weights hold a head that is no copy of the embedding.

    As in transformers, only equal numbers are a copy.
    """
    head, embedding = stored.get(decoder.head), stored.get(decoder.embedding)
    if head is None or embedding is None:
        return False
    if head.shape != embedding.shape:
        return True
    if {head.dtype, embedding.dtype} - STORED_DTYPES.keys():
        return False  # of a type that is refused anyway
    count = math.prod(head.shape)
    for start in range(0, count, COMPARED_NUMBERS):
        ours, theirs = (numbers_from(place, start) for place in (head, embedding))
        if not np.array_equal(ours, theirs):
            return True
    return False


def numbers_from(place: StoredTensor, start: int) -> NumpyArray:
    """Read some numbers of a tensor in float32, from one of them on."""
    dtype = STORED_DTYPES[place.dtype]
    count = min(COMPARED_NUMBERS, math.prod(place.shape) - start)
    offset = place.offset + start * dtype.itemsize
    return read_array(place.file, dtype, count, offset=offset).astype(np.float32)


def read_model_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint that somebody else wrote.

    Raises: BadInput.
    """
    missing = "a checkpoint directory needs it"
    check_content(path)
    return read_json(path, missing=missing, mend="fetch the checkpoint again")


def weight_files(path: Path) -> list[Path]:
    """List the safetensors files of a checkpoint, in a fixed order.

    Raises: BadInput if there are none or one is missing.
    """
    if os.path.exists(path / SINGLE_FILE):
        return [path / SINGLE_FILE]
    if not os.path.exists(path / SHARD_INDEX):
        raise explain_no_weights(path)
    names = sorted(set(read_weight_map(path).values()))
    for name in names:
        if not os.path.exists(path / name):
            raise BadInput(
                f"{path / SHARD_INDEX} names {name!r}, which is missing; fetch the checkpoint again"
            )
    return [path / name for name in names]


def read_weight_map(path: Path) -> dict[str, str]:
    """Map the tensors of a sharded checkpoint to the files that hold them.

    Raises: BadInput, also for names that lead out of the directory.
    """
    index = path / SHARD_INDEX
    weight_map = read_model_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(
            f"{index} has no object 'weight_map' with tensors; fetch the checkpoint again"
        )
    for name in weight_map.values():
        if not isinstance(name, str) or not name or leads_out(name):
            raise BadInput(
                f"{index} names the file {name!r}; "
                "shards must lie inside the checkpoint's directory"
            )
    return weight_map


def check_dtypes(stored: Mapping[str, StoredTensor]) -> None:
    """Refuse tensors of types that weights are not read from.

    Raises: BadInput naming the first one.
    """
    for name, place in stored.items():
        if place.dtype not in STORED_DTYPES:
            raise BadInput(explain_dtype(name, place.dtype))


def check_index(path: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a shard index that names another shard for a tensor than the one that holds it.

    Raises: BadInput.
    """
    if os.path.lexists(path / SINGLE_FILE):
        return
    for tensor, name in read_weight_map(path).items():
        if tensor not in stored or stored[tensor].file != path / name:
            raise BadInput(
                f"{path / SHARD_INDEX} says {tensor!r} is in {name}, which does not hold it; "
                "fetch the checkpoint again"
            )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Find the place of each tensor of a file, once the library has checked header and length.

    Raises: BadInput.
    """
    try:
        with open_file(file) as stream, safe_open(file, framework="numpy"):
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_bytes))
    # opened by Python first: the library says "no such file" of whatever it may not read
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({reason_of(error)}); {what_to_do(error)}") from None
    except (SafetensorError, ValueError) as error:
        check_content(file)
        raise BadInput(
            f"{file} is not a readable safetensors file ({reason_of(error)}); fetch it again"
        ) from None
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    return {
        tensor: StoredTensor(
            file, start + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"])
        )
        for tensor, entry in header.items()
    }


def read_companions(directory: Path) -> Mapping[str, bytes]:
    """Read the files beside the weights that belong to a model.

    Raises: BadInput for a name that is there, and is no file that can be read.
    """
    found = {}
    for path in (directory / name for name in COMPANION_FILES):
        if os.path.lexists(path):
            try:
                data = read_file(path)
            except OSError as error:
                raise BadInput(
                    f"{path} cannot be read ({reason_of(error)}); {what_to_do(error)}"
                ) from error
            check_content(path)
            is_settings = path.name.endswith("_config.json")
            found[path.name] = file_without_local_paths(data) if is_settings else data
    return found
