"""Compute predictions of an exported directory in its runtime, mlx-lm."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from edgeq.errors import BadInput, reason_of
from edgeq.types import NumpyArray, Rounding

MODEL_FILE = "model_file"  # older releases of mlx-lm run what it names without a question


class MlxLmLogits:
    """The model as mlx-lm loads it, with activations in the type of the file.

    With `exact` they are float32, which is also many times faster than half precision on the CPU.

    Raises: BadInput when mlx-lm cannot load the directory, or would run code that it brings.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        try:
            asks_for_code = MODEL_FILE in json.loads((path / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError, TypeError) as error:
            raise BadInput(
                f"{str(path)!r}: its config.json cannot be read ({reason_of(error)}); "
                "export it again"
            ) from error
        if asks_for_code:
            raise BadInput(
                f"{str(path)!r}: {MODEL_FILE!r} in its config.json is code to run, "
                "which no export of edgeq brings; export it again"
            )
        try:
            self._model, _ = load_model(path)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BadInput(
                f"{str(path)!r}: mlx-lm cannot load it ({error}); export it again"
            ) from error
        if exact:
            self._model.set_dtype(mx.float32)
        self.rounding = rounding_of(self._model)

    @staticmethod
    def check_installed() -> None:
        """Do nothing: importing this module needed everything."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        for ids in windows:
            yield np.array(self._model(mx.array(ids[None].astype(np.int32)))[0].astype(mx.float32))


def rounding_of(model: Any) -> Rounding | None:
    """Say in which half precision a model computes: that of its embedding or its scales."""
    parameters: Any = tree_flatten(model.parameters())
    kinds = {value.dtype for _, value in parameters}
    if mx.bfloat16 in kinds:
        return Rounding("bfloat16")
    return Rounding("float16") if mx.float16 in kinds else None
