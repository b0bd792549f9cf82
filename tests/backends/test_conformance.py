"""Every verb of `edgeq.protocols.Backend` on every backend against plain NumPy float64, with
awkward inputs.
"""

import importlib
import inspect
import math
import struct

import ml_dtypes
import numpy as np
import plain
import pytest
import torch
from recipes import plain_recipe

from edgeq.errors import NotPositiveDefinite
from edgeq.protocols import Backend
from edgeq.registry import load_backend
from edgeq.solving.layer import solve_layer
from edgeq.solving.site import Layer, prepare_site
from edgeq.stopwatch import Stopwatch
from edgeq.types import LayerStatistics
from edgeq_backends.torch.backend import aligned


def float32_exact(array):
    return array.astype(np.float32).astype(np.float64)


def spread(rng, *shape):
    """Random numbers that float32 holds exactly, so that every backend starts from the same
    ones.
    """
    return float32_exact(rng.standard_normal(shape))


def definite(rng, size, *batch):
    A = rng.standard_normal((*batch, size, 2 * size + 1))
    return float32_exact(A @ np.swapaxes(A, -1, -2) / A.shape[-1])


def awkward(rng):
    """Name and matrix: shapes and memory layouts that trip kernels up."""
    square = spread(rng, 9, 7)
    with_zero_column = square.copy()
    with_zero_column[:, 2] = 0
    return {
        "1 x 1": spread(rng, 1, 1),
        "one row": spread(rng, 1, 6),
        "one column": spread(rng, 6, 1),
        "zero column": with_zero_column,
        "transposed view": spread(rng, 7, 9).T,
        "strided view": spread(rng, 18, 14)[::2, ::2],
        "backwards view": square[::-1, ::-1],
        "wide": spread(rng, 40, 33),
    }


@pytest.fixture(params=awkward(np.random.default_rng(0)))
def matrix(request, rng):
    return awkward(rng)[request.param]


def on_backend(backend, array):
    """The array in the backend's framework, keeping the memory layout where the framework can."""
    if array.T.flags.c_contiguous:
        return backend.asarray(array.T.copy()).T
    return backend.asarray(array)


def test_every_verb_is_there(backend):
    verbs = [
        name
        for name, _ in inspect.getmembers(Backend, inspect.isfunction)
        if not name.startswith("_")
    ]
    assert len(verbs) == 26
    for verb in verbs:
        wanted, offered = (
            inspect.signature(getattr(kind, verb)) for kind in (Backend, type(backend))
        )
        assert list(wanted.parameters) == list(offered.parameters), verb
    assert backend.name


def test_a_device_of_its_own_says_what_of_its_memory_is_free(backend):
    found = backend.device_memory()
    assert (found is None) == (backend.name != "cuda")
    if found is not None:
        free, total = found
        assert 0 < free <= total


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.uint8, np.int64]
)
def test_asarray_takes_every_dtype_that_models_are_stored_in(backend, dtype):
    values = np.array([[0, 1, 2], [3, 100, 255]]).astype(dtype)
    array = backend.asarray(values)
    assert backend.to_numpy(array).dtype in (np.float32, np.float64)
    assert backend.to_numpy(array).dtype == backend.to_numpy(backend.asarray(np.zeros(1))).dtype
    np.testing.assert_array_equal(backend.to_numpy(array), values.astype(np.float64))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_arrays_of_the_activation_source_that_goes_with_a_backend_are_taken(backend, dtype):
    values = [[1.5, -2.25], [3.0, 0.0]]
    if backend.name == "mlx":
        mx = importlib.import_module("mlx.core")
        array = mx.array(values, dtype=getattr(mx, dtype))
    else:
        array = torch.tensor(values, dtype=getattr(torch, dtype))
    for take in (backend.asarray, backend.activations):
        np.testing.assert_array_equal(backend.to_numpy(take(array.T)), [[1.5, 3.0], [-2.25, 0.0]])


def test_asarray_takes_any_memory_layout(backend, matrix):
    np.testing.assert_array_equal(backend.to_numpy(backend.asarray(matrix)), matrix)
    frozen = matrix.astype(np.float32)
    frozen.flags.writeable = False  # as in memory-mapped checkpoints
    np.testing.assert_array_equal(backend.to_numpy(backend.asarray(frozen)), matrix)


def test_to_numpy_takes_masks_and_views(backend, matrix):
    array = on_backend(backend, matrix)
    np.testing.assert_array_equal(backend.to_numpy(array.T), matrix.T)
    np.testing.assert_array_equal(backend.to_numpy(array[:, :1] > 0), matrix[:, :1] > 0)


def test_copy_is_contiguous_and_leaves_the_original_alone(backend, matrix):
    array = on_backend(backend, matrix)
    copied = backend.copy(array)
    assert backend.to_numpy(copied).flags.c_contiguous
    copied[0] = 7
    copied[:, -1:] -= 1
    np.testing.assert_array_equal(backend.to_numpy(array), matrix)
    expected = matrix.copy()
    expected[0] = 7
    expected[:, -1:] -= 1
    np.testing.assert_allclose(backend.to_numpy(copied), expected, atol=1e-6)


def test_gram_is_the_product_over_tokens(backend, matrix, rng, tolerance):
    X, Y = on_backend(backend, matrix), spread(rng, *matrix.shape)
    np.testing.assert_allclose(
        backend.to_numpy(backend.gram(X, X)), matrix.T @ matrix, atol=tolerance
    )
    np.testing.assert_allclose(
        backend.to_numpy(backend.gram(X, backend.asarray(Y))), matrix.T @ Y, atol=tolerance
    )


@pytest.mark.parametrize("columns", [1, 5, 64, 341, 1201])  # wide ones are made of strips
def test_gram_of_an_array_with_itself_is_exactly_symmetric(backend, rng, tolerance, columns):
    X = spread(rng, 77, columns)
    for array in (backend.asarray(X), backend.asarray(X.T.copy()).T):
        H = backend.to_numpy(backend.gram(array, array))
        np.testing.assert_array_equal(H, H.T)
        assert (abs(H - X.T @ X) <= tolerance * (abs(X).T @ abs(X))).all()


def test_gram_does_not_rely_on_a_symmetric_product(monkeypatch, rng):
    """BLAS gives one on some processors only."""

    def skewed(X, Y):
        return np.matmul(X, Y) + np.arange(Y.shape[1]) * 1e-9

    backend, X = load_backend("cpu"), spread(rng, 77, 1201)
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: torch.from_numpy(skewed(a.numpy(), b.numpy()))
    )
    H = backend.gram(*[backend.asarray(X)] * 2).numpy()
    np.testing.assert_array_equal(H, H.T)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_lie_where_torch_puts_them_whatever_the_alignment_was(dtype):
    """Kernels take another way, and round otherwise, where memory does not start at a multiple of
    64 bytes.
    """
    values = np.zeros(1001, dtype)[1:].reshape(10, 100)
    assert values.ctypes.data % 64 != 0
    assert aligned(values).data_ptr() % 64 == 0
    assert load_backend("cpu").asarray(values).data_ptr() % 64 == 0


def test_gram_of_no_tokens_is_zero(backend):
    X = backend.asarray(np.zeros((0, 8)))
    np.testing.assert_array_equal(backend.to_numpy(backend.gram(X, X)), np.zeros((8, 8)))
    np.testing.assert_array_equal(
        backend.to_numpy(backend.gram(X, backend.copy(X))), np.zeros((8, 8))
    )


def test_gram_adds_up_small_terms_beside_large_ones(backend, tolerance):
    X = np.ones((4097, 2))
    X[0, 0] = 64.0  # 4096 + 4096: half-precision sums would stall
    np.testing.assert_allclose(
        backend.to_numpy(backend.gram(*[backend.asarray(X)] * 2)), X.T @ X, rtol=tolerance
    )


def test_diagonal_can_be_read_and_shifted(backend, rng):
    A = spread(rng, 6, 6)
    array = backend.asarray(A)
    diagonal = backend.diagonal(array)
    np.testing.assert_array_equal(backend.to_numpy(diagonal), np.diag(A))
    np.testing.assert_allclose(
        backend.to_numpy(backend.add_diagonal(array, 2.0)), A + 2 * np.eye(6), atol=1e-6
    )
    shifted = backend.add_diagonal(array, diagonal)
    np.testing.assert_allclose(backend.to_numpy(shifted), A + np.diag(np.diag(A)), atol=1e-6)
    shifted = backend.add_diagonal(array.T, diagonal.mean())
    np.testing.assert_allclose(
        backend.to_numpy(shifted), A.T + np.diag(A).mean() * np.eye(6), atol=1e-6
    )
    np.testing.assert_array_equal(backend.to_numpy(array), A)


@pytest.mark.parametrize("size", [1, 2, 33])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_cholesky_gives_a_lower_factor(backend, rng, tolerance, size, batch):
    A = definite(rng, size, *batch)
    L = backend.to_numpy(backend.cholesky(backend.asarray(A)))
    np.testing.assert_allclose(L @ np.swapaxes(L, -1, -2), A, atol=tolerance)
    np.testing.assert_array_equal(L, np.tril(L))
    np.testing.assert_allclose(L, np.linalg.cholesky(A), atol=tolerance)


def not_definite(rng):
    negative = definite(rng, 5)
    negative[2, 2] = -1
    rank_deficient = np.diag([1.0, 0.0, 2.0])
    zero_column = definite(rng, 5)
    zero_column[3] = zero_column[:, 3] = 0
    holed = definite(rng, 5)
    holed[1, 4] = holed[4, 1] = np.nan
    endless = definite(rng, 5)
    endless[0, 0] = np.inf
    return {
        "1 x 1 zero": np.zeros((1, 1)),
        "1 x 1 NaN": np.full((1, 1), np.nan),
        "indefinite": negative,
        "rank-deficient": rank_deficient,
        "zero column": zero_column,
        "rank one": np.ones((4, 4)),
        "all NaN": np.full((5, 5), np.nan),
        "one NaN": holed,
        "infinite": endless,
        "one of a batch": np.stack([definite(rng, 5), negative]),
    }


@pytest.mark.parametrize("name", not_definite(np.random.default_rng(0)))
def test_cholesky_refuses_what_is_not_positive_definite(backend, rng, name):
    A = not_definite(rng)[name]
    with pytest.raises(NotPositiveDefinite) as caught:
        backend.cholesky(backend.asarray(A))
    assert caught.value.size == A.shape[-1]


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("size", [1, 12])
def test_solve_triangular_solves_with_the_factor_or_its_transpose(
    backend, rng, tolerance, size, columns, batch
):
    A, B = (
        float32_exact(definite(rng, size, *batch) + np.eye(size)),
        spread(rng, *batch, size, columns),
    )
    L = backend.cholesky(backend.asarray(A))
    lower = np.linalg.cholesky(A)
    forward = backend.to_numpy(backend.solve_triangular(L, backend.asarray(B)))
    np.testing.assert_allclose(forward, np.linalg.solve(lower, B), atol=tolerance)
    backward = backend.to_numpy(backend.solve_triangular(L, backend.asarray(B), transposed=True))
    np.testing.assert_allclose(
        backward, np.linalg.solve(np.swapaxes(lower, -1, -2), B), atol=tolerance
    )
    assert forward.dtype == backend.to_numpy(backend.asarray(B)).dtype


def test_solve_triangular_takes_a_transposed_view(backend, rng, tolerance):
    A, B = float32_exact(definite(rng, 6) + np.eye(6)), spread(rng, 4, 6)
    solved = backend.solve_triangular(backend.cholesky(backend.asarray(A)), backend.asarray(B).T)
    lower = np.linalg.cholesky(A)
    np.testing.assert_allclose(
        backend.to_numpy(solved), np.linalg.solve(lower, B.T), atol=tolerance
    )


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 12), (7, 12), (12, 7)])
def test_solve_product_multiplies_and_divides_by_the_factored_matrix(
    backend, rng, tolerance, rows, size
):
    H = float32_exact(definite(rng, size) + np.eye(size))
    A, B = spread(rng, rows, size), spread(rng, size, size)
    L = backend.cholesky(backend.asarray(H))
    found = backend.to_numpy(backend.solve_product(backend.asarray(A), backend.asarray(B), L))
    np.testing.assert_allclose(found, A @ B @ np.linalg.inv(H), atol=tolerance)
    assert found.dtype == backend.to_numpy(backend.asarray(A)).dtype


def test_solve_product_keeps_its_digits_where_the_matrix_is_nearly_singular(backend, rng):
    """In float32 throughout, each digit of the condition number would cost one of the result's
    seven.
    """
    basis = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    H = float32_exact(basis @ np.diag(np.geomspace(1, 1e-5, 24)) @ basis.T)
    A, B = spread(rng, 5, 24), spread(rng, 24, 24)
    exact = A @ B @ np.linalg.inv(np.tril(H) + np.tril(H, -1).T)
    L = backend.cholesky(backend.asarray(H))
    found = backend.to_numpy(backend.solve_product(backend.asarray(A), backend.asarray(B), L))
    assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()


def test_rounding_takes_halves_to_even_and_then_clips(backend):
    x = np.array(
        [-3.0, -1.5, -0.5, 0.5 - 2.0**-25, 0.5, 1.5, 2.5, 3.5, 14.5, 15.5, 99.0, -np.inf, np.inf]
    )
    array = backend.asarray(x)
    rounded = backend.to_numpy(backend.round_clip(array, 0, 15))
    assert rounded.tolist() == [0, 0, 0, 0, 0, 2, 2, 4, 14, 15, 15, 0, 15]
    np.testing.assert_array_equal(backend.to_numpy(array), x)
    np.testing.assert_array_equal(
        backend.to_numpy(backend.round_clip(array[1:4], -2, 2)), [-2, 0, 0]
    )


def test_the_nearest_of_a_table_is_the_lower_of_two_as_near(backend):
    table = (-127, -104, -10, 1, 13, 113)
    x = np.array([-np.inf, -200, -115.5, -115.4, -104, -57, -56.9, -4.5, 0, 7, 7.1, 1e9, np.nan])
    wanted = [-127, -127, -127, -104, -104, -104, -10, -10, 1, 1, 13, 113]
    for array in (backend.asarray(x), backend.activations(x), backend.asarray(x[:, None])[:, 0]):
        found = backend.nearest(array, table)
        assert backend.to_numpy(found)[:-1].tolist() == wanted
        assert np.isnan(backend.to_numpy(found)[-1])
        assert found.dtype == array.dtype
        kept = backend.to_numpy(array)
        np.testing.assert_array_equal(kept, x.astype(kept.dtype))


def test_clipping_keeps_what_lies_between_and_the_precision(backend):
    x = np.array([-np.inf, -3.0, 0.0, 0.25, 1.0, 1.5, np.inf])
    for array in (backend.asarray(x), backend.activations(x)):
        clipped = backend.clip(array, 0.0, 1.0)
        assert backend.to_numpy(clipped).tolist() == [0, 0, 0, 0.25, 1, 1, 1]
        assert clipped.dtype == array.dtype
        np.testing.assert_array_equal(backend.to_numpy(array), x)


def nearest_float16(value):
    """By the C library behind struct, which rounds half to even and knows subnormals."""
    return struct.unpack("<e", struct.pack("<e", value))[0]


def nearest_bfloat16(value):
    """Between the two neighbours in the upper half of float32, by exact distance; ties to the even
    one.
    """
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    below, above = (
        struct.unpack("<f", struct.pack("<I", word & 0xFFFF0000))[0]
        for word in (bits, bits + 0x10000)
    )
    down, up = abs(value - below), abs(above - value)
    return below if down < up or (down == up and not bits & 0x10000) else above


AWKWARD_NUMBERS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1 / 3,
    -2 / 3,
    0.1,
    1e-3,
    65504.0,
    -65504.0,
    1234.5678,
    1 + 2.0**-11,
    1 + 3 * 2.0**-11,
    1 + 2.0**-11 + 2.0**-20,
    1 + 2.0**-8,
    1 + 3 * 2.0**-8,
    2.0**-14,
    2.0**-14 * 0.999,
    2.0**-15,
    3.3e-6,
    2.0**-24,
    1.5 * 2.0**-24,
    2.5 * 2.0**-24,
    2.0**-25,
    1.01 * 2.0**-25,
    1e-9,
]


def test_round_to_float16_is_the_nearest_storable_value_with_subnormals(backend):
    x = float32_exact(np.array(AWKWARD_NUMBERS))
    rounded = backend.to_numpy(backend.round_to(backend.asarray(x), "float16"))
    np.testing.assert_array_equal(rounded, [nearest_float16(value) for value in x])


def test_round_to_bfloat16_is_the_nearest_storable_value_with_subnormals(backend):
    x = float32_exact(
        np.array(
            [*AWKWARD_NUMBERS, 3e38, 2.0**-126, 1.3e-38, 2.0**-130, 1.7e-40, 2.0**-133, 2.0**-140]
        )
    )
    rounded = backend.to_numpy(backend.round_to(backend.asarray(x), "bfloat16"))
    np.testing.assert_array_equal(rounded, [nearest_bfloat16(value) for value in x])


def test_round_to_float32_keeps_float32_values(backend, rng):
    x = spread(rng, 3, 5)
    np.testing.assert_array_equal(
        backend.to_numpy(backend.round_to(backend.asarray(x), "float32")), x
    )
    third = backend.to_numpy(backend.round_to(backend.asarray(np.array([1 / 3])), "float32"))
    assert third[0] == np.float32(1 / 3)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_min_max_gives_both_ends(backend, matrix, axis):
    low, high = backend.min_max(on_backend(backend, matrix), axis)
    np.testing.assert_array_equal(backend.to_numpy(low), matrix.min(axis=axis))
    np.testing.assert_array_equal(backend.to_numpy(high), matrix.max(axis=axis))


def test_where_takes_arrays_and_numbers_on_either_side(backend, matrix):
    array = on_backend(backend, matrix)
    mask, expected_mask = array > 0.1, matrix > 0.1
    cases = [
        (array, -array, matrix, -matrix),
        (array, 0.5, matrix, 0.5),
        (2.0, array, 2.0, matrix),
        (1.0, 0.0, 1.0, 0.0),
    ]
    for a, b, plain_a, plain_b in cases:
        result = backend.to_numpy(backend.where(mask, a, b))
        np.testing.assert_array_equal(result, np.where(expected_mask, plain_a, plain_b))
        assert result.dtype == backend.to_numpy(array).dtype
    row = backend.where(mask[:1], 0.0, array)
    np.testing.assert_array_equal(backend.to_numpy(row), np.where(expected_mask[:1], 0.0, matrix))


@pytest.mark.parametrize("axis", [0, 1])
def test_take_follows_any_index_array(backend, matrix, axis):
    array, size = on_backend(backend, matrix), matrix.shape[axis]
    for indices in (
        np.arange(size)[::-1],
        np.repeat(np.arange(size), 3),
        np.arange(2 * size)[::2] // 2,
        np.array([0]),
    ):
        taken = backend.to_numpy(backend.take(array, indices, axis))
        np.testing.assert_array_equal(taken, np.take(matrix, indices, axis=axis))


@pytest.mark.parametrize("axis", [0, 1])
def test_concatenate_joins_views(backend, matrix, axis):
    array = on_backend(backend, matrix)
    joined = backend.concatenate([array, 0 * array, array], axis)
    np.testing.assert_array_equal(
        backend.to_numpy(joined), np.concatenate([matrix, 0 * matrix, matrix], axis=axis)
    )
    np.testing.assert_array_equal(backend.to_numpy(backend.concatenate([array], axis)), matrix)


def test_evaluate_changes_nothing(backend, matrix):
    array = on_backend(backend, matrix)
    backend.evaluate()
    backend.evaluate(array, 2 * array)
    np.testing.assert_array_equal(backend.to_numpy(array), matrix)


def test_a_layer_with_outlier_columns_comes_out_alike(backend, rng):
    """The road through columns, scales, codes and their refinements, against the executable
    specification.
    """
    W, X, X_hat = plain.random_layer(rng, drift=0.2, in_features=48, out_features=32)
    gain = np.where(np.isin(np.arange(48), [5, 30]), 6.0, 1.0)
    H, D = (float32_exact(moment) for moment in plain.moments(X * gain, X_hat * gain))
    for zeros in ("symmetric", "integer", "offset"):
        recipe = plain_recipe(
            bits=3,
            group_size=16,
            zeros=zeros,
            outlier_columns=0.05,
            sweeps=2,
            activation_order=True,
        )
        solved = []
        for each in (backend, load_backend("reference")):
            statistics = LayerStatistics(each.asarray(H), each.asarray(D), 300)
            site, grid = prepare_site(statistics, recipe, each), recipe.grid_of("layer")
            layer = Layer("layer", each.asarray(float32_exact(W)), grid, site, recipe)
            solved.append(solve_layer(layer, Stopwatch())[0])
        found, expected = solved
        assert found.outliers.columns.tolist() == expected.outliers.columns.tolist() == [5, 30]
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_allclose(
            found.outliers.values, expected.outliers.values, rtol=2.0**-9, atol=1e-4
        )
        np.testing.assert_allclose(
            found.dequantized(), expected.dequantized(), rtol=2.0**-9, atol=1e-4
        )


def test_array_expressions_of_the_core_work_as_in_numpy(backend, rng, tolerance):
    A, B = spread(rng, 6, 4), spread(rng, 4, 6)
    a, b = backend.asarray(A), backend.asarray(B)
    pairs = {
        "matmul": (a @ b, A @ B),
        "arithmetic": (a / (abs(b.T) + 1) - a * b.T, A / (abs(B.T) + 1) - A * B.T),
        "sums": (a.sum(axis=0), A.sum(axis=0)),
        "means": (b.mean(axis=-1), B.mean(axis=-1)),
        "new axes": (a[:, :, None] * b.T[:, None, :], A[:, :, None] * B.T[:, None, :]),
        "shapes": (a.reshape(2, 3, 4), A.reshape(2, 3, 4)),
    }
    for name, (found, expected) in pairs.items():
        np.testing.assert_allclose(backend.to_numpy(found), expected, atol=tolerance, err_msg=name)
    assert math.isclose(float(a.sum()), A.sum(), abs_tol=tolerance)
    assert bool(abs(a).max() > 0)
