"""Descriptions made from the empty model: against the families' own, and against files."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from edgeq.architectures.families import families
from edgeq.architectures.record import read_record
from edgeq.errors import BadInput, UnsupportedModel
from edgeq_backends.torch.structure import describe

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LAYERS = {"layer_types": ["linear_attention", "full_attention"]}


OPTIONS = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 48},
    "tied": {"tie_word_embeddings": True},
}
KEYS_OF_THEIR_OWN = ("bloom", "falcon", "gpt2", "gpt_neox")
PLAIN = [kind for kind in families() if kind not in KEYS_OF_THEIR_OWN]
NO_OTHER_HEADS = ("helium", "olmoe", "stablelm", "phi")
"""Families whose model takes heads of one size only: hidden size / heads."""


@pytest.mark.parametrize("model_type", PLAIN)
@pytest.mark.parametrize(
    "option",
    ["plain", *(pytest.param(each, marks=pytest.mark.slow) for each in OPTIONS if each != "plain")],
)
def test_a_family_is_described_as_its_model_is(model_type, option):
    if option == "head_dim" and model_type in NO_OTHER_HEADS:
        pytest.skip(f"transformers' {model_type} has no heads of another size")
    config = {**SIZES, "head_dim": 32, "pad_token_id": 0, **OPTIONS[option]}
    config |= {"model_type": model_type, "num_experts": 3, "num_local_experts": 3}
    config |= {"num_experts_per_tok": 2}
    declared, derived = families()[model_type](config), describe(config)
    assert derived.tensor_shapes() == declared.tensor_shapes()
    for ours, theirs in zip(derived.layers, declared.layers, strict=True):
        assert ours.sites == theirs.sites
    names = ("embedding", "head", "final_norm", "blocks", "tied_head", "hidden", "context")
    for name in (*names, "vocabulary"):
        assert getattr(derived, name) == getattr(declared, name), name
    if hasattr(transformers, declared.names.transformers):  # else checkpoints name it so
        assert derived.names.transformers == declared.names.transformers


OTHERS = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 96},
    "gpt_neox": {key: SIZES[key] for key in SIZES if key != "num_key_value_heads"},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 48, **SIZES},
    "apertus": SIZES,
    "mixtral": {**SIZES, "num_local_experts": 3},
    "gpt_oss": {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 32},
    "granitemoe": {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2_moe": {**SIZES, **MOE, "shared_expert_intermediate_size": 32},
    "qwen3_next": {**SIZES, **MOE, **LAYERS, "shared_expert_intermediate_size": 32},
    "mamba2": {**SIZES, "num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1},
    "nemotron_h": {
        **{key: SIZES[key] for key in SIZES if key != "num_hidden_layers"},
        "layers_block_type": ["mamba", "attention", "mlp"],
        "head_dim": 32,
        "ssm_state_size": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 1,
    },
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_tensors_are_those_that_transformers_saves(model_type, tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **OTHERS[model_type]))
    model.save_pretrained(tmp_path)
    decoder = describe(json.loads((tmp_path / "config.json").read_text()))
    with safe_open(tmp_path / "model.safetensors", "np") as stored:
        saved = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
    assert decoder.tensor_shapes() == saved
    for linear in decoder.linears():
        assert decoder.linear_of(linear.tensor).tensor == linear.tensor
        assert saved[linear.tensor] == linear.stored_shape
        assert linear.bias is None or saved[linear.bias] == linear.stored_bias


def test_layers_of_one_expert_stand_together_and_know_their_number():
    stacked = describe({"model_type": "gpt_oss", **OTHERS["gpt_oss"]}).layers[0]
    experts = [linear for linear in stacked.linears if linear.expert is not None]
    assert [linear.expert for linear in experts] == [0, 0, 1, 1, 2, 2]
    assert {linear.stored for linear in experts} == {(3, 64, 192), (3, 96, 64)}
    assert all(linear.transposed for linear in experts)
    apart = describe({"model_type": "mixtral", **OTHERS["mixtral"]}).layers[0]
    names = [[linear.name for linear in site] for site in apart.sites if site[0].expert == 1]
    prefix = "block_sparse_moe.experts.1"
    assert names == [[f"{prefix}.w1", f"{prefix}.w3"], [f"{prefix}.w2"]]


def test_what_decides_between_experts_is_no_layer_to_solve():
    layer = describe({"model_type": "qwen2_moe", **OTHERS["qwen2_moe"]}).layers[0]
    assert set(layer.others) == {"mlp.gate.weight", "mlp.shared_expert_gate.weight"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gemma9"}, "'gemma9' is not known to transformers .* did you mean gemma"),
        ({"model_type": "zzzz", "auto_map": {"AutoModel": "a.B"}}, "code .* is never run"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": "bert"}, "'bert' is no decoder"),
        ({"model_type": "t5"}, "'t5' is no decoder"),
        ({"model_type": "vit"}, "'vit' is no decoder"),
        ({"model_type": "gemma3"}, "'gemma3' holds a language model beside other parts"),
    ],
)
def test_models_that_are_no_decoders_of_transformers_are_refused_in_one_line(config, words):
    with pytest.raises(UnsupportedModel, match=words) as refusal:
        read_record("m", config)
    assert "\n" not in str(refusal.value)


def test_a_config_that_transformers_refuses_is_named():
    with pytest.raises(BadInput, match=r"config.json: transformers refuses it \(\w+"):
        read_record("m", {"model_type": "opt", "hidden_size": "wide"})


def test_describing_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    describe({"model_type": "gpt2", **OTHERS["gpt2"], "n_inner": 100})
    assert torch.equal(torch.rand(2), expected)
