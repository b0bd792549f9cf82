import json
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from edgeq.errors import BadInput, EdgeqError, UnsupportedModel
from edgeq.sources.refusals import SHARD_INDEX
from edgeq.sources.safetensors_directory import SafetensorsDirectory

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}


def refusal(path, kind=BadInput):
    with pytest.raises(kind) as caught:
        SafetensorsDirectory(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_index(directory, **changes):
    path = directory / SHARD_INDEX
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def rewrite(directory, model, **changes):
    """Store the model's tensors again, some of them changed or, where None, left out."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()} | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors")


@pytest.fixture
def sharded_directory(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


def assert_holds(source, model):
    stored = model.state_dict()
    assert set(source.tensor_names()) == set(stored)
    for name, tensor in stored.items():
        assert source.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(source.read(name).astype(np.float32), tensor.float().numpy())


def test_tensors_of_one_file_are_read_unchanged(tiny_directory, tiny_llama):
    assert_holds(SafetensorsDirectory(tiny_directory), tiny_llama)


def test_tensors_of_several_shards_are_read_unchanged(sharded_directory, tiny_llama):
    assert len(list(sharded_directory.glob("*.safetensors"))) > 1
    assert_holds(SafetensorsDirectory(sharded_directory), tiny_llama)


def test_shards_behind_symlinks_are_read(sharded_directory, tiny_llama, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for file in sharded_directory.iterdir():
        os.symlink(file, tmp_path / "snapshot" / file.name)
    assert_holds(SafetensorsDirectory(tmp_path / "snapshot"), tiny_llama)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.bfloat16, np.dtype(ml_dtypes.bfloat16)),
        (torch.float16, np.dtype(np.float16)),
        (torch.float32, np.dtype(np.float32)),
        (torch.float64, np.dtype(np.float32)),
    ],
)
def test_a_tensor_comes_in_the_dtype_it_is_stored_in(tiny_directory, tiny_llama, stored, expected):
    name = "model.layers.1.mlp.down_proj.weight"
    weights = tiny_llama.state_dict()[name].to(stored)
    rewrite(tiny_directory, tiny_llama, **{name: weights})
    read = SafetensorsDirectory(tiny_directory).read(name)
    assert read.dtype == expected
    np.testing.assert_array_equal(
        read.astype(np.float64), weights.double().numpy().astype(np.float64)
    )


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_other_dtypes_are_refused_by_name(tiny_directory, tiny_llama, stored):
    name = "model.layers.0.self_attn.q_proj.weight"
    rewrite(tiny_directory, tiny_llama, **{name: tiny_llama.state_dict()[name].to(stored)})
    with pytest.raises(BadInput, match=rf"{name}.*F32, F16, BF16"):
        SafetensorsDirectory(tiny_directory).read(name)


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig, Qwen2Config])
def test_blocks_list_the_linear_layers_in_execution_order(config, tmp_path):
    model = AutoModelForCausalLM.from_config(config(**SIZES))
    model.save_pretrained(tmp_path)
    blocks = SafetensorsDirectory(tmp_path).blocks()
    assert [block.name for block in blocks] == [f"model.layers.{index}" for index in range(3)]
    for block in blocks:
        module = model.get_submodule(block.name)
        linears = [
            f"{block.name}.{name}"
            for name, part in module.named_modules()
            if isinstance(part, torch.nn.Linear)
        ]
        assert [linear.name for linear in block.linears] == linears
        assert set(block.tensors) == {f"{block.name}.{name}" for name in module.state_dict()}


def test_a_stored_copy_of_a_tied_head_is_hidden(tiny_directory, tiny_llama):
    file = tiny_directory / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    edit_config(tiny_directory, tie_word_embeddings=True)
    assert "lm_head.weight" not in SafetensorsDirectory(tiny_directory).tensor_names()


def test_tokenizer_and_generation_files_are_companions(tiny_directory):
    tokenizer = Tokenizer(BPE()).to_str().encode()
    (tiny_directory / "tokenizer.json").write_bytes(tokenizer)
    (tiny_directory / "README.md").write_bytes(b"not wanted")
    companions = SafetensorsDirectory(tiny_directory).companions()
    assert set(companions) == {"tokenizer.json", "generation_config.json"}
    assert companions["tokenizer.json"] == tokenizer


def test_the_fingerprint_follows_weights_and_config_but_not_the_path(tiny_directory, tiny_llama):
    before = SafetensorsDirectory(tiny_directory).fingerprint()
    moved = tiny_directory.rename(tiny_directory.with_name("moved"))
    assert SafetensorsDirectory(moved).fingerprint() == before
    edit_config(moved, rms_norm_eps=0.5)
    reconfigured = SafetensorsDirectory(moved).fingerprint()
    rewrite(moved, tiny_llama, **{"model.norm.weight": torch.zeros(64)})
    assert len({before, reconfigured, SafetensorsDirectory(moved).fingerprint()}) == 3


def test_a_directory_without_weights_is_refused(tmp_path):
    assert "holds no weights" in refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 100, 5000, -1])
def test_a_truncated_file_is_refused_in_one_line(tiny_directory, length):
    file = tiny_directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert "not a readable safetensors file" in refusal(tiny_directory)


def test_a_file_of_noise_is_refused_in_one_line(tiny_directory):
    (tiny_directory / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(4096))
    assert "not a readable safetensors file" in refusal(tiny_directory)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[1]", "holds a JSON list and not an object"),
    ],
)
def test_a_damaged_config_is_refused(tiny_directory, content, complaint):
    (tiny_directory / "config.json").write_text(content)
    assert complaint in refusal(tiny_directory)


def test_a_missing_config_is_refused(tiny_directory):
    (tiny_directory / "config.json").unlink()
    assert "config.json': no such file" in refusal(tiny_directory)


def test_another_architecture_is_refused_by_name(tiny_directory):
    edit_config(tiny_directory, model_type="mamba")
    message = refusal(tiny_directory)
    assert "a mamba model has backbone.layers.0.mixer.in_proj.weight" in message


def test_a_quantized_model_is_refused(tiny_directory):
    edit_config(tiny_directory, quantization_config={"quant_method": "gptq"})
    assert "full-precision checkpoint" in refusal(tiny_directory, UnsupportedModel)


@pytest.mark.parametrize("value", [None, 0, -4, "64", 64.0, True])
def test_a_config_without_a_usable_size_is_refused(tiny_directory, value):
    edit_config(tiny_directory, hidden_size=value)
    assert "hidden_size" in refusal(tiny_directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 8, "head_dim": 16},
        {"vocab_size": 41},
        {"intermediate_size": 128},
        {"head_dim": 32},
    ],
)
def test_shapes_that_contradict_the_config_are_refused(tiny_directory, changes):
    edit_config(tiny_directory, **changes)
    assert "but config asks for" in refusal(tiny_directory)


@pytest.mark.parametrize(
    ("blocks", "complaint"), [(3, "block 2 of 3 has no tensors"), (1, "holds 2 blocks")]
)
def test_a_wrong_number_of_blocks_is_refused(tiny_directory, blocks, complaint):
    edit_config(tiny_directory, num_hidden_layers=blocks)
    assert complaint in refusal(tiny_directory)


def test_a_gap_between_blocks_is_refused(tiny_directory, tiny_llama):
    names = [name for name in tiny_llama.state_dict() if name.startswith("model.layers.0.")]
    rewrite(tiny_directory, tiny_llama, **dict.fromkeys(names))
    assert "block 0 of 2 has no tensors" in refusal(tiny_directory)


def test_a_missing_tensor_is_refused_by_name(tiny_directory, tiny_llama):
    rewrite(tiny_directory, tiny_llama, **{"model.layers.1.mlp.up_proj.weight": None})
    assert "'model.layers.1.mlp.up_proj.weight' is missing" in refusal(tiny_directory)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "..\\x", "C:\\x", "C:x", "a/../../x", "", 7, "\0"]
)
def test_a_shard_name_that_leads_out_of_the_directory_is_refused(sharded_directory, name):
    edit_index(sharded_directory, **{"model.norm.weight": name})
    assert "must lie inside" in refusal(sharded_directory)


def test_a_missing_shard_is_refused_by_name(sharded_directory):
    next(sharded_directory.glob("model-00002*")).unlink()
    message = refusal(sharded_directory)
    assert "model-00002" in message
    assert "missing" in message


def test_an_index_that_names_an_absent_tensor_is_refused(sharded_directory):
    shard = next(sharded_directory.glob("model-00001*")).name
    edit_index(sharded_directory, **{"model.extra.weight": shard})
    assert "'model.extra.weight'" in refusal(sharded_directory)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "?"])
def test_a_damaged_index_is_refused(sharded_directory, content):
    (sharded_directory / SHARD_INDEX).write_text(content)
    refusal(sharded_directory, EdgeqError)


def test_asking_for_an_unknown_tensor_names_it(tiny_directory):
    with pytest.raises(BadInput, match="no tensor 'nonsense'"):
        SafetensorsDirectory(tiny_directory).read("nonsense")


def test_a_file_that_may_not_be_read_is_not_called_missing(tiny_directory, monkeypatch):
    def forbidden(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", forbidden)
    assert "Permission denied" in refusal(tiny_directory)
