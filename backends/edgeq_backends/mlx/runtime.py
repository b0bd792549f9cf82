"""Compute predictions of an exported directory in its runtime, mlx-lm."""

import json
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_model

from edgeq.errors import BadInput, reason_of
from edgeq.types import NumpyArray, Rounding

MODEL_FILE = "model_file"  # older releases of mlx-lm run what it names without a question
HALVES = {mx.bfloat16: Rounding("bfloat16"), mx.float16: Rounding("float16")}


class MlxLmLogits:
    """The model as mlx-lm loads it, with activations in the type of the file.

    On a CPU, where MLX is far slower in half precision,
    products are in float32 between activations that are rounded to that type. With `exact` nothing
    is rounded.

    Raises: BadInput when mlx-lm cannot load the directory, or would run code that it brings.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        self._model = checked_model(path)
        half = None if exact else half_of(self._model)
        self.rounding = None if half is None else HALVES[half]
        if exact or mx.default_device().type == mx.cpu:
            self._model.set_dtype(mx.float32)
            if half is not None:
                round_activations(self._model, half)

    @staticmethod
    def check_installed() -> None:
        """Do nothing: importing this module needed everything."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        for ids in windows:
            yield np.array(self._model(mx.array(ids[None].astype(np.int32)))[0].astype(mx.float32))


def checked_model(path: Path) -> Any:
    """Load a directory in mlx-lm, in the type of its file, without running code that it brings.

    Raises: BadInput.
    """
    try:
        asks_for_code = MODEL_FILE in json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise BadInput(
            f"{str(path)!r}: its config.json cannot be read ({reason_of(error)}); export it again"
        ) from error
    if asks_for_code:
        raise BadInput(
            f"{str(path)!r}: {MODEL_FILE!r} in its config.json is code to run, "
            "which no export of edgeq brings; export it again"
        )
    try:
        model, _ = load_model(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(
            f"{str(path)!r}: mlx-lm cannot load it ({error}); export it again"
        ) from error
    return model


def half_of(model: Any) -> Any | None:
    """Find the half precision that a model computes in: that of its embedding or its scales."""
    parameters: Any = tree_flatten(model.parameters())
    kinds = {value.dtype for _, value in parameters}
    return next((kind for kind in HALVES if kind in kinds), None)


def round_activations(model: Any, half: Any) -> None:
    """Have every module without modules of its own round what it gets and what it gives.

    Copies take their places: activations of experts are one module for all models of a process.
    """
    modules: Any = tree_flatten(model.leaf_modules(), is_leaf=type(model).is_module)
    rounding = []
    for name, module in modules:
        taken = copy(module)
        taken.__class__ = rounding_class(type(module), half)
        rounding.append((name, taken))
    model.update_modules(tree_unflatten(rounding))


def rounding_class(kind: Any, half: Any) -> Any:
    """Make a class of modules that round around each of their computations."""

    def around(name: str) -> Any:
        compute = getattr(kind, name)

        def computed(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            return rounded(compute(self, rounded(x, half), *args, **kwargs), half)

        return computed

    # as_linear: an embedding that is the head too
    names = [name for name in ("__call__", "as_linear") if hasattr(kind, name)]
    return type(kind.__name__, (kind,), {name: around(name) for name in names})


def rounded(x: Any, half: Any) -> Any:
    """Round floating-point numbers to half precision and give them in float32."""
    if isinstance(x, tuple):  # of a router: experts and their weights
        return tuple(rounded(each, half) for each in x)
    return x.astype(half).astype(mx.float32) if x.dtype == mx.float32 else x
