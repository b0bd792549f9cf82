"""`--backend mlx` from a trained model to quality and files, beside torch and without it."""

import json
import subprocess
import sys

import models
import numpy as np
import pytest

from edgeq.calibration.windows import tokenize
from edgeq.checkpoint.reader import Checkpoint
from edgeq.sources import open_source

pytest.importorskip("mlx_lm", reason="MLX has no build for this system")
SEEDS = (0, 1, 2)  # both backends differ in ties, and what follows from one scatters by a percent
SHORT = ["--samples", "24", "--sequence-length", "128"]
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


def run(*arguments):
    command = [sys.executable, "-c", AND_SAY_WHAT_IS_LOADED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.rsplit("LOADED", 1)[1].split())


@pytest.fixture(scope="module")
def runs(glass, tmp_path_factory):
    """The checkpoints of both backends, and what the processes that made them had loaded."""
    folder, results = tmp_path_factory.mktemp("runs"), {}
    for backend in ("cpu", "mlx"):
        for seed in SEEDS:
            options = [
                "--backend",
                backend,
                "--bits",
                3,
                "--embedding-bits",
                16,
                "--group-size",
                32,
                *SHORT,
            ]
            output = folder / f"{backend}-{seed}"
            _, loaded = run("quantize", glass, "-o", output, *options, "--seed", seed)
            results.setdefault(backend, ([], loaded))[0].append(output)
    return results


def test_the_tokenizer_of_the_test_model_splits_text_as_its_package_does(glass):
    windows = models.glass_windows(4, 64)
    text = models.read_text(None, default="evaluation.txt")[: 8 * windows.size]
    np.testing.assert_array_equal(
        tokenize(open_source(str(glass)), text)[: windows.size], windows.reshape(-1)
    )


def test_quality_is_that_of_torch(glass, runs):
    kl = {}
    for backend, (checkpoints, _) in runs.items():
        outs = [
            run("evaluate", path, "--reference", glass, *MEASURED, *IN_TORCH)[0]
            for path in checkpoints
        ]
        kl[backend] = np.mean([json.loads(out)["kl"] for out in outs])
    print(kl)
    assert 0.001 < kl["cpu"]
    assert kl["mlx"] == pytest.approx(kl["cpu"], rel=0.02)


def test_torch_is_never_imported(runs):
    assert "torch" in runs["cpu"][1]
    assert "mlx" in runs["mlx"][1]
    assert not {"torch", "accelerate"} & runs["mlx"][1]


def test_mlx_measures_what_torch_measures(glass, runs):
    quality = {}
    for runtime, backend in (("torch", "cpu"), ("mlx", "mlx")):
        options = [
            "--runtime",
            runtime,
            "--backend",
            backend,
            "--windows",
            4,
            "--sequence-length",
            128,
            "--json",
        ]
        out, loaded = run("evaluate", runs["mlx"][0][0], "--reference", glass, *options)
        quality[runtime] = json.loads(out)
        assert ("torch" in loaded) == (runtime == "torch")
    assert quality["mlx"]["kl"] == pytest.approx(quality["torch"]["kl"], rel=1e-3)
    assert quality["mlx"]["perplexity"] == pytest.approx(quality["torch"]["perplexity"], rel=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
def test_what_one_backend_wrote_is_exported_and_run_in_mlx_lm(glass, tmp_path, backend):
    checkpoint = (
        tmp_path / "checkpoint"
    )  # 341 inputs of down_proj make no whole groups, which MLX needs
    options = [
        "--backend",
        backend,
        "--samples",
        4,
        "--sequence-length",
        64,
        "--keep-dense",
        "*.down_proj",
    ]
    run("quantize", glass, "-o", checkpoint, *options)
    _, loaded = run("export", checkpoint, "--format", "mlx", "-o", tmp_path / "mlx")
    assert not {"torch", "mlx", "transformers"} & loaded
    out, _ = run("evaluate", tmp_path / "mlx", "--windows", 2, "--sequence-length", 64, "--json")
    in_mlx_lm = json.loads(out)
    out, _ = run("evaluate", checkpoint, "--windows", 2, "--sequence-length", 64, *IN_TORCH)
    assert in_mlx_lm["runtime"] == "mlx-lm"
    assert in_mlx_lm["perplexity"] == pytest.approx(json.loads(out)["perplexity"], rel=1e-3)
    assert Checkpoint(checkpoint).head["backend"] == backend
