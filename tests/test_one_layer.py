"""One layer from arrays, against plain NumPy and against the layer of a whole run."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import edgeq

OUT, IN, TOKENS = 24, 64, 400


@pytest.fixture
def arrays(rng):
    """A weight, inputs with correlated columns, and the same inputs behind quantized layers."""
    mixed = rng.normal(size=(IN, IN)) / 8
    X = rng.normal(size=(TOKENS, IN)) @ mixed
    return rng.normal(size=(OUT, IN)), X, X + 0.1 * rng.normal(size=X.shape)


def output_error(W, X, X_hat, Q):
    return np.sum((X @ W.T - X_hat @ Q.T) ** 2) / np.sum((X @ W.T) ** 2)


SETTINGS = [
    {"bits": 4, "group_size": 16},
    {"bits": 3, "group_size": "row", "zeros": "asymmetric"},
    {"type": "q4_0"},
    {"type": "Q5_1", "quality": "best"},
    {"solver": "quantease", "outlier_columns": 0.05},
    {
        "bits": 2,
        "zeros": "offset",
        "scale_dtype": "float32",
        "anneal_rounds": 1,
        "anneal_steps": 20,
    },
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_codes_and_scales_stand_for_weights_whose_error_is_stated(arrays, settings):
    W, X, _ = arrays
    layer = edgeq.quantize_layer(W, X, backend="reference", **settings)
    width = layer.grid.columns_per_group(IN)
    assert layer.codes.shape == (OUT, IN)
    assert layer.codes.max() <= layer.grid.max_code
    assert layer.scales.shape == (OUT, IN // width)
    by_hand = layer.codes * np.repeat(layer.scales, width, 1) + np.repeat(layer.offsets, width, 1)
    if layer.outliers is not None:
        by_hand[:, layer.outliers.columns] += layer.outliers.values
    assert np.array_equal(layer.dequantized(), by_hand.astype(np.float32))
    assert layer.error == pytest.approx(output_error(W, X, X, layer.dequantized()), rel=1e-9)
    assert layer.error == pytest.approx(layer.report.final_loss, rel=1e-9)


def test_solving_for_the_inputs_is_better_than_rounding(arrays):
    W, X, _ = arrays
    solved = edgeq.quantize_layer(W, X, bits=3, backend="reference")
    rounded = edgeq.quantize_layer(W, bits=3, backend="reference")
    assert rounded.error is None
    assert solved.error < output_error(W, X, X, rounded.dequantized())


def test_making_up_for_inherited_error_lowers_what_it_says_it_lowers(arrays):
    W, X, X_hat = arrays
    errors = {}
    for strength in (0, 1, "auto"):
        layer = edgeq.quantize_layer(
            W, X, X_quantized=X_hat, propagation_strength=strength, backend="reference"
        )
        errors[strength] = layer.error
        expected = output_error(W, X, X_hat, layer.dequantized())
        assert layer.error == pytest.approx(expected, rel=1e-9)
    assert errors[1] < errors[0]
    assert errors["auto"] < errors[0]


def test_windows_are_tokens_and_half_precision_is_read(arrays):
    W, X, _ = arrays
    flat = edgeq.quantize_layer(W, X, backend="reference")
    windows = edgeq.quantize_layer(W, X.reshape(4, -1, IN), backend="reference")
    assert np.array_equal(flat.codes, windows.codes)
    half = W.astype(ml_dtypes.bfloat16)
    assert np.array_equal(
        edgeq.quantize_layer(half, X, backend="reference").codes,
        edgeq.quantize_layer(half.astype(np.float64), X, backend="reference").codes,
    )


def test_what_is_given_stays_as_it_was(arrays):
    before = [array.copy() for array in arrays]
    W, X, X_hat = arrays
    first = edgeq.quantize_layer(W, X, X_quantized=X_hat, backend="reference")
    second = edgeq.quantize_layer(W, X, X_quantized=X_hat, backend="reference")
    assert all(np.array_equal(*pair) for pair in zip(before, arrays, strict=True))
    assert np.array_equal(first.codes, second.codes)
    assert repr(first).startswith("<SolvedLayer 24 x 64: 4 bits, group 32, symmetric, error 0.0")


WRONG = [
    (lambda W, X, Y: {"W": W[0], "X": X}, r"^W has shape \(64,\): expected 2 axes"),
    (lambda W, X, Y: {"W": W[:0], "X": X}, r"^W has shape \(0, 64\).*none of them empty"),
    (lambda W, X, Y: {"W": W, "X": X[:0]}, r"^X has shape \(0, 64\)"),
    (lambda W, X, Y: {"W": W, "X": X.T}, r"last axis of X to be the 64 inputs of W"),
    (lambda W, X, Y: {"W": W.T, "X": X}, r"last axis of X to be the 24 inputs of W.*transpose"),
    (lambda W, X, Y: {"W": W * np.nan, "X": X}, "^W holds NaN or infinity"),
    (lambda W, X, Y: {"W": W, "X": np.where(X > 1, np.inf, X)}, "^X holds NaN or infinity"),
    (lambda W, X, Y: {"W": W, "X": X, "X_quantized": Y * np.nan}, "^X_quantized holds NaN"),
    (lambda W, X, Y: {"W": W, "X": X, "X_quantized": Y[1:]}, "the same tokens in both"),
    (lambda W, X, Y: {"W": W, "X_quantized": Y}, "X_quantized without X: give X too"),
    (lambda W, X, Y: {"W": W + 1j, "X": X}, "^W is of type complex128: expected real numbers"),
    (lambda W, X, Y: {"W": W > 0, "X": X}, "^W is of type bool"),
    (lambda W, X, Y: {"W": [[1, 2], [3]], "X": X}, "^W cannot be read as a NumPy array"),
    (lambda W, X, Y: {"W": [["a"]], "X": X}, "^W is of type <U1"),
    (lambda W, X, Y: {"W": W * 1e30, "X": X}, "^W holds a weight of .*divide W by a number"),
    (lambda W, X, Y: {"W": W, "X": X * 1e30}, "^X holds a number of .*scale it to 1e"),
    (lambda W, X, Y: {"W": W, "X": X, "type": "Q4_K"}, "does not fit rows of 64 inputs"),
    (lambda W, X, Y: {"W": W, "X": X, "type": "Q4_K_M"}, "a mix chooses types for a whole model"),
    (lambda W, X, Y: {"W": W, "X": X, "type": "Q4_0", "bits": 4}, "leave out bits"),
    (lambda W, X, Y: {"W": W, "X": X, "bits": 16}, "stays dense; choose 2 to 8 bits"),
    (lambda W, X, Y: {"W": W, "X": X, "bits": "4"}, "^bits = '4': expected a whole number"),
    (lambda W, X, Y: {"W": W, "solver": "gptq"}, "needs the inputs of the layer; give X"),
    (lambda W, X, Y: {"W": W, "X": X, "backend": "gpu"}, "backend 'gpu' is not known"),
    (lambda W, X, Y: {"W": W, "X": X, "backend": 5}, "^backend = 5: expected a text"),
]


@pytest.mark.parametrize("make, line", WRONG, ids=[line for _, line in WRONG])
def test_what_cannot_be_a_layer_is_one_line(arrays, make, line):
    with pytest.raises(edgeq.BadInput, match=line) as refused:
        edgeq.quantize_layer(**{"backend": "reference", **make(*arrays)})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name, nearest", [("bit", "bits"), ("embedding_bits", "bits"), ("x", "X")])
def test_an_unknown_setting_is_a_type_error_with_the_nearest(arrays, name, nearest):
    with pytest.raises(TypeError, match=f"'{name}'; did you mean '{nearest}'"):
        edgeq.quantize_layer(arrays[0], arrays[1], **{name: 1})


def test_without_a_framework_a_layer_is_solved_in_numpy():
    """In a fresh process where torch, MLX and every other extra cannot be imported."""
    code = """
import sys
for name in ("torch", "transformers", "mlx", "mlx_lm", "onnx", "gguf"):
    sys.modules[name] = None
import numpy as np, edgeq
rng = np.random.default_rng(0)
W, X = rng.normal(size=(8, 32)), rng.normal(size=(64, 32))
layer = edgeq.quantize_layer(W, X)
print(layer.backend, 0 < layer.error < 0.01)
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (run.stdout, run.stderr) == ("reference True\n", "")


@pytest.mark.parametrize("name", ["reference", "cpu", "mlx"])
def test_every_backend_solves_a_layer_about_as_well(arrays, name, one_thread):
    if name == "mlx":
        pytest.importorskip("mlx.core", reason="MLX has no build for this system")
    W, X, X_hat = arrays
    best = edgeq.quantize_layer(W, X, X_quantized=X_hat, backend="reference")
    layer = edgeq.quantize_layer(W, X, X_quantized=X_hat, backend=name)
    assert layer.backend == name
    assert layer.error == pytest.approx(output_error(W, X, X_hat, layer.dequantized()), rel=1e-3)
    assert layer.error == pytest.approx(best.error, rel=0.05)
