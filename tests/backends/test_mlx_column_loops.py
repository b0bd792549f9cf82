"""The loops over columns on MLX against the plain loop: in NumPy on its CPU, in Metal on a GPU, and
the same Metal as C++ where there is none.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from column_blocks import LEVELS, SHAPES, make_block, rounded_by, swept_by
from metal_in_cpp import MetalInCpp

from edgeq.registry import load_backend

mx = pytest.importorskip("mlx.core", reason="MLX has no build for this system")
from edgeq_backends.mlx import column_loops, metal_loops  # noqa: E402 - they import MLX

BLOCKS = list(itertools.product(SHAPES, LEVELS))
WIDTHS = sorted({count for count, _ in SHAPES})
CHOICES = {
    "round_columns": [
        {"N": count, "GAPS": gaps, "ZEROS": zeros}
        for count in WIDTHS
        for gaps, zeros in ((False, False), (True, True), (False, True))
    ],
    "sweep_columns": [
        {"N": count, "GAPS": gaps, "ROUNDING": rounding}
        for count in WIDTHS
        for gaps, rounding in itertools.product((False, True), repeat=2)
    ],
}


@pytest.fixture(scope="module")
def metal_as_cpp(tmp_path_factory):
    """Both kernels, compiled."""
    folder = tmp_path_factory.mktemp("metal")
    return {
        name: MetalInCpp(folder, CHOICES[name], metal_loops.LEVELS, **parts)
        for name, parts in metal_loops.KERNELS.items()
    }


@pytest.fixture(params=["numpy", "metal as C++", "metal"])
def mlx(request, monkeypatch):
    """MLX's backend with its loops in one of the ways in which they run."""
    on_a_gpu = metal_loops.runs_here()
    if request.param == "metal" and not on_a_gpu:
        pytest.skip("MLX finds no Apple GPU, for which Metal compiles kernels")
    if request.param == "metal as C++":
        monkeypatch.setattr(metal_loops, "kernel", request.getfixturevalue("metal_as_cpp").get)
    monkeypatch.setattr(column_loops, "runs_in_metal", lambda block: request.param != "numpy")
    return load_backend("mlx")


def test_rounding_a_block_gives_the_codes_and_errors_of_the_plain_loop(mlx, rng):
    for shape, levels in BLOCKS:
        block, of = make_block(rng, *shape, levels), f"{shape} {levels}"
        codes, errors = rounded_by(mlx, block)
        wanted_codes, wanted_errors = rounded_by(load_backend("reference"), block)
        np.testing.assert_array_equal(codes, wanted_codes, of)
        np.testing.assert_allclose(errors, wanted_errors, atol=1e-4, err_msg=of)


@pytest.mark.parametrize("rounding", [True, False])
def test_sweeping_a_block_gives_the_moves_of_the_plain_loop(mlx, rng, rounding):
    for shape, levels in BLOCKS:
        block = make_block(rng, *shape, levels)
        moves = swept_by(mlx, block, rounding=rounding)
        wanted = swept_by(load_backend("reference"), block, rounding=rounding)
        np.testing.assert_allclose(moves, wanted, atol=1e-4, err_msg=f"{shape} {levels}")


def test_halves_go_to_the_even_level_and_what_lies_outside_to_the_last(mlx, rng):
    block = make_block(rng, 7, 3, "even")
    wanted = np.array([-9.0, 0.5, 1.5, 2.5, 6.5, 7.5, 99.0])[:, None] * np.ones(3)
    alone, ones = {"U": np.eye(7), "H": np.eye(7)}, np.ones((7, 3))
    block = replace(block, **alone, columns=wanted, wanted=wanted, scales=ones, offsets=0 * ones)
    expected = [0, 0, 2, 2, 6, 7, 7]
    assert rounded_by(mlx, block)[0].T.tolist() == [expected] * 3
    moves = swept_by(mlx, block, rounding=True)
    assert (moves + block.codes).T.tolist() == [expected] * 3


@pytest.mark.parametrize("levels", ["even", "table"])
def test_what_is_not_a_number_stays_so_in_its_row_alone(mlx, rng, levels):
    block = make_block(rng, 7, 3, levels)
    for name in ("columns", "wanted"):
        getattr(block, name)[2, 1] = np.nan
    for found in (*rounded_by(mlx, block), swept_by(mlx, block, rounding=True)):
        lost = np.isnan(found)
        assert lost[2:, 1].all() and lost.sum() == 5


def test_mlx_takes_the_kernels_and_says_what_is_missing_where_they_cannot_run():
    if metal_loops.runs_here():
        pytest.skip("kernels run here")
    block = mx.ones((4, 8))
    with pytest.raises(RuntimeError, match="Metal"):
        metal_loops.round_columns(block, mx.eye(4), block, block, LEVELS["table"])
