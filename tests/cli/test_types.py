"""Runs on llama.cpp's types behave as others do: resumed, exported, verified, on every backend."""

import gguf
import numpy as np
import pytest
from command_line import finished
from exported_files import gguf_in

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.ownership import TIMED_FILES
from edgeq.run import pipeline
from edgeq.run.report import read_report
from edgeq.solving.report import Stage

WIDE = {"hidden_size": 256, "intermediate_size": 512, "tie_word_embeddings": True}
SLOW = pytest.mark.slow
TYPES = ("Q2_K", "Q3_K", "Q4_K", "IQ4_XS", "TQ2_0")
DEFAULT = ("Q2_K", "Q3_K", "IQ4_XS")


@pytest.fixture(scope="module")
def wide_model(save_model):
    return save_model("llama", **WIDE)


@pytest.fixture(scope="module")
def on_type(wide_model, text_file, tmp_path_factory):
    """The checkpoint of a finished run on a type, with its GGUF file."""
    made = {}

    def run(name, backend="cpu"):
        if (name, backend) not in made:
            folder = tmp_path_factory.mktemp(name) / "out"
            finished("quantize", wide_model, "-o", folder, *options(name, text_file, backend))
            made[name, backend] = folder
        return made[name, backend]

    return run


def options(name, text_file, backend="cpu"):
    text = ["--calibration", str(text_file), "--samples", "4", "--sequence-length", "32"]
    return [*text, "--backend", backend, "--type", name, "--export", "gguf"]


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMED_FILES
    }


def refitted_losses(folder):
    layers = read_report(Checkpoint(folder)).layers
    return [layer.losses[Stage.REFITTED] for layer in layers]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DEFAULT else SLOW) for name in TYPES]
)
def test_what_was_solved_lies_in_the_file(edgeq, on_type, name):
    folder = on_type(name)
    checkpoint = Checkpoint(folder)
    reader = gguf.GGUFReader(gguf_in(folder / "gguf"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        tensor = tensors[f"blk.1.{theirs}.weight"]
        assert tensor.tensor_type.name == name
        solved = checkpoint.quantized(f"model.layers.1.{ours}.weight").dequantized()
        np.testing.assert_array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), solved)
    assert tensors["token_embd.weight"].tensor_type.name in ("Q6_K", "Q4_0")
    verified = edgeq("verify", folder / "gguf", "--against", folder)
    assert verified.status == 0
    assert "5 dense, 15 exact; largest deviation from the checkpoint 0\n" in verified.out
    losses = [layer.losses for layer in read_report(Checkpoint(folder)).layers]
    assert all(loss[Stage.REFITTED] <= loss[Stage.NEAREST] for loss in losses)


@pytest.mark.parametrize("name", ["Q3_K", pytest.param("IQ4_XS", marks=SLOW)])
def test_a_stopped_run_continues_to_the_same_bytes(
    edgeq, wide_model, text_file, on_type, tmp_path, monkeypatch, name
):
    written = []

    def write(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(pipeline_write(*arguments))

    pipeline_write = pipeline.write_part
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_part", write)
        stopped = edgeq("quantize", wide_model, "-o", tmp_path / "out", *options(name, text_file))
    assert stopped.status != 0
    again = [*options(name, text_file), "--resume"]
    result = edgeq("quantize", wide_model, "-o", tmp_path / "out", *again)
    assert (result.status, "1 of 2 blocks are there" in result.err) == (0, True), result.err
    assert files(tmp_path / "out") == files(on_type(name))


@pytest.mark.parametrize(
    ("backend", "name"), [("reference", "IQ4_XS"), pytest.param("mlx", "Q2_K", marks=SLOW)]
)
def test_other_backends_come_to_the_same_error(on_type, backend, name):
    if backend == "mlx":
        pytest.importorskip("mlx.core", reason="MLX has no build for this system")
    losses = [refitted_losses(on_type(name, kind)) for kind in ("cpu", backend)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.15)
    assert sum(losses[0]) == pytest.approx(sum(losses[1]), rel=0.03)
