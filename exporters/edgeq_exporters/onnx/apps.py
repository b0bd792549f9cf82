"""Say how apps and libraries run an ONNX directory."""

from edgeq.format_parts import App

GENAI = """\
import onnxruntime_genai as og

model = og.Model("{folder}")
tokenizer = og.Tokenizer(model)
settings = og.GeneratorParams(model)
settings.set_search_options(max_length=32, do_sample=False)
generator = og.Generator(model, settings)
generator.append_tokens(tokenizer.encode("The capital of France is"))
text = tokenizer.create_stream()
while not generator.is_done():
    generator.generate_next_token()
    print(text.decode(generator.get_next_tokens()[0]), end="", flush=True)
"""
ONNX_RUNTIME = """\
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{folder}/tokenizer.json")
session = ort.InferenceSession("{path}", providers=["CPUExecutionProvider"])
types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
past = {
    each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), types[each.type])
    for each in session.get_inputs()
    if each.name.startswith("past")
}
ids, new = [], tokenizer.encode("The capital of France is").ids
for _ in range(16):  # the likeliest token each time
    ids += new
    inputs = {"input_ids": np.array([new]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    logits, *cache = session.run(None, {**inputs, **past})
    past, new = dict(zip(past, cache)), [int(logits[0, -1].argmax())]
print(tokenizer.decode(ids + new))
"""

APPS = (
    App(
        "Python (onnxruntime-genai)",
        script=GENAI,
        install="pip install onnxruntime-genai",
        file="genai_config.json",
        note="The same directory runs in its packages for Android, iOS, C# and C++.",
    ),
    App(
        "Python (ONNX Runtime)",
        script=ONNX_RUNTIME,
        install="pip install onnxruntime tokenizers numpy",
        file="tokenizer.json",
        note="ONNX Runtime has packages for Android, iOS and the web, which load the same files.",
    ),
)
