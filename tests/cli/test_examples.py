"""The scripts in examples/ run as they stand, on a small model."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import edgeq

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def quantized(saved_model, text_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("examples") / "out"
    words = {"samples": 4, "sequence_length": 32, "quality": "fast", "calibration": text_file}
    return edgeq.quantize(saved_model, output, backend="cpu", **words, export=["gguf", "onnx"])


@pytest.fixture
def words(quantized, saved_model, text_file, tmp_path):
    """The words behind each script, and what its last line says."""
    gguf, onnx = quantized.exports["gguf"], quantized.exports["onnx"]
    onnx = onnx if onnx.is_dir() else onnx.parent
    return {
        "quantize_model.py": (
            [saved_model, tmp_path / "new", text_file],
            r"is lost in model\.layers",
        ),
        "choose_by_budget.py": (
            [saved_model, "120KB", tmp_path / "chosen.toml", text_file],
            r"to quantize with it: .*chosen\.toml",
        ),
        "compare.py": (
            [saved_model, quantized.output, gguf],
            r"KL divergence 0\.\d+ \(0\.\d+ to 0\.\d+\)",
        ),
        "export_all.py": ([quantized.output], r"compressed-tensors: as it was written$"),
        "look_inside.py": (
            [quantized.output, saved_model],
            r"8 bits, \d+ codes in use, 0\.\d+% away",
        ),
        "one_layer.py": ([], r"rounded: \d\.\d+% of the output's energy is lost"),
        "run_onnx.py": ([onnx, "It's 2026"], r".*"),
        "tune_checkpoint.py": (
            [quantized.output, saved_model, tmp_path / "tuned", text_file],
            r"held out: 0\.\d{4}, then 0\.\d{4}$",
        ),
        "talk.py": ([gguf, "It's 2026"], r".*"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name, words, monkeypatch, capsys):
    given, last = words[name]
    monkeypatch.setattr(sys, "argv", [name, *map(str, given)])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    found = capsys.readouterr()
    assert re.search(last, found.out.rstrip().splitlines()[-1])
    assert found.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_in_a_process_of_its_own_and_says_nothing_else(name, words, tmp_path):
    given, last = words[name]
    run = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / name, *given],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert re.search(last, run.stdout.rstrip().splitlines()[-1])
    assert run.stderr == ""


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_how_it_is_called(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 30
    assert f"python examples/{name}" in text.split('"""')[1]


def test_every_function_has_an_example():
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in NAMES)
    functions = [name for name in edgeq.__all__ if name.islower() and not name.startswith("_")]
    assert [name for name in functions if f"edgeq.{name}(" not in text] == []
