"""Choose the next token from its logits: the likeliest one, or one drawn by a seed."""

import numpy as np

from edgeq.errors import BadInput
from edgeq.types import NumpyArray

HOTTEST = 100.0  # at which all tokens are alike already


def check_choice(*, temperature: float, top_p: float) -> None:
    """Refuse values by which nothing can be chosen.

    Raises: BadInput.
    """
    if not 0 <= temperature <= HOTTEST:
        raise BadInput(
            f"temperature {temperature:g}: give 0 for the likeliest token, or up to {HOTTEST:g}"
        )
    if not 0 < top_p <= 1:
        raise BadInput(f"top-p {top_p:g}: give a share of the probability above 0 and up to 1")


class Choice:
    """Chooses tokens one after the other.

    At temperature 0 the likeliest is taken, the first of several. Else one is drawn from the
    likeliest ones that have the share top_p of the probability between them.
    """

    def __init__(self, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        check_choice(temperature=temperature, top_p=top_p)
        self._temperature, self._top_p = temperature, top_p
        self._random = np.random.default_rng(seed)

    def token(self, logits: NumpyArray) -> int:
        """Choose a token. Shapes: logits (vocabulary,). -inf is a token that never comes.

        Raises: BadInput for NaN and infinity.
        """
        likeliest = int(np.argmax(logits))  # NaN, where there is one
        if not np.isfinite(logits[likeliest]):
            raise BadInput("the model predicts NaN or infinity, it cannot write; export it again")
        if self._temperature == 0:
            return likeliest
        scaled = (logits.astype(np.float64) - logits[likeliest]) / self._temperature
        weights = np.exp(scaled)
        order = np.argsort(-weights, kind="stable")
        shares = np.cumsum(weights[order]) / weights.sum()
        count = int(np.searchsorted(shares, self._top_p)) + 1
        drawn = self._random.random() * shares[min(count, len(shares)) - 1]
        return int(order[min(int(np.searchsorted(shares, drawn, side="right")), count - 1)])
