"""Open what a target is measured against: the original, read by its format's own loader.

That is transformers for directories and llama.cpp for GGUF files, and never edgeq's own reading of
the model, which is what the measurement is to check. A checkpoint of edgeq's, which no other
program reads, is written out in float32 for transformers.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from safetensors.numpy import save_file

from edgeq.checkpoint.reader import Checkpoint
from edgeq.dtypes import NUMPY
from edgeq.errors import BadInput, reason_of
from edgeq.files.json_files import write_json
from edgeq.protocols import ModelSource
from edgeq.registry import BACKENDS, REFERENCES, choose_backend, load
from edgeq.types import NumpyArray, Rounding, ScaleDtype

NOTHING_ROUNDED: Mapping[str, ScaleDtype] = MappingProxyType({})
FLOAT32_BYTES = 4
GIGABYTE = 1e9
SHARD_BYTES = 1e9  # of float32 that are in memory at once while a checkpoint is written out
CONFIG = "config.json"
REFERENCE = "the reference, which {} computes,"  # in messages: it needs a package
INDEX = "model.safetensors.index.json"


class Reference(Protocol):
    """A model that predicts in float32, read by its format's own library and not by edgeq."""

    library: str
    """The library, with its version."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        """Predict every token of each window, as `LogitSource` does."""


class RoundedReference(Reference, Protocol):
    """A reference that can also compute as a runtime does that rounds activations."""

    def logits(
        self, windows: NumpyArray, *, rounding: Rounding | None = None
    ) -> Iterator[NumpyArray]:
        """Predict every token of each window, with activations rounded where `rounding` says."""


def check_reference(source: ModelSource) -> None:
    """Check before work starts that what computes a reference is there.

    Raises: NotInstalled.
    """
    name = loader_of(source)
    load(REFERENCES[name], REFERENCE.format(name)).check_installed()


def loader_of(source: ModelSource) -> str:
    """Name the library that reads an original: llama.cpp for a file, transformers for the rest."""
    return "llama.cpp" if source.location().is_file() else "transformers"


@contextmanager
def opened_checkpoint(
    checkpoint: Checkpoint, backend: str, *, held: Mapping[str, ScaleDtype] = NOTHING_ROUNDED
) -> Iterator[RoundedReference]:
    """Open the dequantized weights of a checkpoint in transformers, in float32.

    held names tensors whose weights an export holds in a narrower type; they are rounded to it.

    Raises: NotInstalled, BadInput.
    """
    make = load(REFERENCES["transformers"], REFERENCE.format("transformers"))
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        write_out(checkpoint, Path(folder), held)
        yield make(Path(folder), device=transformers_device(backend))


def transformers_device(backend: str) -> str:
    return BACKENDS[choose_backend(backend)].device or "cpu"


@contextmanager
def opened_reference(source: ModelSource, backend: str) -> Iterator[Reference]:
    """Open an original in the library that its format is from, in float32.

    The backend says on which device transformers runs.

    Raises: NotInstalled, BadInput.
    """
    name = loader_of(source)
    if isinstance(source, Checkpoint):
        with opened_checkpoint(source, backend) as checkpoint:
            yield checkpoint
        return
    make = load(REFERENCES[name], REFERENCE.format(name))
    if name == "llama.cpp":
        yield make(source.location(), exact=True)
    else:
        yield make(source.location(), device=transformers_device(backend))


def write_out(
    checkpoint: Checkpoint, folder: Path, held: Mapping[str, ScaleDtype] = NOTHING_ROUNDED
) -> None:
    """Write the dequantized weights of a checkpoint and its config as transformers reads them.

    On disk and not in memory: a model of 7 billion weights takes 28 GB in float32, of which
    transformers then keeps in memory what it uses.

    Raises: BadInput when there is no room.
    """
    needed, free = float32_bytes(checkpoint), shutil.disk_usage(folder).free
    if needed > free:
        raise BadInput(
            f"checkpoint {str(checkpoint.path)!r} takes {needed / GIGABYTE:.1f} GB in float32, and "
            f"{free / GIGABYTE:.1f} GB are free in {tempfile.gettempdir()!r}, where transformers "
            "is to read it; set TMPDIR to a directory with more room"
        )
    shutil.copyfile(checkpoint.path / CONFIG, folder / CONFIG)
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards(checkpoint)):
        file = f"model-{index:05}.safetensors"
        try:
            weights = read_in_float32(checkpoint, names, held)
            save_file(weights, folder / file, metadata={"format": "pt"})
        except OSError as error:
            raise BadInput(
                f"checkpoint {str(checkpoint.path)!r} cannot be written out in float32 "
                f"({reason_of(error)}); set TMPDIR to a directory with {needed / GIGABYTE:.1f} GB"
            ) from error
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": needed}, "weight_map": weight_map})


def float32_bytes(checkpoint: Checkpoint) -> int:
    """Count the bytes of all weights of a checkpoint in float32."""
    return sum(bytes_of(checkpoint, name) for name in checkpoint.tensor_names())


def bytes_of(checkpoint: Checkpoint, name: str) -> int:
    count = FLOAT32_BYTES
    for size in checkpoint.shape(name):
        count *= size
    return count


def shards(checkpoint: Checkpoint) -> Iterator[list[str]]:
    """Divide the tensors of a checkpoint, in their order, into files that fit into memory."""
    names: list[str] = []
    size = 0
    for name in checkpoint.tensor_names():
        own = bytes_of(checkpoint, name)
        if names and size + own > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += own
    yield names


def read_in_float32(
    checkpoint: Checkpoint, names: list[str], held: Mapping[str, ScaleDtype]
) -> dict[str, NumpyArray]:
    found = {}
    for name in names:
        weights = checkpoint.read(name)
        if name in held:
            weights = weights.astype(NUMPY[held[name]])
        found[name] = weights.astype("float32", copy=False)
    return found
