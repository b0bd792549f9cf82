"""Compare quantized models, of edgeq and of others, with the original.

python examples/compare.py ORIGINAL TARGET...
"""

import sys

import edgeq

original, *targets = sys.argv[1:]
compared = edgeq.evaluate(targets, reference=original, windows=8)
for found in compared.targets:
    low, high = found.intervals["kl"]
    print(f"{found.target}: KL divergence {found.kl:.4f} ({low:.4f} to {high:.4f})")
