"""Types by tensor beside those that llama.cpp's own quantizer gives the same model."""

import gguf
import numpy as np
import pytest
from cyllama.llama import llama_cpp
from tiny_models import MemoryModel, tokenizer_files
from transformers import AutoConfig

from benchmarks.architectures.rows import ROWS
from edgeq.architectures.blocks import find_blocks
from edgeq.recipe.layer_grids import plan_grids
from edgeq.recipe.layer_types import type_of_grid
from edgeq.recipe.recipe import make_recipe
from edgeq_exporters.gguf.architecture import gguf_tensors
from edgeq_exporters.gguf.exporter import GgufExporter

FILE_TYPES = {
    "Q2_K_M": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
}
"""llama.cpp's numbers of the mixes; Q2_K_S it makes with an importance matrix alone."""
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
MIXED = {"num_hidden_layers": 9, "num_key_value_heads": 2}
KINDS = {
    "a key head each": ("llama", WIDE),
    "two queries a key": ("llama", WIDE | {"num_key_value_heads": 4}),
    "four queries a key, tied": ("llama tied", WIDE | {"num_key_value_heads": 2}),
    "eight queries a key": ("qwen2", WIDE | {"num_key_value_heads": 1}),
    "gemma": ("gemma", WIDE | {"num_hidden_layers": 3, "head_dim": 32}),
    "fused": ("phi3 / phi-4-mini", WIDE),
    "narrow inner": ("llama", WIDE | {"intermediate_size": 288}),
    "narrow hidden": (
        "llama tied",
        WIDE | {"hidden_size": 320, "num_attention_heads": 5, "num_key_value_heads": 5},
    ),
    "inner of no blocks": ("llama", WIDE | {"intermediate_size": 344, "num_hidden_layers": 2}),
    "eight experts": ("mixtral", WIDE | MIXED | {"num_local_experts": 8}),
    "four experts": ("mixtral", WIDE | MIXED | {"num_local_experts": 4}),
    "falcon": ("falcon", {"hidden_size": 256, "num_hidden_layers": 32}),
}
LARGE = {
    "as of 70B": ("llama", {"num_key_value_heads": 1}),
    "as of 65B": ("llama", {"num_key_value_heads": 8}),
    "as of 72B": ("qwen2", {"num_key_value_heads": 2}),
}
FAMILIES = {
    "gpt2": {},
    "bloom": {},
    "falcon": {},
    "gpt_neox": {},
    "glm4": {},
    "phi (2)": {},
    "cohere": {},
    "stablelm": {},
    "gemma2": {},
    "qwen2_moe": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "olmoe": {"num_key_value_heads": 4},
}
"""Rows of the table of models, 128 wide, and what llama.cpp asks of them."""
TIED = ("llama", "llama tied")
UNIFORM = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "TQ1_0": 36,
    "TQ2_0": 37,
}
"""llama.cpp's numbers of a file of one type, where all layers are to have it."""


def zero_model(row, changes):
    """A model of a kind whose weights are all zero, which llama.cpp quantizes at once."""
    kind, settings = ROWS[row]
    config = AutoConfig.for_model(kind, **{**settings, **changes}).to_dict()
    model = MemoryModel(config, files=tokenizer_files())
    for name, shape in model.record.decoder.tensor_shapes().items():
        model.arrays[name] = np.zeros(shape, np.float16 if len(shape) > 1 else np.float32)
    return model


def own_types(file, number):
    """The types that llama.cpp gives the tensors of a file that are no vectors."""
    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = number, 1
    made = file.with_name("own.gguf")
    llama_cpp.model_quantize(str(file), str(made), params)
    tensors = gguf.GGUFReader(made).tensors
    return {each.name: each.tensor_type.name for each in tensors if len(each.shape) > 1}


def planned_types(source, **settings):
    """The types that edgeq plans, by the names of llama.cpp; dense matrices have F16."""
    grids = plan_grids(source, make_recipe(settings))
    found = {}
    for tensor in gguf_tensors(source.record.decoder):
        kinds = {grids[name][1] for name in tensor.sources}
        assert len(kinds) == 1, tensor.name
        grid = kinds.pop()
        found[tensor.name] = "F16" if grid is None else type_of_grid(grid)
    return found


def check_mixes(row, changes, mixes, folder):
    model = zero_model(row, changes)
    file = GgufExporter().write(model, folder)[0]
    for mix in mixes:
        own = own_types(file, FILE_TYPES[mix])
        planned = planned_types(ModelInMemory(model), type=mix)
        quantized = {name: kind for name, kind in own.items() if kind not in ("F32", "F16")}
        assert {name: planned[name] for name in quantized} == quantized, mix
        others = {name: kind for name, kind in planned.items() if name not in quantized}
        assert set(others.values()) <= {"F16"}, others


class ModelInMemory:
    """What `plan_grids` asks of a model that is open."""

    def __init__(self, model):
        self.record = model.record
        self._shapes = self.record.decoder.tensor_shapes()

    def tensor_names(self):
        return list(self._shapes)

    def shape(self, name):
        return self._shapes[name]

    def blocks(self):
        return find_blocks(self.record.decoder, self._shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_mixes_are_those_of_llama_cpp(kind, tmp_path):
    check_mixes(*KINDS[kind], FILE_TYPES, tmp_path)


@pytest.mark.parametrize("row", FAMILIES)
def test_mixes_of_other_families_are_those_of_llama_cpp(row, tmp_path):
    check_mixes(row, FAMILIES[row], ["Q2_K_M", "Q3_K_L", "Q4_K_M"], tmp_path)


@pytest.mark.parametrize("kind", LARGE)
def test_mixes_of_large_models_are_those_of_llama_cpp(kind, tmp_path):
    row, changes = LARGE[kind]
    check_mixes(row, WIDE | {"num_hidden_layers": 80, **changes}, ["Q3_K_S", "Q4_K_M"], tmp_path)


@pytest.fixture(scope="module", params=[(row, size) for row in TIED for size in (256, 288)])
def model(request, tmp_path_factory):
    """A model with and without a head of its own, of a width that K types fit, or do not."""
    row, size = request.param
    model = zero_model(row, {"hidden_size": size, "num_hidden_layers": 1, "head_dim": 32})
    return model, GgufExporter().write(model, tmp_path_factory.mktemp("model"))[0]


@pytest.mark.parametrize("name", UNIFORM)
def test_one_type_gives_way_where_that_of_llama_cpp_does(model, name):
    """Its mixes make no exception for queries and gates."""
    solved, file = model
    own, planned = own_types(file, UNIFORM[name]), planned_types(ModelInMemory(solved), type=name)
    for part in ("token_embd", "output", "blk.0.attn_q", "blk.0.ffn_gate"):
        assert planned.get(f"{part}.weight") == own.get(f"{part}.weight"), part


FOUR_FOR_Q2_K_S = {
    "a key head each": {"ffn_down": [0, 1]},
    "four queries a key, tied": {"ffn_down": [0, 1], "attn_v": [*range(16)]},
    "fused": {"ffn_down": [0, 1]},
}
"""The blocks whose layers have Q4_K in Q2_K_S, by llama.cpp v0.5.0 with an importance matrix."""


@pytest.mark.parametrize("kind", FOUR_FOR_Q2_K_S)
def test_the_smallest_mix_is_that_of_llama_cpp(kind):
    planned = planned_types(ModelInMemory(zero_model(*KINDS[kind])), type="Q2_K_S")
    blocks = {name: each for name, each in planned.items() if "norm" not in name and "blk." in name}
    raised = FOUR_FOR_Q2_K_S[kind]
    expected = {f"blk.{number}.{part}.weight" for part in raised for number in raised[part]}
    assert {name for name, each in blocks.items() if each == "Q4_K"} == expected
    assert {each for name, each in blocks.items() if name not in expected} == {"Q2_K"}
