"""Choose one option for each item so that costs are least within a budget of bytes.

This is the multiple-choice knapsack, solved exactly by dynamic programming over bytes. What an
option is, a type of a layer say, and what it costs is up to the caller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.types import NumpyArray

MOST_STATES = 200_000  # sizes that are told apart: a byte for each of them and each item


@dataclass(frozen=True, slots=True)
class Option:
    """An option of an item: what it takes of the budget, and what it costs otherwise."""

    size: int
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One option for each item, by its number, with the sums over all items.

    slack is how much less the costs could be at most with the same budget; 0 where sizes are told
    apart exactly.
    """

    options: tuple[int, ...]
    size: int
    cost: float
    slack: float = 0.0


class Knapsack:
    """The least costs for every budget, found in one pass over the items.

    Sizes count in units above the smallest option of each item, in the largest unit that divides
    them all. Where that leaves more than MOST_STATES, the unit is larger and sizes are rounded up:
    a choice never exceeds its budget, and may miss the best one by its slack.

    Source: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, section 11.5.
    """

    def __init__(self, items: Sequence[Sequence[Option]], most_states: int = MOST_STATES) -> None:
        self._items = items
        self._smallest = [min(option.size for option in item) for item in items]
        extra = [
            [option.size - least for option in item]
            for item, least in zip(items, self._smallest, strict=True)
        ]
        exact = math.gcd(*(size for item in extra for size in item)) or 1
        largest = sum(max(item) for item in extra)
        factor = max(1, -(-(largest // exact) // most_states))
        self._unit, self._exact = exact * factor, factor == 1
        self._units = [[-(-size // self._unit) for size in item] for item in extra]
        self._best, self._chosen = self._solve()

    @property
    def smallest(self) -> int:
        """Give the size of the smallest choice: no budget below it can be kept."""
        return sum(self._smallest)

    def choose(self, budget: int) -> Choice:
        """Choose the options of least cost within a budget of at least `smallest`.

        Of equal costs the smallest size counts, of equal sizes the option that comes first.
        """
        place = int(self._best[: self._states(budget)].argmin())
        options = []
        for units, chosen in zip(reversed(self._units), reversed(self._chosen), strict=True):
            options.append(int(chosen[place]))
            place -= units[options[-1]]
        options.reverse()
        picked = [item[number] for item, number in zip(self._items, options, strict=True)]
        cost = math.fsum(option.cost for option in picked)
        size = sum(option.size for option in picked)
        return Choice(tuple(options), size, cost, self._slack(budget, cost))

    def _slack(self, budget: int, cost: float) -> float:
        """Bound what rounding up lost: unrounded, all sizes together are so much smaller."""
        if self._exact:
            return 0.0
        beyond = budget + len(self._items) * (self._unit - 1)
        return max(0.0, cost - float(self._best[: self._states(beyond)].min()))

    def _states(self, budget: int) -> int:
        return min(len(self._best), 1 + (budget - self.smallest) // self._unit)

    def _solve(self) -> tuple[NumpyArray, list[NumpyArray]]:
        """Find the least cost for each number of units, item by item, and the options behind it."""
        count = 1 + sum(max(units) for units in self._units)
        best = np.full(count, np.inf)
        best[0] = 0.0
        chosen = []
        for item, units in zip(self._items, self._units, strict=True):
            found = np.full(count, np.inf)
            number = np.zeros(count, dtype=np.uint8)
            for index, (option, size) in enumerate(zip(item, units, strict=True)):
                cost = best[: count - size] + option.cost
                is_less = cost < found[size:]
                found[size:][is_less] = cost[is_less]
                number[size:][is_less] = index
            best = found
            chosen.append(number)
        return best, chosen
