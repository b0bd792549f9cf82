"""Run an ONNX export with onnxruntime-genai, which the extra onnx installs.

python examples/run_onnx.py DIRECTORY PROMPT
"""

import sys

import onnxruntime_genai as og

model = og.Model(sys.argv[1])
tokenizer = og.Tokenizer(model)
stream = tokenizer.create_stream()
tokens = tokenizer.encode(sys.argv[2])
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(tokens) + 40)
generator = og.Generator(model, parameters)
generator.append_tokens(tokens)
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
print()
