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
        check_logits(target, "target")
        target = log_softmax(target)
        self.tokens += len(ids)
        self.predicted += len(ids) - 1
        self.loss += next_token_loss(target, ids)
        if reference is None:
            return
        if reference.shape != target.shape:
            raise BadInput(
                f"target and reference predict {target.shape[1]} and {reference.shape[1]} tokens; "
                "give the model that the target was made from"
            )
        check_logits(reference, "reference")
        reference = log_softmax(reference)
        self.compared += len(ids)
        self.reference_loss += next_token_loss(reference, ids)
        self.agreed += int((reference.argmax(axis=1) == target.argmax(axis=1)).sum())
        np.subtract(reference, target, out=target)
        np.exp(reference, out=reference)
        self.kl += float(np.einsum("tv,tv->t", reference, target).sum(dtype=np.float64))

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


def next_token_loss(log_probabilities: NumpyArray, ids: NumpyArray) -> float:
    """Sum the negative log probabilities of each token given those before it."""
    picked = log_probabilities[np.arange(len(ids) - 1), ids[1:]]
    return -float(picked.sum(dtype=np.float64))


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
