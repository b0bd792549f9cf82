"""GGUF files of every architecture that is read, beside the checkpoints they were converted from.

Each is written as llama.cpp's converter does. transformers computes what the rebuilt config says;
its own reader of GGUF and llama.cpp are asked too, where they know the architecture.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from converted_gguf import CONVERSIONS, checkpoint_of, convert, tiny_model
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from edgeq.sources.gguf_config import FAMILIES
from edgeq.sources.gguf_file import GgufFile
from edgeq_backends.llama_cpp import LlamaCppLogits

TOKENS = np.arange(3, 51)[None] * 37 % 96


def opened(name, folder, **changes):
    conversion = CONVERSIONS[name]
    model = tiny_model(conversion)
    return model, GgufFile(convert(conversion, model, folder / "model.gguf", **changes))


def rebuilt(source, folder):
    """What transformers makes of a source's config and tensors."""
    (folder / "config.json").write_text(json.dumps(source.record.config()))
    weights = {name: np.ascontiguousarray(source.read(name)) for name in source.tensor_names()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def test_every_architecture_has_a_conversion():
    assert {conversion.architecture for conversion in CONVERSIONS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_converted_model_is_the_checkpoint_again(tmp_path, name):
    model, source = opened(name, tmp_path)
    expected = checkpoint_of(model)
    assert set(source.tensor_names()) == set(expected)
    for tensor, array in expected.items():
        # a norm that was written plus one has lost bits beyond those of 1
        np.testing.assert_allclose(source.read(tensor), array, rtol=0, atol=2e-7, err_msg=tensor)
    np.testing.assert_allclose(logits(rebuilt(source, tmp_path)), logits(model), rtol=0, atol=1e-5)


# llama.cpp looks values of this function up in float16
ROUNDED = ("gemma", "gemma2", "gemma3", "starcoder2", "phi2")
LONG = "phi3, long"  # where it takes the factors of long contexts for any text that may be long
FOR_OTHER_SIZES = ("exaone4, windows",)  # it knows windows by 64 blocks, and ignores them here


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONVERSIONS if name not in FOR_OTHER_SIZES])
def test_llama_cpp_predicts_what_transformers_does_with_the_source(tmp_path, name):
    _, source = opened(name, tmp_path)
    tokens = TOKENS if name == LONG else TOKENS[:, :24]  # within all windows
    found = np.stack(list(LlamaCppLogits(source.path, exact=True).logits(tokens)))
    expected = logits(rebuilt(source, tmp_path), tokens)
    tolerance = 3e-3 if name in ROUNDED else 2e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.slow
def test_llama_cpp_multiplies_what_a_file_states_of_yarn_by_its_own(tmp_path):
    _, source = opened("qwen2, yarn", tmp_path, **{"rope.scaling.attn_factor": 1.25})
    assert source.record.config()["rope_scaling"]["attention_factor"] == pytest.approx(1.4233, 1e-4)
    found = np.stack(list(LlamaCppLogits(source.path, exact=True).logits(TOKENS)))
    expected = logits(rebuilt(source, tmp_path))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo3", "cohere2"])
def test_llama_cpp_slides_where_the_config_says_so(tmp_path, name):
    _, source = opened(name, tmp_path)
    assert source.record.decoder.window == 32
    found = np.stack(list(LlamaCppLogits(source.path, exact=True).logits(TOKENS)))
    expected = logits(rebuilt(source, tmp_path))
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "qwen3"])
def test_a_gemma_is_computed_in_a_type_with_the_range_of_its_activations(tmp_path, name):
    _, source = opened(name, tmp_path)
    assert source.record.dtype == ("float16" if name == "qwen3" else "bfloat16")


# with sizes that it takes for granted because it does not read them
KNOWN_TO_TRANSFORMERS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma2": {},
    "gemma3": {},
    "phi3": {},
    "qwen2_moe": {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    "qwen3_moe": {"moe_intermediate_size": 768},
    "stablelm": {},
    "nemotron": {},
}


def one_by_one(weights):
    """The tensors of a checkpoint, of stacks of experts that transformers keeps in memory."""
    found = {}
    for name, array in weights.items():
        before, _, kind = name.partition(".experts.")
        for number, expert in enumerate(array if kind else ()):
            halves = zip(("gate", "up"), np.split(expert, 2), strict=True)
            parts = dict(halves) if kind == "gate_up_proj" else {"down": expert}
            for part, values in parts.items():
                found[f"{before}.experts.{number}.{part}_proj.weight"] = values
        if not kind:
            found[name] = array
    return found


@pytest.mark.parametrize("name", KNOWN_TO_TRANSFORMERS)
def test_transformers_reads_the_same_weights_from_the_file(tmp_path, name):
    conversion = CONVERSIONS[name]
    model = tiny_model(conversion, **KNOWN_TO_TRANSFORMERS[name])
    source = GgufFile(convert(conversion, model, tmp_path / "model.gguf"))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    expected = one_by_one(checkpoint_of(theirs))
    assert set(source.tensor_names()) == set(expected)
    for tensor, array in expected.items():
        np.testing.assert_array_equal(source.read(tensor), array, err_msg=tensor)
