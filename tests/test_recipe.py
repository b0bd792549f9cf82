import math
import re
from typing import get_args, get_type_hints

import pytest
from recipes import plain_recipe

import edgeq.types
from edgeq.errors import BadInput
from edgeq.grids.types import GRIDS
from edgeq.recipe.recipe import (
    OPTIONS_ONLY,
    Override,
    Recipe,
    make_recipe,
    read_recipe,
    recipe_settings,
)
from edgeq.recipe.setting_rows import PLAIN, PRESETS
from edgeq.recipe.settings import TABLE, Settings, defaults
from edgeq.recipe.type_names import BASES, TYPES
from edgeq.run.recipe_file import plain_recipe as recipe_text
from edgeq.types import LARGEST_OUTLIER_SHARE, Grid


def refusal(settings):
    with pytest.raises(BadInput) as caught:
        make_recipe(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_settings_give_the_defaults():
    assert make_recipe({}) == Recipe()
    assert Recipe().grid_of("any") == Grid(4, 32, "symmetric", "float16")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("bit", "bits"),
        ("groupsize", "group_size"),
        ("propagation_strenght", "propagation_strength"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(given, nearest):
    message = refusal({given: 1})
    assert repr(given) in message
    assert f"did you mean {nearest!r}" in message


@pytest.mark.parametrize("name", ["calibration", "backend", "export", "keep_dense"])
def test_what_is_an_option_only_is_refused_with_that_option(name):
    assert f"is not known; {OPTIONS_ONLY[name]}" in refusal({name: "self"})
    assert f"--{name.replace('_', '-')}" in OPTIONS_ONLY[name]


BAD_VALUES = {
    "bits": (1, 9, 15, 17, 4.0, "4", True, None),
    "group_size": (7, 0, -32, 65537, 32.0, "column", None),
    "zeros": ("asym", None, 0),
    "scale_dtype": ("float8", "fp16", None),
    "type": ("Q9_K", "IQ3_S", "F16", "auto", 4, True),
    "narrow_type": ("Q4_K_M", "Q9_0", None, 16),
    "solver": ("magic", "GPTQ", None),
    "damping": (0, -0.1, 101, math.nan, math.inf, "0.01", True),
    "activation_order": (1, "yes", None),
    "propagation_strength": (-0.1, 1.1, math.nan, "half"),
    "propagation_damping": (0, 1e3, None),
    "propagation_share": (0, 1.5, "half"),
    "scales": ("second", None),
    "refit_strength": (-1, 2, "auto"),
    "refit_exactly": (0, "no"),
    "scale_weighting": ("hessian", None),
    "scale_candidates": (0, 1001, 1.5),
    "scale_refits": (-1, 101, True),
    "sweeps": (-1, 1001, 2.0, True),
    "relaxed_sweeps": (1, "no"),
    "alternations": (-1, 101, None),
    "outlier_columns": (-0.01, 0.51, math.nan, "1%", None),
    "anneal_rounds": (-1, 101, 0.5),
    "anneal_steps": (0, 10**7),
    "embedding_bits": (1, 32, 8.0),
    "embedding_type": ("Q4_K_M", "F16", 8, 16.0, True),
    "tune": ("yes", 1, None),
    "tune_tokens": (0, 1.5, True),
    "tune_passes": (0, 1001),
    "tune_rate": (0, 2, "fast"),
    "tune_codes": ("yes", "auto", 1, None),
    "samples": (0, -1, 1.5),
    "sequence_length": (7, 10**7),
    "token_weights": ("gradients", None, True),
    "seed": (-1, 2**32, 0.5),
    "exact": ("yes", 1, None),
}
GOOD_VALUES = {
    "bits": (2, 8, 16),
    "group_size": (8, 65536, "row"),
    "zeros": ("symmetric", "integer", "offset"),
    "scale_dtype": ("float16", "bfloat16", "float32"),
    "type": (*TYPES, *BASES),
    "narrow_type": ("auto", *TYPES),
    "solver": ("rtn", "gptq", "quantease"),
    "damping": (1e-6, 1, 100),
    "activation_order": (True, False),
    "propagation_strength": (0, 1, 0.5, "auto"),
    "propagation_damping": (1e-6, 100.0),
    "propagation_share": (0.01, 1),
    "scales": ("none", "first", "both"),
    "refit_strength": (0, 1.0),
    "refit_exactly": (True, False),
    "scale_weighting": ("diagonal", "conditional", "mean"),
    "scale_candidates": (1, 1000),
    "scale_refits": (0, 3),
    "sweeps": (0, 1000),
    "relaxed_sweeps": (True, False),
    "alternations": (0, 100),
    "outlier_columns": (0, 0.01, 0.5),
    "anneal_rounds": (0, 3),
    "anneal_steps": (1, 10**6),
    "embedding_bits": (2, 16),
    "embedding_type": (16, *TYPES),
    "tune": (True, False, "auto"),
    "tune_tokens": (1, 10**12),
    "tune_passes": (1, 1000),
    "tune_rate": (1e-6, 1),
    "tune_codes": (True, False),
    "samples": (1, 10**6),
    "sequence_length": (8, 10**6),
    "token_weights": ("none", "gradient", "squares"),
    "seed": (0, 2**32 - 1),
    "exact": (True, False),
}


def test_every_setting_has_a_place_in_these_tests():
    unset = {"refit_strength", "type", "embedding_type"}
    stated = set(recipe_settings(Recipe())) - {"overrides"} | unset
    assert set(TABLE) == set(BAD_VALUES) == set(GOOD_VALUES) == stated


def test_the_default_of_every_preset_holds_the_rule_of_its_setting():
    for name, row in TABLE.items():
        assert set(row.defaults) == {PLAIN, *PRESETS}
        assert all(row.rule.holds(value) for value in row.defaults.values()), name
        assert row.help.endswith("."), name


def test_the_words_and_bounds_of_rules_are_those_of_the_types():
    """Rules state them again, because the types come with NumPy and --help must not."""
    types = get_type_hints(Settings, localns=vars(edgeq.types))
    for name, row in TABLE.items():
        if row.rule.kind is str and row.rule.words:
            assert row.rule.words == get_args(types[name]), name
    assert TABLE["outlier_columns"].rule.holds(LARGEST_OUTLIER_SHARE)
    assert not TABLE["outlier_columns"].rule.holds(LARGEST_OUTLIER_SHARE + 1e-9)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD_VALUES for value in BAD_VALUES[name]]
)
def test_a_value_outside_of_its_rule_is_refused_with_the_rule(name, value):
    message = refusal({name: value})
    assert f"{name} = {value!r}" in message
    assert f"expected {TABLE[name].rule.text}" in message


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in GOOD_VALUES for value in GOOD_VALUES[name]]
)
def test_values_inside_of_a_rule_are_taken(name, value):
    needed = {"relaxed_sweeps": {"sweeps": 10}, "narrow_type": {"type": "Q4_K"}}
    assert getattr(make_recipe({**needed.get(name, {}), name: value}), name) == value


def test_relaxed_sweeps_are_refused_where_they_are_too_few_to_pay():
    assert "expected sweeps of 10 or more with it, not 3" in refusal(
        {"relaxed_sweeps": True, "sweeps": 3}
    )


def test_the_last_override_that_matches_wins_setting_by_setting():
    recipe = make_recipe(
        {
            "bits": 3,
            "overrides": [
                {"layers": "*.down_proj", "bits": 4, "group_size": "row"},
                {"layers": "*.0.*", "zeros": "integer"},
                {"layers": "*.0.mlp.down_proj", "bits": 8},
                {"layers": "*.o_proj", "bits": 16},
            ],
        }
    )
    assert recipe.grid_of("m.0.mlp.down_proj") == Grid(8, None, "integer")
    assert recipe.grid_of("m.1.mlp.down_proj") == Grid(4, None, "symmetric")
    assert recipe.grid_of("m.0.mlp.up_proj") == Grid(3, 32, "integer")
    assert recipe.grid_of("m.1.mlp.up_proj") == Grid(3, 32, "symmetric")
    assert recipe.grid_of("m.1.self_attn.o_proj") is None


def test_a_later_override_can_quantize_what_an_earlier_one_keeps_dense():
    overrides = [{"layers": "*", "bits": 16}, {"layers": "*.up_proj", "bits": 2}]
    recipe = make_recipe({"overrides": overrides})
    assert recipe.grid_of("m.up_proj") == Grid(2, 32)
    assert recipe.grid_of("m.down_proj") is None


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ("*.down_proj", "[[overrides]]"),
        (["*.down_proj"], "[[overrides]]"),
        ([{"bits": 4}], "without 'layers'"),
        ([{"layers": 3}], "without 'layers'"),
        ([{"layers": "*", "bit": 4}], "did you mean 'bits'"),
        ([{"layers": "*", "solver": "rtn"}], "override setting 'solver'"),
        ([{"layers": "*", "bits": 1}], "override setting bits = 1"),
        ([{"layers": "*", "group_size": "all"}], "group_size = 'all'"),
    ],
)
def test_a_malformed_override_is_refused(overrides, part):
    assert part in refusal({"overrides": overrides})


def test_settings_and_recipe_are_inverse():
    settings = {
        "bits": 3,
        "group_size": "row",
        "zeros": "offset",
        "refit_strength": 0.5,
        "overrides": [
            {"layers": "*.o_proj", "bits": 16},
            {"layers": "*", "group_size": 64, "zeros": "integer"},
        ],
    }
    recipe = make_recipe(settings)
    assert recipe.overrides[0] == Override("*.o_proj", {"bits": 16})
    assert make_recipe(recipe_settings(recipe)) == recipe
    assert recipe_settings(recipe).items() >= settings.items()
    assert make_recipe(recipe_settings(Recipe())) == Recipe()


def test_what_a_recipe_needs_to_run():
    assert all(recipe.needs_calibration for recipe in (Recipe(solver="rtn"), Recipe(scales="none")))
    assert not plain_recipe(solver="rtn", scales="none", propagation_strength=0).needs_calibration
    bare = {"solver": "rtn", "scales": "none", "propagation_strength": 0.0}
    for refinement in ("sweeps", "anneal_rounds"):
        assert make_recipe({**bare, refinement: 1}).needs_calibration
    assert Recipe().needs_drift
    assert not Recipe(propagation_strength=0).needs_drift
    assert Recipe(propagation_strength=0, refit_strength=1.0).needs_drift
    assert not Recipe(propagation_strength=0, refit_strength=1.0, scales="first").needs_drift


def test_embeddings_have_a_grid_of_their_own():
    assert Recipe(bits=3, group_size=128, zeros="offset").embedding_grid == Grid(8, 32, "symmetric")
    assert Recipe(embedding_bits=16).embedding_grid is None


def test_a_toml_file_is_read_with_its_overrides(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('bits = 3\nscales = "first"\n[[overrides]]\nlayers = "*.o_proj"\nbits = 16\n')
    assert make_recipe(read_recipe(str(path))) == Recipe(
        bits=3, scales="first", overrides=(Override("*.o_proj", {"bits": 16}),)
    )


@pytest.mark.parametrize("content", [b"bits = ", b"bits = 4\nbits = 3", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not valid TOML") as caught:
        read_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_recipe(str(tmp_path / "recipe.toml"))


def test_an_override_changes_the_propagation_strength_of_its_layers_only():
    recipe = make_recipe({"overrides": [{"layers": "*.down_proj", "propagation_strength": 0.0}]})
    assert recipe.strength_of("model.layers.0.mlp.down_proj") == 0
    assert recipe.strength_of("model.layers.0.mlp.up_proj") == recipe.propagation_strength


@pytest.mark.parametrize("scales", ["none", "first"])
def test_turns_that_refit_scales_are_refused_where_scales_may_not_be_refitted(scales):
    message = refusal({"alternations": 1, "scales": scales})
    assert "alternations = 1" in message
    assert 'scales = "both"' in message


def test_outlier_columns_are_refused_where_nothing_fits_them():
    assert 'solver = "gptq"' in refusal({"outlier_columns": 0.01, "solver": "rtn"})
    assert "0.02" in refusal(
        {"solver": "rtn", "overrides": [{"layers": "*", "outlier_columns": 0.02}]}
    )
    assert make_recipe({"outlier_columns": 0, "solver": "rtn"}).grid_of("any") == Grid(4, 32)


def test_an_override_changes_the_outlier_columns_of_its_layers_only():
    recipe = make_recipe({"overrides": [{"layers": "*.down_proj", "outlier_columns": 0.01}]})
    assert recipe.grid_of("m.0.mlp.down_proj") == Grid(4, 32, outlier_columns=0.01)
    assert recipe.grid_of("m.0.mlp.up_proj") == Grid(4, 32)


@pytest.mark.parametrize(
    ("share", "inputs", "count"), [(0, 64, 0), (0.01, 64, 1), (0.01, 576, 6), (0.5, 3, 2)]
)
def test_a_share_of_columns_is_a_whole_number_and_at_least_one(share, inputs, count):
    assert Grid(4, 32, outlier_columns=share).outlier_count(inputs) == count


def test_a_number_too_long_to_write_is_refused_in_one_line():
    assert refusal({"samples": 16**5000}).startswith(
        "recipe setting samples = a number of thousands of digits"
    )


def test_a_preset_sets_what_nothing_else_does():
    assert make_recipe({"bits": 3}).sweeps == 3
    assert make_recipe({"sweeps": 1}).sweeps == 1
    assert make_recipe({"quality": "fast"}).propagation_strength == 0.0
    assert make_recipe({"quality": "best"}).samples == 128
    assert make_recipe({"quality": "best", "samples": 8}).samples == 8
    for name in PRESETS:
        assert (
            recipe_settings(make_recipe({"quality": name})).items()
            <= {
                **defaults(name),
                "overrides": [],
            }.items()
        )
        assert make_recipe({"quality": name}).activation_order


def test_a_recipe_without_settings_is_the_preset_balanced():
    assert Recipe() == make_recipe({}) == make_recipe({"quality": "balanced"})


@pytest.mark.parametrize("quality", PRESETS)
def test_plain_rounding_takes_nothing_from_a_preset(quality):
    bare = {"solver": "rtn", "scales": "none", "propagation_strength": 0.0}
    assert make_recipe({**bare, "quality": quality}) == plain_recipe(**bare)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    for value in ("better", ["fast"]):
        with pytest.raises(
            BadInput, match=re.escape(f"quality {value!r}: expected one of fast, balanced, best")
        ):
            make_recipe({"quality": value})


def test_the_names_that_a_recipe_may_hold_are_named_with_that_of_the_preset():
    message = refusal({"qualty": "fast"})
    assert "did you mean 'quality'? Known: quality, bits" in message


def test_types_have_the_names_of_their_grids():
    """Names are stated again, because grids come with NumPy and --help must not."""
    assert set(TYPES) == set(GRIDS)
    assert set(BASES.values()) <= set(TYPES) and not {*BASES} & {*TYPES}


@pytest.mark.parametrize(
    ("stated", "held"), [("q4_k", "Q4_K"), ("iq4_nl", "IQ4_NL"), ("Q4_k_M", "Q4_K_M")]
)
def test_types_are_read_in_any_spelling(stated, held):
    assert make_recipe({"type": stated}).type == held


def test_a_type_is_the_grid_of_its_layers():
    recipe = make_recipe(
        {
            "type": "Q3_K",
            "overrides": [
                {"layers": "*.down_proj", "type": "q5_k"},
                {"layers": "*.0.*", "bits": 16},
                {"layers": "*.1.*", "bits": 6, "group_size": 64},
                {"layers": "*.1.mlp.up_proj", "type": "Q8_0"},
            ],
        }
    )
    assert recipe.grid_of("m.2.up_proj") == GRIDS["Q3_K"]
    assert recipe.grid_of("m.2.down_proj") == GRIDS["Q5_K"]
    assert recipe.grid_of("m.0.down_proj") is None
    assert recipe.grid_of("m.1.down_proj") == Grid(6, 64)
    assert recipe.grid_of("m.1.mlp.up_proj") == GRIDS["Q8_0"]


def test_an_override_may_have_a_type_where_the_recipe_has_bits():
    recipe = make_recipe({"bits": 3, "overrides": [{"layers": "*.o_proj", "type": "Q6_K"}]})
    assert recipe.grid_of("m.o_proj") == GRIDS["Q6_K"]
    assert recipe.grid_of("m.up_proj") == Grid(3, 32)
    assert recipe.embedding_type is None


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"type": "Q9_K"}, "did you mean Q6_K or Q5_K or Q4_K?"),
        ({"type": "iq3_s"}, "IQ3_S has codebooks of vectors"),
        ({"type": "IQ2_XXS"}, "IQ2_XXS has codebooks of vectors"),
        ({"type": "Q4_K", "bits": 3}, "Q4_K says bits, groups and zeros itself; leave out bits"),
        ({"type": "Q4_K_M", "group_size": 64}, "leave out group_size"),
        ({"type": "Q4_K", "zeros": "offset"}, "leave out zeros"),
        ({"type": "Q4_K", "outlier_columns": 0.01}, "types have no outlier columns"),
        ({"embedding_type": "Q6_K", "embedding_bits": 8}, "leave out embedding_bits"),
        ({"type": "Q4_K", "embedding_type": "auto", "embedding_bits": 8}, "leave out embedding_b"),
        ({"bits": 3, "embedding_type": "auto"}, "set type, name a type such as Q6_K, or set"),
        ({"narrow_type": "q4_0"}, "narrow_type = Q4_0 is for layers that a type does not fit"),
        ({"embedding_type": "Q6_K", "narrow_type": "Q4_0"}, "set type too, or leave out narrow"),
        ({"overrides": [{"layers": "*", "type": "Q4_K_M"}]}, "a mix chooses types for a whole"),
        ({"overrides": [{"layers": "*", "type": "Q4_K", "bits": 3}]}, "leave out bits"),
        ({"overrides": [{"layers": "*", "type": "IQ1_S"}]}, "override setting type = 'IQ1_S'"),
        (
            {"type": "Q4_K", "overrides": [{"layers": "*.o_proj", "group_size": 64}]},
            "set bits too, or leave out group_size",
        ),
        (
            {"outlier_columns": 0.01, "overrides": [{"layers": "*", "type": "Q4_K"}]},
            "types have no outlier columns",
        ),
    ],
)
def test_types_are_refused_where_they_do_not_go(settings, part):
    assert part in refusal(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "Q4_K"},
        {"type": "q3_k_m", "embedding_bits": 4, "narrow_type": "iq4_nl"},
        {"type": "Q2_K", "embedding_type": 16},
        {"type": "Q2_K", "embedding_type": "q8_0"},
        {"bits": 3, "overrides": [{"layers": "*", "type": "q5_k"}]},
        {"narrow_type": "q4_0", "overrides": [{"layers": "*", "type": "q5_k"}]},
        {"type": "Q4_K", "overrides": [{"layers": "*", "bits": 4, "zeros": "offset"}]},
    ],
)
def test_recipes_with_types_are_the_inverse_of_their_settings(settings):
    recipe = make_recipe(settings)
    assert make_recipe(recipe_settings(recipe)) == recipe
    both = {"type", "bits"} <= {*recipe_settings(recipe)}
    assert not both


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quality": "best", "group_size": "row", "zeros": "offset", "scale_dtype": "bfloat16"},
        {"solver": "rtn", "overrides": [{"layers": 'a "b" \\ c', "bits": 16}]},
        {"type": "Q3_K_M", "embedding_bits": 4, "narrow_type": "IQ4_NL"},
        {"overrides": [{"layers": "*", "type": "Q5_K"}, {"layers": "*.up", "bits": 3}]},
    ],
)
def test_the_recipe_file_of_a_run_makes_the_same_recipe(settings, tmp_path):
    recipe, file = make_recipe(settings), tmp_path / "recipe.toml"
    file.write_text(recipe_text(recipe), encoding="utf-8")
    assert make_recipe(read_recipe(str(file))) == recipe


def test_the_embedding_goes_by_the_type_unless_its_bits_are_said():
    assert make_recipe({"type": "Q4_K"}).embedding_type == "auto"
    assert make_recipe({"type": "Q4_K", "embedding_bits": 4}).embedding_type is None
    assert make_recipe({"embedding_type": "16"}).embedding_type == 16


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bits": 4}, False),
        ({"bits": 5}, True),
        ({"bits": 8, "quality": "fast"}, False),
        ({"bits": 3, "overrides": [{"layers": "*", "bits": 6}]}, True),
        ({"bits": 3, "overrides": [{"layers": "*", "bits": 16}]}, False),
        ({"type": "Q4_K_M"}, False),
        ({"type": "IQ4_NL"}, False),
        ({"type": "Q6_K"}, True),
        ({"bits": 3, "quality": "fast", "exact": True}, True),
    ],
)
def test_the_drift_of_wide_codes_is_not_rounded(settings, expected):
    assert make_recipe(settings).needs_exact_passes == expected
