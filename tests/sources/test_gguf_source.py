from functools import cache, partial

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgeq.architectures.rope import llama3_factors
from edgeq.decoder import Rope
from edgeq.errors import BadInput, EdgeqError, UnsupportedModel
from edgeq.sources import open_source
from edgeq.sources.gguf_file import GgufFile
from edgeq.sources.reading import read_tensor

QUERY = "model.layers.0.self_attn.q_proj.weight"


def refusal(path, kind=BadInput):
    with pytest.raises(kind) as caught:
        GgufFile(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def model_of(source):
    """A transformers model with the source's config and tensors."""
    model = LlamaForCausalLM(LlamaConfig(**source.record.config())).float().eval()
    state = {
        name: torch.from_numpy(source.read(name).astype(np.float32))
        for name in source.tensor_names()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if source.record.config()["tie_word_embeddings"] else [])
    model.tie_weights()
    return model


@pytest.fixture
def tiny_gguf(make_gguf, tiny_metadata, tiny_tensors):
    return partial(make_gguf, tiny_metadata, tiny_tensors)


@pytest.fixture(scope="module")
def demo():
    return open_source("demo")


@pytest.fixture(scope="module")
def demo_in_transformers(demo):
    with pytest.MonkeyPatch.context() as patched:  # it makes this table again for each tensor
        patched.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        return AutoModelForCausalLM.from_pretrained(
            demo.path.parent, gguf_file=demo.path.name, dtype=torch.float32
        ).eval()


@pytest.mark.slow  # transformers takes a quarter of a minute to read the demo
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        *(
            f"model.layers.{block}.self_attn.{kind}_proj.weight"
            for block in (0, 29)
            for kind in "qkvo"
        ),
        *(f"model.layers.29.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")),
    ],
)
def test_demo_tensors_equal_those_of_transformers(demo, demo_in_transformers, name):
    expected = demo_in_transformers.state_dict()[name].numpy()
    assert demo.shape(name) == expected.shape
    np.testing.assert_array_equal(demo.read(name), expected)


@pytest.mark.slow
def test_demo_config_and_tensors_give_the_logits_of_transformers(demo, demo_in_transformers):
    tokens = torch.arange(100, 3000, 60)[None]
    with torch.no_grad():
        expected = demo_in_transformers(tokens).logits
        torch.testing.assert_close(model_of(demo)(tokens).logits, expected, rtol=0, atol=1e-3)


def test_the_demo_has_a_name_and_all_blocks(demo):
    assert demo.record.name == "SmolLM2-135M-Instruct"
    assert [block.index for block in demo.blocks()] == list(range(30))
    assert demo.record.config()["rms_norm_eps"] == 1e-5
    assert demo.record.config()["tie_word_embeddings"] is True


def test_a_file_has_the_same_fingerprint_when_it_is_opened_again(tiny_gguf):
    path = tiny_gguf()
    assert GgufFile(path).fingerprint() == GgufFile(path).fingerprint()


def test_a_converted_model_gives_its_own_logits_again(
    make_gguf, tiny_metadata, tiny_tensors, tiny_llama
):
    source = GgufFile(make_gguf(tiny_metadata, tiny_tensors))
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model_of(source)(tokens).logits, tiny_llama(tokens).logits)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F16, np.float16),
        (GGMLQuantizationType.BF16, ml_dtypes.bfloat16),
        (GGMLQuantizationType.Q8_0, np.float32),
        (GGMLQuantizationType.Q4_0, np.float32),
    ],
)
def test_rows_are_restored_whatever_the_type(tiny_gguf, tiny_llama, kind, dtype):
    source = GgufFile(tiny_gguf(types={"blk.0.attn_q.weight": kind}))
    weights = source.read(QUERY)
    assert weights.dtype == dtype
    # Every type is within half a step of 4 bits, and no two rows of random weights are that close.
    expected = tiny_llama.state_dict()[QUERY].numpy()
    np.testing.assert_allclose(
        weights.astype(np.float32), expected, atol=np.abs(expected).max() / 7
    )


def test_float64_becomes_float32(make_gguf, tiny_metadata, tiny_tensors):
    norm = np.linspace(0, 1, 64)
    source = GgufFile(make_gguf(tiny_metadata, tiny_tensors | {"output_norm.weight": norm}))
    np.testing.assert_array_equal(source.read("model.norm.weight"), norm.astype(np.float32))


@pytest.mark.filterwarnings("error")
def test_scales_that_overflow_are_read_without_a_warning(make_gguf, tiny_metadata, tiny_tensors):
    name = "model.layers.1.mlp.down_proj.weight"
    path = make_gguf(
        tiny_metadata, tiny_tensors, types={"blk.1.ffn_down.weight": GGMLQuantizationType.Q8_0}
    )
    stored = GgufFile(path).part(name).tensor.data[0, :34].tobytes()
    path.write_bytes(
        path.read_bytes().replace(stored, b"\x00\x7c" + bytes(32))
    )  # infinity times zero
    with pytest.raises(BadInput, match=f"{name}.*NaN or infinity"):
        read_tensor(GgufFile(path), name)


def test_heads_that_cannot_share_keys_are_refused(make_gguf, tiny_metadata, tiny_tensors):
    assert "multiple of num_key_value_heads 3" in refusal(
        make_gguf(tiny_metadata | {"llama.attention.head_count_kv": 3}, tiny_tensors)
    )


def test_a_tensor_of_whole_numbers_is_refused_by_name(make_gguf, tiny_metadata, tiny_tensors):
    weights = np.ones((64, 64), np.int8)
    file = make_gguf(tiny_metadata, tiny_tensors | {"blk.0.attn_q.weight": weights})
    assert "'blk.0.attn_q.weight' is stored as I8" in refusal(file)


def test_a_type_that_cannot_be_decoded_is_refused_by_name(
    make_gguf, tiny_metadata, tiny_tensors, monkeypatch
):
    source = GgufFile(
        make_gguf(
            tiny_metadata, tiny_tensors, types={"blk.0.attn_q.weight": GGMLQuantizationType.Q8_0}
        )
    )
    monkeypatch.setattr("gguf.quants._type_traits", {})
    with pytest.raises(BadInput, match=r"'blk\.0\.attn_q\.weight' is of type Q8_0"):
        source.read(QUERY)


def test_llama_3_rope_factors_become_the_scaling_they_came_from(
    make_gguf, tiny_metadata, tiny_tensors
):
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    parameters = {
        "rope_parameters": scaling | {"rope_theta": 500000.0},
        "max_position_embeddings": 131072,
    }
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, **parameters)
    plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    tensors = tiny_tensors | {"rope_freqs.weight": factors.float().numpy()}
    source = GgufFile(make_gguf(tiny_metadata | {"llama.rope.freq_base": 500000.0}, tensors))
    assert source.record.config()["rope_scaling"] == scaling
    np.testing.assert_allclose(
        llama3_factors(Rope("llama3", 500000.0, scaling), 16), factors.numpy(), rtol=1e-5
    )
    assert "rope_freqs.weight" not in source.tensor_names()


def test_linear_rope_scaling_is_kept(make_gguf, tiny_metadata, tiny_tensors):
    metadata = tiny_metadata | {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
    }
    source = GgufFile(make_gguf(metadata, tiny_tensors))
    assert source.record.config()["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
        ({"llama.rope.scaling.type": "new", "llama.rope.scaling.factor": 4.0}, "'new'"),
        ({"llama.rope.scaling.attn_factor": 1.5}, "rope.scaling.attn_factor 1.5"),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ({"llama.attention.sliding_window": 32}, "attention.sliding_window' 32"),
        ({"llama.attention.scale": 0.5}, "attention.scale' 0.5"),
        ({"llama.attention.causal": False}, "attention.causal' False"),
        ({"llama.attention.head_count_kv": [2, 4]}, "other sizes by block"),
        ({"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping' 30.0"),
        ({"llama.logit_scale": 0.25}, "logit_scale' 0.25"),
        ({"llama.expert_weights_scale": 2.5}, "expert_weights_scale' 2.5"),
        ({"llama.some_new_key": 1}, "'llama.some_new_key' 1, by which a llama model is not"),
        ({"general.type": "adapter"}, "is a GGUF file of type 'adapter'; give that of a model"),
        ({"split.count": 2}, "one of several parts"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count 8"),
        ({"llama.attention.value_length": 8}, "attention.value_length 8"),
        ({"llama.attention.key_length": 15}, "even size"),
    ],
)
def test_what_a_llama_config_cannot_say_is_refused(
    make_gguf, tiny_metadata, tiny_tensors, changes, complaint
):
    assert complaint in refusal(make_gguf(tiny_metadata | changes, tiny_tensors), UnsupportedModel)


def test_rope_factors_of_another_kind_are_refused(make_gguf, tiny_metadata, tiny_tensors):
    tensors = tiny_tensors | {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}
    assert "rope_freqs" in refusal(make_gguf(tiny_metadata, tensors), UnsupportedModel)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "cls.weight"])
def test_tensors_of_other_models_are_refused_by_name(make_gguf, tiny_metadata, tiny_tensors, name):
    tensors = tiny_tensors | {name: np.ones(64, np.float32)}
    assert repr(name) in refusal(make_gguf(tiny_metadata, tensors), UnsupportedModel)


def test_another_architecture_is_refused_by_name(make_gguf, tiny_metadata, tiny_tensors):
    message = refusal(
        make_gguf(tiny_metadata, tiny_tensors, architecture="rwkv7"), UnsupportedModel
    )
    assert "GGUF architecture 'rwkv7' is not supported; give one of llama, qwen2," in message


def test_a_factor_alone_is_linear_as_in_llama_cpp(make_gguf, tiny_metadata, tiny_tensors):
    for key in ("scaling.factor", "scale_linear"):
        metadata = tiny_metadata | {f"llama.rope.{key}": 4.0}
        source = GgufFile(make_gguf(metadata, tiny_tensors))
        assert source.record.config()["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    off = tiny_metadata | {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert "rope_scaling" not in GgufFile(make_gguf(off, tiny_tensors)).record.config()


def test_more_blocks_than_tensors_are_refused_at_once(make_gguf, tiny_metadata, tiny_tensors):
    metadata = tiny_metadata | {"llama.block_count": 9999}
    assert "9999 blocks, but it holds" in refusal(make_gguf(metadata, tiny_tensors))


@pytest.mark.parametrize(
    "key", ["llama.block_count", "llama.attention.head_count", "llama.feed_forward_length"]
)
def test_a_missing_size_is_refused_by_name(make_gguf, tiny_metadata, tiny_tensors, key):
    del tiny_metadata[key]
    assert key in refusal(make_gguf(tiny_metadata, tiny_tensors))


def test_a_vocabulary_without_a_model_is_refused(make_gguf, tiny_metadata):
    assert "token_embd.weight" in refusal(make_gguf(tiny_metadata))


def test_a_file_cut_anywhere_is_refused_in_one_line(
    make_gguf, tiny_metadata, tiny_tensors, tmp_path
):
    whole = make_gguf(tiny_metadata, tiny_tensors).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 2000, 37), len(whole) // 2, len(whole) - 64]:
        cut.write_bytes(whole[:length])
        assert "not a readable GGUF file" in refusal(cut)


def test_a_damaged_header_never_escapes_as_another_error(
    make_gguf, tiny_metadata, tiny_tensors, tmp_path
):
    whole = make_gguf(tiny_metadata, tiny_tensors).read_bytes()
    rng = np.random.default_rng(0)
    damaged = tmp_path / "damaged.gguf"
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(0, 2500)] = rng.integers(0, 256)
        damaged.write_bytes(content)
        try:
            GgufFile(damaged)  # harmless damage, such as another epsilon, cannot be noticed
        except EdgeqError as error:
            assert "\n" not in str(error)


def test_a_big_endian_file_is_refused(make_gguf, tiny_metadata, tiny_tensors):
    path = make_gguf(tiny_metadata, tiny_tensors)
    content = bytearray(path.read_bytes())
    content[4:8] = (3).to_bytes(4, "big")
    path.write_bytes(content)
    assert "little-endian" in refusal(path)
