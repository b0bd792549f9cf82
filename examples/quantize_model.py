"""Quantize a model to a GGUF file, with a line for each block.

python examples/quantize_model.py MODEL OUTPUT [TEXT...]
"""

import sys

import edgeq


def show(event: edgeq.Progress) -> None:
    """Print how far the run is, and leave out single layers."""
    if event.layer is None:
        print(event)


model, output, *texts = sys.argv[1:]
# for a first look; without preset and numbers it is as good as edgeq can
settings: edgeq.RunSettings = {"quality": "fast", "samples": 16, "sequence_length": 128}
settings["type"] = "Q4_K_M"
run = edgeq.quantize(model, output, **settings, export="gguf", calibration=texts, progress=show)
print(run)
print(f"{run.bits_per_weight:.2f} bits per weight in {run.exports['gguf']}")
for layer in run.report.worst_layers(3):
    print(f"{layer.final_loss:.2%} of the output's energy is lost in {layer.name}")
