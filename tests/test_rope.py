import pytest

from edgeq.architectures.rope import check_rope, rope_of
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
