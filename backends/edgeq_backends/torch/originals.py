"""Compute predictions of an original model as transformers' own loader gives it.

They are what exports and checkpoints are measured against, so nothing of edgeq's own reading of a
model is in here: names, tied matrices, rotary embedding and config are read by transformers alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from edgeq.errors import BadInput, reason_of
from edgeq.types import NumpyArray, Rounding
from edgeq_backends.torch.backend import find_device
from edgeq_backends.torch.loading import load_directory, quiet

FETCH_AGAIN = "fetch the checkpoint again"
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
STORED_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
ATTENTION = "sdpa"  # whatever code for it a config asks for; that code may not be installed
LARGEST_CODE = 127  # of signed 8 bits, symmetric around 0

Round = Callable[[torch.Tensor], torch.Tensor]


class TransformersLogits:
    """Predictions in float32 of a directory of safetensors.

    Weights keep the type that they are stored in, where the library leaves them in pages of the
    files, and go to the device and to float32 module by module, while each one runs.

    Raises: BadInput when transformers cannot load the directory.
    """

    library = f"transformers {version('transformers')}"

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        self._device = find_device(device)
        self._model = load_directory(
            path,
            mend=FETCH_AGAIN,
            dtype=stored_dtype(path),
            attn_implementation=attention_code(path),
        )
        self._owners = [each for each in self._model.modules() if owned(each)]
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self._device)
        for module in self._owners:
            fill_while_running(module, self._device)

    @staticmethod
    def check_installed() -> None:
        """Do nothing: importing this module needed everything."""

    def logits(
        self, windows: NumpyArray, *, rounding: Rounding | None = None
    ) -> Iterator[NumpyArray]:
        """Predict every token of each window, or as a runtime that rounds activations does.

        Shapes: windows (count, tokens) of ids; yields (tokens, vocabulary) float32.
        """
        for ids in windows:
            tokens = torch.from_numpy(ids[None].astype(np.int64)).to(self._device)
            with torch.no_grad(), quiet(), self._rounded(rounding):
                found = self._model(input_ids=tokens, use_cache=False).logits[0]
            yield found.float().cpu().numpy()

    @contextmanager
    def _rounded(self, rounding: Rounding | None) -> Iterator[None]:
        hooks = []
        if rounding is not None:
            hooks = [each for module in self._owners for each in round_at(module, rounding)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def attention_code(path: Path) -> str:
    """Choose the code for attention: the usual one, or the plain one where a model knows no other.

    What is wrong with a config is left to who loads the model.
    """
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # the library checks configs in many places, each with an exception of its own
    except Exception:
        return ATTENTION
    return ATTENTION if kind._supports_sdpa else "eager"


def owned(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """List the parameters that a module holds itself, by their names in it."""
    return {name: each for name, each in module._parameters.items() if each is not None}


def stored_dtype(path: Path) -> torch.dtype:
    """Find the type that holds every stored weight exactly; float64 is read as float32.

    Raises: BadInput for a file that safetensors cannot read.
    """
    kinds = set()
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                kinds |= {stored.get_slice(name).get_dtype() for name in stored.keys()}
        # the library's exception, and Python's for files that may not be read
        except Exception as error:
            raise BadInput(
                f"{str(file)!r} is not a readable safetensors file ({reason_of(error)}); "
                "fetch it again"
            ) from error
    [only] = kinds if len(kinds) == 1 else ["F32"]
    return STORED_HALVES.get(only, torch.float32)


def fill_while_running(module: torch.nn.Module, device: torch.device) -> None:
    """Have a module compute in float32 on a device, and keep its parameters as they are stored."""
    stored = owned(module)

    def fill(_: torch.nn.Module, args: Any) -> None:
        for name, parameter in stored.items():
            filled = torch.nn.Parameter(parameter.to(device, torch.float32), requires_grad=False)
            module._parameters[name] = filled

    def put_back(_: torch.nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(stored)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(put_back, always_call=True)


def round_at(module: torch.nn.Module, rounding: Rounding) -> Iterator[Any]:
    """Round what a module gets as a runtime does, and what it gives where all is half precision.

    8 bits are those of products: runtimes round the inputs of linear layers only.
    """
    half = HALVES.get(rounding.kind)
    if half is not None:
        yield module.register_forward_pre_hook(lambda _, args: to_half(args, half))
        yield module.register_forward_hook(lambda _, args, found: given_in_half(found, half))
    elif isinstance(module, torch.nn.Linear):
        columns = rounding.columns
        yield module.register_forward_pre_hook(lambda _, args: (to_int8(args[0], columns),))


def given_in_half(found: Any, half: torch.dtype) -> Any:
    """Round what a module gives: a tensor, or several, as a router does."""
    return to_half(found, half) if isinstance(found, tuple) else to_half((found,), half)[0]


def to_half(args: tuple[Any, ...], half: torch.dtype) -> tuple[Any, ...]:
    """Round the floating-point inputs of a module; token ids pass as they are."""
    floating = (isinstance(each, torch.Tensor) and each.is_floating_point() for each in args)
    return tuple(
        each.to(half).float() if rounds else each
        for each, rounds in zip(args, floating, strict=True)
    )


def to_int8(x: torch.Tensor, columns: int | None) -> torch.Tensor:
    """Round to whole multiples of a scale that so many columns share, as runtimes do.

    The scale is the largest magnitude / 127 in float16; None: a row shares one.

    Shapes: (..., in).
    """
    width = x.shape[-1]
    size = columns or width
    blocks = torch.nn.functional.pad(x, (0, -width % size)).reshape(*x.shape[:-1], -1, size)
    scale = blocks.abs().amax(-1, keepdim=True) / LARGEST_CODE
    codes = torch.where(scale > 0, blocks / scale, 0.0).round()
    rounded: torch.Tensor = (codes * scale.half().float()).reshape(*x.shape[:-1], -1)
    return rounded[..., :width]
