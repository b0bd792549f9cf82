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
from edgeq_backends.onnx_runtime import FILE_NAME, NUMPY_TYPES, open_session

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
        if settings.is_file() and find_spec("onnxruntime_genai") is not None:
            check_no_code(json.loads(settings.read_bytes()), settings)
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
    """A graph in ONNX Runtime alone, on the CPU, with keys and values as the graph gives them."""

    longest: int | None = None

    def __init__(self, file: Path) -> None:
        self._session: Any = open_session(file, accuracy_level=None)
        self._past = {
            value.name: value
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self._outputs = ["logits", *(name_of_present(name) for name in self._past)]
        self._cache: dict[str, NumpyArray] = {}
        self.library = f"ONNX Runtime {onnxruntime.__version__}"

    def begin(self, room: int) -> None:
        """Start an empty text; the cache grows as it must."""
        self._cache = {
            name: np.zeros((1, value.shape[1], 0, value.shape[3]), NUMPY_TYPES[value.type])
            for name, value in self._past.items()
        }

    def cut(self, length: int) -> bool:
        """Forget all tokens but the first ones."""
        self._cache = {name: kept[:, :, :length] for name, kept in self._cache.items()}
        return True

    def read(self, ids: Sequence[int]) -> NumpyArray:
        """Go on with tokens. Shapes: gives (vocabulary,) float32, the logits behind the last."""
        for start in range(0, len(ids), TOKENS):
            tokens = np.asarray([ids[start : start + TOKENS]], np.int64)
            held = next((kept.shape[2] for kept in self._cache.values()), 0)
            mask = np.ones((1, held + tokens.shape[1]), np.int64)
            feeds = {"input_ids": tokens, "attention_mask": mask, **self._cache}
            logits, *present = self._session.run(self._outputs, feeds)
            self._cache = dict(zip(self._past, present, strict=True))
        found: NumpyArray = logits[0, -1].astype(np.float32)
        return found

    def close(self) -> None:
        """Let go of the model."""
        self._session, self._cache = None, {}


def name_of_present(past: str) -> str:
    return past.replace("past_key_values", "present")


def version_of(package: str) -> str:
    """Give the version of a package, or nothing where it is a build under another name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
