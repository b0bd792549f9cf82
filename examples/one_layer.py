"""Quantize one layer from arrays; it needs NumPy alone.

python examples/one_layer.py
"""

import numpy as np

import edgeq

rng = np.random.default_rng(0)
mixing = rng.normal(size=(128, 128)) / 11
W, X = rng.normal(size=(64, 128)), rng.normal(size=(2048, 128)) @ mixing

layer = edgeq.quantize_layer(W, X, bits=3, group_size=64, backend="reference")
rounded = edgeq.quantize_layer(W, bits=3, group_size=64, backend="reference")
print(layer.codes.shape, layer.scales.shape, layer)

Y = X @ W.T
for name, found in {"solved": layer, "rounded": rounded}.items():
    lost = np.sum((Y - X @ found.dequantized().T) ** 2) / np.sum(Y**2)
    print(f"{name}: {lost:.3%} of the output's energy is lost")
