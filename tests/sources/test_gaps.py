"""Zeros that a download left, and zeros that a model has."""

import dataclasses
import json

import gguf
import models
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgeq.errors import DamagedModel
from edgeq.sources.gguf_file import GgufFile
from edgeq.sources.reading import largest_magnitude, read_tensor
from edgeq.sources.safetensors_directory import SafetensorsDirectory

Q = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def change(directory, change_tensor):
    """Save the tensors of a directory again, each as `change_tensor` makes it."""
    file = directory / "model.safetensors"
    tensors = {name: change_tensor(name, array.copy()) for name, array in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def unwritten_from(file, start):
    content = file.read_bytes()
    file.write_bytes(content[:start] + bytes(len(content) - start))


def test_a_file_that_was_not_written_to_its_end_is_refused_wherever_it_stopped(tiny_directory):
    """But where that is the end of a row of the last matrix, or inside of its last row."""
    file = tiny_directory / "model.safetensors"
    whole = file.read_bytes()
    stored = SafetensorsDirectory(tiny_directory).stored.values()
    last = max((place for place in stored if len(place.shape) == 2), key=lambda item: item.offset)
    row = 4 * last.shape[1]
    end = last.offset + row * last.shape[0]
    for stop in [*range(min(place.offset for place in stored), end - row, 1013), end - row - 50]:
        if (end - stop) % row < 20:
            continue
        file.write_bytes(whole[:stop] + bytes(len(whole) - stop))
        with pytest.raises(DamagedModel, match=r"tensor '.*zeros.*; fetch the checkpoint again$"):
            SafetensorsDirectory(tiny_directory)


def test_a_matrix_of_zeros_inside_of_a_file_is_named(tiny_directory):
    change(tiny_directory, lambda name, array: np.zeros_like(array) if name == Q else array)
    with pytest.raises(DamagedModel, match=rf"tensor '{Q}' .* is all zeros"):
        SafetensorsDirectory(tiny_directory)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_tensor_of_zeros_is_named_where_it_is_read(zero):
    class Source(models.MemorySource):
        def read(self, name):
            return np.full((3, 4), zero, np.float16)

    source = Source(models.tiny_llama())
    for name in (Q, EMBEDDING, "lm_head.weight", "model.norm.weight"):
        with pytest.raises(DamagedModel, match="is all zeros"):
            read_tensor(source, name)
    assert not read_tensor(source, "model.layers.0.self_attn.q_proj.bias").any()
    gemma = dataclasses.replace(source.record.decoder, norm_offset=1.0)
    source.record = dataclasses.replace(source.record, decoder=gemma)
    assert not read_tensor(source, "model.norm.weight").any()


def test_zeros_that_models_have_are_read(tiny_directory):
    """Padding in front and at the end of an embedding, padded inner columns and rows, and the same
    at the end of a file.
    """

    def pad(name, array):
        if name in (EMBEDDING, "lm_head.weight"):
            array[0] = array[30:] = 0
        if "up_proj" in name or "gate_proj" in name or "v_proj" in name:
            array[-16:] = 0
        if "down_proj" in name:
            array[:, -16:] = 0
        return array

    change(tiny_directory, pad)
    opened = SafetensorsDirectory(tiny_directory)
    for name in opened.tensor_names():
        np.testing.assert_array_equal(
            read_tensor(opened, name), load_file(tiny_directory / "model.safetensors")[name]
        )


@pytest.mark.parametrize("padded", [EMBEDDING, "model.layers.1.mlp.up_proj.weight"])
def test_padded_rows_may_be_the_last_of_a_file(tiny_directory, padded):
    file = tiny_directory / "model.safetensors"
    tensors = load_file(file)
    tensors[padded][-8:] = 0
    save_file({padded: tensors.pop(padded)}, tiny_directory / "b.safetensors")
    save_file(tensors, tiny_directory / "a.safetensors")
    file.unlink()
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {padded: "b.safetensors"}
    index = tiny_directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    SafetensorsDirectory(tiny_directory)
    shard = tiny_directory / "b.safetensors"
    unwritten_from(shard, shard.stat().st_size - 9 * 64 * 4 + 100)
    with pytest.raises(DamagedModel, match="zeros that begin inside of a row"):
        SafetensorsDirectory(tiny_directory)


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q4_0])
def test_a_gguf_file_that_was_not_written_to_its_end_is_refused(
    make_gguf, tiny_metadata, tiny_tensors, kind
):
    types = {name: kind for name, array in tiny_tensors.items() if kind and array.ndim == 2}
    file = make_gguf(tiny_metadata, tiny_tensors, types=types)
    GgufFile(file)
    whole = file.read_bytes()
    for share in (0.5, 0.8, 0.95):
        file.write_bytes(whole)
        unwritten_from(file, int(share * len(whole)))
        with pytest.raises(DamagedModel, match="as an interrupted download leaves it"):
            GgufFile(file)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_magnitude_is_that_of_plain_numpy(rng, dtype):
    for array in (rng.standard_normal((5, 7)), -np.abs(rng.standard_normal(9)), np.zeros(3)):
        stored = array.astype(dtype)
        assert largest_magnitude(stored) == np.abs(stored).max()
    for value in (np.nan, np.inf, -np.inf):
        assert not np.isfinite(largest_magnitude(np.array([1, value, -2], dtype)))
    assert largest_magnitude(torch.full((2, 2), -3.0).numpy()) == 3
