"""Tune a checkpoint so that it predicts what its original predicts, and say what that gained.

python examples/tune_checkpoint.py CHECKPOINT MODEL OUTPUT [TEXT]
"""

import sys

import edgeq

checkpoint, model, output, *texts = sys.argv[1:]
found = edgeq.tune(checkpoint, output, reference=model, calibration=texts, tokens=16_384)
print(f"{found.output}: tuned on {found.tokens:,} tokens" if found.is_gain else "nothing gained")
print(f"KL on windows that were held out: {found.kl_before:.4f}, then {found.kl_after:.4f}")
