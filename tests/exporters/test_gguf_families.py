"""Every kind of model in GGUF: read back, and in llama.cpp beside transformers, all in float32."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_export_gguf import divergence
from tiny_models import MemoryModel
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.architectures.models import make_checkpoint
from benchmarks.architectures.rows import ROWS, YARN
from edgeq.architectures.families import families
from edgeq.measuring.verify import verify
from edgeq.types import Grid, QuantizedLinear
from edgeq_backends.llama_cpp import LlamaCppLogits
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.gguf.tensors import why_not_tensors

BLOCKS, TABLES = Grid(4, 32), Grid(8, 32)
TOKENS = 100  # past the windows of all rows
CLOSE = 1e-6  # KL divergence; llama.cpp looks GELU up in a table of float16
SLIDING, FULL = "sliding_attention", "full_attention"
TWICE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
BY_KIND = {FULL: TWICE, SLIDING: {"rope_type": "default", "rope_theta": 1e4}}


def row(name, **changes):
    kind, settings = ROWS[name]
    return kind, {**settings, **changes}


VARIANTS = {
    "smollm3 of 4 blocks": row("smollm3", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0]),
    "qwen3_moe, weights of one": row("qwen3_moe", norm_topk_prob=True),
    "qwen3_moe head_dim 48": row("qwen3_moe", norm_topk_prob=True, head_dim=48),
    "qwen2_moe without biases": row("qwen2_moe", qkv_bias=False),
    "olmoe, a key head each": row("olmoe", num_key_value_heads=4),
    "mixtral window 32": row("mixtral", sliding_window=32),
    "exaone4 without windows": row("exaone4", sliding_window=None, layer_types=[FULL] * 2),
    "gemma2 of 5 blocks": row("gemma2", num_hidden_layers=5),
    "gemma2 without windows": row("gemma2", layer_types=[FULL] * 2),
    "gemma2, full first": row("gemma2", num_hidden_layers=3, layer_types=[FULL, SLIDING, SLIDING]),
    "gemma3 of 7 blocks": row(
        "gemma3_text", num_hidden_layers=7, layer_types=[SLIDING] * 5 + [FULL, SLIDING]
    ),
    "gemma3 without windows": row("gemma3_text", layer_types=[FULL] * 2),
    "gemma3, all slide": row("gemma3_text", layer_types=[SLIDING] * 2),
    "gemma3 rope linear": row("gemma3_text", rope_parameters=BY_KIND),
    "gemma3 untied": row("gemma3_text", tie_word_embeddings=False),
    "gemma3 head_dim 48": row("gemma3_text", head_dim=48, query_pre_attn_scalar=48),
    "cohere2 of 5 blocks": row(
        "cohere2", num_hidden_layers=5, layer_types=[*[SLIDING] * 3, FULL, SLIDING]
    ),
    "olmo3 rope yarn": row(
        "olmo3", num_hidden_layers=4, layer_types=[*[SLIDING] * 3, FULL], rope_parameters=YARN
    ),
    "llama rope yarn, attention_factor": row(
        "llama", rope_parameters=YARN | {"attention_factor": 0.9}
    ),
    "llama rope yarn, mscale": row(
        "llama", rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}
    ),
    "phi3, three quarters rotate": row("phi3 / phi-4-mini", partial_rotary_factor=0.75),
    "phi3 window 32": row("phi3 / phi-4-mini", sliding_window=32),
    "granite with biases": row("granite", attention_bias=True, mlp_bias=True),
    "falcon 7b": row("falcon", new_decoder_architecture=False),
    "falcon 2": row("falcon", num_ln_in_parallel_attn=1),
    "gpt_neox in sequence": row("gpt_neox", use_parallel_residual=False),
    "gpt2 untied": row("gpt2", tie_word_embeddings=False),
    "stablelm with biases": row("stablelm", use_qkv_bias=True),
    "internlm3 with biases": row("internlm3", qkv_bias=True, bias=True),
    "glm4 without biases": row("glm4", attention_bias=False),
}
"""Beside the rows: what configs of these families say otherwise, and real ones do."""
CHEAP = ["gemma3_text", "phi3 / phi-4-mini", "mixtral", "gpt_neox", "nemotron"]
REFUSED = {
    "llama rope dynamic": "rope type 'dynamic'",
    "llama gelu": "hidden_act 'gelu'",
    "qwen2 head_dim 48": "head_dim 48 of a qwen2 model",
    "smollm3": "block 1 of a smollm3 model rotates in llama.cpp",
    "exaone4": "block 1 of a exaone4 model rotates in llama.cpp",
    "qwen3_moe": "expert weights that do not sum to one",
    "olmoe": "num_key_value_heads 2: llama.cpp's olmoe has a key head for each of the 4 heads",
    "helium": "model_type 'helium' is not supported",
}
"""Rows of described families that llama.cpp computes otherwise, and what is said."""
OTHERS_REFUSED = {
    "head": (row("olmo2", tie_word_embeddings=True), "the head of this olmo2 model is its embed"),
    "no head": (row("gemma", tie_word_embeddings=False), "this gemma model has a head of its own"),
    "scale": (row("gemma2", query_pre_attn_scalar=64), "query_pre_attn_scalar 64: llama.cpp div"),
    "experts": (row("qwen2_moe", norm_topk_prob=True), "norm_topk_prob: in llama.cpp the weights"),
    "some experts": (row("qwen2_moe", decoder_sparse_step=2), "experts in some blocks only"),
    "order": (
        row("gemma3_text", num_hidden_layers=3, layer_types=[FULL, SLIDING, SLIDING]),
        "slide or rotate in an order",
    ),
    "all slide": (
        row("cohere2", layer_types=[SLIDING] * 2),
        "all blocks of this cohere2 model slide",
    ),
    "none slides": (row("cohere2", layer_types=[FULL] * 2), "all blocks of this cohere2 model"),
    "no biases": (row("starcoder2", use_bias=False), "self_attn.q_proj has no bias"),
    "no biases, fused": (row("gpt_neox", attention_bias=False), "query_key_value has no bias"),
    "yarn": (row("llama", rope_parameters=YARN | {"beta_slow": 2.0}), "beta_slow 2.0 of rope type"),
    "heads": (row("nemotron", head_dim=48), "head_dim 48 of a nemotron model"),
}


def rounded(weights, grid):
    """Round to the nearest point of a symmetric grid whose scale is that of the largest weight."""
    groups = grid.group_index(weights.shape[1])
    largest = [np.abs(weights[:, groups == g]).max(1) for g in range(grid.group_count(len(groups)))]
    scales = (np.stack(largest, 1) / (grid.middle - 1)).astype(np.float16).astype(np.float32)
    codes = np.rint(weights / scales[:, groups]) + grid.middle
    codes = np.clip(codes, 0, grid.max_code).astype(np.uint8)
    return QuantizedLinear(codes, scales, -scales * np.float32(grid.middle), grid)


def solve(folder):
    """Round a checkpoint's linear layers, embedding and head without solving."""
    files = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    model = MemoryModel(
        json.loads((folder / "config.json").read_text()),
        files={name: (folder / name).read_bytes() for name in files if (folder / name).exists()},
    )
    decoder = model.record.decoder
    linears = {linear.tensor: linear for linear in decoder.linears()}
    for name, stored in load_file(folder / "model.safetensors").items():
        weights = stored.astype(np.float32)
        if name in linears:
            turned = weights.T if linears[name].transposed else weights
            model.layers[name] = rounded(turned, BLOCKS)
        elif name in (decoder.embedding, decoder.head):
            model.layers[name] = rounded(weights, TABLES)
        else:
            model.arrays[name] = stored
    return model


def checkpoint_weights(model):
    """All weights in float32 as the checkpoint has them, quantized ones as their codes say."""
    turned = {linear.tensor for linear in model.record.decoder.linears() if linear.transposed}
    return {
        name: np.ascontiguousarray(array.T if name in turned else array)
        for name, array in model.weights().items()
    }


def predicted(model, folder, ids):
    """Predict with transformers, from a checkpoint of the dequantized weights."""
    (folder / "config.json").write_text(json.dumps(dict(model.config)))
    weights = checkpoint_weights(model)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    original = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return original.eval()(torch.from_numpy(ids), use_cache=False).logits.numpy()


def check_export(described, folder):
    """Export a tiny model; its file is read back exactly and predicts like transformers."""
    for part in ("checkpoint", "dequantized", "gguf"):
        (folder / part).mkdir()
    kind, settings = described
    make_checkpoint(kind, settings, folder / "checkpoint")
    model = solve(folder / "checkpoint")
    file, *_ = GgufExporter().write(model, folder / "gguf")
    found = verify(folder / "gguf")
    assert found["differences"] == []
    assert set(found["statuses"]) <= {"exact", "dense"}
    logits = LlamaCppLogits(file, exact=True)
    tokens = min(TOKENS, logits.context)
    ids = np.random.default_rng(0).integers(3, 290, (2, tokens))
    reference = predicted(model, folder / "dequantized", ids)
    assert np.ptp(reference) > 1  # else anything would be close
    assert divergence(reference, logits.logits(ids)) < CLOSE


def refusal(kind, settings):
    """Say why a model is not written, before its weights are there."""
    config = AutoConfig.for_model(kind, **settings)
    model = MemoryModel(config.to_dict() | {"dtype": "float32"})
    shapes = model.record.decoder.tensor_shapes()
    dense = {name: (shape, None) for name, shape in shapes.items()}
    return GgufExporter().reject_reason(model.record, {}, dense)


@pytest.mark.parametrize("name", CHEAP)
def test_a_family_is_read_back_and_predicts_like_transformers(tmp_path, name):
    check_export(ROWS[name], tmp_path)


WRITTEN = [name for name, (kind, _) in ROWS.items() if kind in families() and name not in REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in CHEAP])
def test_every_row_is_read_back_and_predicts_like_transformers(tmp_path, name):
    check_export(ROWS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_what_configs_say_otherwise_is_computed_too(tmp_path, name):
    check_export(VARIANTS[name], tmp_path)


def test_enough_rows_are_written():
    assert len(WRITTEN) >= 45


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_llama_cpp_computes_otherwise_is_refused_by_the_feature(name):
    reason = refusal(*ROWS[name])
    assert REFUSED[name] in reason and "\n" not in reason


@pytest.mark.parametrize("name", OTHERS_REFUSED)
def test_a_habit_of_llama_cpp_that_a_model_does_not_share_is_refused(name):
    (kind, settings), words = OTHERS_REFUSED[name]
    reason = refusal(kind, settings)
    assert words in reason and "\n" not in reason and "another" in reason


def test_experts_on_other_grids_are_refused_by_name():
    config = AutoConfig.for_model("mixtral", **ROWS["mixtral"][1])
    decoder = MemoryModel(config.to_dict() | {"dtype": "float32"}).record.decoder
    solved = {
        linear.tensor: Grid(5, 32) if linear.expert == 2 else BLOCKS for linear in decoder.linears()
    }
    shapes = decoder.tensor_shapes()
    reason = why_not_tensors(
        decoder, {name: (shape, solved.get(name)) for name, shape in shapes.items()}
    )
    assert "the experts of 'blk.0.ffn_down_exps.weight' lie on other grids" in reason


def test_the_manifest_has_each_expert_by_its_number(tmp_path):
    kind, settings = ROWS["mixtral"]
    make_checkpoint(kind, settings, tmp_path)
    model = solve(tmp_path)
    export = tmp_path / "gguf"
    export.mkdir()
    GgufExporter().write(model, export)
    entries = json.loads((export / "manifest.json").read_text())["tensors"]
    by_source = {entry["source"]: entry for entry in entries}
    assert set(by_source) == set(model.tensor_names())
    entry = by_source["model.layers.1.block_sparse_moe.experts.3.w3.weight"]
    assert (entry["name"], entry["status"]) == ("blk.1.ffn_up_exps.weight[3]", "exact")
