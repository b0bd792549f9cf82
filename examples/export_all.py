"""Write a checkpoint in every format that holds it without loss, and read each export back.

python examples/export_all.py CHECKPOINT
"""

import sys

import edgeq

checkpoint = sys.argv[1]
for row in edgeq.formats(checkpoint):
    if row.fits != "without loss":
        print(f"{row.name}: left out, {row.missing or row.reason}")
        continue
    written = edgeq.export(checkpoint, row.name, force=True)
    checked = edgeq.verify(f"{checkpoint}/{row.name}", against=checkpoint)
    print(f"{written.path}: {'as it was written' if checked.ok else checked.differences}")
