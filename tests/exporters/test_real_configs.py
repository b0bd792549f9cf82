"""Facts of well-known models, found again in every export by the format's own library."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
from exported_files import gguf_in
from mlx_lm.utils import load_config
from onnx import numpy_helper
from real_configs import CONFIGS, END, GENERATION, MESSAGE, SMALL, TURN, files_of
from safetensors import safe_open
from tiny_models import MemoryModel, random_layer
from transformers import AutoConfig, GenerationConfig

from edgeq.registry import load_exporter
from edgeq.types import Grid

WINDOW = {"Mistral-7B-v0.1": 4096}
MORE_ENDS = {
    "Meta-Llama-3-8B-Instruct": {END, TURN},
    "Llama-3.1-8B-Instruct": {END, TURN, MESSAGE},
    "Qwen2-0.5B-Instruct": {END, TURN},
    "Qwen3-0.6B": {END, TURN},
}


def facts(name):
    """What the family's own files say, written down from them."""
    config = CONFIGS[name]
    nested: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    stated = config["eos_token_id"]
    return {
        "theta": float(nested.get("rope_theta", config.get("rope_theta", 10000.0))),
        "kind": nested.get("rope_type", nested.get("type", "default")),
        "factor": nested.get("factor"),
        "epsilon": config["rms_norm_eps"],
        "context": config["max_position_embeddings"],
        "heads": (4, config["num_key_value_heads"], config.get("head_dim") or 16),
        "tied": config["tie_word_embeddings"],
        "ends": MORE_ENDS.get(name) or {stated},
        "dtype": config.get("dtype") or config.get("torch_dtype"),
    }


def solved(name, rng):
    config = SMALL | CONFIGS[name]
    model = MemoryModel(config, files=files_of(name), name=name)
    decoder = model.record.decoder
    packed = {linear.tensor for linear in decoder.linears()}
    scale_dtype = facts(name)["dtype"]
    for tensor, shape in decoder.tensor_shapes().items():
        if tensor in packed:
            grid = Grid(4, 32, "symmetric", scale_dtype)
            model.layers[tensor] = random_layer(rng, shape, grid, size=0.3)
        else:
            model.arrays[tensor] = rng.standard_normal(shape).astype(np.float32)
    return model


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def folder(name, rng, tmp_path):
    def export(format_name):
        load_exporter(format_name).write(solved(name, rng), tmp_path)
        return tmp_path

    return export


def listed(ids):
    return set(ids if isinstance(ids, list) else [ids])


def dense_dtypes(folder):
    with safe_open(folder / "model.safetensors", "np") as file:
        slices = {key: file.get_slice(key).get_dtype() for key in file.keys()}
    return {slices[key] for key in slices if "norm" in key or "scale" in key or "embed" in key}


STORED = {"float16": "F16", "bfloat16": "BF16"}


def test_gguf_says_what_the_source_says(name, folder):
    reader = gguf.GGUFReader(gguf_in(folder("gguf")))
    keys = {key: field.contents() for key, field in reader.fields.items()}
    expected = facts(name)
    arch = keys["general.architecture"]
    heads, key_heads, size = expected["heads"]
    assert keys[f"{arch}.rope.freq_base"] == expected["theta"]
    assert np.float32(expected["epsilon"]) == keys[f"{arch}.attention.layer_norm_rms_epsilon"]
    assert keys[f"{arch}.context_length"] == WINDOW.get(name, expected["context"])
    assert keys[f"{arch}.attention.head_count"] == heads
    assert keys[f"{arch}.attention.head_count_kv"] == key_heads
    assert keys[f"{arch}.rope.dimension_count"] == size
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert ("output.weight" not in tensors) == expected["tied"]
    assert keys.get(f"{arch}.rope.scaling.type", "none") == (
        "linear" if expected["kind"] == "linear" else "none"
    )
    if expected["kind"] == "linear":
        assert keys[f"{arch}.rope.scaling.factor"] == expected["factor"]
    assert ("rope_freqs.weight" in tensors) == (expected["kind"] == "llama3")
    if expected["kind"] == "llama3":
        assert tensors["rope_freqs.weight"].data.max() == expected["factor"]
    # <|im_end|> has a name that llama.cpp knows
    keyed = {keys.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")}
    known = {TURN} & expected["ends"]
    assert (keyed | known) - {None} == expected["ends"]
    assert keys.get("tokenizer.ggml.bos_token_id") == CONFIGS[name]["bos_token_id"]
    assert keys["general.name"] == name


def check_config(name, config, *, context=None):
    """Compare a config that a library reads with the facts."""
    expected = facts(name)
    heads, key_heads, size = expected["heads"]
    assert config["rms_norm_eps"] == expected["epsilon"]
    assert config["max_position_embeddings"] == (context or expected["context"])
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (heads, key_heads)
    assert (config.get("head_dim") or 64 // heads) == size
    assert config["tie_word_embeddings"] == expected["tied"]
    assert listed(config["eos_token_id"]) == expected["ends"]


def test_mlx_says_what_the_source_says(name, folder):
    written = folder("mlx")
    config = load_config(Path(written))
    expected = facts(name)
    check_config(name, config, context=WINDOW.get(name))
    assert config["rope_theta"] == expected["theta"]
    scaling = config["rope_scaling"] or {}
    assert (scaling.get("rope_type", "default"), scaling.get("factor")) == (
        expected["kind"],
        expected["factor"],
    )
    assert dense_dtypes(written) == {STORED[expected["dtype"]]}


@pytest.mark.parametrize("format_name", ["gptq", "compressed-tensors"])
def test_transformers_reads_what_the_source_says(name, folder, format_name):
    written = folder(format_name)
    config = AutoConfig.from_pretrained(written)
    expected = facts(name)
    check_config(name, config.to_dict())
    rope = config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"]) == (expected["theta"], expected["kind"])
    assert rope.get("factor") == expected["factor"]
    assert str(config.dtype).removeprefix("torch.") == expected["dtype"]
    found = {"F16"} if format_name == "gptq" else set()  # in which GPTQ holds scales
    assert dense_dtypes(written) | found == {STORED[expected["dtype"]]} | found
    generation = GenerationConfig.from_pretrained(written)
    assert listed(generation.eos_token_id) == expected["ends"]
    if config.model_type == "mistral":
        assert config.sliding_window == CONFIGS[name]["sliding_window"]


def test_onnx_says_what_the_source_says(name, folder, monkeypatch):
    # tables of every position are large: the first ones hold the same facts
    monkeypatch.setitem(CONFIGS[name], "max_position_embeddings", 8192)
    written = folder("onnx")
    settings = json.loads((written / "genai_config.json").read_text())["model"]
    expected = facts(name)
    heads, key_heads, size = expected["heads"]
    assert settings["context_length"] == expected["context"]
    assert settings["decoder"]["num_attention_heads"] == heads
    assert settings["decoder"]["num_key_value_heads"] == key_heads
    assert settings["decoder"]["head_size"] == size
    assert listed(settings["eos_token_id"]) == expected["ends"]
    assert settings.get("bos_token_id") == CONFIGS[name]["bos_token_id"]
    graph = onnx.load(str(written / "model.onnx"))
    tensors = {each.name: each for each in graph.graph.initializer}
    assert ("lm_head.weight" in tensors) != expected["tied"]
    cosines = numpy_helper.to_array(tensors["cos_cache"], str(written))
    turns = transformers_frequencies(name)
    np.testing.assert_allclose(cosines[1], np.cos(turns), atol=1e-6)
    np.testing.assert_allclose(cosines[2000], np.cos(2000 * turns), atol=1e-3)
    norms = [node for node in graph.graph.node if "LayerNormalization" in node.op_type]
    epsilons = {a.f for node in norms for a in node.attribute if a.name == "epsilon"}
    assert epsilons == {np.float32(expected["epsilon"])}
    attention = next(node for node in graph.graph.node if node.op_type == "GroupQueryAttention")
    window = {a.name: a.i for a in attention.attribute}.get("local_window_size", -1)
    assert window == WINDOW.get(name, -1)


def transformers_frequencies(name):
    """Radians per token as transformers computes them."""
    from transformers.models.llama.modeling_llama import (  # noqa: PLC0415
        LlamaConfig,
        LlamaRotaryEmbedding,
    )

    config = {**SMALL, **CONFIGS[name], "model_type": "llama"}
    return LlamaRotaryEmbedding(LlamaConfig(**config)).inv_freq.numpy()


def test_the_table_has_both_kinds_of_everything():
    configs = CONFIGS.values()
    assert len(configs) == 12
    assert {config["tie_word_embeddings"] for config in configs} == {True, False}
    assert {config.get("torch_dtype", config.get("dtype")) for config in configs} == {
        "float16",
        "bfloat16",
    }
    assert any("rope_parameters" in config for config in configs)
    assert any(config.get("rope_scaling", 0) is None for config in configs)
    assert any("rope_scaling" not in config for config in configs)
    assert any(isinstance(config["eos_token_id"], list) for config in configs)
    assert set(GENERATION) <= set(CONFIGS)
