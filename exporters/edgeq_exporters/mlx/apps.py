"""Say how apps and libraries run an MLX directory."""

from edgeq.format_parts import App

PYTHON = """\
from mlx_lm import load, stream_generate

model, tokenizer = load("{folder}")
for part in stream_generate(model, tokenizer, "The capital of France is", max_tokens=16):
    print(part.text, end="", flush=True)
"""
SWIFT = """\
import Foundation
import HuggingFace
import MLXHuggingFace
import MLXLLM
import MLXLMCommon
import Tokenizers

let folder = URL(fileURLWithPath: "{folder}")
let model = try await loadModel(from: folder, using: #huggingFaceTokenizerLoader())
let session = ChatSession(model)
print(try await session.respond(to: "What is the capital of France?"))
"""

APPS = (
    App(
        "mlx-lm",
        (
            ("mlx_lm.chat", "--model", "{folder}"),
            ("mlx_lm.generate", "--model", "{folder}", "--prompt", "The capital of France is"),
        ),
        install="pip install mlx-lm",
    ),
    App("Python (mlx-lm)", script=PYTHON, install="pip install mlx-lm"),
    App(
        "Swift (mlx-swift-lm 3)",
        script=SWIFT,
        language="swift",
        install="packages mlx-swift-lm, swift-huggingface and swift-transformers",
        note="These lines follow its documentation; edgeq's tests do not run them.",
    ),
)
