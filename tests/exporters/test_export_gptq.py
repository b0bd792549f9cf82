"""GPTQ directories: bits by an oracle, words by onnxruntime-genai's loader, kernels of GPTQModel
where it is there.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from solved_models import FOUR_BITS, in_float16, shapes_of, solved, tiny, torch_logits, with_grid
from tiny_models import random_layer

from edgeq.errors import BadInput
from edgeq.types import Grid
from edgeq_exporters.common import safetensors_directory
from edgeq_exporters.hugging_face.formats import GPTQ
from edgeq_exporters.hugging_face.gptq import GptqExporter, pack

UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"


def written(model, directory):
    """The directory's quantization_config and its tensors."""
    GptqExporter().write(model, directory)
    config = json.loads((directory / "config.json").read_text())
    return config.get("quantization_config"), load_file(directory / "model.safetensors")


def stream(words, bits, count):
    """Codes of one column of words, read as one long number whose lowest bits are the first
    code.
    """
    number = sum((int(word) & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return [number >> (bits * place) & (2**bits - 1) for place in range(count)]


def weights_bit_by_bit(tensors, module, bits):
    """w = scale (code - (stored zero + 1)), with the group that g_idx gives each input."""
    words, zero_words, scales, index = (
        tensors[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")
    )
    codes = np.array([stream(words[:, row], bits, len(index)) for row in range(words.shape[1])])
    zeros = (
        np.array(
            [stream(zero_words[group], bits, scales.shape[1]) for group in range(len(zero_words))]
        )
        + 1
    )
    return scales.astype(np.float64)[index].T * (codes - zeros[index].T)


@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
@pytest.mark.parametrize("group_size", [32, 64, 128, None])
@pytest.mark.parametrize("bits", GPTQ.bits)
def test_packed_words_stand_bit_by_bit_for_the_solved_weights(rng, bits, group_size, zeros):
    layer = random_layer(rng, (32, 128), Grid(bits, group_size, zeros))
    assert (layer.scales < 0).any()
    tensors, stored = pack("P", layer)
    groups = 1 if group_size is None else 128 // group_size
    shapes = {name: array.shape for name, array in tensors.items()}
    assert shapes == {
        "P.qweight": (128 * bits // 32, 32),
        "P.qzeros": (groups, bits),
        "P.scales": (groups, 32),
        "P.g_idx": (128,),
    }
    assert [array.dtype for array in tensors.values()] == [np.int32, np.int32, np.float16, np.int32]
    np.testing.assert_array_equal(weights_bit_by_bit(tensors, "P", bits), layer.dequantized())
    np.testing.assert_array_equal(stored.dequantized(), layer.dequantized())


@pytest.mark.parametrize("bits", GPTQ.bits)
def test_a_zero_point_of_zero_is_written_from_the_other_end_and_changes_no_weight(rng, bits):
    layer = random_layer(rng, (32, 64), Grid(bits, 32, "integer"))
    offsets = layer.offsets.copy()
    offsets[::2] = 0.0
    layer = type(layer)(layer.codes, layer.scales, offsets, layer.grid)
    tensors, _ = pack("P", layer)
    stored = [stream(words, bits, 32) for words in tensors["P.qzeros"]]
    assert (
        max(max(row) for row in stored) == 2**bits - 2
    )  # 2 ** bits - 1 would wrap to 0 in some readers
    np.testing.assert_array_equal(weights_bit_by_bit(tensors, "P", bits), layer.dequantized())


def test_symmetric_four_bits_store_seven_in_every_nibble(rng):
    tensors, _ = pack("P", random_layer(rng, (32, 64), Grid(4, 32)))
    assert set(tensors["P.qzeros"].ravel()) == {0x77777777}


def test_the_config_is_that_of_checkpoint_format_gptq_with_patterns_for_what_differs(rng, tmp_path):
    model = solved(tiny(tie_word_embeddings=False), rng, [FOUR_BITS])
    with_grid(model, rng, f"{DOWN}.weight", Grid(8, None))
    for name in ("gate_proj", "up_proj"):
        weight = f"model.layers.1.mlp.{name}.weight"
        model.arrays[weight] = model.layers.pop(weight).dequantized()
    settings, tensors = written(model, tmp_path)
    assert (settings["quant_method"], settings["checkpoint_format"]) == ("gptq", "gptq")
    assert (settings["bits"], settings["group_size"], settings["sym"], settings["desc_act"]) == (
        4,
        64,
        True,
        False,
    )
    assert settings["dynamic"] == {
        r"-:model\.layers\.(?:1)\.(?:mlp\.gate_proj|mlp\.up_proj|mlp\.gate_up_proj)(?:\.|$)": {},
        r"+:model\.layers\.(?:1)\.(?:mlp\.down_proj)(?:\.|$)": {
            "bits": 8,
            "group_size": -1,
            "sym": True,
        },
    }
    assert {"lm_head.weight", "model.embed_tokens.weight", f"{DOWN}.qweight"} <= set(tensors)
    assert not any(name.startswith(("lm_head.q", "model.embed_tokens.q")) for name in tensors)


def genai_model(directory, config, settings):
    """The directory as onnxruntime-genai's model builder loads and repacks it."""
    loaders = pytest.importorskip(
        "onnxruntime_genai.models.loaders.quant_model", reason="needs onnxruntime-genai"
    )
    heads = config["hidden_size"] // config["num_attention_heads"]
    return loaders.QuantModel.from_pretrained(
        "gptq",
        input_path=str(directory),
        quant_attrs={"config": settings, "use_g_idx": False},
        q_size=config["num_attention_heads"] * heads,
        kv_size=config["num_key_value_heads"] * heads,
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
    )


def of_ort_words(module):
    """Weights of a MatMulNBits layout: blocks along the inputs, lowest bits first. Shapes: (out,
    in).
    """
    bits, size = module.bits, module.group_size

    def codes(array, count):
        rows = array.numpy().reshape(-1, array.shape[-1])
        bytes_of = np.unpackbits(rows, axis=1, bitorder="little")[:, : count * bits].reshape(
            len(rows), count, bits
        )
        return (bytes_of << np.arange(bits)).sum(axis=2)

    groups = module.in_features // size
    values = codes(module.qweight, size).reshape(module.out_features, groups, size)
    zeros = codes(module.qzeros.reshape(module.out_features, -1), groups)
    scales = module.scales.numpy().astype(np.float64).reshape(module.out_features, groups)
    return (scales[..., None] * (values - zeros[..., None])).reshape(module.out_features, -1)


@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnxruntime_genai_reads_the_solved_weights(rng, tmp_path, bits, zeros):
    model = solved(tiny(), rng, [Grid(bits, 32, zeros)])
    with_grid(model, rng, f"{DOWN}.weight", Grid(4, 64, zeros))
    settings, _ = written(model, tmp_path)
    loaded = genai_model(tmp_path, model.config, settings)
    compared = 0
    for block, layer in enumerate(loaded.layers):
        modules = {
            f"self_attn.{name}": getattr(layer.self_attn, name)
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        }
        modules |= {
            f"mlp.{name}": getattr(layer.mlp, name)
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        for name, module in modules.items():
            expected = model.layers[f"model.layers.{block}.{name}.weight"].dequantized()
            np.testing.assert_array_equal(of_ort_words(module), expected, err_msg=name)
            compared += 1
    assert compared == 14


# GPTQModel has no wheels; where it is installed (pip install gptqmodel optimum), its kernels must
# agree.
@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
def test_gptqmodel_predicts_like_torch_with_the_dequantized_weights(rng, tmp_path, zeros):
    pytest.importorskip("gptqmodel", reason="needs gptqmodel, which has no wheels")
    from edgeq_backends.torch.directories import GptqModelLogits  # noqa: PLC0415

    model, ids = tiny(), rng.integers(0, 96, (1, 40))
    export = solved(model, rng, [Grid(4, 32, zeros)])
    written(export, tmp_path)
    reference = torch_logits(model, in_float16(export), ids)
    (found,) = GptqModelLogits(tmp_path).logits(ids)
    assert np.abs(found - reference[0]).max() < 0.01 * np.abs(reference).max()


def reason_of(model):
    reason = GptqExporter().reject_reason(model.record, model.files, shapes_of(model))
    assert reason is not None and "\n" not in reason
    return reason


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(5, 32), "GPTQ packs 2, 3, 4 or 8 bits, not 5"),
        (Grid(4, 32, "offset"), "no free offsets; use a symmetric grid or zeros = 'integer'"),
        (Grid(4, 48), "group_size 48 is not a multiple of 32"),
        (
            Grid(4, 96),
            "in_features 256 is not a multiple of group_size 96; choose 32 or 64 or 128 or 'row'",
        ),
    ],
)
def test_grids_that_gptq_cannot_carry_are_refused_before_a_byte_is_written(
    rng, tmp_path, grid, words
):
    model = with_grid(solved(tiny(), rng, [FOUR_BITS]), rng, f"{DOWN}.weight", grid)
    with pytest.raises(BadInput, match="export 'gptq'"):
        GptqExporter().write(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert reason_of(model).startswith(f"tensor '{DOWN}.weight': ") and words in reason_of(model)


def test_layers_that_vllm_fuses_must_have_one_grid(rng):
    model = with_grid(solved(tiny(), rng, [FOUR_BITS]), rng, f"{UP}.weight", Grid(8, 64))
    assert "layer 'model.layers.0': vLLM fuses gate_proj, up_proj, which have 4 bits" in reason_of(
        model
    )
    model.arrays[f"{UP}.weight"] = model.layers.pop(f"{UP}.weight").dequantized()
    assert "symmetric, dense; give them one grid" in reason_of(model)


def test_sizes_that_do_not_fill_words_are_refused(rng):
    model = solved(tiny(intermediate_size=100), rng, [None])
    with_grid(model, rng, "model.layers.0.mlp.down_proj.weight", Grid(2, None))
    assert "in_features 100 at 2 bits do not fill words of 32 bits" in reason_of(model)


def test_scales_beyond_float16_are_refused_and_others_rounded_and_reported(rng, tmp_path):
    layer = random_layer(rng, (32, 64), Grid(4, 32, "symmetric", "float32"))
    _, stored = pack("P", layer)
    np.testing.assert_array_equal(stored.scales, layer.scales.astype(np.float16).astype(np.float32))
    with pytest.raises(BadInput, match="exceeds float16"):
        pack(
            "P",
            SimpleNamespace(
                codes=layer.codes, scales=layer.scales * 1e9, offsets=layer.offsets, grid=layer.grid
            ),
        )


@pytest.mark.parametrize(
    "module",
    [
        "common.read_safetensors",
        "hugging_face.gptq",
        "hugging_face.compressed_tensors",
        "hugging_face.read_gptq",
        "hugging_face.read_compressed_tensors",
    ],
)
def test_writing_loads_no_framework(module):
    code = f"import sys, edgeq_exporters.{module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"torch", "transformers", "mlx", "compressed_tensors"} & set(run.stdout.split())


def test_shards_hold_what_one_file_holds(rng, tmp_path, monkeypatch):
    model = solved(tiny(), rng, [FOUR_BITS])
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    _, whole = written(model, tmp_path / "whole")
    monkeypatch.setattr(safetensors_directory, "SHARD_BYTES", 30_000)
    GptqExporter().write(model, tmp_path / "parts")
    shards = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    parts = {name: array for shard in shards for name, array in load_file(shard).items()}
    assert len(shards) > 2 and set(parts) == set(whole)
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)
    sizes = [sum(array.nbytes for array in load_file(shard).values()) for shard in shards]
    assert max(sizes) <= 30_000
