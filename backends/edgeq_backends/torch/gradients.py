"""Take gradients back through a transformers model, block by block, in torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.protocols import ModelSource
from edgeq.streams.backward import (
    HeadMoments,
    Sensitivities,
    Squares,
    head_tokens,
    measure_sensitivities,
)
from edgeq.streams.hidden_states import HiddenStates, StatesInMemory, StatesOnDisk
from edgeq.types import BlockSpec, NumpyArray
from edgeq_backends.torch.experts import traced_experts
from edgeq_backends.torch.model import HANDED, StreamedModel


def torch_sensitivities(
    source: ModelSource,
    windows: NumpyArray,
    *,
    seed: int,
    device: str = "cpu",
    states_folder: Path | None = None,
) -> Sensitivities:
    """Measure how much the outputs of a model's linear layers matter.

    Hidden states lie in a folder, or in memory without one.

    Shapes: windows (count, tokens) of token ids.
    """
    model = TracedModel(source, device)

    def make_states() -> HiddenStates:
        if states_folder is None:
            return StatesInMemory()
        return StatesOnDisk(states_folder, model.to_numpy, model.from_numpy)

    return measure_sensitivities(model, model.specs, windows, seed=seed, make_states=make_states)


class TracedModel(StreamedModel):
    """The model's own code, whose linear layers note the gradients of their outputs."""

    @contextmanager
    def traced_block(
        self, block: BlockSpec
    ) -> Iterator[Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Squares]]]:
        """Fill a block with its weights; see `edgeq.streams.backward.GradientModel`."""
        squares: dict[str, NumpyArray] = {}

        def note(layer: str, output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(partial(add, layer))  # type: ignore[no-untyped-call]

        def add(layer: str, gradient: torch.Tensor) -> None:
            found = squares_of_rows(gradient)
            squares[layer] = squares.get(layer, 0) + found

        def take_back(
            batch: int, hidden: torch.Tensor, gradient: torch.Tensor
        ) -> tuple[torch.Tensor, Squares]:
            squares.clear()
            before = hidden.detach().requires_grad_(True)
            if hasattr(hidden, HANDED):
                setattr(before, HANDED, getattr(hidden, HANDED))
            with torch.enable_grad():
                output = self.run_block(block.index, batch, before)
            [gradient] = torch.autograd.grad(output, before, gradient)
            return gradient, self._by_layer(block, squares)

        with self.block(block.index) as module:
            modules = {id(each): each for each in self._linear_modules(block).values()}
            hooks = [
                each.register_forward_hook(partial(_note_output, partial(note, str(number))))
                for number, each in modules.items()
            ]
            try:
                with traced_experts(block, module, note):
                    yield take_back
            finally:
                for hook in hooks:
                    hook.remove()

    def _by_layer(self, block: BlockSpec, squares: Squares) -> Squares:
        """Find the part of each layer in what its module noted, which several may share."""
        modules = self._linear_modules(block)
        found = {}
        for linear in block.linears:
            key = linear.name if linear.expert is not None else str(id(modules[linear.name]))
            if key not in squares:  # no token reached it
                found[linear.name] = np.zeros(linear.shape[0])
            elif linear.rows is None or linear.expert is not None:
                found[linear.name] = squares[key]
            else:
                found[linear.name] = squares[key][slice(*linear.rows)]
        return found

    def head_gradients(
        self, batches: Sequence[NumpyArray], hidden: HiddenStates, draws: Sequence[NumpyArray]
    ) -> Iterator[tuple[torch.Tensor, HeadMoments]]:
        """Draw tokens and take log p(y) back; see `edgeq.streams.backward.GradientModel`."""
        head = self.model.get_output_embeddings()
        seen: dict[str, torch.Tensor] = {}

        def note(_: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
            seen["inputs"], seen["outputs"] = args[0], output

        hook = head.register_forward_hook(note)
        try:
            with self._filled(self._outer):
                for batch, ids in enumerate(batches):
                    states = hidden.read(batch).detach()
                    parts = []
                    # behind the last block each token is on its own
                    for part in parts_of_window(ids.shape[1], self.source.record.decoder):
                        before = states[:, part].requires_grad_(True)
                        self.places[-1].result = before
                        with torch.enable_grad():
                            logits = self._run(ids[:, part]).float()
                        parts.append(self._of_part(before, logits, seen, draws[batch][:, part]))
                        del logits
                        seen.clear()
                    gradients, moments = zip(*parts, strict=True)
                    yield torch.cat(gradients, dim=1), total_moments(moments)
        finally:
            self.places[-1].result = None
            hook.remove()

    @torch.enable_grad()
    def _of_part(
        self,
        states: torch.Tensor,
        logits: torch.Tensor,
        seen: dict[str, torch.Tensor],
        draws: NumpyArray,
    ) -> tuple[torch.Tensor, HeadMoments]:
        """Take the log-probability of tokens that are drawn back to the hidden states."""
        log_p = logits.log_softmax(-1)
        p = log_p.detach().exp()
        chosen = torch.from_numpy(draws).to(logits.device, torch.float32)[..., None]
        last = p.shape[-1] - 1
        tokens = torch.searchsorted(p.cumsum(-1), chosen).clamp(max=last)
        loss = log_p.gather(-1, tokens).sum()
        if not bool(loss.isfinite()):
            raise BadInput(
                f"model {self.source.record.name!r} predicts NaN or infinity on this text; "
                "check its weights, or calibrate on other text"
            )
        [gradient] = torch.autograd.grad(loss, states, retain_graph=True)
        # what lies between the head and the predictions, a scale or a cap, works on each by itself
        [slope] = torch.autograd.grad(logits.sum(), seen["outputs"])
        # the mean over tokens y of the squared gradient of log p(y), without noise of their draw
        squares = p * (1 - p) * slope.float() ** 2
        inputs = seen["inputs"].detach().reshape(-1, seen["inputs"].shape[-1]).float()
        moments = HeadMoments(
            squares.reshape(-1, squares.shape[-1]).double().sum(0).cpu().numpy(),
            (inputs.T @ inputs).double().cpu().numpy(),
        )
        return gradient, moments


def parts_of_window(length: int, decoder: Decoder) -> list[slice]:
    """Cut a window so that the predictions of a part take little memory."""
    size = head_tokens(decoder.vocabulary)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def total_moments(parts: Sequence[HeadMoments]) -> HeadMoments:
    """Add the sums of all parts of a window."""
    squares = [part.squares for part in parts if part.squares is not None]
    inputs = [part.inputs for part in parts if part.inputs is not None]
    return HeadMoments(np.sum(squares, axis=0), np.sum(inputs, axis=0))


def _note_output(
    note: Callable[[torch.Tensor], None], _: torch.nn.Module, args: Any, output: torch.Tensor
) -> None:
    """Hand on what a module gives: the hook that runs just behind a linear layer."""
    note(output)


def squares_of_rows(gradient: torch.Tensor) -> NumpyArray:
    """Sum the squares of a layer's gradients over all tokens.

    Shapes: (..., out) -> (out,).
    """
    found: NumpyArray = (
        gradient.reshape(-1, gradient.shape[-1]).double().square().sum(0).cpu().numpy()
    )
    return found
