"""Compute predictions of exported directories in transformers, each with its format's library."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgeq.errors import BadInput, NotInstalled, reason_of
from edgeq.types import NumpyArray, Rounding
from edgeq.words import install
from edgeq_backends.torch.loading import load_directory, quiet

EXPORT_AGAIN = "export it again"
HALVES = {torch.float16: Rounding("float16"), torch.bfloat16: Rounding("bfloat16")}


class GptqModelLogits:
    """A GPTQ directory in GPTQModel's kernels, in the type that its config states.

    Weights stay packed; with `exact` what lies between the kernels is float32.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        self._model = load_model(path, exact=exact)
        self.rounding = HALVES.get(self._model.dtype)

    @staticmethod
    def check_installed() -> None:
        """Refuse to go on without GPTQModel, which compiles parts of itself and so is no extra.

        Raises: NotInstalled.
        """
        missing = [name for name in ("gptqmodel", "optimum") if find_spec(name) is None]
        if missing:
            raise NotInstalled(
                f"runtime 'gptqmodel' needs {' and '.join(missing)}; "
                "run: pip install gptqmodel optimum"
            )

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        yield from model_logits(self._model, windows)


class CompressedTensorsLogits:
    """A compressed-tensors directory, dequantized by that library as transformers loads it.

    Activations are in the type that its config states, with `exact` in float32.

    Raises: BadInput for several grids with zero points.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        with wide_scales(path) if exact and has_experts(path) else nullcontext(path) as read:
            self._model = load_compressed_tensors(read, exact=exact)
        self.rounding = HALVES.get(self._model.dtype)

    @staticmethod
    def check_installed() -> None:
        """Refuse to go on without compressed-tensors.

        Raises: NotInstalled.
        """
        if find_spec("compressed_tensors") is None:
            advice = install("compressed-tensors")
            raise NotInstalled(f"runtime 'compressed-tensors' needs compressed-tensors; {advice}")

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        yield from model_logits(self._model, windows)


def load_compressed_tensors(path: Path, *, exact: bool = False) -> Any:
    """Load a compressed-tensors directory in transformers.

    Raises: BadInput for several grids with zero points, and where transformers cannot load it.
    """
    symmetric = symmetric_groups(path)
    if all(symmetric):
        return load_model(path, exact=exact)
    # compressed-tensors 0.20 expects unpacked zero points unless it dequantizes, and knows one
    # group only then
    if len(symmetric) > 1:
        raise BadInput(
            f"{str(path)!r}: transformers cannot load several grids with zero points; vLLM can"
        )
    from transformers import CompressedTensorsConfig  # noqa: PLC0415

    dequantizing = CompressedTensorsConfig(dequantize=True)
    return load_model(path, exact=exact, quantization_config=dequantizing)


def has_experts(path: Path) -> bool:
    """Say whether a directory holds packed weights of experts."""
    return any(
        ".experts." in name and name.endswith(".weight_packed")
        for file in sorted(path.glob("*.safetensors"))
        for name in names_in(file)
    )


def names_in(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as stored:
        return list(stored.keys())


@contextmanager
def wide_scales(path: Path) -> Iterator[Path]:
    """Give a copy of a directory with its scales in float32, which changes no number of them.

    transformers stacks the weights of experts in the type of their scales.
    """
    with tempfile.TemporaryDirectory(prefix="edgeq-") as name:
        folder = Path(name)
        for file in sorted(path.iterdir()):
            if file.suffix != ".safetensors":
                shutil.copyfile(file, folder / file.name)
                continue
            tensors = load_file(file)
            for tensor, values in tensors.items():
                if tensor.endswith(".weight_scale"):
                    tensors[tensor] = values.float()
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
        yield folder


def symmetric_groups(path: Path) -> list[bool]:
    """Read which grids of a directory have no zero points.

    Raises: BadInput for a config without grids.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
        groups = config["quantization_config"]["config_groups"].values()
        return [bool(group["weights"]["symmetric"]) for group in groups]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{str(path / 'config.json')!r} states no grids of compressed-tensors "
            f"({type(error).__name__}: {reason_of(error)}); {EXPORT_AGAIN}"
        ) from error


def load_model(path: Path, *, exact: bool = False, **options: Any) -> Any:
    """Load a directory in transformers, in the type that its config states, or in float32.

    Raises: BadInput when transformers cannot load it.
    """
    dtype = torch.float32 if exact else "auto"
    return load_directory(path, mend=EXPORT_AGAIN, dtype=dtype, **options)


def model_logits(model: Any, windows: NumpyArray) -> Iterator[NumpyArray]:
    for ids in windows:
        tokens = torch.from_numpy(ids[None].astype(np.int64))
        # some weights are unpacked at the first use, with a bar
        with torch.no_grad(), quiet():
            found = model(input_ids=tokens, use_cache=False).logits[0]
        yield found.float().numpy()
