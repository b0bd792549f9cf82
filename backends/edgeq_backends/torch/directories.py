"""Compute predictions of exported directories in transformers, each with its format's library."""

import json
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from edgeq.errors import BadInput, NotInstalled, install, reason_of
from edgeq.types import NumpyArray

ADAPTER_FILE = "adapter_config.json"  # where it lies, transformers loads the adapter on its own


class GptqModelLogits:
    """A GPTQ directory in GPTQModel's kernels.

    Weights stay packed; activations are in the kernel's precision.
    """

    def __init__(self, path: Path) -> None:
        self._model = load_model(path)

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

    Raises: BadInput for several grids with zero points.
    """

    def __init__(self, path: Path) -> None:
        config = json.loads((path / "config.json").read_bytes())
        groups = config["quantization_config"]["config_groups"].values()
        if all(group["weights"]["symmetric"] for group in groups):
            self._model = load_model(path)
            return
        # compressed-tensors 0.20 expects unpacked zero points unless it dequantizes, and knows one
        # group only then
        if len(groups) > 1:
            raise BadInput(
                f"{str(path)!r}: transformers cannot load several grids with zero points; vLLM can"
            )
        from transformers import CompressedTensorsConfig  # noqa: PLC0415

        dequantizing = CompressedTensorsConfig(dequantize=True)
        with warnings.catch_warnings():
            # that the model has a quantization_config too, which is meant here
            warnings.simplefilter("ignore", UserWarning)
            self._model = load_model(path, quantization_config=dequantizing)

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


def load_model(path: Path, **options: Any) -> Any:
    """Load a directory in transformers, with activations in float32.

    Weights come from its safetensors alone, and code that it brings is not run.

    Raises: BadInput when transformers cannot load it, and for an adapter, which may be a pickle.
    """
    if (path / ADAPTER_FILE).exists():
        raise BadInput(
            f"{str(path)!r} holds {ADAPTER_FILE!r}, which no export of edgeq does; remove it"
        )
    options |= {"use_safetensors": True, "trust_remote_code": False}
    try:
        with redirect_stderr(StringIO()):  # progress bars
            return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise BadInput(
            f"{str(path)!r}: transformers cannot load it ({reason_of(error)}); export it again"
        ) from error


def model_logits(model: Any, windows: NumpyArray) -> Iterator[NumpyArray]:
    for ids in windows:
        tokens = torch.from_numpy(ids[None].astype(np.int64))
        # some weights are unpacked at the first use, with a bar
        with torch.no_grad(), redirect_stderr(StringIO()):
            found = model(input_ids=tokens, use_cache=False).logits[0]
        yield found.float().numpy()
