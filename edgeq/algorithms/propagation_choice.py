"""Choose how far to propagate: strength and damping, by tokens kept out of the correction.

The correction itself is `edgeq.algorithms.qep`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.algorithms.damping import factorise, lower_factor
from edgeq.protocols import Backend
from edgeq.types import Array, LayerStatistics

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DAMPINGS = (0.01, 0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """Hold one pair of settings and the held-out error it leads to.

    The error is a share of the layer's held-out output energy, relative to no correction: negative
    ones gain.
    """

    strength: float
    damping: float
    error: float


@dataclass(frozen=True, slots=True)
class PropagationChoice:
    """Hold the best trial, and all of them."""

    best: Trial
    curve: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Corrector:
    """Hold a factor of the H that the correction is fitted to, shared by all layers of a site."""

    damping: float
    L: Array


def make_correctors(
    fit: LayerStatistics, backend: Backend, *, dampings: Sequence[float] = DAMPINGS
) -> tuple[Corrector, ...]:
    """Factor H + lambda I once for each damping; one that had to be raised says what it became."""
    factors = (factorise(fit.H, damping, backend, lower_factor) for damping in dampings)
    return tuple(Corrector(item.damping, item.factor) for item in factors)


def choose_propagation(
    W: Array,
    fit: LayerStatistics,
    held_out: LayerStatistics,
    correctors: Sequence[Corrector],
    backend: Backend,
) -> PropagationChoice:
    """Choose strength and damping whose correction leaves the smallest error on held-out tokens.

    The error is that before any rounding. With K = W D (H + lambda I)^-1 of the fitted moments and
    V = W + strength * K, it is on the held-out ones (dashed)

    ||X W.T - X_hat V.T||^2 = ||(X - X_hat) W.T||^2 - 2 strength <W D', K> + strength^2 <K H', K>

    The first term is the same for all and left out. Ties go to the smaller strength, then to the
    larger damping. Rounding adds tr(E H' E.T), whose size does not depend on the strength, and a
    product of E with V that averages out. Several layers of a site may be stacked along `out` to
    get one choice for all.

    Shapes: W (out, in).
    """
    # 1e-30 for a layer without output on these tokens, whose errors are zero as well
    energy = max(float(((W @ held_out.H) * W).sum()), 1e-30)
    trials = []
    for corrector in correctors:
        linear, curved = 0.0, 0.0
        if fit.D is not None and held_out.D is not None:
            K = backend.solve_product(W, fit.D, corrector.L)
            linear = float(((W @ held_out.D) * K).sum())
            curved = float(((K @ held_out.H) * K).sum())
        for strength in STRENGTHS:
            error = strength * (strength * curved - 2 * linear) / energy
            trials.append(Trial(strength, corrector.damping, error))
    best = min(trials, key=lambda trial: (trial.error, trial.strength, -trial.damping))
    return PropagationChoice(best, tuple(trials))
