"""Have a quantized model answer, in the runtime that it is for.

python examples/talk.py TARGET PROMPT
"""

import sys

import edgeq

target, prompt = sys.argv[1:]
for piece in edgeq.generate(target, prompt, max_tokens=32):
    print(piece, end="", flush=True)
print()
