"""What mypy tells users of `edgeq`: right programs pass, and each mistake is found in its line."""

import re
import subprocess
import sys

import pytest

RIGHT = """
from pathlib import Path

import numpy as np

import edgeq


def show(event: edgeq.Progress) -> None:
    print(event.what, event.share, event.layer.name if event.layer else "")


settings: edgeq.RunSettings = {"bits": 3, "group_size": "row"}
run = edgeq.quantize(
    Path("model"), "out", **settings, export=["gguf"], progress=show, max_ram=8 * 10**9
)
place: Path = run.exports["gguf"]
kl: float | None = edgeq.evaluate(run, reference="model").kl
model = edgeq.open(run)
codes: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = model.codes(model.names[0])
layer = edgeq.quantize_layer(np.ones((4, 32)), np.ones((9, 32)), type="Q4_0", backend="reference")
weights: edgeq.QuantizedLinear = layer
error: float | None = layer.error
"""

WRONG = [
    'edgeq.quantize("model", "out", bits="4")',
    'edgeq.quantize("model", "out", exports="gguf")',
    'edgeq.quantize("model", "out", quality="good")',
    'edgeq.quantize("model", "out", progress=lambda done, total: None)',
    'edgeq.quantize("model")',
    'edgeq.plan("model", resume=True)',
    "edgeq.quantize_layer([[1.0]], [[1.0]], samples=4)",
    'edgeq.export("out", "gguf", accuracy_level="4")',
    'edgeq.open("out").weight("name")',
    'edgeq.evaluate("out").kl.real',
]


def check(folder, program):
    """Run mypy --strict on a program as its user would; gives the lines with errors."""
    path = folder / "program.py"
    path.write_text(program, encoding="utf-8")
    words = ["--strict", "--no-error-summary", "--cache-dir", str(folder), str(path)]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return [int(line) for line in re.findall(r"program\.py:(\d+): error", run.stdout)], run.stdout


@pytest.mark.slow
def test_a_right_program_has_types_and_each_mistake_is_found(tmp_path):
    first = len(RIGHT.splitlines()) + 1
    lines, said = check(tmp_path, RIGHT + "\n".join(WRONG) + "\n")
    assert sorted({*lines}) == list(range(first, first + len(WRONG))), said
