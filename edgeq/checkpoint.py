"""The quantized checkpoint: one directory that every exporter, evaluation and a later run can read.

edgeq.json (recipe, source, tool version), config.json and tokenizer files, blocks/NNNN.safetensors with codes, scales
and untouched tensors of each block, outer.safetensors with everything else, report.json.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgeq.errors import BadInput
from edgeq.packing import pack_words, unpack_words
from edgeq.sources.fingerprint import hash_model
from edgeq.sources.layout import find_blocks
from edgeq.storage import sync_file, write_bytes
from edgeq.types import BlockSpec, Grid, NumpyArray, QuantizedLinear

FORMAT_VERSION = 1
HEAD_FILE = "edgeq.json"
STORED = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def write_json(path: Path, content: Any) -> None:
    """JSON with a fixed layout, so that equal content gives equal bytes."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def write_tensors(path: Path, quantized: Mapping[str, QuantizedLinear], dense: Mapping[str, NumpyArray]) -> None:
    """One safetensors file with solved and untouched tensors; the grids lie in its metadata."""
    tensors: dict[str, NumpyArray] = {name: np.ascontiguousarray(array) for name, array in dense.items()}
    grids = {}
    for name, layer in quantized.items():
        stored = STORED[layer.grid.scale_dtype]
        tensors[f"{name}.codes"] = pack_words(layer.codes, layer.grid.bits)
        tensors[f"{name}.scales"] = layer.scales.astype(stored)
        if layer.grid.zeros == "integer":
            tensors[f"{name}.zeros"] = layer.zeros.astype(np.uint8)
        if layer.grid.zeros == "offset":
            tensors[f"{name}.offsets"] = layer.offsets.astype(stored)
        grids[name] = [*layer.codes.shape, layer.grid.bits, layer.grid.group_size, layer.grid.zeros,
                       layer.grid.scale_dtype]  # fmt: skip
    temporary = path.with_name(f".{path.name}.partial")
    save_file(tensors, temporary, metadata={"edgeq": json.dumps(grids)})  # one key: more would be in random order
    sync_file(temporary)
    temporary.replace(path)


class Checkpoint:
    """A quantized checkpoint, read tensor by tensor; a QuantizedModel for exporters and a ModelSource for forwards."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.head = read_json(self.path / HEAD_FILE)
        if self.head.get("format_version") != FORMAT_VERSION:
            raise BadInput(
                f"checkpoint {str(path)!r}: format version {self.head.get('format_version')!r}, this edgeq reads "
                f"{FORMAT_VERSION}; quantize again or use the edgeq that wrote it"
            )
        missing = [key for key in ("model", "files", "companions", "source", "recipe") if key not in self.head]
        if missing:
            raise BadInput(f"checkpoint {str(path)!r}: {HEAD_FILE} lacks {missing[0]!r}; it is damaged, quantize again")
        self.name: str = self.head["model"]
        self.config: Mapping[str, Any] = read_json(self.path / "config.json")
        self._files = [_TensorFile(self.path / file) for file in self.head["files"]]
        self._of_tensor = {name: file for file in self._files for name in file.names}

    def tensor_names(self) -> Sequence[str]:
        return list(self._of_tensor)

    def grid(self, tensor_name: str) -> Grid | None:
        return self._file(tensor_name).grids.get(tensor_name, (None, None))[1]

    def shape(self, tensor_name: str) -> tuple[int, ...]:
        return self._file(tensor_name).shape(tensor_name)

    def quantized(self, tensor_name: str) -> QuantizedLinear:
        return self._file(tensor_name).quantized(tensor_name)

    def dense(self, tensor_name: str) -> NumpyArray:
        return self._file(tensor_name).array(tensor_name)

    def read(self, tensor_name: str) -> NumpyArray:
        if self.grid(tensor_name) is None:
            return self.dense(tensor_name)
        return self.quantized(tensor_name).dequantized()

    def stored_as(self, tensor_name: str) -> str:
        grid = self.grid(tensor_name)
        return str(self.dense(tensor_name).dtype) if grid is None else describe_grid(grid)

    def stored_bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self._files)

    def blocks(self) -> Sequence[BlockSpec]:
        return find_blocks(self.config, {name: self.shape(name) for name in self.tensor_names()})

    def companions(self) -> Mapping[str, bytes]:
        return {name: (self.path / name).read_bytes() for name in self.head["companions"]}

    def fingerprint(self) -> str:
        return str(self.head["source"]["fingerprint"])

    def solution_fingerprint(self) -> str:
        """A hash of what was solved, as `fingerprint` is one of what it was solved from."""
        return hash_model(self.config, {}, [self.path / HEAD_FILE, *(file.path for file in self._files)])

    @cached_property
    def report(self) -> Mapping[str, Any]:
        return read_json(self.path / "report.json")

    def _file(self, tensor_name: str) -> "_TensorFile":
        if tensor_name not in self._of_tensor:
            raise BadInput(f"checkpoint {str(self.path)!r} has no tensor {tensor_name!r}; it does not fit its config")
        return self._of_tensor[tensor_name]


def describe_grid(grid: Grid) -> str:
    group = "row" if grid.group_size is None else grid.group_size
    return f"{grid.bits} bits, group {group}, {grid.zeros}"


class _TensorFile:
    """One safetensors file of a checkpoint. Solved tensors appear under the name of the weight they stand for."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = safe_open(path, framework="np")
        except (OSError, SafetensorError) as error:
            raise BadInput(f"checkpoint file {str(path)!r} cannot be read ({error}); quantize again") from error
        stored = json.loads((self._handle.metadata() or {}).get("edgeq", "{}"))
        self.grids = {name: ((rows, columns), Grid(*grid)) for name, (rows, columns, *grid) in stored.items()}
        parts = {f"{name}.{part}" for name in self.grids for part in ("codes", "scales", "zeros", "offsets")}
        self.names = sorted({*self.grids, *(name for name in self._handle.keys() if name not in parts)})
        self.path = path

    def array(self, name: str) -> NumpyArray:
        array: NumpyArray = self._handle.get_tensor(name)
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.grids:
            return self.grids[name][0]
        return tuple(self._handle.get_slice(name).get_shape())

    def quantized(self, name: str) -> QuantizedLinear:
        (_, columns), grid = self.grids[name]
        codes = unpack_words(self.array(f"{name}.codes"), grid.bits, columns)
        scales = self.array(f"{name}.scales").astype(np.float32)
        if grid.zeros == "offset":
            offsets = self.array(f"{name}.offsets").astype(np.float32)
        elif grid.zeros == "integer":
            offsets = -scales * self.array(f"{name}.zeros").astype(np.float32)
        else:
            offsets = -scales * np.float32(grid.middle)
        return QuantizedLinear(codes, scales, offsets, grid)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: BadInput when the file is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"{str(path)!r}: no such file; a quantized checkpoint is a directory with {HEAD_FILE}"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{str(path)!r} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadInput(f"{str(path)!r}: expected a JSON object, found {type(content).__name__}")
    return content
