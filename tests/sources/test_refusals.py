"""What is given in the place of a checkpoint: one line that says what it is and what helps."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgeq.errors import BadInput, UnsupportedModel
from edgeq.sources import open_source
from edgeq.sources.refusals import SHARD_INDEX

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 269060552\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


def refusal(path):
    with pytest.raises((BadInput, UnsupportedModel)) as caught:
        open_source(str(path)).companions()
    line = str(caught.value)
    assert "\n" not in line
    assert ";" in line or ":" in line
    return line


def write_adapter(folder, config):
    folder.mkdir()
    names = [
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"
    ]
    save_file(dict.fromkeys(names, np.ones((4, 4), "f4")), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(config)
    return folder


@pytest.mark.parametrize("config", ['{"base_model_name_or_path": "acme/base"}', "{}", "[", "[1]"])
def test_an_adapter_is_to_be_merged(tmp_path, config):
    line = refusal(write_adapter(tmp_path / "lora", config))
    assert "merge it into its base model" in line
    assert ("'acme/base'" in line) == ("acme" in config)


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "weights.safetensors"])
def test_one_file_under_another_name_is_to_be_renamed(tiny_directory, name):
    (tiny_directory / "model.safetensors").rename(tiny_directory / name)
    assert re.search(f"{name} .*rename it to model.safetensors$", refusal(tiny_directory))
    (tiny_directory / name).rename(tiny_directory / "model.safetensors")
    open_source(str(tiny_directory))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model-00002-of-00003.safetensors"], "1 of 3 shards and no model.safetensors.index.json"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "2 of 2 shards and no model.safetensors.index.json",
        ),
        (["a.safetensors", "b.safetensors"], "holds a.safetensors, b.safetensors and no"),
        (["consolidated.safetensors"], "in the layout of its maker"),
        (["diffusion_pytorch_model.safetensors"], "pipeline of diffusers"),
        (["model.safetensors.incomplete"], "a download that was not finished"),
        (["model.safetensors.part"], "a download that was not finished"),
        (["tf_model.h5"], "weights in TensorFlow's format"),
        (["flax_model.msgpack"], "weights in Flax's format"),
        (["weights.npz"], "weights in NumPy's format"),
        (["model.onnx"], "weights in ONNX's format"),
        (["pytorch_model.bin"], "only pickles"),
        (["model.gguf"], "give {}/model.gguf"),
        (["sub/model.safetensors"], "for the model inside of it give {}/sub"),
        (["snapshots/ab12/model.safetensors"], "give {}/snapshots/ab12"),
        ([], "holds no weights; it needs model.safetensors or"),
    ],
)
def test_a_directory_without_weights_says_what_it_holds(tmp_path, names, words):
    folder = tmp_path / "model"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    folder.mkdir(exist_ok=True)
    assert words.format(folder) in refusal(folder)


def test_an_index_without_its_shards_names_the_first(tiny_directory):
    (tiny_directory / "model.safetensors").unlink()
    names = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    (tiny_directory / SHARD_INDEX).write_text(json.dumps({"weight_map": names}))
    assert "'model-00001-of-00002.safetensors', which is missing" in refusal(tiny_directory)


def test_a_link_to_a_blob_that_is_gone_is_named(tiny_directory):
    (tiny_directory / "model.safetensors").unlink()
    (tiny_directory / "model.safetensors").symlink_to("../blobs/ab12")
    assert "a link to a file that is not there" in refusal(tiny_directory)


FILES = ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"]


@pytest.mark.parametrize("name", [*FILES, SHARD_INDEX])
@pytest.mark.parametrize(
    ("content", "words"), [(POINTER, "in the clone run: git lfs pull"), (PAGE, "is a web page")]
)
def test_what_was_saved_in_the_place_of_a_file_is_told(tiny_directory, name, content, words):
    if name == SHARD_INDEX:
        (tiny_directory / "model.safetensors").unlink()
    (tiny_directory / name).write_text(content)
    line = refusal(tiny_directory)
    assert words in line
    assert f"/{name} " in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "git lfs pull"),
        (PAGE, "is a web page"),
        ('{"error":"Repository not found"}', "holds a text and no weights"),
        ("Entry not found", "holds a text and no weights ('Entry not found')"),
    ],
)
@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_a_text_in_the_place_of_weights_is_told(tiny_directory, content, words, suffix):
    file = tiny_directory / f"model.{suffix}"
    file.write_text(content)
    assert words in refusal(file if suffix == "gguf" else tiny_directory)


def rename_tensors(directory, rename):
    file = directory / "model.safetensors"
    tensors = {rename(name): array for name, array in load_file(file).items()}
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "base_model.model.", "PEFT saved it"),
        ("", "_orig_mod.", "torch.compile wrapped"),
        ("", "module.", "a parallel wrapper saved it"),
        ("", "module._orig_mod.", "torch.compile wrapped"),
        ("", "language_model.", "the language half"),
        ("model.", "model.language_model.", "the language half"),
        ("", "student.", "take the prefix 'student.' away"),
        ("model.", "", "saved without its head"),
        ("model.layers.", "transformer.h.", "the layout of GPT-2"),
        ("model.layers.", "gpt_neox.layers.", "the layout of GPT-NeoX"),
        ("model.layers.", "model.decoder.layers.", "the layout of OPT"),
        ("model.layers.", "decoder.layers.", "encoder-decoder"),
        ("model.layers.", "blk.", "names of GGUF"),
        ("model.layers.", "blocks.", "convert the checkpoint"),
    ],
)
def test_tensors_of_other_names_are_told_with_what_helps(tiny_directory, old, new, words):
    rename_tensors(tiny_directory, lambda name: name.replace(old, new, 1) if old in name else name)
    line = refusal(tiny_directory)
    assert words in line
    assert "has model.layers.0.self_attn.q_proj.weight" in line


def test_an_adapter_among_the_weights_is_to_be_merged(tiny_directory):
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    file = tiny_directory / "model.safetensors"
    save_file(load_file(file) | {name: np.ones((4, 64), "f4")}, file)
    assert "belongs to an adapter; merge it" in refusal(tiny_directory)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("lm_head.weight", "set tie_word_embeddings to true"),
        ("model.embed_tokens.weight", "the embedding; fetch the rest"),
    ],
)
def test_a_missing_head_or_embedding_is_named(tiny_directory, missing, words):
    file = tiny_directory / "model.safetensors"
    tensors = load_file(file)
    del tensors[missing]
    save_file(tensors, file)
    line = refusal(tiny_directory)
    assert f"lacks '{missing}'" in line
    assert words in line


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("weight", torch.ones(64, 64).to(torch.float8_e4m3fn)),
        ("weight", torch.ones(64, 64).to(torch.float8_e5m2)),
        ("weight", torch.ones(64, 64, dtype=torch.int8)),
        ("weight", torch.ones(2048, 1, dtype=torch.uint8)),
        ("weight", torch.ones(64, 8, dtype=torch.uint32)),
        ("qweight", torch.ones(8, 64, dtype=torch.int32)),
        ("weight_packed", torch.ones(64, 8, dtype=torch.int32)),
        ("weight_scale_inv", torch.ones(1, 1)),
        ("SCB", torch.ones(64)),
    ],
)
def test_packed_weights_ask_for_the_original(tiny_directory, name, tensor):
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    file = tiny_directory / "model.safetensors"
    added = {f"model.layers.0.self_attn.q_proj.{name}": tensor}
    save_file(load_file(file) | added, file)
    assert "start from the full-precision checkpoint" in refusal(tiny_directory)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F33", [64], 256),
        ("F8_E9M9", [64], 64),
        ("C64", [64], 512),
        ("BOOL", [64], 64),
        ("F32", [], 4),
        ("F32", [0], 0),
        ("F32", [64, 0], 0),
        ("F32", [-64], 256),
        (5, [64], 256),
    ],
)
def test_a_header_with_other_types_and_shapes_is_refused(tiny_directory, dtype, shape, size):
    file = tiny_directory / "model.safetensors"
    content = file.read_bytes()
    count = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + count])
    entry = header["model.norm.weight"]
    last = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    entry |= {"dtype": dtype, "shape": shape, "data_offsets": [last, last + size]}
    stated = json.dumps(header).encode()
    file.write_bytes(
        len(stated).to_bytes(8, "little") + stated + content[8 + count :] + bytes(size)
    )
    refusal(tiny_directory)
