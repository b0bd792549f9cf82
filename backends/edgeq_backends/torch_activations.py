"""Calibration streams and plain predictions of transformers models in torch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from edgeq.protocols import ModelSource, Site
from edgeq.schedule import Forward, Streams, stand_still
from edgeq.types import BlockSpec, NumpyArray
from edgeq_backends.torch_model import StreamedModel, token_batches

CALIBRATION_BATCH = 8192  # tokens: wide products run best, and all of a block's batches are in memory anyway
PREDICTION_BATCH = 2048  # tokens: logits take vocabulary-many floats for each


class TorchActivations:
    """Both streams of hidden states, and blocks whose forwards stand still at each linear layer.

    Without a full-precision stream (`drift` False) only the quantized one runs, at half the cost.
    Shapes: windows (count, tokens) of token ids.
    """

    def __init__(self, source: ModelSource, windows: NumpyArray, *, device: str = "cpu", drift: bool = True) -> None:
        self._model = StreamedModel(source, device)
        self._device = device
        batches = token_batches(windows, device, CALIBRATION_BATCH)
        self._quantized = self._model.record(batches)
        self._full = list(self._quantized) if drift else []

    def sites(self, block: BlockSpec) -> Iterator[Site]:
        """Load a block, stand still at each of its sites, then keep what both streams came out with."""
        with self._model.block(block.index) as module:
            linears = {name: module.get_submodule(name.removeprefix(block.name + ".")) for name in block.linears}
            hooks = [linear.register_forward_pre_hook(partial(halt, name)) for name, linear in linears.items()]
            full, quantized = self._forwards(block.index, self._full), self._forwards(block.index, self._quantized)
            try:
                yield from Streams(full, quantized, partial(set_weight, linears)).sites()
            finally:
                for hook in hooks:
                    hook.remove()
            self._full = [forward.finished() for forward in full]
            self._quantized = [forward.finished() for forward in quantized]

    def _forwards(self, index: int, hidden: list[torch.Tensor]) -> list[Forward]:
        return [Forward(partial(self._model.run_block, index, batch, states)) for batch, states in enumerate(hidden)]


def halt(name: str, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
    """The hook that runs just before a linear layer."""
    stand_still(name, args[0])


def set_weight(linears: dict[str, torch.nn.Module], layer: str, W: NumpyArray) -> None:
    """What the layer computes with from here on."""
    old = linears[layer]._parameters["weight"]
    assert old is not None
    weight = torch.from_numpy(W).to(device=old.device, dtype=old.dtype)
    linears[layer].weight = torch.nn.Parameter(weight, requires_grad=False)


class TorchLogits:
    """Predictions of any ModelSource, computed block by block: only one block's weights are in memory."""

    def __init__(self, source: ModelSource, *, device: str = "cpu") -> None:
        self._model, self._device = StreamedModel(source, device), device

    @staticmethod
    def check_installed() -> None:
        """Importing this module needed everything."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        batches = token_batches(windows, self._device, PREDICTION_BATCH)
        hidden = self._model.record(batches)
        for index in range(len(self._model.blocks)):
            with self._model.block(index):
                hidden = [self._model.run_block(index, batch, states) for batch, states in enumerate(hidden)]
        for of_batch in self._model.logits(batches, hidden):
            for of_window in of_batch:
                yield of_window.float().cpu().numpy()
