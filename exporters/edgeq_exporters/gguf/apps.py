"""Say how apps and libraries run a GGUF file."""

from edgeq.format_parts import App

LLAMA_CPP_PYTHON = """\
from llama_cpp import Llama

model = Llama("{path}", n_ctx={context})
for part in model("The capital of France is", max_tokens=16, stream=True):
    print(part["choices"][0]["text"], end="", flush=True)
"""
CYLLAMA = """\
from cyllama import LLM

model = LLM("{path}", n_ctx={context}, max_tokens=16)
for text in model("The capital of France is", stream=True):
    print(text, end="", flush=True)
"""

APPS = (
    App(
        "llama.cpp",
        (("llama-cli", "-m", "{path}"),),
        install="brew install llama.cpp (macOS, Linux), winget install llama.cpp (Windows)",
        note="llama-server -m with the same file opens a chat in the browser.",
    ),
    App(
        "Ollama",
        (
            ("ollama", "create", "{name}", "-f", "{folder}/Modelfile"),
            ("ollama", "run", "{name}"),
        ),
        install="https://ollama.com/download",
        file="Modelfile",
    ),
    App(
        "LM Studio",
        (("lms", "import", "{path}"),),
        install="https://lmstudio.ai/download",
        note="It then lies under My Models.",
    ),
    App(
        "Python (llama-cpp-python)", script=LLAMA_CPP_PYTHON, install="pip install llama-cpp-python"
    ),
    App("Python (cyllama, without a compiler)", script=CYLLAMA, install="pip install cyllama"),
)
