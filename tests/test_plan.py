import models
import numpy as np
import pytest

from edgeq.checkpoint import write_tensors
from edgeq.errors import BadInput
from edgeq.plan import asymmetric_zeros, bits_per_weight, check_exports, plan_grids, stored_bits
from edgeq.recipe import make_recipe
from edgeq.types import Grid, QuantizedLinear


class FakeExporter:
    def __init__(self, zero_kinds=("offset", "integer"), reason=None):
        self.name, self.zero_kinds, self.reason = "fake", zero_kinds, reason

    def reject_reason(self, config, companions, grids):
        return self.reason


@pytest.fixture(scope="module")
def source():
    return models.MemorySource(models.tiny_llama())


def test_linear_layers_embeddings_and_the_rest_each_get_their_grid(source):
    grids = plan_grids(source, make_recipe({"bits": 3, "overrides": [{"layers": "*.o_proj", "bits": 16}]}))
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
    with pytest.raises(BadInput, match=r"matches no layer; layers are named like 'model\.layers\.0\."):
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
        BadInput, match=r"\(fake offset, fake integer\); leave out --asymmetric, or set zeros = 'integer'"
    ):
        asymmetric_zeros([FakeExporter(("symmetric", "offset")), FakeExporter(("symmetric", "integer"))])


@pytest.mark.parametrize(
    ("grid", "bits"),
    [
        (None, 16 * 10 * 64),
        (Grid(4, 32), 4 * 640 + 20 * 16),
        (Grid(4, 32, "integer"), 4 * 640 + 20 * 20),
        (Grid(3, 32, "offset"), 3 * 640 + 20 * 32),
        (Grid(2, None, "offset", "float32"), 2 * 640 + 10 * 64),
        (Grid(4, 48), 4 * 640 + 20 * 16),
    ],
)
def test_stored_bits_count_codes_scales_and_offsets(grid, bits):
    assert stored_bits((10, 64), grid) == (640, bits)


def test_bits_per_weight_separate_linear_layers_from_the_model():
    grids = {
        "model.embed_tokens.weight": ((100, 64), Grid(8, 32)),
        "model.layers.0.norm.weight": ((64,), None),
        "model.layers.0.up.weight": ((10, 64), Grid(4, 32)),
    }
    found = bits_per_weight(grids)
    assert found["linear layers"] == 4.5
    assert found["model"] == pytest.approx((6400 * 8.5 + 64 * 16 + 640 * 4.5) / (6400 + 64 + 640))


def test_stored_bits_are_those_of_the_written_file(tmp_path, rng):
    """Counted on the safetensors file, with sizes that fill whole words."""
    grid = Grid(4, 32, "offset")
    codes = rng.integers(0, 16, (10, 64), dtype=np.uint8)
    layer = QuantizedLinear(codes, np.ones((10, 2), np.float32), np.zeros((10, 2), np.float32), grid)
    write_tensors(tmp_path / "layer.safetensors", {"w": layer}, {})
    data = (tmp_path / "layer.safetensors").read_bytes()
    payload = len(data) - 8 - int.from_bytes(data[:8], "little")
    assert 8 * payload == stored_bits((10, 64), grid)[1]
