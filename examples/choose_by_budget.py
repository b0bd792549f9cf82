"""Spend a size on the tensors that need it most, and see beforehand what it buys.

python examples/choose_by_budget.py MODEL SIZE RECIPE [TEXT...]
"""

import sys

import edgeq

model, size, recipe, *texts = sys.argv[1:]
print(edgeq.plan(model, file_size=size, export="gguf", sequence_length=128))
# few samples are enough for a first look; leave both numbers out for a better choice
quick: edgeq.RunSettings = {"samples": 8, "sequence_length": 128}
found = edgeq.allocate(model, recipe, file_size=size, export="gguf", calibration=texts, **quick)
print(found)
for point in found.details["curve"]:
    print(f"{point['bytes'] / 1e6:8.2f} MB  KL divergence {point['predicted_kl']:.4f} predicted")
print(f"to quantize with it: edgeq.quantize({model!r}, OUTPUT, recipe={recipe!r})")
