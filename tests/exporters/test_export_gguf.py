"""GGUF files as a whole: loaded by llama.cpp and compared with torch, their manifest, refusals,
determinism.
"""

import dataclasses
import hashlib
import json
from itertools import cycle

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from exported_files import gguf_in
from tiny_models import VOCAB_SIZE, MemoryModel, random_layer, tokenizer_files
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edgeq.errors import BadInput
from edgeq.measuring.verify import verify
from edgeq.types import Grid
from edgeq_backends.llama_cpp import LlamaCppLogits
from edgeq_exporters.gguf.exporter import GgufExporter

TINY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# the cache of keys and values is float16; a wrong row order or frequency gives 0.1 and more
NEARLY_EQUAL = 1e-4
EVERY_TYPE = {
    "Q4_0": Grid(4, 32),
    "Q4_1": Grid(4, 32, "offset"),
    "Q4_1 integer": Grid(4, 32, "integer"),
    "Q5_0": Grid(5, None),
    "Q5_1": Grid(5, 32, "offset"),
    "Q8_0": Grid(8, 64),
    "Q4_0 from 2 bits": Grid(2, 32),
    "Q4_1 from 3 bits": Grid(3, 32, "offset"),
}


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**(TINY | changes)))


def solved(model, rng, grids, *, dense=np.float32, **files):
    """A model of random weights whose linear layers and embedding lie on the grids, in turn; None
    leaves it dense.
    """
    state = {
        name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = model.state_dict()["lm_head.weight"]
    result = MemoryModel(model.config.to_dict(), files=tokenizer_files(**files))
    in_turn = cycle(grids)
    for name, tensor in state.items():
        grid = next(in_turn) if tensor.ndim == 2 else None
        if grid is not None:
            result.layers[name] = random_layer(rng, tuple(tensor.shape), grid, size=0.6)
        else:
            spread = 0.2 * rng.standard_normal(tuple(tensor.shape)) + float("norm" in name)
            result.arrays[name] = spread.astype(dense)
    return result


def torch_logits(model, weights, windows):
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(windows)).logits.numpy()


def divergence(reference, found):
    """Mean Kullback-Leibler divergence per token."""
    p, q = (
        torch.log_softmax(torch.from_numpy(np.stack(list(x))).double(), dim=-1)
        for x in (reference, found)
    )
    return float((p.exp() * (p - q)).sum(-1).mean())


def divergence_in_llama_cpp(model, export, rng, directory):
    windows = rng.integers(0, 290, (2, 48))
    file, *_ = GgufExporter().write(export, directory)
    return divergence(
        torch_logits(model, export.weights(), windows), LlamaCppLogits(file).logits(windows)
    )


def manifest_of(directory):
    content = json.loads((directory / "manifest.json").read_text())
    return content, {entry["source"]: entry for entry in content["tensors"]}


def keys_of(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("grid", EVERY_TYPE.values(), ids=EVERY_TYPE)
def test_llama_cpp_predicts_like_torch_with_the_dequantized_weights(rng, tmp_path, grid):
    model = llama()
    assert divergence_in_llama_cpp(model, solved(model, rng, [grid]), rng, tmp_path) < 0.01


@pytest.mark.parametrize("dense", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_dense_model_is_nearly_equal_in_llama_cpp(rng, tmp_path, dense):
    model = llama(tie_word_embeddings=False)
    export = solved(model, rng, [None], dense=dense)
    assert divergence_in_llama_cpp(model, export, rng, tmp_path) < NEARLY_EQUAL
    expected = {np.float32: 0, np.float16: 1, ml_dtypes.bfloat16: 32}[dense]
    assert keys_of(gguf_in(tmp_path))["general.file_type"] == expected


def test_an_untied_model_of_mixed_types_runs_in_llama_cpp(rng, tmp_path):
    model = llama(tie_word_embeddings=False)
    export = solved(
        model, rng, [Grid(8, 32), Grid(4, 64), Grid(5, 32, "offset"), None], dense=np.float16
    )
    assert divergence_in_llama_cpp(model, export, rng, tmp_path) < 0.01
    assert "output.weight" in {tensor.name for tensor in gguf.GGUFReader(gguf_in(tmp_path)).tensors}


def test_a_tied_model_has_no_output_tensor(rng, tmp_path):
    GgufExporter().write(solved(llama(), rng, [Grid(4, 32)]), tmp_path)
    assert "output.weight" not in {
        tensor.name for tensor in gguf.GGUFReader(gguf_in(tmp_path)).tensors
    }


def test_biases_of_a_llama_are_reordered_with_the_rows_of_their_weights(rng, tmp_path):
    model = llama(attention_bias=True)
    assert divergence_in_llama_cpp(model, solved(model, rng, [None]), rng, tmp_path) < NEARLY_EQUAL


def test_heads_wider_than_hidden_size_over_heads_run_in_llama_cpp(rng, tmp_path):
    model = llama(head_dim=32)
    assert divergence_in_llama_cpp(model, solved(model, rng, [None]), rng, tmp_path) < NEARLY_EQUAL
    assert keys_of(gguf_in(tmp_path))["llama.attention.key_length"] == 32


def test_stretched_rotary_frequencies_of_llama_3_run_in_llama_cpp(rng, tmp_path):
    model = llama(rope_parameters=LLAMA_3_ROPE)
    export = solved(model, rng, [None])
    assert divergence_in_llama_cpp(model, export, rng, tmp_path) < NEARLY_EQUAL
    factors = next(
        t for t in gguf.GGUFReader(gguf_in(tmp_path)).tensors if t.name == "rope_freqs.weight"
    )
    stretched = 500.0 ** (-np.arange(0, 16, 2) / 16) / factors.data
    np.testing.assert_allclose(stretched, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert factors.data.min() == 1.0 < factors.data.max() == 8.0


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_linear_scaling_runs_in_llama_cpp(rng, tmp_path, kind):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    settings = {key: value for key, value in TINY.items() if key != "head_dim"}
    settings |= {"rope_parameters": rope}
    model = llama(**settings)
    if kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    export = solved(model, rng, [None], kind={"llama": "smollm"}.get(kind, kind))
    assert divergence_in_llama_cpp(model, export, rng, tmp_path) < NEARLY_EQUAL
    keys = keys_of(gguf_in(tmp_path))
    scaling = keys[f"{kind}.rope.scaling.type"], keys[f"{kind}.rope.scaling.factor"]
    assert scaling == ("linear", 4.0)


def test_rope_settings_at_the_top_of_the_config_are_the_same_file(rng, tmp_path):
    nested = solved(llama(rope_parameters=LLAMA_3_ROPE), rng, [Grid(4, 32)])
    scaling = {key: value for key, value in LLAMA_3_ROPE.items() if key != "rope_theta"}
    top = {key: value for key, value in nested.config.items() if key != "rope_parameters"}
    flat = dataclasses.replace(nested, config=top | {"rope_theta": 500.0, "rope_scaling": scaling})
    for name, model in (("nested", nested), ("flat", flat)):
        (tmp_path / name).mkdir()
        GgufExporter().write(model, tmp_path / name)
    assert gguf_in(tmp_path / "nested").read_bytes() == gguf_in(tmp_path / "flat").read_bytes()


def test_mistral_runs_in_llama_cpp_as_a_llama(rng, tmp_path):
    model = MistralForCausalLM(MistralConfig(**TINY))
    assert divergence_in_llama_cpp(model, solved(model, rng, [Grid(4, 32)]), rng, tmp_path) < 0.01
    assert keys_of(gguf_in(tmp_path))["general.architecture"] == "llama"


@pytest.mark.parametrize("grid", [None, Grid(4, 32)])
def test_qwen2_runs_in_llama_cpp_with_its_biases(rng, tmp_path, grid):
    settings = {key: value for key, value in TINY.items() if key != "head_dim"}
    model = Qwen2ForCausalLM(Qwen2Config(**settings))
    export = solved(model, rng, [grid], kind="qwen2")
    assert divergence_in_llama_cpp(model, export, rng, tmp_path) < (
        NEARLY_EQUAL if grid is None else 0.01
    )
    assert keys_of(gguf_in(tmp_path))["general.architecture"] == "qwen2"


def test_keys_describe_the_model(rng, tmp_path):
    GgufExporter().write(solved(llama(), rng, [Grid(8, 32), Grid(4, 32), Grid(4, 32)]), tmp_path)
    keys = keys_of(gguf_in(tmp_path))
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": VOCAB_SIZE,
    }
    assert {key: keys[key] for key in expected} == expected
    assert keys["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert "llama.attention.key_length" not in keys


def test_the_manifest_tells_what_became_of_each_tensor(rng, tmp_path):
    grids = [Grid(4, 32), Grid(3, 64), Grid(4, 32, "integer"), Grid(5, None, "offset"), None]
    model = solved(llama(), rng, grids)
    files = GgufExporter().write(model, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    content, entries = manifest_of(tmp_path)
    assert (content["format"], content["file"]) == ("gguf", gguf_in(tmp_path).name)
    assert set(entries) == set(model.tensor_names())
    expected = {4: "exact", 3: "widened", 5: "exact"}
    for name, layer in model.layers.items():
        status = "rescaled" if layer.grid.zeros == "integer" else expected[layer.grid.bits]
        assert entries[name]["status"] == status
        assert (entries[name]["largest_deviation"] > 0) == (status == "rescaled")
        assert (entries[name]["bits"], entries[name]["group_size"]) == (
            layer.grid.bits,
            layer.grid.group_size,
        )
    assert all(entries[name]["status"] == "dense" for name in model.arrays)


def test_the_manifest_hashes_the_solution_in_the_row_order_of_the_checkpoint(rng, tmp_path):
    model = solved(llama(), rng, [Grid(3, 64)])
    GgufExporter().write(model, tmp_path)
    _, entries = manifest_of(tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    layer = model.layers[name]
    content = (
        layer.codes.tobytes()
        + layer.scales.astype("<f4").tobytes()
        + layer.offsets.astype("<f4").tobytes()
    )
    assert entries[name]["sha256"] == hashlib.sha256(content).hexdigest()
    assert entries[name]["name"] == "blk.1.attn_q.weight"


def test_the_same_model_gives_the_same_bytes(rng, tmp_path):
    model = solved(llama(), rng, [Grid(4, 32), Grid(8, 32)])
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        model.layers = dict(reversed(model.layers.items()))
        GgufExporter().write(model, tmp_path / name)
    for file in (gguf_in(tmp_path / "first").name, "manifest.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def refused(model, tmp_path):
    """The one line of a refusal, which leaves nothing behind and is known before any tensor is
    solved.
    """
    with pytest.raises(BadInput) as refusal:
        GgufExporter().write(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    text = str(refusal.value)
    assert "\n" not in text
    shapes = {name: (layer.codes.shape, layer.grid) for name, layer in model.layers.items()}
    shapes |= {name: (array.shape, None) for name, array in model.arrays.items()}
    assert (
        text == f"export 'gguf': {GgufExporter().reject_reason(model.record, model.files, shapes)}"
    )
    return text


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(4, 48), "group_size 48 is not a multiple of 32"),
        (Grid(8, 32, "integer"), "no 8-bit block with offsets"),
        (Grid(7, 32, "offset"), "no 7-bit block with offsets"),
    ],
)
def test_a_grid_without_a_block_type_is_refused_before_a_byte_is_written(
    rng, tmp_path, grid, words
):
    text = refused(solved(llama(), rng, [grid]), tmp_path)
    assert words in text and "tensor 'model." in text


def test_columns_that_do_not_fill_blocks_are_kept_dense_in_float16(rng, tmp_path):
    torch_model = llama(intermediate_size=80)
    model = solved(torch_model, rng, [Grid(4, 32)])
    assert divergence_in_llama_cpp(torch_model, model, rng, tmp_path) < 0.01
    entry = manifest_of(tmp_path)[1]["model.layers.0.mlp.down_proj.weight"]
    assert (entry["type"], entry["status"], entry["bits"]) == ("F16", "dense", None)
    assert entry["from"].startswith("4 bits") and 0 < entry["largest_deviation"] < 1e-3
    assert verify(tmp_path)["differences"] == []
    [note] = GgufExporter().notes(model.record, model.files, {})
    assert "layers of 80 inputs, such as model.layers.0.mlp.down_proj" in note and "float16" in note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        (
            {"max_position_embeddings": None, "rms_norm_eps": None},
            "config.json lacks max_position_embeddings, rms_norm_eps, which GGUF needs",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope type 'dynamic' of a llama model",
        ),
        (
            {"partial_rotary_factor": 0.5},
            "rotary embedding of a part of each head of a llama model",
        ),
        (
            {"model_type": "qwen2", "rope_parameters": LLAMA_3_ROPE},
            "rope type 'llama3' of a qwen2 model",
        ),
    ],
)
def test_models_that_llama_cpp_would_compute_differently_are_refused_by_name(
    rng, tmp_path, changes, words
):
    model = solved(llama(), rng, [Grid(4, 32)])
    assert words in refused(
        dataclasses.replace(model, config=dict(model.config) | changes), tmp_path
    )


def test_a_tensor_without_a_place_is_refused_by_name(rng, tmp_path):
    model = solved(llama(), rng, [None])
    model.arrays["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    assert "tensor 'model.layers.0.self_attn.q_norm.weight' has no place" in refused(
        model, tmp_path
    )


def test_rotary_tables_of_older_checkpoints_are_left_out(rng, tmp_path):
    model = solved(llama(), rng, [None])
    model.arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    GgufExporter().write(model, tmp_path)
    assert not any("rotary" in entry["source"] for entry in manifest_of(tmp_path)[0]["tensors"])


def test_a_failure_while_writing_leaves_no_file_behind(rng, tmp_path):
    model = solved(llama(), rng, [Grid(4, 32, "symmetric", "float32")])
    name = "model.layers.1.mlp.down_proj.weight"
    huge = model.layers[name]
    model.layers[name] = dataclasses.replace(
        huge, scales=huge.scales * 1e9, offsets=huge.offsets * 1e9
    )
    with pytest.raises(BadInput, match="exceeds float16"):
        GgufExporter().write(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
