"""Families' descriptions beside transformers: tensors by the names of checkpoints, and shapes."""

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from benchmarks.architectures.rows import ROWS
from edgeq.architectures.families import families
from edgeq.architectures.record import read_record
from edgeq.errors import BadInput, UnsupportedModel

DESCRIBED = [name for name, (kind, _) in ROWS.items() if kind in families()]


def saved_shapes(config):
    """Shapes of what transformers would save of a model, without a copy of a tied head."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = revert_weight_conversion(model, model.state_dict())
    tied = config.tie_word_embeddings
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not (tied and name == "lm_head.weight")
    }


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_family_describes_the_tensors_that_transformers_saves(name):
    kind, settings = ROWS[name]
    config = AutoConfig.for_model(kind, **settings)
    decoder = read_record(name, config.to_dict()).decoder
    assert decoder.tensor_shapes() == saved_shapes(config)
    silent = {key: value for key, value in settings.items() if key != "rope_parameters"}
    stated = read_record(name, {"model_type": kind, **silent}).decoder
    assert stated.tensor_shapes() == decoder.tensor_shapes()


ODD = ["x", -1, 0, 0.5, None, [], {}, [-1, "y"], True, 10**400, float("nan"), 2**40]


@pytest.mark.parametrize("kind", families())
def test_odd_values_of_a_config_are_refused_in_one_line(kind):
    settings = next(values for of_kind, values in ROWS.values() if of_kind == kind)
    config = AutoConfig.for_model(kind, **settings).to_dict()
    for key in config:
        for odd in ODD:
            try:
                read_record("m", {**config, key: odd})
            except (BadInput, UnsupportedModel) as refusal:
                assert "\n" not in str(refusal) and len(str(refusal)) < 2000, key


def test_every_family_has_a_row():
    assert {ROWS[name][0] for name in DESCRIBED} == set(families())
