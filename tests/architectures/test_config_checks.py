"""Values of configs that every family has."""

import pytest
from tiny_models import ONE_BLOCK
from transformers.activations import ACT2FN

from edgeq.architectures.config_checks import FUNCTIONS
from edgeq.architectures.record import read_record
from edgeq.errors import BadInput


def test_activation_functions_are_those_of_the_library():
    assert set(FUNCTIONS) == set(ACT2FN)


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtype", "int8"), ("torch_dtype", ["float16"]), ("hidden_act", ["silu"]), ("hidden_act", "")],
)
def test_what_no_loader_takes_is_named(key, value):
    with pytest.raises(BadInput, match=f"^config: {key} is .* it must be"):
        read_record("m", ONE_BLOCK | {key: value})
