"""Let an exported ONNX graph write text token by token.

onnxruntime-genai runs it where its settings lie beside the graph, else ONNX Runtime alone does,
with the cache that the graph gives.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeq.errors import BadInput, reason_of
from edgeq.types import NumpyArray
from edgeq_backends.onnx_runtime import (
    FILE_NAME,
    IDS,
    LOGITS,
    NUMPY_TYPES,
    check_decoder,
    is_empty_cache,
    open_session,
)

SETTINGS = "genai_config.json"
LIBRARY_KEYS = ("custom_ops_library", "library")
"""Settings by which a directory has a runtime load code of its own."""
TOKENS = 512  # that are read at once


def open_speaker(path: Path | str) -> "GenaiSpeaker | SessionSpeaker":
    """Open a directory, or the graph in it, with what can run it.

    Raises: BadInput for a graph that does not load, or that brings code of its own.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    settings = file.parent / SETTINGS
    try:
        if find_spec("onnxruntime_genai") is not None and is_run_by(settings, file):
            return GenaiSpeaker(file.parent)
        return SessionSpeaker(file)
    except BadInput:
        raise
    # both libraries and JSON raise a type of their own for each way to be wrong
    except Exception as failure:
        raise BadInput(
            f"ONNX Runtime cannot load '{file}': {reason_of(failure)}; "
            "export it again or check the path"
        ) from failure


def is_run_by(settings: Path, file: Path) -> bool:
    """Say whether settings of onnxruntime-genai are there, and of this graph.

    Raises: BadInput for settings that bring code; ValueError or LookupError for damaged ones.
    """
    if not settings.is_file():
        return False
    stated = json.loads(settings.read_bytes())
    check_no_code(stated, settings)
    return bool(stated["model"]["decoder"]["filename"] == file.name)


def check_no_code(stated: Any, file: Path) -> None:
    """Refuse settings that name a library to load.

    Raises: BadInput.
    """
    values = list(stated.values()) if isinstance(stated, dict) else stated
    if isinstance(stated, dict):
        named = next((key for key in stated if str(key).endswith(LIBRARY_KEYS)), None)
        if named is not None:
            raise BadInput(
                f"{str(file)!r}: {named!r} names code to run, "
                "which no export of edgeq brings; export it again"
            )
    for value in values if isinstance(values, list) else ():
        check_no_code(value, file)


class GenaiSpeaker:
    """A directory in onnxruntime-genai, on the CPU; see `edgeq.talking.speakers.Speaker`."""

    longest: int | None = None

    def __init__(self, folder: Path) -> None:
        self._library: Any = import_module("onnxruntime_genai")
        config = self._library.Config(str(folder))
        config.clear_providers()
        self._model: Any = self._library.Model(config)
        self._generator: Any = None
        self.library = f"onnxruntime-genai {version_of('onnxruntime-genai')}"

    def begin(self, room: int) -> None:
        """Start an empty text with room for so many tokens."""
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=room, do_sample=False)
        self._generator = self._library.Generator(self._model, parameters)

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones."""
        self._generator.rewind_to(length)
        return True

    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens. Shapes: gives (vocabulary,) float32, the logits behind the last."""
        self._generator.append_tokens(np.asarray(ids, np.int32))
        found: NumpyArray = self._generator.get_logits()[0, -1].astype(np.float32)
        return found

    def close(self) -> None:
        """Let go of the model."""
        self._generator = self._model = None


class SessionSpeaker:
    """A graph in ONNX Runtime alone, on the CPU, with keys and values as the graph gives them.

    A graph without a cache is given the whole text every time.
    Raises: BadInput for a graph that is no decoder.
    """

    longest: int | None = None

    def __init__(self, file: Path) -> None:
        self._session: Any = open_session(file, accuracy_level=None)
        check_decoder(self._session, file)
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._past = [name for name, value in self._inputs.items() if is_empty_cache(value)]
        names = [value.name for value in self._session.get_outputs()]
        present = [name for name in names if name.startswith("present")]
        if len(present) != len(self._past):
            raise BadInput(
                f"'{file}' takes {len(self._past)} keys and values and gives {len(present)}; "
                "give a graph that gives those it takes"
            )
        self._outputs = [LOGITS, *present]
        self._cache: dict[str, NumpyArray] = {}
        self._ids: list[int] = []
        self.library = f"ONNX Runtime {onnxruntime.__version__}"

    def begin(self, room: int) -> None:
        """Start an empty text; the cache grows as it must."""
        shapes = {name: self._inputs[name].shape for name in self._past}
        self._cache = {
            name: np.zeros((1, shapes[name][1], 0, shapes[name][3]), self._dtype(name))
            for name in self._past
        }
        self._ids = []

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones."""
        self._cache = {name: kept[:, :, :length] for name, kept in self._cache.items()}
        del self._ids[length:]
        return True

    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens. Shapes: gives (vocabulary,) float32, the logits behind the last."""
        at_once = TOKENS if self._past else len(ids)
        for start in range(0, len(ids), at_once):
            logits, *present = self._session.run(
                self._outputs, self._feeds(ids[start : start + at_once])
            )
            self._ids += ids[start : start + at_once]
            self._cache = dict(zip(self._past, present, strict=True))
        found: NumpyArray = logits[0, -1].astype(np.float32)
        return found

    def close(self) -> None:
        """Let go of the model."""
        self._session, self._cache = None, {}

    def _feeds(self, new: Sequence[int]) -> dict[str, NumpyArray]:
        """Fill every input with what follows from the new tokens and those before."""
        whole = [*self._ids, *new]
        first = len(self._ids) if self._past else 0
        filled = {
            IDS: np.asarray([whole[first:]]),
            "attention_mask": np.ones((1, len(whole))),
            "position_ids": np.arange(first, len(whole))[np.newaxis],
        }
        feeds = dict(self._cache)
        for name in self._inputs.keys() - feeds.keys():
            value = filled.get(name)
            if value is None:  # of how many tokens logits are wanted
                value = np.ones(self._inputs[name].shape)
            feeds[name] = value.astype(self._dtype(name))
        return feeds

    def _dtype(self, name: str) -> str:
        return NUMPY_TYPES[self._inputs[name].type]


def version_of(package: str) -> str:
    """Give the version of a package, or nothing where it is a build under another name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
