"""compressed-tensors directories: bits by an oracle, words by the format's library, logits in
transformers.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from solved_models import FOUR_BITS, in_float16, shapes_of, solved, tiny, torch_logits, with_grid
from tiny_models import random_layer

from edgeq.errors import BadInput
from edgeq.types import Grid
from edgeq_backends.torch.directories import CompressedTensorsLogits
from edgeq_exporters.hugging_face.compressed_tensors import CompressedTensorsExporter, pack
from edgeq_exporters.hugging_face.formats import COMPRESSED_TENSORS

DOWN = "model.layers.1.mlp.down_proj"


def written(model, directory):
    """The directory's config and its tensors."""
    CompressedTensorsExporter().write(model, directory)
    return json.loads((directory / "config.json").read_text()), load_file(
        directory / "model.safetensors"
    )


def stream(words, bits, count):
    """Codes of a run of words, read as one long number whose lowest bits are the first code."""
    number = sum((int(word) & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return [number >> (bits * place) & (2**bits - 1) for place in range(count)]


@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
@pytest.mark.parametrize("group_size", [32, 128, None])
@pytest.mark.parametrize("bits", COMPRESSED_TENSORS.bits)
def test_packed_words_stand_bit_by_bit_and_in_the_library_for_the_solved_weights(
    rng, bits, group_size, zeros
):
    """An odd number of rows: the zero points' words end in padding."""
    library = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    grid = Grid(bits, group_size, zeros, "float32")
    layer = random_layer(rng, (7, 256), grid)
    tensors, stored = pack("P", layer)
    np.testing.assert_array_equal(stored.dequantized(), layer.dequantized())
    codes = [stream(words, bits, 256) for words in tensors["P.weight_packed"]]
    np.testing.assert_array_equal(codes, layer.codes)
    if zeros == "integer":
        stored_zeros = [stream(words, bits, 7) for words in tensors["P.weight_zero_point"].T]
        np.testing.assert_array_equal(np.array(stored_zeros).T, layer.zeros)
    assert ("P.weight_zero_point" in tensors) == (zeros == "integer")
    assert tensors["P.weight_shape"].tolist() == [7, 256]
    weights = {"num_bits": bits, "symmetric": zeros == "symmetric", "group_size": group_size}
    weights |= {"strategy": "channel" if group_size is None else "group"}
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    state = {name.removeprefix("P."): torch.from_numpy(array) for name, array in tensors.items()}
    read = library.BaseCompressor.get_value_from_registry("pack-quantized").decompress(
        state, scheme
    )
    np.testing.assert_allclose(read["weight"].numpy(), layer.dequantized(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "grids",
    [
        [Grid(4, 32)],
        [Grid(2, 64)],
        [Grid(8, None)],
        [Grid(4, 32, "integer")],
        [Grid(8, 128, "integer")],
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_predicts_like_torch_with_the_dequantized_weights(rng, tmp_path, grids, tied):
    model, ids = tiny(tie_word_embeddings=tied), rng.integers(0, 96, (1, 40))
    export = solved(model, rng, grids)
    written(export, tmp_path)
    reference = torch_logits(model, as_written(export), ids)
    (found,) = CompressedTensorsLogits(tmp_path, exact=True).logits(ids)
    # With zero points the library multiplies in float16, in which it finds the scales.
    close = 1e-6 if grids[0].zeros == "symmetric" else 3e-3
    assert np.abs(found - reference[0]).max() <= close * np.abs(reference).max()


def as_written(export):
    """Weights with everything outside of the linear layers rounded to float16."""
    outer = {
        name: layer.dequantized() for name, layer in export.layers.items() if "proj" not in name
    }
    return in_float16(export) | {
        name: w.astype(np.float16).astype(np.float32) for name, w in outer.items()
    }


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_mixed_bits_dense_layers_and_biases_run_in_transformers(rng, tmp_path, kind):
    model, ids = tiny(kind), rng.integers(0, 96, (1, 40))
    export = solved(model, rng, [FOUR_BITS])
    with_grid(export, rng, f"{DOWN}.weight", Grid(8, 32))
    export.arrays["model.layers.0.mlp.down_proj.weight"] = export.layers.pop(
        "model.layers.0.mlp.down_proj.weight"
    ).dequantized()
    config, _ = written(export, tmp_path)
    settings = config["quantization_config"]
    assert [group["weights"]["num_bits"] for group in settings["config_groups"].values()] == [4, 8]
    assert settings["ignore"] == ["lm_head", "model.layers.0.mlp.down_proj"]
    reference = torch_logits(model, as_written(export), ids)
    (found,) = CompressedTensorsLogits(tmp_path, exact=True).logits(ids)
    assert np.abs(found - reference[0]).max() <= 1e-6 * np.abs(reference).max()


def test_several_grids_with_zero_points_are_written_but_not_run_wrongly(rng, tmp_path):
    export = solved(tiny(), rng, [Grid(4, 32, "integer")])
    with_grid(export, rng, f"{DOWN}.weight", Grid(8, 32, "integer"))
    written(export, tmp_path)
    with pytest.raises(BadInput, match="several grids with zero points"):
        CompressedTensorsLogits(tmp_path)


def test_the_config_names_the_models_class_its_precision_and_nothing_of_older_settings(
    rng, tmp_path
):
    model = solved(tiny(), rng, [Grid(4, 32, "symmetric", "bfloat16")])
    model.config |= {"quantization": {"bits": 4}, "dtype": "bfloat16", "architectures": None}
    config, tensors = written(model, tmp_path)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["torch_dtype"], "dtype" in config, "quantization" in config) == (
        "bfloat16",
        False,
        False,
    )
    assert (
        str(tensors["model.norm.weight"].dtype)
        == str(tensors[f"{DOWN}.weight_scale"].dtype)
        == "bfloat16"
    )
    assert config["quantization_config"]["config_groups"]["group_0"]["targets"] == ["Linear"]


def test_an_embedding_that_was_solved_is_written_as_its_codes_say(rng, tmp_path):
    model = with_grid(
        solved(tiny(), rng, [FOUR_BITS]), rng, "model.embed_tokens.weight", Grid(8, 32)
    )
    _, tensors = written(model, tmp_path)
    weights = model.layers["model.embed_tokens.weight"].dequantized()
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], weights.astype(np.float16))
    entries = {
        entry["name"]: entry
        for entry in json.loads((tmp_path / "manifest.json").read_text())["tensors"]
    }
    entry = entries["model.embed_tokens.weight"]
    assert (entry["status"], entry["type"], entry["from"]) == (
        "dense",
        "F16",
        "8 bits, group 32, symmetric",
    )
    assert entry["largest_deviation"] == pytest.approx(
        np.abs(weights.astype(np.float16) - weights).max(), rel=1e-6
    )


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(3, 32), "pack 3 bits in different ways; choose 2, 4 or 8"),
        (Grid(4, 32, "offset"), "no free offsets"),
        (Grid(4, 96), "in_features 256 is not a multiple of group_size 96"),
    ],
)
def test_grids_that_do_not_fit_are_refused_before_a_byte_is_written(rng, tmp_path, grid, words):
    model = with_grid(solved(tiny(), rng, [FOUR_BITS]), rng, f"{DOWN}.weight", grid)
    reason = CompressedTensorsExporter().reject_reason(model.record, model.files, shapes_of(model))
    assert reason.startswith(f"tensor '{DOWN}.weight': ") and words in reason
    with pytest.raises(BadInput, match="export 'compressed-tensors'"):
        CompressedTensorsExporter().write(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_scale_beyond_its_type_is_refused(rng):
    layer = random_layer(rng, (7, 64), FOUR_BITS)
    huge = type(layer)(layer.codes, layer.scales * 1e9, layer.offsets, layer.grid)
    with pytest.raises(BadInput, match="exceeds float16; use scale_dtype bfloat16 or float32"):
        pack("P", huge)
