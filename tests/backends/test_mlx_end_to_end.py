"""`--backend mlx` from a trained model to quality and files, beside torch and without it."""

import json
import subprocess
import sys

import models
import numpy as np
import pytest
from command_line import finished

from edgeq.calibration.windows import tokenize
from edgeq.checkpoint.reader import Checkpoint
from edgeq.sources import open_source

pytest.importorskip("mlx_lm", reason="MLX has no build for this system")
SEEDS = (0, 1, 2)  # both backends differ in ties, and what follows from one scatters by a percent
SHORT = ["--samples", "24", "--sequence-length", "128", "--calibration", "speeches"]
IN_TORCH = ["--runtime", "torch", "--backend", "cpu", "--json"]
MEASURED = ["--windows", "96", "--sequence-length", "128"]  # fewer would not settle KL to 2 %
AND_SAY_WHAT_IS_LOADED = """
import atexit, sys
loaded = lambda: sorted({name.split(".")[0] for name in sys.modules})
atexit.register(lambda: print("LOADED", *loaded(), file=sys.stderr))
import edgeq.commands.main
edgeq.commands.main.main()
"""


@pytest.fixture(scope="module")
def glass(tmp_path_factory):
    """glassllm as a directory of safetensors with its tokenizer."""
    return models.save_glass(tmp_path_factory.mktemp("model") / "glassllm")


def in_a_process(*arguments):
    """Run a command in a process of its own; gives its output and what it had loaded."""
    command = [sys.executable, "-c", AND_SAY_WHAT_IS_LOADED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.rsplit("LOADED", 1)[1].split())


def quantizing(glass, output, backend, *words):
    """The words of a run at 3 bits."""
    grid = ["--bits", 3, "--embedding-bits", 16, "--group-size", 32]
    return ["quantize", glass, "-o", output, "--backend", backend, *grid, *SHORT, *words]


@pytest.fixture(scope="module")
def run(glass, tmp_path_factory):
    """A checkpoint that one process made in MLX, and what it had loaded."""
    output = tmp_path_factory.mktemp("run") / "mlx"
    _, loaded = in_a_process(*quantizing(glass, output, "mlx", "--samples", 4))
    return output, loaded


@pytest.fixture(scope="module")
def runs(glass, tmp_path_factory):
    """The checkpoints of both backends, one for each seed."""
    folder = tmp_path_factory.mktemp("runs")
    checkpoints = {name: [folder / f"{name}-{seed}" for seed in SEEDS] for name in ("cpu", "mlx")}
    for backend, outputs in checkpoints.items():
        for seed, output in zip(SEEDS, outputs, strict=True):
            finished(*quantizing(glass, output, backend, "--seed", seed))
    return checkpoints


def test_the_tokenizer_of_the_test_model_splits_text_as_its_package_does(glass):
    windows = models.glass_windows(4, 64)
    text = models.read_text(None, default="evaluation.txt")[: 8 * windows.size]
    np.testing.assert_array_equal(
        tokenize(open_source(str(glass)), text)[: windows.size], windows.reshape(-1)
    )


@pytest.mark.slow
def test_quality_is_that_of_torch(glass, runs):
    kl = {}
    for backend, checkpoints in runs.items():
        results = [
            finished("evaluate", path, "--reference", glass, *MEASURED, *IN_TORCH)
            for path in checkpoints
        ]
        kl[backend] = np.mean([json.loads(result.out)["kl"] for result in results])
    print(kl)
    assert 0.001 < kl["cpu"]
    assert kl["mlx"] == pytest.approx(kl["cpu"], rel=0.02)


def test_torch_is_never_imported(run):
    assert "mlx" in run[1]
    assert not {"torch", "accelerate"} & run[1]


def test_mlx_measures_what_torch_measures(glass, run):
    quality = {}
    for runtime, backend in (("torch", "cpu"), ("mlx", "mlx")):
        how = ["--runtime", runtime, "--backend", backend, "--json"]
        words = ["evaluate", run[0], "--reference", glass, *how]
        out = finished(*words, "--windows", 4, "--sequence-length", 128).out
        quality[runtime] = json.loads(out)
    assert quality["mlx"]["kl"] == pytest.approx(quality["torch"]["kl"], rel=1e-3)
    assert quality["mlx"]["perplexity"] == pytest.approx(quality["torch"]["perplexity"], rel=1e-4)


def test_mlx_measures_without_torch_where_nothing_is_compared(run):
    how = ["--runtime", "mlx", "--backend", "mlx", "--json"]
    out, loaded = in_a_process("evaluate", run[0], *how, "--windows", 1)
    assert json.loads(out)["perplexity"] > 1
    assert "mlx" in loaded and "torch" not in loaded


@pytest.mark.parametrize("backend", ["cpu", pytest.param("mlx", marks=pytest.mark.slow)])
def test_what_one_backend_wrote_is_exported_and_run_in_mlx_lm(glass, tmp_path, backend):
    checkpoint, size = tmp_path / "checkpoint", ["--sequence-length", 64]
    options = ["--backend", backend, "--quality", "fast", "--samples", 4, *size]
    # 341 inputs of down_proj make no whole groups, which MLX needs
    finished("quantize", glass, "-o", checkpoint, *options, "--keep-dense", "*.down_proj")
    _, loaded = in_a_process("export", checkpoint, "--format", "mlx", "-o", tmp_path / "mlx")
    assert not {"torch", "mlx", "transformers"} & loaded
    measured = ["--windows", 2, *size]
    in_mlx_lm = json.loads(finished("evaluate", tmp_path / "mlx", *measured, "--json").out)
    in_torch = json.loads(finished("evaluate", checkpoint, *measured, *IN_TORCH).out)
    assert in_mlx_lm["runtime"] == "mlx-lm"
    assert in_mlx_lm["perplexity"] == pytest.approx(in_torch["perplexity"], rel=1e-3)
    assert Checkpoint(checkpoint).head["backend"] == backend
