"""torch on the CPU, on a GPU and MLX choose equal codes from equal statistics of trained models;
where they differ, there was a tie.
"""

from dataclasses import replace

import numpy as np
import plain
import pytest
import trained
from present import CUDA, load_present
from recipes import plain_recipe

from edgeq.algorithms.group_loops import TIE
from edgeq.algorithms.problem import Problem
from edgeq.recipe.settings import TABLE
from edgeq.registry import load_backend
from edgeq.solving.layer import solve_layer
from edgeq.solving.propagation import correct
from edgeq.solving.site import Layer, prepare_site
from edgeq.solving.steps import first_scales
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerStatistics

pytestmark = pytest.mark.usefixtures("one_thread")


def solve_on(backend, layer, recipe):
    """The layer, its report, and in float64 the weight that was rounded and the scales it was
    rounded on.
    """
    W, H, D = layer
    statistics = LayerStatistics(
        backend.asarray(H), None if D is None else backend.asarray(D), 2048
    )
    site = prepare_site(statistics, recipe, backend)
    asked = Layer("layer", backend.asarray(W), recipe.grid_of("layer"), site, recipe)
    solved, report = solve_layer(asked, Stopwatch())
    problem = asked.problem()
    V = correct("layer", problem, site.propagation, recipe).V
    fitted = first_scales(replace(problem, V=V), recipe)
    scales, offsets = plain.column_values(fitted, problem.grid, W.shape[1], backend)
    return solved.codes, report, backend.to_numpy(V).astype(np.float64), scales, offsets


def distance_to_tie(v, codes, other, scales, offsets, U):
    """How far, in steps, the first weight of a row that two backends rounded apart lies from the
    middle between both.

    The columns before it, rounded alike, have handed their errors on by the rows of U. Shapes: all
    (in,); U (in, in).
    """
    column = int(np.flatnonzero(codes != other)[0])
    v = v.copy()
    for before in range(column):
        error = (v[before] - scales[before] * codes[before] - offsets[before]) / U[before, before]
        v[before + 1 :] -= error * U[before, before + 1 :]
    place = (v[column] - offsets[column]) / scales[column]
    return abs(place - (int(codes[column]) + int(other[column])) / 2), abs(
        int(codes[column]) - int(other[column])
    )


def nearby_scales(v, H, recipe, backend):
    """What stage 1 chooses for 256 rows that differ from v in the last digits that float32 has.
    Shapes: v (in,).
    """
    noise = np.random.default_rng(0).uniform(-1e-6, 1e-6, (256, len(v))) * abs(v).max()
    grid = recipe.grid_of("layer")
    importance = backend.asarray(np.diag(H))
    problem = Problem(backend.asarray(v + noise), None, grid, backend, importance=importance)
    fitted = first_scales(problem, recipe)
    return plain.column_values(fitted, grid, len(v), backend)[0]


def assert_ties(torch, mlx, layer, recipe):
    """Every row that differs had two scales that fit equally well, or met a weight in the middle
    between two codes.
    """
    (codes, _, V, scales, offsets), (other, _, _, other_scales, _) = torch, mlx
    H = layer[1]
    U = np.eye(len(H))  # nothing is handed on
    if recipe.solver != "rtn":
        U = np.linalg.cholesky(np.linalg.inv(plain.damped(H, recipe.damping))).T
    for row in np.flatnonzero((codes != other).any(axis=1)):
        if (scales[row] == other_scales[row]).all():
            distance, steps = distance_to_tie(
                V[row], codes[row], other[row], scales[row], offsets[row], U
            )
            assert steps == 1 and distance < 1e-3, f"row {row}"
        else:
            assert_equal_fits(V[row], H, torch, mlx, row, recipe)


def assert_equal_fits(v, H, torch, mlx, row, recipe):
    """Where stage 1 found two scales, they fit alike, or its choice hangs on digits that float32
    does not have.
    """
    nearby = nearby_scales(v, H, recipe, load_backend("reference"))
    fits = []
    for _, _, _, scales, offsets in (torch, mlx):
        error = (
            v
            - scales[row] * plain.nearest(v, scales[row], offsets[row], 2**recipe.bits - 1)
            - offsets[row]
        )
        of_group = np.add.reduceat(np.diag(H) * error**2, np.arange(0, len(v), recipe.group_size))
        fits.append(of_group.repeat(recipe.group_size)[: len(v)])
    alike = abs(fits[0] - fits[1]) <= 3 * TIE * fits[0]
    for _, _, _, scales, _ in (torch, mlx):
        assert (alike | (nearby == scales[row]).any(axis=0)).all(), f"row {row}"


SLOW = pytest.mark.slow  # MLX's CPU build takes half a minute for each


def layers_of(model):
    """The layers by name; rows are solved one by one, so that every fifth shows what all do."""
    if model == "glassllm":
        return trained.glass_layers()
    step = 5 if model == "rows of demo" else 1
    return {name: (W[::step], H, D) for name, (W, H, D) in trained.demo_layers().items()}


@pytest.mark.parametrize(
    "solver",
    [
        word if word == "gptq" else pytest.param(word, marks=SLOW)
        for word in TABLE["solver"].rule.words
    ],
)
@pytest.mark.parametrize(
    ("model", "bits"),
    [
        pytest.param("glassllm", 4, marks=SLOW),
        ("glassllm", 3),
        pytest.param("glassllm", 2, marks=SLOW),
        pytest.param("rows of demo", 3, marks=SLOW),
        pytest.param("demo", 4, marks=SLOW),
        pytest.param("demo", 3, marks=SLOW),
        pytest.param("demo", 2, marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", [CUDA, "mlx"])
def test_other_backends_choose_the_codes_of_the_cpu(name, model, bits, solver):
    other = load_present(name)
    recipe = plain_recipe(bits=bits, group_size=32 if model == "glassllm" else 64, solver=solver)
    equal, weights, losses = 0, 0, []
    for layer in layers_of(model).values():
        torch, found = (solve_on(each, layer, recipe) for each in (load_backend("cpu"), other))
        equal += int((torch[0] == found[0]).sum())
        weights += torch[0].size
        losses.append((torch[1].losses["refitted"], found[1].losses["refitted"]))
        if (
            solver != "quantease"
        ):  # its sweeps return to every weight, so that a difference has no first place
            assert_ties(torch, found, layer, recipe)
    expected, reached = np.array(losses).T
    print(
        f"{equal / weights:.5%} equal, losses differ by "
        f"{abs(reached / expected - 1).max():.1e} at most"
    )
    assert equal / weights >= 0.999
    np.testing.assert_allclose(reached, expected, rtol=1e-3)


@SLOW
def test_the_layers_of_the_demo_have_different_shapes():
    assert {W.shape for W, _, _ in trained.demo_layers().values()} == {
        (576, 576),
        (192, 576),
        (1536, 576),
        (576, 1536),
    }
