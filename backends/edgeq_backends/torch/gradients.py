"""Take gradients back through a transformers model, block by block, in torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeq.decoder import Decoder
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.protocols import ModelSource
from edgeq.streams.backward import (
    HeadMoments,
    Measure,
    Noted,
    Sensitivities,
    head_tokens,
    measure_sensitivities,
    measure_tokens,
)
from edgeq.streams.hidden_states import HiddenStates, StatesInMemory, StatesOnDisk
from edgeq.types import BlockSpec, LinearSpec, NumpyArray
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
    make_states = partial(_make_states, model, states_folder)
    return measure_sensitivities(model, model.specs, windows, seed=seed, make_states=make_states)


def torch_tokens(
    source: ModelSource,
    windows: NumpyArray,
    *,
    seed: int,
    squares: bool,
    at_once: int,
    device: str = "cpu",
    states_folder: Path | None = None,
) -> Iterator[tuple[int, int, Noted]]:
    """Measure how much tokens decide at a model's linear layers: magnitudes, or their squares.

    Hidden states lie in a folder, or in memory without one; see
    `edgeq.streams.backward.measure_tokens`.

    Shapes: windows (count, tokens) of token ids.
    """
    model = TracedModel(source, device)
    return measure_tokens(
        model,
        model.specs,
        windows,
        model.mean_squares if squares else model.magnitudes,
        seed=seed,
        at_once=at_once,
        make_states=partial(_make_states, model, states_folder),
    )


def _make_states(model: "TracedModel", folder: Path | None) -> HiddenStates:
    if folder is None:
        return StatesInMemory()
    return StatesOnDisk(folder, model.to_numpy, model.from_numpy)


class TracedModel(StreamedModel):
    """The model's own code, whose linear layers note the gradients of their outputs."""

    @contextmanager
    def traced_block(
        self, block: BlockSpec, measure: Measure
    ) -> Iterator[Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Noted]]]:
        """Fill a block with its weights; see `edgeq.streams.backward.GradientModel`."""
        noted: dict[str, NumpyArray] = {}
        length = 0

        def note(layer: str, output: torch.Tensor, numbers: torch.Tensor | None = None) -> None:
            if output.requires_grad:
                output.register_hook(partial(add, layer, numbers))  # type: ignore[no-untyped-call]

        def add(layer: str, numbers: torch.Tensor | None, gradient: torch.Tensor) -> None:
            found = measure(gradient, numbers, length)
            noted[layer] = noted[layer] + found if layer in noted else found

        def note_parts(parts: Sequence[LinearSpec], output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(partial(add_parts, parts))  # type: ignore[no-untyped-call]

        def add_parts(parts: Sequence[LinearSpec], gradient: torch.Tensor) -> None:
            for linear in parts:
                rows = slice(None) if linear.rows is None else slice(*linear.rows)
                add(linear.name, None, gradient[..., rows])

        def take_back(
            batch: int, hidden: torch.Tensor, gradient: torch.Tensor
        ) -> tuple[torch.Tensor, Noted]:
            nonlocal length
            noted.clear()
            length = hidden.shape[-2]
            before = hidden.detach().requires_grad_(True)
            if hasattr(hidden, HANDED):
                setattr(before, HANDED, getattr(hidden, HANDED))
            with torch.enable_grad():
                output = self.run_block(block.index, batch, before)
            [gradient] = torch.autograd.grad(output, before, gradient)
            return gradient, dict(noted)

        with self.block(block.index) as module:
            modules = self._linear_modules(block)
            parts: dict[torch.nn.Module, list[LinearSpec]] = {}
            for linear in block.linears:
                if linear.name in modules:  # which several layers may share
                    parts.setdefault(modules[linear.name], []).append(linear)
            hooks = [
                each.register_forward_hook(partial(_note_output, partial(note_parts, layers)))
                for each, layers in parts.items()
            ]
            try:
                with traced_experts(block, module, note):
                    yield take_back
            finally:
                for hook in hooks:
                    hook.remove()

    @staticmethod
    def squares(gradient: torch.Tensor, numbers: torch.Tensor | None, length: int) -> NumpyArray:
        """Sum the squares of a layer's gradients over all tokens.

        Shapes: (..., out) -> (out,).
        """
        return plain(rows_of(gradient).double().square().sum(0))

    @staticmethod
    def magnitudes(gradient: torch.Tensor, numbers: torch.Tensor | None, length: int) -> NumpyArray:
        """Take the mean magnitude of each token's gradients. Shapes: (..., out) -> (length,)."""
        return of_tokens(rows_of(gradient).abs().mean(-1), numbers, length)

    @staticmethod
    def mean_squares(
        gradient: torch.Tensor, numbers: torch.Tensor | None, length: int
    ) -> NumpyArray:
        """Take the mean square of each token's gradients. Shapes: (..., out) -> (length,)."""
        return of_tokens(rows_of(gradient).square().mean(-1), numbers, length)

    def head_gradients(
        self,
        batches: Sequence[NumpyArray],
        hidden: HiddenStates,
        draws: Sequence[NumpyArray],
        *,
        moments: bool,
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
                        gradient = self._of_part(before, logits, draws[batch][:, part])
                        found = moments_of(logits, seen) if moments else HeadMoments()
                        parts.append((gradient, found))
                        del logits
                        seen.clear()
                    gradients, of_parts = zip(*parts, strict=True)
                    yield torch.cat(gradients, dim=1), total_moments(of_parts)
        finally:
            self.places[-1].result = None
            hook.remove()

    @torch.enable_grad()
    def _of_part(
        self,
        states: torch.Tensor,
        logits: torch.Tensor,
        draws: NumpyArray,
    ) -> torch.Tensor:
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
        gradient: torch.Tensor
        [gradient] = torch.autograd.grad(loss, states, retain_graph=True)
        return gradient


@torch.enable_grad()
def moments_of(logits: torch.Tensor, seen: dict[str, torch.Tensor]) -> HeadMoments:
    """Sum up what the head decides of some tokens, whose inputs and outputs were seen."""
    # what lies between the head and the predictions, a scale or a cap, works on each by itself
    [slope] = torch.autograd.grad(logits.sum(), seen["outputs"])
    p = logits.detach().softmax(-1)
    # the mean over tokens y of the squared gradient of log p(y), without noise of their draw
    squares = p * (1 - p) * slope.float() ** 2
    inputs = seen["inputs"].detach().reshape(-1, seen["inputs"].shape[-1]).float()
    return HeadMoments(
        squares.reshape(-1, squares.shape[-1]).double().sum(0).cpu().numpy(),
        (inputs.T @ inputs).double().cpu().numpy(),
    )


def parts_of_window(length: int, decoder: Decoder) -> list[slice]:
    """Cut a window so that the predictions of a part take little memory."""
    size = head_tokens(decoder.vocabulary)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def total_moments(parts: Sequence[HeadMoments]) -> HeadMoments:
    """Add the sums of all parts of a window; empty where they are."""
    squares = [part.squares for part in parts if part.squares is not None]
    inputs = [part.inputs for part in parts if part.inputs is not None]
    if not squares or not inputs:
        return HeadMoments()
    return HeadMoments(np.sum(squares, axis=0), np.sum(inputs, axis=0))


def _note_output(
    note: Callable[[torch.Tensor], None], _: torch.nn.Module, args: Any, output: torch.Tensor
) -> None:
    """Hand on what a module gives: the hook that runs just behind a linear layer."""
    note(output)


def rows_of(gradient: torch.Tensor) -> torch.Tensor:
    """Put the gradients of all tokens below one another. Shapes: (tokens, out)."""
    return gradient.reshape(-1, gradient.shape[-1]).float()


def of_tokens(values: torch.Tensor, numbers: torch.Tensor | None, length: int) -> NumpyArray:
    """Give each token of a window its value; those that are not among the numbers have 0.

    Raises: UnsupportedModel where there are other values than tokens.
    """
    if numbers is None:
        if len(values) != length:
            raise UnsupportedModel(
                f"token_weights: a linear layer runs on {len(values)} rows where a window has "
                f"{length} tokens; leave out token_weights for this model"
            )
        return plain(values)
    found = np.zeros(length)
    found[numbers.cpu().numpy()] = plain(values)
    return found


def plain(values: torch.Tensor) -> NumpyArray:
    array: NumpyArray = values.cpu().numpy()
    return array
