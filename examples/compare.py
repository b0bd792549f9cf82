"""Compare quantized models, of edgeq and of others, with the original.

python examples/compare.py ORIGINAL TARGET...
"""

import sys

import edgeq

original, *targets = sys.argv[1:]
for target in targets:
    found = edgeq.evaluate(target, reference=original, windows=4)
    print(f"{target}: KL divergence {found.kl:.4f}, same top token {found.top1_agreement:.1%}")
