"""The multiple-choice knapsack, against every choice of small ones."""

import itertools
import math

import numpy as np
import pytest

from edgeq.algorithms.knapsack import Knapsack, Option


def random_items(seed, *, items=5, unit=1):
    rng = np.random.default_rng(seed)
    return [
        [
            Option(int(unit * size), float(cost))
            for size, cost in zip(
                rng.integers(1, 30, count), rng.integers(0, 12, count) / 4, strict=True
            )
        ]
        for count in rng.integers(1, 5, items)
    ]


def every_choice(items):
    """Size and cost of every choice there is."""
    for picked in itertools.product(*items):
        yield sum(each.size for each in picked), math.fsum(each.cost for each in picked)


@pytest.mark.parametrize("unit", [1, 84])
@pytest.mark.parametrize("seed", range(10))
def test_no_choice_within_the_budget_costs_less(seed, unit):
    items = random_items(seed, unit=unit)
    known = list(every_choice(items))
    knapsack = Knapsack(items)
    assert knapsack.smallest == min(size for size, _ in known)
    largest = max(size for size, _ in known)
    for budget in np.linspace(knapsack.smallest, largest + 3, 25).astype(int).tolist():
        found = knapsack.choose(budget)
        picked = [item[number] for item, number in zip(items, found.options, strict=True)]
        assert found.size == sum(each.size for each in picked) <= budget
        assert found.cost == math.fsum(each.cost for each in picked)
        least = min(cost for size, cost in known if size <= budget)
        assert found.cost == least
        # and of equal costs the smallest
        assert found.size == min(size for size, cost in known if size <= budget and cost == least)
        assert found.slack == 0


@pytest.mark.parametrize("seed", range(10))
def test_rounded_sizes_stay_within_the_budget_and_state_what_they_may_have_lost(seed):
    items = random_items(seed, unit=7)
    known = list(every_choice(items))
    knapsack = Knapsack(items, most_states=12)
    for budget in range(knapsack.smallest, max(size for size, _ in known) + 9, 5):
        found = knapsack.choose(budget)
        least = min(cost for size, cost in known if size <= budget)
        assert found.size <= budget
        assert least <= found.cost <= least + found.slack


def test_ties_are_decided_by_size_and_then_by_order():
    items = [[Option(4, 1.0), Option(2, 1.0), Option(2, 1.0)], [Option(1, 0.0), Option(1, 0.0)]]
    assert Knapsack(items).choose(10).options == (1, 0)


def test_an_item_with_one_option_has_it():
    assert Knapsack([[Option(5, 2.0)], [Option(1, 3.0), Option(3, 1.0)]]).choose(8).size == 8
