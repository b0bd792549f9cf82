"""Weights that are read ahead, as for a device, are those that are read when they are needed."""

import ml_dtypes
import models
import numpy as np
import pytest
import torch

from edgeq.errors import BadInput, DamagedModel
from edgeq_backends.torch.activations import TorchActivations
from edgeq_backends.torch.reading import WeightReader

CPU = torch.device("cpu")


class Stored(models.MemorySource):
    """A source that has its tensors in a type, and notes which are read."""

    def __init__(self, model, dtype):
        super().__init__(model)
        self.dtype, self.names = dtype, []

    def read(self, tensor_name):
        self.names.append(tensor_name)
        return super().read(tensor_name).astype(self.dtype)


def ahead(source):
    reader = WeightReader(source, CPU)
    reader.read_ahead()
    return reader


@pytest.fixture(scope="module")
def llama():
    return models.tiny_llama()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_have_the_same_bits_whether_expected_or_not(llama, dtype):
    source = Stored(llama, dtype)
    names = [name for name in source.tensor_names() if "layers.0" in name]
    shapes = {name: source.shape(name) for name in names}
    reader = ahead(source)
    reader.expect({name: shapes[name] for name in names[::2]})
    for name in names:
        expected = super(Stored, source).read(name).astype(dtype).astype(np.float32)
        for found in (reader.read(name, shapes[name]), reader.read(name, shapes[name])):
            assert found.dtype == torch.float32
            np.testing.assert_array_equal(found.numpy(), expected)


def test_what_is_wrong_with_a_tensor_is_said_when_it_is_needed(llama):
    name, other = (linear.tensor for linear in models.MemorySource(llama).blocks()[0].linears[:2])
    source = models.MemorySource(llama, {name: np.full((64, 64), np.nan, np.float32)})
    reader = ahead(source)
    reader.expect({name: source.shape(name), other: (1, 2)})
    with pytest.raises(DamagedModel, match="NaN"):
        reader.read(name, source.shape(name))
    with pytest.raises(BadInput, match="asks for"):
        reader.read(other, (1, 2))


def test_the_next_block_is_read_while_one_is_solved(llama, rng, monkeypatch):
    source, windows = Stored(llama, np.float32), rng.integers(0, 40, (2, 16))
    streams, reader = TorchActivations(source, windows), ahead(source)
    monkeypatch.setattr(streams._model, "_reader", reader)
    first, second = source.blocks()
    for place, _ in enumerate(streams.sites(first)):
        if place == 0:
            for waiting in reader._ahead.values():
                waiting.result()
            source.names.clear()
    plain = TorchActivations(models.MemorySource(llama), windows)
    for _ in plain.sites(first):
        pass
    pairs = zip(streams.sites(second), plain.sites(second), strict=True)
    for found, expected in pairs:
        for (_, one), (_, other) in zip(found.batches(), expected.batches(), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert source.names == []  # nothing of the second block was read once more
