"""Ask a quantized model one question in every runtime: llama.cpp, mlx-lm and ONNX Runtime.

    uv run python -m benchmarks.answers MODEL.gguf "Question: What do bees make?\\nAnswer:"

MODEL is anything that edgeq opens. It is rounded to 8 bits, exported to GGUF, MLX and ONNX, and
each file continues the question with its likeliest tokens, beside the original in transformers or
llama.cpp. Prints a table.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgeq.calibration.windows import begin_ids, load_tokenizer, tokenize
from edgeq.commands.progress import Silent
from edgeq.measuring.targets import model_logits
from edgeq.registry import LOGITS, find_format, load, load_exporters
from edgeq.run.assembly import make_job
from edgeq.run.one_export import export
from edgeq.run.pipeline import quantize
from edgeq.sources import open_source

FORMATS = ("gguf", "mlx", "onnx")
# rounding to nearest is quick, and what is asked here is whether the files are right
SETTINGS: dict[str, Any] = {"bits": 8, "group_size": 32, "solver": "rtn", "scales": "none"}
SETTINGS |= {"propagation_strength": 0.0}
Predict = Callable[[np.ndarray[Any, Any]], Iterator[Any]]


def main() -> None:
    """Quantize, export, ask, and print what each runtime answers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("question", help="text to continue; \\n stands for a line break")
    parser.add_argument("--tokens", type=int, default=8)
    arguments = parser.parse_args()
    source = open_source(arguments.model)
    tokenizer = load_tokenizer(source)
    question = arguments.question.replace("\\n", "\n")
    ids = np.array([*begin_ids(source), *tokenize(source, question)])

    def ask(name: str, predict: Predict) -> None:
        print(f"| {name} | {answer(predict, ids, tokenizer, arguments.tokens)!r} |", flush=True)

    print(f"{source.record.name}: {question!r}\n\n| runtime | answer |\n| --- | --- |")
    ask("original, torch", model_logits(source, "cpu").logits)
    with tempfile.TemporaryDirectory(prefix="edgeq-answers-") as folder:
        place = Path(folder)
        checkpoint = quantize(make_job(source, SETTINGS), place / "checkpoint", Silent())
        for exporter in load_exporters(FORMATS, {}):
            form = find_format(exporter.format.name)
            files = export(checkpoint, exporter, place / form.name)
            runtime = load(LOGITS[form.runtime], form.name)(files[0])
            ask(f"{form.name}, {form.runtime}", runtime.logits)


def answer(
    predict: Predict, question: np.ndarray[Any, Any], tokenizer: Tokenizer, count: int
) -> str:
    """Continue a question by the likeliest tokens, up to a line break."""
    ids = list(question)
    for _ in range(count):
        ids.append(int(next(iter(predict(np.array([ids]))))[-1].argmax()))
        found: str = tokenizer.decode(ids[len(question) :])
        if "\n" in found:
            break
    return found.strip()


if __name__ == "__main__":
    main()
