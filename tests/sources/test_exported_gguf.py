"""edgeq's own GGUF exports as sources: names, values and config of the model that was exported."""

import numpy as np
import pytest
from converted_gguf import CONVERSIONS, checkpoint_of, tiny_model
from tiny_models import VOCAB_SIZE, MemoryModel, random_layer, tokenizer_files

from edgeq.architectures.features import features_of
from edgeq.sources.gguf_file import GgufFile
from edgeq.types import Grid
from edgeq_exporters.gguf.exporter import GgufExporter

GRID = Grid(4, 32)
# refused by the exporter, or written without a window: llama.cpp computes none of these
NOT_WHOLE = ("phi3, long", "exaone4, windows", "phi3")
CHANGES = {
    "hidden_size": 64,
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def exported(name, rng, folder):
    """A model with random codes, and its GGUF file."""
    model = tiny_model(CONVERSIONS[name], **CHANGES)
    result = MemoryModel(model.config.to_dict(), files=tokenizer_files("gpt-2"))
    linears = {linear.tensor: linear.shape for linear in result.record.decoder.linears()}
    for tensor, array in checkpoint_of(model).items():
        if tensor in linears and linears[tensor][1] % 32 == 0:
            result.layers[tensor] = random_layer(rng, linears[tensor], GRID, size=0.3)
        else:
            result.arrays[tensor] = array
    file, *_ = GgufExporter().write(result, folder)
    return result, file


@pytest.mark.parametrize("name", [name for name in CONVERSIONS if name not in NOT_WHOLE])
def test_an_export_is_the_model_again(rng, tmp_path, name):
    model, file = exported(name, rng, tmp_path)
    source = GgufFile(file)
    expected = model.weights()
    turned = {linear.tensor for linear in model.record.decoder.linears() if linear.transposed}
    expected |= {tensor: expected[tensor].T for tensor in turned}
    assert set(source.tensor_names()) == set(expected)
    for tensor, array in expected.items():
        np.testing.assert_allclose(source.read(tensor), array, rtol=0, atol=2e-7, err_msg=tensor)
    original, again = model.record.decoder, source.record.decoder
    assert features_of(again) == features_of(original)
    assert again.tensor_shapes() == original.tensor_shapes()
    for layer, found in zip(original.layers, again.layers, strict=True):
        assert found.sites == layer.sites
        assert found.mlp == layer.mlp
        assert (found.attention.window, found.attention.heads) == (
            layer.attention.window,
            layer.attention.heads,
        )
    assert source.companions()["tokenizer.json"]
