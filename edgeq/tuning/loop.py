"""Tune scales, offsets, norms, biases and codes so that a model predicts what its original does.

Windows that are held out decide what is kept; where nothing was gained, nothing changes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.streams.blockwise import share_windows
from edgeq.streams.hidden_states import HiddenStates
from edgeq.tuning.adam import descend, rate_at
from edgeq.tuning.free import CODES, FREE
from edgeq.tuning.model import Models
from edgeq.tuning.passes import (
    TunedBlocks,
    held_out_kl,
    loss_and_gradients,
    original_states,
)
from edgeq.tuning.state import Row, State, read_state, write_state
from edgeq.types import Array, NumpyArray

MEASUREMENTS = 8  # of held-out windows, evenly spread over the steps
STEP_TOKENS = 2048
"""Tokens of a step: as many as pass the blocks together, so that smaller steps would cost more."""
CODE_RATE = 0.02
"""The largest share of the way to the next code that a step moves a position by."""
CODE_WALK = 0.32
"""How far steps without a direction take a position, in codes: over many, each is shorter."""
PATIENCE = 4  # measurements without a gain, after which the rest is not worth its time
READING = "reading the original, block"
TUNING = "tuning, step"


@dataclass(frozen=True, slots=True)
class Tuning:
    """How to tune.

    passes: how often every window is read. rate: the largest share by which a step moves a number.
    held_out: the share of the windows that decides, evenly spread over all texts.
    """

    rate: float = 3e-3
    passes: int = 2
    step_windows: int = 4
    seed: int = 0
    held_out: float = 0.0625
    free: tuple[str, ...] = FREE


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came out.

    values are the new numbers by tensor and part, none where nothing was gained. before and after
    are means of KL on held-out windows, in nats; kept_step is the step that is kept, 0 for none.
    """

    values: Mapping[str, Mapping[str, NumpyArray]]
    before: float
    after: float
    curve: Sequence[Row]
    kept_step: int
    steps: int
    tokens: int
    held_out_tokens: int
    way: str
    precision: str


def tune(
    models: Models,
    checkpoint: Checkpoint,
    windows: NumpyArray,
    tuning: Tuning,
    *,
    watch: Callable[[str, int, int], None],
    folder: Path | None = None,
    measured: Callable[[Row], None] = lambda row: None,
    question: str = "",
) -> Tuned:
    """Descend on the KL to the original, and keep what held-out windows are best with.

    State is saved in a folder at each measurement and found there again; question names what it is
    of. watch is told what is done, how much of it and how much there is; measured gets each row of
    the curve.

    Shapes: windows (count, tokens) of token ids.
    Raises: BadInput for fewer than two windows, predictions that are not finite, or a state that is
    damaged.
    """
    held, training = share_windows(windows, tuning.held_out)
    if not len(training):
        raise BadInput(
            f"tuning got {len(windows)} windows of text; it needs 2 or more, since one is held out"
        )
    blocks = TunedBlocks(checkpoint, models, tuning.free)
    order = batches_of(len(training), tuning)
    state = None if folder is None else read_state(folder, blocks, question)
    reading = original_states(models, held, training, partial(watch, READING))
    if state is None:
        masters = blocks.start(tuning.seed)
        state = State.start(blocks, masters, held_out_kl(blocks, held, reading.read, masters))
        measured(state.curve[-1])
    while state.step < len(order) and state.unimproved < PATIENCE:
        chosen = order[state.step]
        targets = partial(target_of, reading, chosen + len(held))
        rates = rates_of(state.step, len(order), tuning)
        loss = take_step(blocks, state, training[chosen], targets, rates)
        kl = None
        if state.step in measured_steps(len(order)):
            kl = held_out_kl(blocks, held, reading.read, state.masters)
        state.note(blocks, loss, kl)
        measured(state.curve[-1])
        if kl is not None and folder is not None:
            write_state(folder, state, blocks, question)
        watch(TUNING, state.step, len(order))
    return Tuned(
        blocks.by_tensor(state.best) if state.kept_step else {},
        state.before,
        state.least,
        state.curve,
        state.kept_step,
        state.step,
        training.size,
        held.size,
        models.way,
        models.quantized.precision,
    )


def measured_steps(steps: int) -> set[int]:
    """List the steps behind which held-out windows are measured: the last one and others before."""
    return {max(1, round((place + 1) * steps / MEASUREMENTS)) for place in range(MEASUREMENTS)}


def target_of(states: HiddenStates, chosen: NumpyArray, window: int) -> Array:
    """Give the original's hidden states of one of the windows that are chosen for a step."""
    return states.read(int(chosen[window]))


def rates_of(step: int, steps: int, tuning: Tuning) -> tuple[float, float]:
    """Give the rates of a step, counted from 0: of floats, and of positions between codes."""
    share = rate_at(step, steps, 1.0)
    return share * tuning.rate, share * min(CODE_RATE, CODE_WALK / math.sqrt(steps))


def take_step(
    blocks: TunedBlocks,
    state: State,
    windows: NumpyArray,
    targets: Callable[[int], Array],
    rates: tuple[float, float],
) -> float:
    """Move all that is free against the gradients of some windows, and give their mean KL.

    rates are those of floats and of positions between codes.
    """
    of_floats, of_codes = rates
    loss, gradients = loss_and_gradients(blocks, windows, targets, state.masters)
    for key, gradient in gradients.items():
        free, moments = blocks.free[key], state.moments[key]
        rate = of_codes if free.part.part == CODES else of_floats
        x, state.moments[key] = descend(
            state.masters[key], gradient, moments, step=state.step, rate=rate
        )
        state.masters[key] = free.limited(x)
    blocks.models.numbers.finish([*state.masters.values()])
    state.step += 1
    return loss


def batches_of(count: int, tuning: Tuning) -> list[NumpyArray]:
    """Draw which windows make up each step, every one once in a pass, in steps of like size."""
    rng = np.random.default_rng(tuning.seed)
    of_pass = max(1, round(count / tuning.step_windows))
    found: list[NumpyArray] = []
    for _ in range(tuning.passes):
        found += np.array_split(rng.permutation(count), of_pass)
    return found
