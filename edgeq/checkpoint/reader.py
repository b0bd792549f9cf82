"""The quantized checkpoint: one directory that exporters, evaluation and later runs can read.

It holds edgeq.json (recipe, source, tool version), report.json, config.json and tokenizer files,
blocks/NNNN.safetensors (codes, scales and untouched tensors of each block) and outer.safetensors
(everything else). What lies in one of these tensor files is read by `edgeq.checkpoint.tensor_file`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeq.architectures.blocks import find_blocks
from edgeq.architectures.record import Evidence, read_record
from edgeq.checkpoint.tensor_file import TensorFile
from edgeq.decoder import ModelRecord
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput, UnsupportedModel, reason_of
from edgeq.files.json_files import read_json
from edgeq.files.ownership import COMPANION_FILES, HEAD_FILE, REPORT_FILE, is_companion, leads_out
from edgeq.files.plain_files import inside, is_plain_file, read_file
from edgeq.sources.fingerprint import hash_model
from edgeq.sources.model_card import origin_of
from edgeq.types import BlockSpec, Grid, LinearSpec, NumpyArray, QuantizedLinear
from edgeq.words import budget_word, describe_grid, edgeq_command

FORMAT_VERSION = 1
ORIGIN = "origin"
"""The key of a head that says where the model comes from; older ones have none."""
TUNED_KEY = "tuned"
"""The key of a head that says how a checkpoint was tuned; others have none."""
MOST_TOKENS = 2**53  # beyond it no number of anything is whole in JSON


class Checkpoint:
    """A quantized checkpoint on disk, read tensor by tensor.

    Exporters use it as a QuantizedModel, forward passes as a ModelSource. Opening reads headers
    only, and checks that files, grids and config belong together.

    Raises: BadInput for a damaged or incomplete checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._check_quantized()
        self.head = read_json(self._inside(HEAD_FILE))
        version = self.head.get("format_version")
        if version != FORMAT_VERSION:
            raise BadInput(
                f"checkpoint {str(path)!r}: format version {version!r}, "
                f"this edgeq reads {FORMAT_VERSION}; "
                "quantize again or use the edgeq that wrote it"
            )
        self._check_head()
        config = read_json(self._inside("config.json"))
        files = [TensorFile(self._inside(file)) for file in self.head["files"]]
        self._of_tensor = {name: file for file in files for name in file.names}
        self.record = self._read_record(config)
        self._blocks = self._check_tensors(files)

    def _check_quantized(self) -> None:
        """Refuse a model that is not quantized yet. Raises: BadInput with what to do first."""
        head, config = self.path / HEAD_FILE, self.path / "config.json"
        is_model = self.path.is_file() and self.path.suffix.lower() == ".gguf"
        if is_model or (not os.path.lexists(head) and config.is_file()):
            made = edgeq_command("quantize", self.path, "--export", "gguf")
            raise BadInput(f"{str(self.path)!r} is no checkpoint but a model; quantize it: {made}")

    def _check_head(self) -> None:
        for key, (rule, holds) in HEAD_RULES.items():
            if not holds(self.head.get(key)):
                found = f"{self.head[key]!r:.100}" if key in self.head else "missing"
                raise BadInput(
                    f"checkpoint {str(self.path)!r}: {key!r} in {HEAD_FILE} is {found}; "
                    f"it must be {rule}, the checkpoint is damaged, quantize again"
                )

    def _read_record(self, config: Mapping[str, Any]) -> ModelRecord:
        with self._damaged():
            evidence = Evidence(
                {name: self._companion(name) for name in self.head["companions"]},
                lambda decoder: decoder.head in self._of_tensor,
                self.head["source"].get("dtype"),
            )
            record = read_record(self.head["model"], config, evidence)
        return replace(record, origin=origin_of(self.head.get(ORIGIN) or {}))

    @contextmanager
    def _damaged(self) -> Iterator[None]:
        """Report errors raised inside as damage of this checkpoint."""
        try:
            yield
        except (BadInput, UnsupportedModel) as error:
            raise BadInput(f"checkpoint {str(self.path)!r} is damaged: {error}") from error

    def _check_tensors(self, files: Sequence[TensorFile]) -> Sequence[BlockSpec]:
        if sum(len(file.names) for file in files) != len(self._of_tensor):
            raise BadInput(
                f"checkpoint {str(self.path)!r}: two of its files hold a tensor of one name; "
                "quantize again"
            )
        shapes = {name: self.shape(name) for name in self.tensor_names()}
        with self._damaged():
            return find_blocks(self.record.decoder, shapes)

    def tensor_names(self) -> Sequence[str]:
        return list(self._of_tensor)

    def grid(self, tensor_name: str) -> Grid | None:
        return self._file(tensor_name).grid(tensor_name)

    def grids(self) -> dict[str, tuple[tuple[int, ...], Grid | None]]:
        """Give every tensor's grid (None: dense), and the shape that it was solved in."""
        return {name: (self.solved_shape(name), self.grid(name)) for name in self.tensor_names()}

    def shape(self, tensor_name: str) -> tuple[int, ...]:
        """Give the shape of a tensor as the model has it, whatever shape it was solved in."""
        shape, linear = self.solved_shape(tensor_name), self._solved(tensor_name)
        return shape if linear is None or shape != linear.matrix_shape else linear.stored_shape

    def solved_shape(self, tensor_name: str) -> tuple[int, ...]:
        """Give the shape of the matrix that a tensor was solved as; of a dense tensor its own."""
        return self._file(tensor_name).shape(tensor_name)

    def quantized(self, tensor_name: str) -> QuantizedLinear:
        return self._file(tensor_name).quantized(tensor_name)

    def dense(self, tensor_name: str) -> NumpyArray:
        return self._file(tensor_name).dense(tensor_name)

    def files(self) -> dict[str, TensorFile]:
        """Give its tensor files by their names."""
        return {name: TensorFile(self._inside(name)) for name in self.head["files"]}

    def read(self, tensor_name: str) -> NumpyArray:
        if self.grid(tensor_name) is None:
            return self.dense(tensor_name)
        matrix, linear = self.quantized(tensor_name).dequantized(), self._solved(tensor_name)
        return matrix if linear is None else linear.tensor_of(matrix)

    def _solved(self, tensor_name: str) -> LinearSpec | None:
        """Find a linear layer of a tensor that has codes."""
        if self.grid(tensor_name) is None:
            return None
        return self.record.decoder.linear_of(tensor_name)

    def stored_as(self, tensor_name: str) -> str:
        grid = self.grid(tensor_name)
        if grid is None:
            return self._file(tensor_name).dense_dtype(tensor_name)
        return describe_grid(grid)

    def tensor_bytes(self, tensor_name: str) -> int:
        return self._file(tensor_name).tensor_bytes(tensor_name)

    def stored_bytes(self) -> int:
        return sum((self.path / file).stat().st_size for file in self.head["files"])

    def location(self) -> Path:
        return self.path

    def blocks(self) -> Sequence[BlockSpec]:
        return self._blocks

    def companions(self) -> Mapping[str, bytes]:
        return {name: self._companion(name) for name in self.head["companions"]}

    @property
    def type_asked(self) -> str | None:
        """Give the type or mix that the recipe names for all layers, or the budget of the run.

        None where there was neither.
        """
        named = self.head["recipe"].get("type")
        return named if isinstance(named, str) else self._budget_asked()

    def _budget_asked(self) -> str | None:
        path = self.path / REPORT_FILE
        budget = read_json(path).get("budget") if is_plain_file(path) else None
        asked = budget.get("asked") if isinstance(budget, dict) else None
        return budget_word(asked) if isinstance(asked, dict) else None

    def _companion(self, name: str) -> bytes:
        try:
            return read_file(self._inside(name))
        except OSError as error:
            raise BadInput(
                f"checkpoint {str(self.path)!r}: its file {name!r} "
                f"cannot be read ({reason_of(error)}); "
                "copy it from the original model or quantize again"
            ) from error

    def _inside(self, name: str) -> Path:
        """Return the path of a file; what a link outside of the checkpoint leads to is not its own.

        Raises: BadInput.
        """
        path = self.path / name
        if not inside(path, self.path):
            raise BadInput(
                f"checkpoint {str(self.path)!r}: {name!r} is a link that leads out of it; "
                "put the file itself there"
            )
        return path

    def fingerprint(self) -> str:
        return str(self.head["source"]["fingerprint"])

    def solution_fingerprint(self) -> str:
        """Hash what was solved; `fingerprint` is the hash of the model it was solved from."""
        files = [self.path / name for name in (HEAD_FILE, *self.head["files"])]
        return hash_model(self.record.config(), {}, files)

    def _file(self, tensor_name: str) -> TensorFile:
        if tensor_name not in self._of_tensor:
            raise BadInput(
                f"checkpoint {str(self.path)!r} has no tensor {tensor_name!r}; "
                "it does not fit its config"
            )
        return self._of_tensor[tensor_name]


def _are_inside(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and name and not leads_out(name) for name in value
    )


def _is_calibration(value: Any) -> bool:
    texts = value.get("texts") if isinstance(value, dict) else None
    return value is None or (isinstance(texts, list) and all(map(_is_text, texts)))


def _is_text(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    return all(_is_amount(value.get(key)) for key in ("share", "samples", "tokens"))


def _is_tuned(value: Any) -> bool:
    """Say whether a value tells how a checkpoint was tuned, or is null."""
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    earlier = value.get("earlier", [])
    if not isinstance(earlier, list) or not all(isinstance(each, dict) for each in earlier):
        return False
    stated = [value.get(key) for key in ("tokens", "before", "after", "kept_step")]
    stated += [value.get(key, 0) for key in ("codes", "moved_codes")]  # older ones have none
    return all(map(_is_amount, stated))


def _is_file(value: Any) -> bool:
    """Say whether a value names a file by its name and hash, or is null."""
    stated = isinstance(value, dict) and {"name", "sha256"} <= value.keys()
    return value is None or (stated and all(isinstance(each, str) for each in value.values()))


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= MOST_TOKENS


HEAD_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("a name", lambda value: isinstance(value, str)),
    "files": ("a list of files inside the checkpoint", _are_inside),
    "companions": (
        f"a list out of {', '.join(COMPANION_FILES)} and files of licences",
        lambda value: (
            isinstance(value, list)
            and all(isinstance(name, str) and is_companion(name) for name in value)
        ),
    ),
    "source": (
        "an object with a fingerprint, and perhaps a dtype",
        lambda value: (
            isinstance(value, dict)
            and isinstance(value.get("fingerprint"), str)
            and value.get("dtype") in (None, *CODE_NAMES)
        ),
    ),
    "recipe": ("an object", lambda value: isinstance(value, dict)),
    "calibration": ("null, or an object with texts", _is_calibration),
    ORIGIN: ("an object of texts", lambda value: value is None or isinstance(value, dict)),
    "imatrix": ("null, or an object with a name and a sha256", _is_file),
    TUNED_KEY: ("null, or an object with what tuning measured", _is_tuned),
}
