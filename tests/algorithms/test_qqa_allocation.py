"""Bits of every layer under a budget, by the categorical form: held against the exact program and
against greed.
"""

import itertools

import numpy as np
import pytest

from edgeq.algorithms.qqa import Annealing, anneal
from edgeq.algorithms.relaxations import Categorical, random_start
from edgeq.registry import load_backend

BITS = np.array([2, 3, 4, 8])
SETTINGS = Annealing(600, 0.05, -0.1, 0.1, evaluate_every=20)


class Model:
    """Layers of some sizes; what a choice of bits costs: the squares of the layers' errors, and how
    they add up.
    """

    def __init__(self, rng, layers=20, coupled=False):
        self.sizes = rng.integers(1, 5, layers)
        loudness = np.exp(0.7 * rng.standard_normal((layers, 1)))
        self.errors = (
            loudness * np.array([1.0, 0.45, 0.2, 0.01]) * rng.uniform(0.8, 1.2, (layers, 4))
        )
        self.between = np.zeros((layers, layers))
        if coupled:
            for apart in (1, 2):
                self.between += np.diag(rng.uniform(-0.6, 0.9, layers - apart), apart) / apart
            self.between = (self.between + self.between.T) / 2
        self.budget = int(3.3 * self.sizes.sum())

    def cost(self, choice):
        e = np.take_along_axis(self.errors, choice[:, None], axis=1)[:, 0]
        return float((e * e).sum() + e @ self.between @ e)

    def fits(self, choice):
        return (self.sizes * BITS[choice]).sum() <= self.budget


class Relaxed:
    """The cost of shares p, in units of the mean cost at 2 bits, with a penalty where the budget is
    overdrawn.
    """

    def __init__(self, model, backend):
        unit = (model.errors[:, 0] ** 2).mean()
        four_bits = 4 * model.sizes.mean()
        self.squares, self.errors = (
            backend.asarray(model.errors**2 / unit),
            backend.asarray(model.errors / unit**0.5),
        )
        self.between, self.backend = backend.asarray(model.between), backend
        self.spent, self.budget = (
            backend.asarray(model.sizes[:, None] * BITS / four_bits),
            model.budget / four_bits,
        )

    def overdrawn(self, p):
        return self.backend.clip(
            (p * self.spent).sum(axis=-1).sum(axis=-1) - self.budget, 0.0, float("inf")
        )

    def value(self, p):
        e, over = (p * self.errors).sum(axis=-1), self.overdrawn(p)
        separable, between = (
            (p * self.squares).sum(axis=-1).sum(axis=-1),
            ((e @ self.between) * e).sum(axis=-1),
        )
        return separable + between + 3 * (over + over * over)

    def gradient(self, p):
        e, over = (p * self.errors).sum(axis=-1), self.overdrawn(p)
        steep = self.backend.where(over > 0, 3 * (1 + 2 * over), 0 * over)
        return (
            self.squares
            + 2 * (e @ self.between)[..., None] * self.errors
            + steep[:, None, None] * self.spent
        )


def annealed(model, backend, seed):
    start = random_start((64, len(model.sizes), len(BITS)), seed, backend)
    best, _, _ = anneal(Relaxed(model, backend), Categorical(), start, SETTINGS, backend)
    return backend.to_numpy(best).argmax(axis=-1)


def greedy(model, choice=None):
    """Up by the step that saves most per bit, for as long as one fits."""
    choice = np.zeros(len(model.sizes), dtype=int) if choice is None else choice
    while True:
        steps = []
        for layer in range(len(choice)):
            for option in range(choice[layer] + 1, len(BITS)):
                changed = choice.copy()
                changed[layer] = option
                saved = model.cost(choice) - model.cost(changed)
                if saved > 0 and model.fits(changed):
                    steps.append(
                        (
                            saved / (model.sizes[layer] * (BITS[option] - BITS[choice[layer]])),
                            changed,
                        )
                    )
        if not steps:
            return choice
        choice = max(steps, key=lambda step: step[0])[1]


def exact(model):
    """The least separable cost within the budget, by dynamic programming over bits spent."""
    least = np.zeros(model.budget + 1)
    for size, errors in zip(model.sizes, model.errors, strict=True):
        options = [(size * bits, error**2) for bits, error in zip(BITS, errors, strict=True)]
        least = np.array(
            [
                min(
                    (least[spent - price] + cost for price, cost in options if price <= spent),
                    default=np.inf,
                )
                for spent in range(model.budget + 1)
            ]
        )
    return least[-1]


def settled(model, choice):
    """A choice after greed with what is left, and changes of one layer or two for as long as they
    save.
    """
    choice = greedy(model, choice)
    while True:
        others = []
        for one, other in itertools.combinations(range(len(choice)), 2):
            for options in itertools.product(range(len(BITS)), repeat=2):
                changed = choice.copy()
                changed[[one, other]] = options
                others += [changed] if model.fits(changed) else []
        best = min(others, key=model.cost)
        if model.cost(best) >= model.cost(choice) - 1e-12:
            return choice
        choice = best


@pytest.mark.usefixtures("one_thread")
def test_separable_costs_come_out_as_by_dynamic_programming():
    backend, ratios = load_backend("cpu"), []
    for seed in range(8):
        model = Model(np.random.default_rng(seed))
        choice = annealed(model, backend, seed)
        assert model.fits(choice)
        ratios.append(model.cost(settled(model, choice)) / exact(model))
    assert min(ratios) >= 1 - 1e-12
    assert sum(ratio <= 1 + 1e-9 for ratio in ratios) >= 7
    assert max(ratios) <= 1.01


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_errors_that_add_up_or_cancel_are_allocated_no_worse_than_by_greed():
    backend, ratios = load_backend("cpu"), []
    for seed in range(8):
        model = Model(np.random.default_rng(seed), coupled=True)
        choice = annealed(model, backend, seed)
        assert model.fits(choice)
        ratios.append(
            model.cost(settled(model, choice)) / model.cost(settled(model, greedy(model)))
        )
    assert max(ratios) <= 1 + 1e-9
    assert np.mean(ratios) <= 0.99
