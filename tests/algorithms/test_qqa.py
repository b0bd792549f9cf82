import itertools

import numpy as np
import pytest

from edgeq.algorithms.qqa import Annealing, anneal, full_gradient, noise
from edgeq.algorithms.relaxations import Binary, Categorical, random_start


class Qubo:
    """x^T Q x of every replica, divided by the mean row sum of |Q|; of several problems at once
    where Q is a stack.
    """

    def __init__(self, Q, backend):
        self.Q = backend.asarray(Q / abs(Q).sum(axis=-1).mean(axis=-1)[..., None, None])

    def value(self, x):
        return (self.through(x) * x).sum(axis=-1)

    def gradient(self, x):
        return 2 * self.through(x)

    def through(self, x):
        return x @ self.Q if len(self.Q.shape) == 2 else (x[..., None, :] @ self.Q)[..., 0, :]


class IndependentSet:
    """- |set| + penalty * edges inside of it."""

    def __init__(self, adjacency, backend, penalty=2.0):
        self.half = backend.asarray(penalty * adjacency / 2)

    def value(self, x):
        return ((x @ self.half) * x).sum(axis=-1) - x.sum(axis=-1)

    def gradient(self, x):
        return 2 * (x @ self.half) - 1


class Table:
    """A sum of costs per choice and option. Shapes: (replicas, choices, options)."""

    def __init__(self, costs, backend):
        self.costs = backend.asarray(costs)

    def value(self, p):
        return (p * self.costs).sum(axis=-1).sum(axis=-1)

    def gradient(self, p):
        return self.costs + 0 * p


def symmetric_gaussian(seed, size=14):
    Q = np.random.default_rng(seed).standard_normal((size, size))
    return (Q + Q.T) / 2


def finite_differences(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


def test_with_two_options_both_forms_have_one_penalty(backend, rng, tolerance):
    x = rng.random((3, 7))
    pair = np.stack([x, 1 - x], axis=-1)
    for point, options in ((x, pair), (x * 0, np.stack([x * 0, x * 0 + 1], axis=-1))):
        binary = backend.to_numpy(Binary().penalty(backend.asarray(point), 2))
        categorical = backend.to_numpy(Categorical().penalty(backend.asarray(options), 2))
        np.testing.assert_allclose(categorical, binary, atol=10 * tolerance)


@pytest.mark.parametrize("options", [2, 3, 5])
@pytest.mark.parametrize("power", [2, 4])
def test_the_penalty_is_largest_in_the_middle_and_zero_in_the_corners(backend, options, power):
    corners = backend.asarray(np.eye(options)[None])
    middle = backend.asarray(np.full((1, options, options), 1 / options))
    assert abs(backend.to_numpy(Categorical().penalty(corners, power))).max() < 1e-5
    np.testing.assert_allclose(
        backend.to_numpy(Categorical().penalty(middle, power)), options, rtol=1e-5
    )


@pytest.mark.parametrize("power", [2, 4])
def test_gradients_of_the_penalty_match_finite_differences(backend, rng, power):
    for relaxation, shape in ((Binary(), (1, 6)), (Categorical(), (1, 4, 3))):
        x = rng.uniform(0.1, 0.9, shape)

        def phi(x, relaxation=relaxation):
            point = x if isinstance(relaxation, Binary) else x / x.sum(axis=-1, keepdims=True)
            return float(relaxation.penalty(point, power).sum())

        array = backend.asarray(x)
        found = relaxation.pull_back(
            array, relaxation.penalty_gradient(relaxation.point(array), power)
        )
        expected = finite_differences(phi, x)
        np.testing.assert_allclose(
            backend.to_numpy(found), expected, rtol=1e-4, atol=1e-4 * abs(expected).max()
        )


@pytest.mark.parametrize("communication", [0.0, 0.2])
def test_the_gradient_of_the_annealed_loss_matches_finite_differences(backend, rng, communication):
    Q, x, pull = symmetric_gaussian(1, 5), rng.uniform(0.1, 0.9, (4, 5)), 0.3
    scaled = Q / abs(Q).sum(axis=1).mean()

    def loss(x):
        per_replica = np.einsum("ri,ij,rj->r", x, scaled, x) + pull * (1 - (2 * x - 1) ** 4).sum(
            axis=1
        )
        return (1 - communication) * per_replica.mean() - communication * x.std(
            axis=0, ddof=1
        ).sum()

    settings = Annealing(power=4, communication=communication)
    found = full_gradient(Qubo(Q, backend), Binary(), backend.asarray(x), pull, settings)
    expected = 4 * finite_differences(loss, x)
    np.testing.assert_allclose(
        backend.to_numpy(found), expected, rtol=1e-4, atol=1e-4 * abs(expected).max()
    )


@pytest.mark.parametrize(("communication", "enough"), [(0.0, 17), (0.05, 19)])
def test_small_quadratic_problems_are_mostly_solved_to_the_optimum(backend, communication, enough):
    Q = np.stack([symmetric_gaussian(seed) for seed in range(20)])
    settings = Annealing(1000, 0.1, -1.0, 1.0, communication=communication)
    start = random_start((16, 20, 14), 0, backend)
    best, values, _ = anneal(Qubo(Q, backend), Binary(), start, settings, backend)
    chosen = backend.to_numpy(best).astype(np.float64)
    assert set(np.unique(chosen)) == {0.0, 1.0}
    found = np.einsum("pi,pij,pj->p", chosen, Q, chosen)
    np.testing.assert_allclose(
        backend.to_numpy(values), found / abs(Q).sum(axis=-1).mean(axis=-1), rtol=1e-4
    )
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=14)))
    exact = np.array(
        [np.einsum("ri,ij,rj->r", corners, matrix, corners, optimize=True).min() for matrix in Q]
    )
    assert (found >= exact - 1e-9).all()
    assert (found <= exact + 1e-9).sum() >= enough


def cubic_graph(nodes, rng):
    """Every node has three neighbours: a ring and a random matching."""
    while True:
        adjacency = np.zeros((nodes, nodes))
        matching = rng.permutation(nodes).reshape(-1, 2)
        pairs = [*((i, (i + 1) % nodes) for i in range(nodes)), *matching.tolist()]
        for i, j in pairs:
            adjacency[i, j] = adjacency[j, i] = 1
        if (adjacency.sum(axis=1) == 3).all():
            return adjacency


def largest_independent_set(adjacency):
    """By branching on the node of most neighbours; those of at most one neighbour are taken."""
    neighbours = [set(np.flatnonzero(row).tolist()) for row in adjacency]

    def largest(nodes):
        if not nodes:
            return 0
        degree = {node: len(neighbours[node] & nodes) for node in nodes}
        least = min(nodes, key=lambda node: (degree[node], node))
        if degree[least] <= 1:
            return 1 + largest(nodes - neighbours[least] - {least})
        most = max(nodes, key=lambda node: (degree[node], node))
        return max(1 + largest(nodes - neighbours[most] - {most}), largest(nodes - {most}))

    return largest(frozenset(range(len(adjacency))))


def test_independent_sets_of_a_cubic_graph_are_valid_and_as_large_as_the_exact_one(backend, rng):
    adjacency = cubic_graph(50, rng)
    settings = Annealing(600, 1.0, -3.0, 0.1, power=4, communication=0.2, evaluate_every=200)
    start = random_start((100, 50), 0, backend)
    best, value, trace = anneal(
        IndependentSet(adjacency, backend), Binary(), start, settings, backend
    )
    chosen = backend.to_numpy(best).astype(np.float64)
    assert chosen @ adjacency @ chosen == 0
    assert chosen.sum() == largest_independent_set(adjacency) == -float(value)
    assert [entry.step for entry in trace] == [200, 400, 600]


def test_categorical_choices_find_the_cheapest_option_of_each(backend, rng):
    costs = rng.standard_normal((9, 4))
    settings = Annealing(200, 0.1, -0.5, 0.5, evaluate_every=50)
    best, value, trace = anneal(
        Table(costs, backend), Categorical(), random_start((4, 9, 4), 1, backend), settings, backend
    )
    np.testing.assert_array_equal(backend.to_numpy(best).argmax(axis=-1), costs.argmin(axis=-1))
    assert float(value) == pytest.approx(costs.min(axis=-1).sum(), rel=1e-5)
    assert trace[-1].best_value <= trace[0].best_value


def test_a_tie_between_options_goes_to_the_first(backend):
    decoded = Categorical().decode(
        backend.asarray(np.array([[[0.5, 0.5, 0.1], [0.2, 0.7, 0.7]]])), backend
    )
    assert backend.to_numpy(decoded).tolist() == [[[1, 0, 0], [0, 1, 0]]]


@pytest.mark.parametrize("seed", range(4))
def test_replicas_that_communicate_end_further_apart(backend, seed):
    start = random_start((16, 14), 0, backend)
    ends = []
    for communication in (0.0, 0.2, 0.5):
        settings = Annealing(400, 0.1, -1.0, 1.0, communication=communication, evaluate_every=400)
        objective = Qubo(symmetric_gaussian(seed), backend)
        ends.append(anneal(objective, Binary(), start, settings, backend)[2][-1].diversity)
    assert ends[0] < 0.1 < ends[1] < ends[2]


def test_one_seed_gives_one_answer_and_one_trace(backend):
    settings = Annealing(60, 0.1, -1.0, 1.0, temperature=1e-3, evaluate_every=20, seed=5)
    runs = [
        anneal(
            Qubo(symmetric_gaussian(3), backend),
            Binary(),
            random_start((8, 14), 2, backend),
            settings,
            backend,
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*(backend.to_numpy(best) for best, _, _ in runs))
    assert runs[0][2] == runs[1][2]


def test_noise_is_the_same_on_every_backend_and_as_large_as_the_temperature_asks(backend):
    settings = Annealing(learning_rate=0.5, temperature=0.04)
    drawn = noise(
        (200, 50), settings, np.random.default_rng(1), backend, like=backend.asarray(np.zeros(1))
    )
    expected = 0.2 * np.random.default_rng(1).standard_normal((200, 50))
    np.testing.assert_allclose(backend.to_numpy(drawn), expected, rtol=1e-5, atol=1e-7)


def test_the_best_point_ever_seen_is_kept(backend):
    settings = Annealing(80, 0.3, -1.0, 1.0, evaluate_every=10)
    _, value, trace = anneal(
        Qubo(symmetric_gaussian(8), backend),
        Binary(),
        random_start((4, 14), 0, backend),
        settings,
        backend,
    )
    best = [entry.best_value for entry in trace]
    assert best == sorted(best, reverse=True)
    assert best[-1] == float(value)
