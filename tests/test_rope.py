import pytest

from edgeq.architectures.rope import check_rope, rope_of, rope_of_kind
from edgeq.errors import BadInput

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_settings_are_found_at_the_top_and_nested():
    assert rope_of({}).kind == "default"
    assert (
        rope_of({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}).theta == 5e5
    )
    nested = rope_of({"rope_parameters": LLAMA_3 | {"rope_theta": 7.0}, "rope_theta": 5.0})
    assert (nested.kind, nested.theta, nested.settings["factor"]) == ("llama3", 7.0, 8.0)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": "x"},
        {"rope_scaling": [1]},
        {"rope_parameters": {"rope_type": 5}},
        {"rope_theta": "abc"},
        {"rope_theta": None},
        {"rope_theta": 0},
        {"rope_theta": float("nan")},
        {"rope_theta": True},
        {"rope_scaling": LLAMA_3 | {"factor": "8"}},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": LLAMA_3 | {"high_freq_factor": 1.0}},
    ],
)
def test_settings_of_a_wrong_form_are_refused(config):
    with pytest.raises(BadInput, match=r"^config: .*(must be|lacks)"):
        check_rope(config)


def test_settings_by_kind_of_layer_are_read_for_each_kind():
    kinds = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    config = {"model_type": "gemma3_text", "rope_parameters": kinds}
    sliding = rope_of_kind(config, "sliding_attention", top=None, theta=5e5)
    assert sliding.theta == 10000.0
    full = rope_of_kind(config, "full_attention", top="rope_theta", theta=5e5)
    assert (full.kind, full.theta, full.settings["factor"]) == ("linear", 1e6, 8.0)
    with pytest.raises(BadInput, match="settings by kind of layer"):
        rope_of(config)
    flat = {"rope_theta": 7e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    full = rope_of_kind(flat, "full_attention", top="rope_theta", theta=5e5)
    assert (full.kind, full.theta) == ("linear", 7e5)
    sliding = rope_of_kind(flat, "sliding_attention", top=None, theta=5e5)
    assert (sliding.kind, sliding.theta) == ("default", 5e5)
