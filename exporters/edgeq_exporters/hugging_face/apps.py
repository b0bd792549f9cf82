"""Say how libraries run a directory of packed linear layers."""

from edgeq.format_parts import App

TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}", device_map="auto")
inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
model.generate(**inputs, max_new_tokens=16, do_sample=False, streamer=TextStreamer(tokenizer))
"""
VLLM = App("vLLM", (("vllm", "serve", "{folder}"),), install="pip install vllm")

GPTQ_APPS = (
    App(
        "Python (transformers)",
        script=TRANSFORMERS,
        install="pip install transformers accelerate gptqmodel",
    ),
    VLLM,
)
COMPRESSED_TENSORS_APPS = (
    App(
        "Python (transformers)",
        script=TRANSFORMERS,
        install="pip install transformers accelerate compressed-tensors",
    ),
    VLLM,
)
