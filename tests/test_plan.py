from dataclasses import replace

import models
import numpy as np
import pytest

from edgeq.checkpoint.tensor_file import TensorFile, write_tensors
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.grids.types import GRIDS
from edgeq.recipe.layer_grids import (
    asymmetric_zeros,
    bits_per_weight,
    check_exports,
    grids_by_part,
    grids_of_layers,
    kept_dense,
    plan_grids,
)
from edgeq.recipe.layer_types import replaced_types
from edgeq.recipe.recipe import make_recipe
from edgeq.registry import find_format
from edgeq.types import Grid, LinearSpec, QuantizedLinear


class FakeExporter:
    def __init__(self, zero_kinds=("offset", "integer"), reason=None):
        self.format = replace(find_format("gguf"), name="fake", zero_kinds=zero_kinds)
        self.reason = reason

    def reject_reason(self, config, companions, grids):
        return self.reason


@pytest.fixture(scope="module")
def source():
    return models.MemorySource(models.tiny_llama())


def test_linear_layers_embeddings_and_the_rest_each_get_their_grid(source):
    grids = plan_grids(
        source, make_recipe({"bits": 3, "overrides": [{"layers": "*.o_proj", "bits": 16}]})
    )
    assert set(grids) == set(source.tensor_names())
    for name, (shape, grid) in grids.items():
        assert shape == source.shape(name)
        if "norm" in name or "o_proj" in name:
            assert grid is None, name
        elif ".layers." in name:
            assert grid == Grid(3, 32), name
        else:
            assert grid == Grid(8, 32), name


def test_a_tied_head_is_not_written():
    tied = models.MemorySource(models.tiny_llama(tie_word_embeddings=True))
    assert "lm_head.weight" in tied.tensor_names()
    assert "lm_head.weight" not in plan_grids(tied, make_recipe({}))


def test_an_override_that_matches_nothing_is_refused(source):
    recipe = make_recipe({"overrides": [{"layers": "*.dwon_proj", "bits": 8}]})
    with pytest.raises(
        BadInput, match=r"matches no layer; layers are named like 'model\.layers\.0\."
    ):
        plan_grids(source, recipe)


def test_the_first_export_that_cannot_hold_the_grids_refuses(source):
    check_exports([FakeExporter()], source, {})
    with pytest.raises(BadInput, match="format 'fake': group_size 48"):
        check_exports([FakeExporter(), FakeExporter(reason="group_size 48")], source, {})


def test_asymmetric_means_what_all_exports_hold_without_loss():
    both, whole = FakeExporter(), FakeExporter(("integer",))
    assert asymmetric_zeros([both]) == "offset"
    assert asymmetric_zeros([both, whole]) == "integer"
    assert asymmetric_zeros([]) == "integer"


def test_exports_without_a_common_asymmetric_kind_are_refused_with_what_to_change():
    with pytest.raises(
        BadInput,
        match=r"\(fake offset, fake integer\); leave out --asymmetric, or set zeros = 'integer'",
    ):
        asymmetric_zeros(
            [FakeExporter(("symmetric", "offset")), FakeExporter(("symmetric", "integer"))]
        )


@pytest.mark.parametrize(
    ("grid", "bits"),
    [
        (None, 16 * 10 * 64),
        (Grid(4, 32), 4 * 640 + 20 * 16),
        (Grid(4, 32, "integer"), 4 * 640 + 20 * (16 + 8)),
        (Grid(3, 32, "offset"), 3 * 640 + 20 * 32),
        (Grid(2, None, "offset", "float32"), 2 * 640 + 10 * 64),
        (Grid(4, 48), 4 * 640 + 20 * 16),
    ],
)
def test_the_bytes_of_a_tensor_are_those_in_the_file(tmp_path, rng, grid, bits):
    path = tmp_path / "layer.safetensors"
    if grid is None:
        write_tensors(path, {}, {"w": np.zeros((10, 64), np.float16)})
    else:
        codes = rng.integers(0, grid.max_code, (10, 64), dtype=np.uint8, endpoint=True)
        groups = (10, grid.group_count(64))
        write_tensors(
            path,
            {"w": QuantizedLinear(codes, np.ones(groups, "f4"), np.zeros(groups, "f4"), grid)},
            {},
        )
    data = path.read_bytes()
    payload = len(data) - 8 - int.from_bytes(data[:8], "little")
    assert TensorFile(path).tensor_bytes("w") == payload == bits // 8


FUSED = LinearSpec("q", "qkv.weight", (4, 6), rows=(4, 8), stored=(12, 6))
STACKED = LinearSpec("e.1", "stack", (5, 6), transposed=True, expert=1, stored=(3, 6, 5))


@pytest.mark.parametrize(
    "linear",
    [LinearSpec("l", "l.weight", (4, 6)), FUSED, STACKED],
    ids=["plain", "fused", "stacked"],
)
def test_a_layer_has_its_rows_in_the_matrix_that_its_tensor_is_solved_as(linear):
    shape = linear.stored_shape
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    matrix = linear.matrix_of(tensor)
    assert matrix.shape == linear.matrix_shape
    np.testing.assert_array_equal(linear.tensor_of(matrix), tensor)
    np.testing.assert_array_equal(matrix[slice(*linear.place)], linear.weight_in(tensor))


def test_layers_of_one_tensor_have_one_grid():
    experts = [replace(STACKED, name=f"e.{index}", expert=index) for index in range(3)]
    grids = grids_of_layers(experts, make_recipe({"bits": 3}))
    assert grids == {"stack": ((15, 6), Grid(3, 32))}
    recipe = make_recipe({"bits": 3, "overrides": [{"layers": "e.2", "bits": 16}]})
    words = "layers 'e.0' and 'e.2' lie in one tensor, 'stack', .* 3 bits.* and dense; give all"
    with pytest.raises(BadInput, match=words):
        grids_of_layers(experts, recipe)
    with pytest.raises(BadInput, match="no place for outlier columns of each"):
        grids_of_layers(experts, make_recipe({"bits": 3, "outlier_columns": 0.01}))


def test_what_stays_dense_is_counted_by_name():
    grids = {
        "model.layers.0.router.weight": ((4, 64), None),
        "model.layers.1.router.weight": ((4, 64), None),
        "model.layers.1.norm.weight": ((64,), None),
        "model.layers.1.up.weight": ((64, 64), Grid(4, 32)),
    }
    assert kept_dense(grids) == {"model.layers.*.router.weight": 2}


def test_bits_per_weight_separate_linear_layers_from_the_model(source):
    stored = {
        "model.embed_tokens.weight": ((100, 64), 6800),
        "model.layers.0.input_layernorm.weight": ((64,), 256),
        "model.layers.0.mlp.up_proj.weight": ((10, 64), 360),
    }
    found = bits_per_weight(stored, source.record.decoder)
    assert found["linear layers"] == 4.5
    assert found["model"] == pytest.approx((6400 * 8.5 + 64 * 32 + 640 * 4.5) / (6400 + 64 + 640))


def test_one_type_takes_over_where_a_width_does_not_fit(source):
    """The model is 64 wide, and 96 inside."""
    recipe = make_recipe({"type": "Q4_K"})
    grids = plan_grids(source, recipe)
    assert grids["model.layers.0.mlp.down_proj.weight"][1] == GRIDS["Q5_0"]
    found = grids_by_part(grids, source.record.decoder, recipe)
    layers = len(list(source.record.decoder.linears()))
    assert found["linear layers"] == {"Q5_0": layers}
    assert (found["embedding"], found["head"]) == ({"Q5_0": 1}, {"Q8_0": 1})
    words = list(replaced_types(recipe, source.record.decoder))
    assert sum(int(line.split()[0]) for line in words[:-1]) == layers
    assert all(line.endswith("Q5_0: Q4_K needs a multiple of 256") for line in words)


def test_the_type_that_takes_over_may_be_chosen(source):
    recipe = make_recipe({"type": "Q4_K", "narrow_type": "IQ4_NL"})
    grids = plan_grids(source, recipe)
    assert grids["model.layers.0.mlp.up_proj.weight"][1] == GRIDS["IQ4_NL"]
    assert grids["lm_head.weight"][1] == GRIDS["Q8_0"]


@pytest.mark.parametrize(
    ("settings", "table", "head"),
    [
        ({"embedding_type": "Q4_0"}, "Q4_0", "Q4_0"),
        ({"embedding_type": "Q6_K"}, "Q8_0", "Q8_0"),
        ({"embedding_type": 16}, None, None),
        ({"embedding_bits": 8}, "Q8_0", "Q8_0"),
        ({"embedding_bits": 16}, None, None),
    ],
)
def test_embedding_and_head_have_the_type_they_are_given(source, settings, table, head):
    grids = plan_grids(source, make_recipe({"type": "IQ4_NL", **settings}))
    assert grids["model.embed_tokens.weight"][1] == (table and GRIDS[table])
    assert grids["lm_head.weight"][1] == (head and GRIDS[head])


def test_rows_that_no_block_divides_stay_dense_and_are_named():
    narrow = models.MemorySource(models.tiny_llama(intermediate_size=72))
    recipe = make_recipe({"type": "Q4_K"})
    grids = plan_grids(narrow, recipe)
    assert grids["model.layers.0.mlp.down_proj.weight"][1] is None
    words = list(replaced_types(recipe, narrow.record.decoder))
    assert any("of 72 inputs" in line and "dense" in line for line in words)


def test_layers_of_one_tensor_have_one_type():
    experts = [replace(STACKED, name=f"e.{index}", expert=index) for index in range(3)]
    recipe = make_recipe({"type": "Q4_0", "overrides": [{"layers": "e.2", "type": "Q8_0"}]})
    wide = [replace(each, shape=(5, 32), stored=(3, 32, 5)) for each in experts]
    with pytest.raises(BadInput, match="lie in one tensor"):
        grids_of_layers(wide, recipe)
    assert grids_of_layers(wide, make_recipe({"type": "q8_0"}))["stack"][1] == GRIDS["Q8_0"]


def test_overrides_that_meet_in_a_type_with_outlier_columns_are_refused(source):
    overrides = [
        {"layers": "*.up_proj", "type": "Q8_0"},
        {"layers": "*.0.*", "outlier_columns": 0.02},
    ]
    with pytest.raises(BadInput, match="is to have type Q8_0 and outlier columns"):
        plan_grids(source, make_recipe({"overrides": overrides}))


def test_a_mix_is_refused_where_blocks_are_not_described(source):
    decoder = source.record.decoder
    bare = replace(decoder, layers=tuple(replace(each, attention=None) for each in decoder.layers))
    specs = list(bare.linears())
    with pytest.raises(UnsupportedModel, match="choose one type for all, such as Q4_K"):
        grids_of_layers(specs, make_recipe({"type": "Q4_K_M"}), bare)
    assert grids_of_layers(specs, make_recipe({"type": "Q4_K"}), bare)
