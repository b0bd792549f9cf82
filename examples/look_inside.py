"""Look at codes and scales of a checkpoint, and at what they make of the original weights.

python examples/look_inside.py CHECKPOINT ORIGINAL
"""

import sys

import numpy as np

import edgeq

quantized, original = (edgeq.open(path) for path in sys.argv[1:])
print(quantized)
for name, grid in quantized.grids.items():
    used = np.bincount(quantized.codes(name).ravel(), minlength=grid.max_code + 1)
    W, Q = original[name], quantized[name]
    error = np.linalg.norm(W - Q) / np.linalg.norm(W)
    print(f"{name}: {grid.bits} bits, {np.count_nonzero(used)} codes in use, {error:.2%} away")
