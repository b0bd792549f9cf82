"""How close a quantized model stays to its original: perplexity, KL divergence, top-1 agreement.

Where the logits come from is up to the caller.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeq.errors import BadInput
from edgeq.types import NumpyArray

LARGEST_LOGIT = 1e30  # differences of two such are still numbers of float32
LARGEST_LOSS = 700.0  # nats; exp of it is still a number
ROWS_AT_ONCE = 64  # of log probabilities: a large vocabulary takes some ten megabytes


@dataclass(frozen=True, slots=True)
class Quality:
    """Averages over all positions of the evaluated windows.

    Units: perplexity of next-token prediction; kl in nats per token, KL(reference || target);
    top1_agreement a share. The last three are None when nothing was compared.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None


Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Compared:
    """What a reference predicts of a window, and how far a target's predictions are from that.

    Shapes: losses (tokens - 1,), of the reference; kl, says and agrees (tokens,).
    Units: nats.
    """

    losses: Floats
    kl: Floats
    says: Ids
    agrees: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WindowQuality:
    """The quality of one window, token by token; compared is None without a reference.

    losses are those of the second token on; says are the tokens that are predicted first at each.

    Shapes: losses (tokens - 1,); says (tokens,).
    Units: nats.
    """

    losses: Floats
    says: Ids
    compared: Compared | None = None


class Meter:
    """The sums behind `Quality`, added up window by window in float64."""

    def __init__(self) -> None:
        self.tokens = self.predicted = self.compared = self.agreed = 0
        self.loss = self.reference_loss = self.kl = 0.0

    def add(self, ids: NumpyArray, target: NumpyArray, reference: NumpyArray | None) -> None:
        """Add one window, compared with a reference where one is given.

        Shapes: ids (tokens,); target and reference logits (tokens, vocabulary).
        Raises: BadInput for logits that are not finite, and for models of different vocabularies.
        """
        expected = None if reference is None else predictions(reference, "reference")
        self.add_window(measure_window(ids, predictions(target, "target"), expected))

    def add_window(self, window: WindowQuality) -> None:
        """Add what was measured of one window."""
        self.tokens += len(window.says)
        self.predicted += len(window.losses)
        self.loss += float(window.losses.sum())
        if window.compared is None:
            return
        self.compared += len(window.says)
        self.reference_loss += float(window.compared.losses.sum())
        self.agreed += int(window.compared.agrees.sum())
        self.kl += float(window.compared.kl.sum())

    def quality(self) -> Quality:
        """Average what was added.

        Raises: BadInput where no window had a second token to predict.
        """
        if not self.predicted:
            raise BadInput(
                f"{self.tokens} windows of one token each: nothing follows them to be predicted; "
                "give windows of 2 tokens or more"
            )
        perplexity = perplexity_of(self.loss / self.predicted, "target")
        if not self.compared:
            return Quality(self.tokens, perplexity)
        return Quality(
            self.tokens,
            perplexity,
            perplexity_of(self.reference_loss / self.predicted, "reference"),
            max(0.0, self.kl / self.compared),  # below zero only by the rounding of its sums
            self.agreed / self.compared,
        )


def check_logits(logits: NumpyArray, whose: str) -> None:
    """Check that logits are numbers, and that their differences will be.

    Raises: BadInput.
    """
    if not (logits.max() < LARGEST_LOGIT and logits.min() > -LARGEST_LOGIT):
        raise BadInput(
            f"the {whose} predicts NaN or infinity instead of numbers: "
            "its weights are damaged or overflow in this runtime; "
            "try another --runtime, or make the model again"
        )


def perplexity_of(loss: float, whose: str) -> float:
    """Turn the mean loss of a token into a perplexity.

    Units: loss in nats.
    Raises: BadInput when it is too large for a number: the model rules out what the text says.
    """
    if not loss < LARGEST_LOSS:
        raise BadInput(
            f"the {whose}'s perplexity is beyond all numbers "
            f"(a loss of {loss:.3g} nats per token): its weights are damaged; make the model again"
        )
    return math.exp(loss)


def log_softmax(logits: NumpyArray) -> npt.NDArray[np.float32]:
    """Turn logits into log probabilities, with sums in float64.

    Shapes: (tokens, vocabulary).
    """
    shifted: npt.NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    shifted = shifted.astype(np.float32, copy=False)
    total = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    shifted -= np.log(total).astype(np.float32)
    return shifted


def predictions(logits: NumpyArray, whose: str) -> npt.NDArray[np.float32]:
    """Turn logits into log probabilities; what they are made of stays as it is.

    Shapes: (tokens, vocabulary).
    Raises: BadInput for logits that are not finite.
    """
    check_logits(logits, whose)
    return log_softmax(logits)


def measure_window(
    ids: NumpyArray, target: NumpyArray, reference: NumpyArray | None
) -> WindowQuality:
    """Measure one window token by token, given log probabilities.

    Shapes: ids (tokens,); target and reference (tokens, vocabulary).
    Raises: BadInput for models of different vocabularies.
    """
    losses, says = next_token_losses(target, ids), target.argmax(axis=1)
    if reference is None:
        return WindowQuality(losses, says)
    if reference.shape != target.shape:
        raise BadInput(
            f"target and reference predict {target.shape[1]} and {reference.shape[1]} tokens; "
            "give the model that the target was made from"
        )
    expected, kl = next_token_losses(reference, ids), divergences(target, reference)
    likeliest = reference.argmax(axis=1)
    return WindowQuality(losses, says, Compared(expected, kl, likeliest, likeliest == says))


def divergences(target: NumpyArray, reference: NumpyArray) -> Floats:
    """Compute KL(reference || target) of each token, some rows at a time to save memory.

    Shapes: log probabilities (tokens, vocabulary) -> (tokens,).
    Units: nats.
    """
    found = np.empty(len(target))
    for start in range(0, len(target), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        terms = np.exp(reference[rows])
        terms *= reference[rows] - target[rows]
        found[rows] = terms.sum(axis=1, dtype=np.float64)
    return found


def next_token_losses(log_probabilities: NumpyArray, ids: NumpyArray) -> Floats:
    """Pick the negative log probability of each token given those before it.

    Shapes: (tokens, vocabulary) and (tokens,) -> (tokens - 1,).
    """
    picked = log_probabilities[np.arange(len(ids) - 1), ids[1:]]
    losses: Floats = -picked.astype(np.float64)
    return losses


def compare(
    windows: NumpyArray, target: Iterable[NumpyArray], reference: Iterable[NumpyArray] | None = None
) -> Quality:
    """Measure the quality of a target's logits, against a reference's where given.

    Shapes: windows (count, tokens).
    """
    meter = Meter()
    references = reference if reference is not None else (None for _ in windows)
    for ids, target_logits, reference_logits in zip(windows, target, references, strict=True):
        meter.add(ids, target_logits, reference_logits)
    return meter.quality()
