"""Checks that do not share the assumption they check: faults in edgeq's own reading of a model are
planted, and must show.
"""

import json
import shutil
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from command_line import finished, run_edgeq
from exported_files import gguf_in
from safetensors.numpy import load_file, save_file
from tiny_models import TEXT, tokenizer_files
from transformers import AutoConfig, AutoModelForCausalLM

from edgeq.architectures import llama_cpp_tensors
from edgeq.architectures.record import read_record
from edgeq.checkpoint.certificate import write_sealed
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, NotInstalled
from edgeq.files.hashes import hash_files
from edgeq.measuring.references import check_reference, opened_reference, write_out
from edgeq.measuring.run_export import run_export
from edgeq.registry import REFERENCES, Entry
from edgeq.sources import open_source
from edgeq_backends.torch import reading
from edgeq_backends.torch.originals import TransformersLogits, stored_dtype, to_int8

ROUNDING = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0"]
QUICK = ["--samples", "2", "--sequence-length", "32", "--backend", "cpu", *ROUNDING]
SHORT = ["--windows", 1, "--sequence-length", 64, "--backend", "cpu", "--json"]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large logits: what a fault changes shows
}


def save_tiny(folder, model_type="llama", **settings):
    """Save a small random model of peaked predictions, with a tokenizer; gives its directory."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SIZES | settings))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)
    return folder


def plain_logits(folder, ids):
    """What transformers computes where everything is loaded in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def as_stored(folder, change):
    """Change the tensors of a saved model."""
    file = folder / "model.safetensors"
    save_file({name: change(name, each) for name, each in load_file(file).items()}, file)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(TEXT * 200, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def solved(saved, text_file, tmp_path_factory):
    """A checkpoint that nothing is wrong with, and its exports."""
    output = tmp_path_factory.mktemp("runs") / "run"
    exports = [word for name in ("gguf", "onnx", "mlx") for word in ("--export", name)]
    finished("quantize", saved, "-o", output, *exports, "--calibration", text_file, *QUICK)
    return output


@pytest.fixture
def ids(rng):
    return rng.integers(0, 300, (2, 24))


# the reference


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_a_directory_is_predicted_as_a_plain_float32_load_does(tmp_path, ids, kind, dtype):
    folder = save_tiny(tmp_path / "model", kind)
    kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    as_stored(folder, lambda _, tensor: tensor.astype(kinds[dtype]))
    found = np.stack(list(TransformersLogits(folder).logits(ids)))
    expected = plain_logits(folder, ids)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_a_config_that_asks_for_code_which_is_not_installed_is_computed_all_the_same(tmp_path, ids):
    folder = save_tiny(tmp_path / "model")
    expected = plain_logits(folder, ids)
    config = json.loads((folder / "config.json").read_text())
    config["attn_implementation"] = "no such code"
    (folder / "config.json").write_text(json.dumps(config))
    found = np.stack(list(TransformersLogits(folder).logits(ids)))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_weights_stay_in_the_type_that_they_are_stored_in(tmp_path, ids):
    folder = save_tiny(tmp_path / "model")
    as_stored(folder, lambda _, tensor: tensor.astype(ml_dtypes.bfloat16))
    reference = TransformersLogits(folder)
    list(reference.logits(ids))
    assert {each.dtype for each in reference._model.parameters()} == {torch.bfloat16}


def test_a_config_that_states_another_type_rounds_nothing(tmp_path, ids):
    folder = save_tiny(tmp_path / "model", dtype="float16")
    as_stored(folder, lambda _, tensor: tensor.astype(np.float32) * np.float32(1 + 2.0**-14))
    found = np.stack(list(TransformersLogits(folder).logits(ids)))
    np.testing.assert_allclose(found, plain_logits(folder, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([np.float16], torch.float16),
        ([ml_dtypes.bfloat16], torch.bfloat16),
        ([np.float16, ml_dtypes.bfloat16], torch.float32),
        ([np.float16, np.float32], torch.float32),
        ([np.float64], torch.float32),
    ],
)
def test_the_stored_type_is_one_that_holds_every_weight(tmp_path, kinds, expected):
    tensors = {str(place): np.ones(2, kind) for place, kind in enumerate(kinds)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == expected


def test_a_tensor_that_transformers_would_make_up_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"finds no tensor 'model\.layers\.1\.mlp\.up_proj"):
        TransformersLogits(folder)


def test_a_checkpoint_is_predicted_from_its_dequantized_weights(solved, saved, ids):
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    checkpoint = Checkpoint(solved)
    weights = {name: checkpoint.read(name) for name in checkpoint.tensor_names()}
    model.load_state_dict({name: torch.from_numpy(each) for name, each in weights.items()})
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    with opened_reference(checkpoint, "cpu") as reference:
        found = np.stack(list(reference.logits(ids)))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_a_gguf_file_is_predicted_by_llama_cpp_in_float32(solved, ids):
    source = open_source(str(gguf_in(solved / "gguf")))
    with opened_reference(source, "cpu") as reference:
        found = np.stack(list(reference.logits(ids)))
        assert reference.library.startswith("llama.cpp")
    with opened_reference(Checkpoint(solved), "cpu") as reference:
        expected = np.stack(list(reference.logits(ids)))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """Have temporary files made in a directory of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("place", ["", "gguf"])
def test_nothing_is_left_of_what_is_written_out_for_a_reference(solved, ids, temporary, place):
    source = open_source(str(gguf_in(solved / place))) if place else Checkpoint(solved)
    with opened_reference(source, "cpu") as reference:
        next(reference.logits(ids))
    assert list(temporary.iterdir()) == []
    with pytest.raises(KeyError), opened_reference(source, "cpu") as reference:
        for _ in reference.logits(ids):
            raise KeyError
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("place", ["", "gguf"])
def test_too_little_room_for_a_float32_copy_is_said_first(solved, ids, monkeypatch, place):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    source = open_source(str(gguf_in(solved / place))) if place else Checkpoint(solved)
    with (
        pytest.raises(BadInput, match=r"GB are free.*set TMPDIR"),
        opened_reference(source, "cpu") as reference,
    ):
        next(reference.logits(ids))


def test_a_checkpoint_in_several_files_is_written_out_whole(solved, monkeypatch, tmp_path):
    monkeypatch.setattr("edgeq.measuring.references.SHARD_BYTES", 30000)
    checkpoint = Checkpoint(solved)
    write_out(checkpoint, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    stored = [load_file(file) for file in files]
    assert len(files) > 2 and sum(map(len, stored)) == len(checkpoint.tensor_names())
    for tensors in stored:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, checkpoint.read(name).astype(np.float32))


def test_what_computed_the_reference_is_stated(solved, saved):
    found = json.loads(finished("evaluate", solved, "--reference", saved, *SHORT).out)
    assert found["reference"].startswith("transformers 5.")
    file = gguf_in(solved / "gguf")
    found = json.loads(finished("evaluate", solved, "--reference", file, *SHORT).out)
    assert found["reference"].startswith("llama.cpp")
    shown = finished("evaluate", solved, "--reference", saved, *SHORT[:-1]).out
    assert "reference" in shown and "transformers 5." in shown
    assert json.loads(finished("evaluate", solved, *SHORT).out)["reference"] is None


@pytest.mark.parametrize(("name", "extra"), [("transformers", "cuda"), ("llama.cpp", "llama-cpp")])
def test_a_reference_that_is_not_installed_is_named_before_any_work(
    solved, saved, monkeypatch, name, extra
):
    monkeypatch.setitem(REFERENCES, name, Entry("edgeq_backends.missing:Anything", extra))
    source = open_source(str(saved if name == "transformers" else gguf_in(solved / "gguf")))
    with pytest.raises(NotInstalled, match=f"the reference, which {name} computes.*{extra}"):
        check_reference(source)


# faults that are planted in edgeq's own reading


def wrong_config(monkeypatch, **changes):
    """Have edgeq take other values out of config.json than what it states."""
    read = read_record

    def misread(name, config, *evidence):
        record = read(name, {**config, **changes}, *evidence)
        tied = changes.get("tie_word_embeddings", record.decoder.tied_head)
        settled = {**record.settled, "tie_word_embeddings": tied}
        decoder = replace(record.decoder, tied_head=tied)
        return replace(record, decoder=decoder, settled=settled)

    for place in ("sources.safetensors_directory", "checkpoint.reader"):
        monkeypatch.setattr(f"edgeq.{place}.read_record", misread)


def wrong_rope(monkeypatch):
    parameters = {"rope_type": "default", "rope_theta": 500000.0}
    wrong_config(monkeypatch, rope_parameters=parameters, rope_theta=500000.0)


def wrong_epsilon(monkeypatch):
    wrong_config(monkeypatch, rms_norm_eps=0.05)


def wrong_activation(monkeypatch):
    wrong_config(monkeypatch, hidden_act="gelu")


def wrong_head(monkeypatch):
    wrong_config(monkeypatch, tie_word_embeddings=True)


def wrong_rows(monkeypatch):
    """Have queries and keys read with neighbouring rows exchanged."""
    read = reading.read_weight

    def misread(source, name):
        weight = read(source, name)
        turned = name.endswith(("q_proj.weight", "k_proj.weight"))
        return weight[np.arange(len(weight)) ^ 1] if turned else weight

    monkeypatch.setattr(reading, "read_weight", misread)


READING_FAULTS = [wrong_rope, wrong_epsilon, wrong_activation, wrong_head, wrong_rows]


def test_a_right_reading_is_close_to_the_reference(saved):
    found = json.loads(finished("evaluate", saved, "--reference", saved, *SHORT).out)
    assert abs(found["kl"]) < 1e-6


@pytest.mark.parametrize("plant", READING_FAULTS)
def test_evaluate_reports_a_model_that_edgeq_reads_wrongly(saved, monkeypatch, plant):
    plant(monkeypatch)
    found = json.loads(finished("evaluate", saved, "--reference", saved, *SHORT).out)
    assert found["kl"] > 1e-3


@pytest.mark.parametrize("plant", [wrong_rope, wrong_epsilon])
@pytest.mark.parametrize("name", ["gguf", "onnx", "mlx"])
def test_verify_reports_an_export_of_a_model_that_edgeq_reads_wrongly(
    solved, monkeypatch, tmp_path, plant, name
):
    with monkeypatch.context() as planted:
        plant(planted)
        finished("export", solved, "--format", name, "-o", tmp_path / "export")
        wrong = run_edgeq(*verified(tmp_path / "export", solved))
    assert wrong.status == 1
    run = json.loads(wrong.out)["run"]
    assert run["exact_kl"] > 3 * run["allowed_exact_kl"]
    [first, *_] = json.loads(wrong.out)["differences"]
    assert "in float32: KL divergence" in first and "allowed is 1e-05" in first


def verified(export, against):
    return ["verify", export, "--against", against, "--run", "--backend", "cpu", "--json"]


def test_verify_reports_rows_that_lie_in_another_order(solved, monkeypatch, tmp_path):
    """The exporter's order is wrong, and the reader's that verifies bytes is not asked."""
    order = llama_cpp_tensors.row_order

    def misplaced(name, decoder):
        rows = order(name, decoder)
        return None if rows is None else rows[np.arange(len(rows)) ^ 1]

    monkeypatch.setattr(llama_cpp_tensors, "row_order", misplaced)
    finished("export", solved, "--format", "gguf", "-o", tmp_path / "export")
    found = run_export(tmp_path / "export", against=solved, backend="cpu")
    assert found["exact_kl"] > 100 * found["allowed_exact_kl"]
    assert len(found["differences"]) == 2


def test_a_run_over_too_few_tokens_is_refused_before_it(solved):
    with pytest.raises(BadInput, match=r"^sequence length 1 tokens; at least 2 are needed$"):
        run_export(solved / "gguf", against=solved, backend="cpu", sequence_length=1)


@pytest.mark.parametrize("name", ["onnx", "mlx"])
def test_a_run_of_a_model_that_reads_one_token_is_refused(solved, name, tmp_path):
    """What an export states is the shorter context of the two."""
    folder = shutil.copytree(solved / name, tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1}))
    with pytest.raises(
        BadInput, match=r"^the model reads at most 1 tokens; at least 2 are needed$"
    ):
        run_export(folder, against=solved, backend="cpu")


# exports run as users run them


@pytest.mark.parametrize("name", ["gguf", "onnx", "mlx"])
def test_right_files_of_a_model_with_few_heads_are_right(solved, name):
    found = json.loads(finished(*verified(solved / name, solved)).out)["run"]
    kinds = {"gguf": "int8", "onnx": "int8", "mlx": "float16"}
    assert found["activations"] == kinds[name]
    assert abs(found["exact_kl"]) < found["allowed_exact_kl"] / 10
    assert found["kl"] < found["allowed_kl"] / 2


def test_a_model_that_overflows_in_the_type_of_its_export_is_a_difference(
    tmp_path, text_file, capfd
):
    """Fine in float32 and in bfloat16; float16 ends at 65504."""
    folder = save_tiny(tmp_path / "model")

    def massive(name, tensor):
        if name == "model.embed_tokens.weight":
            tensor[:, 3] = 20.0
        if name.startswith("model.layers.0.mlp"):
            tensor[:] = 20 * np.abs(tensor)  # every neuron fires, and all that they give adds up
        return tensor.astype(ml_dtypes.bfloat16)

    as_stored(folder, massive)
    output = tmp_path / "out"
    finished("quantize", folder, "-o", output, "--calibration", text_file, *QUICK)
    finished("export", output, "--format", "mlx", "-o", tmp_path / "mlx")
    in_float16(tmp_path / "mlx")
    capfd.readouterr()
    found = run_export(tmp_path / "mlx", against=output, backend="cpu")
    assert abs(found["exact_kl"]) < 1e-3 and found["kl"] is None
    assert found["differences"] == [
        "runtime 'mlx-lm' as users run it (float16 activations): predicts NaN or infinity; "
        "the dequantized weights predict numbers"
    ]
    measured = run_edgeq("evaluate", tmp_path / "mlx", "--reference", folder, *SHORT)
    said = [line for line in measured.err.splitlines() if not line.startswith("evaluating, ")]
    assert measured.status == 1 and len(said) == 1
    assert "predicts NaN or infinity" in said[0]
    assert capfd.readouterr() == ("", "")


def in_float16(folder):
    """Have every number of a directory in float16, as mlx-lm then computes."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    halves = {
        name: each.astype(np.float16) if each.dtype != np.uint32 else each
        for name, each in tensors.items()
    }
    save_file(halves, file, metadata={"format": "mlx"})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = hash_files(folder, but=("manifest.json",))
    write_sealed(folder / "manifest.json", manifest)


# rounding in the reference


def test_rounding_to_8_bits_is_that_of_blocks_of_q8_0(rng):
    gguf = pytest.importorskip("gguf")
    x = rng.standard_normal((5, 96)).astype(np.float32) * 10.0 ** rng.integers(-3, 3, (5, 1))
    x[0, :32] = 0
    x = x.astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    found = to_int8(torch.from_numpy(x), 32).numpy()
    differing = np.abs(found - expected).max(axis=1) / np.abs(x).max(axis=1)
    assert differing.max() < 1e-6


def test_columns_that_fill_no_block_are_rounded_too(rng):
    x = torch.from_numpy(rng.standard_normal((3, 50)).astype(np.float32))
    found = to_int8(x, 32)
    assert found.shape == x.shape
    torch.testing.assert_close(found[:, :32], to_int8(x[:, :32], 32))
    torch.testing.assert_close(found[:, 32:], to_int8(x[:, 32:], None))


# damaged exports


@pytest.mark.parametrize("name", ["gguf", "onnx", "mlx"])
@pytest.mark.parametrize("file", ["config.json", "manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"\\ud800"', b"\xff\xfe", b"1e999"])
def test_a_damaged_file_beside_an_export_is_one_line_or_not_needed(
    solved, tmp_path, name, file, content
):
    folder = shutil.copytree(solved / name, tmp_path / name)
    (folder / file).write_bytes(content)
    result = run_edgeq("evaluate", folder, *SHORT)
    if result.status == 0:
        assert json.loads(result.out)["perplexity"] > 1
    else:
        assert result.out == "" and result.err.count("\n") == 1
        assert result.err.startswith("edgeq: ") and "please report it" not in result.err
